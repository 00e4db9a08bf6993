"""Exact denoisers: for Gaussian and Gaussian-mixture data the optimal prediction is a closed form on every path."""

import jax
import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff.trees import expand


def gaussian(path, mean, std):
    """Data N(mean, std^2) per dimension: x_t ~ N(alpha mean, c), c = alpha^2 std^2 + sigma^2."""

    def denoise(key, x_t, t, cond=None):
        alpha, sigma = expand(path.alpha(t), x_t), expand(path.sigma(t), x_t)
        c = alpha**2 * std**2 + sigma**2
        centred = x_t - alpha * mean
        return jd.Prediction(mean + alpha * std**2 / c * centred, sigma / c * centred)

    return denoise


def mixture(path, means, std, weights):
    """Data sum_k w_k N(mu_k, std^2), means [K, D]; x_t is [B, D]."""
    means, weights = jnp.asarray(means), jnp.asarray(weights)

    def denoise(key, x_t, t, cond=None):
        alpha, sigma = expand(path.alpha(t), x_t), expand(path.sigma(t), x_t)
        c = alpha**2 * std**2 + sigma**2
        centred = x_t[:, None] - alpha[..., None] * means if alpha.ndim == 2 else x_t[:, None] - alpha * means  # [B, K, D]
        logits = jnp.log(weights) - 0.5 * (centred**2).sum(-1) / c.reshape(-1, 1)
        share = jax.nn.softmax(logits, axis=1)[..., None]
        centred = (share * centred).sum(1)
        mean = (share * means).sum(1)
        return jd.Prediction(mean + alpha * std**2 / c * centred, sigma / c * centred)

    return denoise


def through(path, denoise, parameterization):
    """A denoiser that passes the exact prediction through a parameterisation's raw space and back."""

    def wrapped(key, x_t, t, cond=None):
        prediction = denoise(key, x_t, t, cond)
        raw = parameterization.target(path, prediction.x0, prediction.eps, t)
        return parameterization.predict(path, raw, x_t, t)

    return wrapped


def marginal_std(path, std, t):
    return jnp.sqrt(path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2)


class AnyPath:
    """A path chosen by a traced number, so that one compiled sampler can be run on every path."""

    def __init__(self, paths, number):
        self.paths, self.number = tuple(paths), number

    def _chosen(self, values):
        return jnp.stack([jnp.asarray(value, float) for value in values])[self.number]

    def alpha(self, t):
        return self._chosen(path.alpha(t) for path in self.paths)

    def sigma(self, t):
        return self._chosen(path.sigma(t) for path in self.paths)

    def time_at(self, log_snr):
        return self._chosen(jd.sde.time_at(path, log_snr) for path in self.paths)

    @property
    def t_max(self):
        return self._chosen(path.t_max for path in self.paths)

    @property
    def t_min(self):
        return self._chosen(path.t_min for path in self.paths)
