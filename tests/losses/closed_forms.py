"""Every path's alpha, sigma and g^2 again, written in numpy from the papers, and the loss of an exact denoiser."""

from typing import Any, NamedTuple

import numpy as np

import jaxdiff as jd

STEPS = 40


class Row(NamedTuple):
    """A path, its coefficients as numpy functions of t, and times near the data, in the middle and near the noise."""

    path: Any
    alpha: Any
    sigma: Any
    g2: Any
    times: tuple[float, float, float]


def _vp_integral(t):
    return 0.1 * t + 0.5 * 19.9 * t**2


def _vp_rate(t):
    return 0.1 + 19.9 * t


_BETAS = np.linspace(0.01, 0.3, STEPS)
_DISCRETE = jd.sde.Discrete(_BETAS)
_BAR = np.concatenate([[1.0], np.cumprod(1 - _BETAS)])


def _bar(t):
    return _BAR[np.asarray(t).astype(int)]


def _discrete_g2(t):
    """-d log alpha-bar / dt of the interpolant, by a central difference (it holds for every variance-preserving path)."""
    return -(_DISCRETE.log_alpha_bar(t + 1e-4) - _DISCRETE.log_alpha_bar(t - 1e-4)) / 2e-4


_S = 0.008
_ANGLE = np.pi / 2 / (1 + _S)


def _cosine_alpha(t):
    return np.cos((t + _S) * _ANGLE) / np.cos(_S * _ANGLE)


ROWS = {
    "VP": Row(
        jd.sde.VP(),
        lambda t: np.exp(-0.5 * _vp_integral(t)),
        lambda t: np.sqrt(1 - np.exp(-_vp_integral(t))),
        _vp_rate,
        (0.05, 0.4, 0.9),
    ),
    "SubVP": Row(
        jd.sde.SubVP(),
        lambda t: np.exp(-0.5 * _vp_integral(t)),
        lambda t: 1 - np.exp(-_vp_integral(t)),
        lambda t: _vp_rate(t) * (1 - np.exp(-2 * _vp_integral(t))),
        (0.05, 0.4, 0.9),
    ),
    "VE": Row(
        jd.sde.VE(0.01, 50.0),
        lambda t: np.ones_like(t),
        lambda t: 0.01 * 5000.0**t,
        lambda t: 2 * np.log(5000.0) * (0.01 * 5000.0**t) ** 2,
        (0.1, 0.5, 0.9),
    ),
    "EDM": Row(
        jd.sde.EDM(), lambda t: np.ones_like(t), lambda t: t, lambda t: 2 * t, (0.05, 0.7, 20.0)
    ),
    "Flow": Row(
        jd.sde.Flow(), lambda t: 1 - t, lambda t: t, lambda t: 2 * t / (1 - t), (0.05, 0.5, 0.95)
    ),
    "Cosine": Row(
        jd.sde.Cosine(),
        _cosine_alpha,
        lambda t: np.sqrt(1 - _cosine_alpha(t) ** 2),
        lambda t: 2 * _ANGLE * np.tan((t + _S) * _ANGLE),
        (0.05, 0.5, 0.95),
    ),
    "Discrete": Row(
        _DISCRETE, lambda t: np.sqrt(_bar(t)), lambda t: np.sqrt(1 - _bar(t)), _discrete_g2, (1.0, 12.0, 38.0)
    ),
}

PARAMETERIZATIONS = ("eps", "x0", "v", "velocity", "edm")


def raw_per_x0(name, row, t, sigma_data=0.5):
    """|raw error|^2 / |x0 error|^2 at t: both errors keep alpha x0 + sigma eps = x_t, so d eps = -(alpha / sigma) d x0.

    For the velocity, alpha' - sigma' alpha / sigma = alpha d(log SNR)/dt / 2, and d(log SNR)/dt = -g^2 / sigma^2.
    """
    alpha, sigma = row.alpha(t), row.sigma(t)
    return {
        "eps": (alpha / sigma) ** 2,
        "x0": 1.0,
        "v": (alpha**2 / sigma + sigma) ** 2,
        "velocity": (alpha * row.g2(t) / (2 * sigma**2)) ** 2,
        "edm": (sigma**2 + alpha**2 * sigma_data**2) / (sigma * sigma_data) ** 2,
    }[name]


def posterior_variance(row, t, std):
    """Var(x0 | x_t) for data of standard deviation `std`: the x0 error of the exact denoiser."""
    alpha, sigma = row.alpha(t), row.sigma(t)
    return std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)


def exact_apply(path, parameterization, t, denoise):
    """A network that answers `denoise` at the time t, in `parameterization`'s raw space; built with scale_input=False."""

    def apply_fn(params, net_x, c_noise, cond):
        prediction = denoise(None, net_x, t)
        return parameterization.target(path, prediction.x0, prediction.eps, t)

    return apply_fn


def at(t):
    """Training times that are all t."""
    return lambda path, key, index: index * 0 + t
