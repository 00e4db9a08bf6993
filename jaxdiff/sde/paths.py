"""Forward processes. Each is two scalar functions, `x_t = alpha(t) x_0 + sigma(t) eps`; kernels.py derives the rest.

Paths are frozen dataclasses of floats: hashable, so a jitted function may take one as a static argument, and equal when
their numbers are equal. A field may also be a traced array (a path that changes while training); then it is not checked
and not static.

`time_at` inverts the log signal-to-noise ratio where a closed form exists (kernels.time_at bisects otherwise), and
`c_noise` is how a network is told the time (the default is 1000 t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


def _check(ok: Any, message: str) -> None:
    """Refuse wrong constants; traced fields (no truth value yet) pass."""
    if not isinstance(ok, jax.core.Tracer) and not bool(ok):
        raise ValueError(message)


def _check_betas(name: str, beta_min: Any, beta_max: Any) -> None:
    _check(
        (beta_min >= 0) & (beta_max > beta_min),
        f"{name} got beta_min={beta_min}, beta_max={beta_max}; allowed: 0 <= beta_min < beta_max",
    )


def _linear_integral(beta_min: Any, beta_max: Any, t: Any) -> Any:
    """B(t), the integral from 0 to t of the rate beta_min + (beta_max - beta_min) t."""
    t = jnp.asarray(t)
    return t * (beta_min + 0.5 * t * (beta_max - beta_min))


def _time_of_integral(beta_min: Any, beta_max: Any, b: Any) -> Any:
    """The positive root of the quadratic B(t) = b, in the form that does not cancel for small b."""
    return 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * b))


@dataclass(frozen=True)
class VP:
    """Variance preserving, linear beta(t) (Song et al. 2021, eq. 32-33): log alpha = -B/2, sigma^2 = 1 - e^{-B}.

    `beta_min`, `beta_max` are rates per unit of time, `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`, t in [0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_betas("VP", self.beta_min, self.beta_max)

    def integral(self, t: Any) -> Any:
        """B(t), the integral of beta from 0 to t."""
        return _linear_integral(self.beta_min, self.beta_max, t)

    def alpha(self, t: Any) -> Any:
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t: Any) -> Any:
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def time_at(self, log_snr: Any) -> Any:
        b = jax.nn.softplus(-jnp.asarray(log_snr))  # e^B - 1 = 1 / SNR
        return _time_of_integral(self.beta_min, self.beta_max, b)


@dataclass(frozen=True)
class SubVP:
    """Sub-VP (Song et al. 2021, eq. 29): VP's alpha with sigma = 1 - e^{-B}, below VP's everywhere."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_betas("SubVP", self.beta_min, self.beta_max)

    def integral(self, t: Any) -> Any:
        """B(t), the integral of beta from 0 to t."""
        return _linear_integral(self.beta_min, self.beta_max, t)

    def alpha(self, t: Any) -> Any:
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t: Any) -> Any:
        return -jnp.expm1(-self.integral(t))

    def time_at(self, log_snr: Any) -> Any:
        b = 2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * jnp.asarray(log_snr)))  # 2 sinh(B / 2) = sigma / alpha
        return _time_of_integral(self.beta_min, self.beta_max, b)


@dataclass(frozen=True)
class VE:
    """Variance exploding (Song et al. 2021, eq. 31): alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in [0, 1].

    Sigmas are in units of the data; data in [-1, 1] needs twice the values published for [0, 1].
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check(
            (self.sigma_min > 0) & (self.sigma_max > self.sigma_min),
            f"VE got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; allowed: 0 < sigma_min < sigma_max",
        )

    def alpha(self, t: Any) -> Any:
        return jnp.ones_like(jnp.asarray(t, float))

    def sigma(self, t: Any) -> Any:
        return self.sigma_min * jnp.exp(jnp.asarray(t) * jnp.log(self.sigma_max / self.sigma_min))

    def time_at(self, log_snr: Any) -> Any:
        return (-0.5 * jnp.asarray(log_snr) - jnp.log(self.sigma_min)) / jnp.log(self.sigma_max / self.sigma_min)

    def c_noise(self, t: Any) -> Any:
        return jnp.log(self.sigma(t)) / 4


@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma = t (Karras et al. 2022, table 1): time is the noise level itself, in units of the data."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check(
            (self.sigma_min > 0) & (self.sigma_max > self.sigma_min),
            f"EDM got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; allowed: 0 < sigma_min < sigma_max",
        )

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Any) -> Any:
        return jnp.ones_like(jnp.asarray(t, float))

    def sigma(self, t: Any) -> Any:
        return jnp.asarray(t, float)

    def time_at(self, log_snr: Any) -> Any:
        return jnp.exp(-0.5 * jnp.asarray(log_snr))

    def c_noise(self, t: Any) -> Any:
        return jnp.log(jnp.asarray(t, float)) / 4


@dataclass(frozen=True)
class Flow:
    """Straight lines between data at t = 0 and noise at t = 1 (Lipman et al. 2023; Liu et al. 2023), alpha = 1 - t.

    `t_max` stops at .999, because an eps prediction is undefined at alpha = 0; 1 is allowed for x0, v, velocity and edm
    predictions with `ddim`, `ancestral` and `heun` on a uniform grid.
    """

    t_min: float = 1e-5
    t_max: float = 0.999

    def __post_init__(self) -> None:
        _check(
            (self.t_min > 0) & (self.t_max > self.t_min) & (self.t_max <= 1),
            f"Flow got t_min={self.t_min}, t_max={self.t_max}; allowed: 0 < t_min < t_max <= 1",
        )

    def alpha(self, t: Any) -> Any:
        return 1 - jnp.asarray(t, float)

    def sigma(self, t: Any) -> Any:
        return jnp.asarray(t, float)

    def time_at(self, log_snr: Any) -> Any:
        return jax.nn.sigmoid(-0.5 * jnp.asarray(log_snr))


@dataclass(frozen=True)
class Cosine:
    """Cosine alpha-bar in continuous time (Nichol & Dhariwal 2021, eq. 17), normalised so that alpha(0) = 1.

    `offset` is the paper's s; 0 gives alpha = cos(pi t / 2), sigma = sin(pi t / 2).
    """

    offset: float = 0.008
    t_min: float = 1e-5
    t_max: float = 0.999

    def __post_init__(self) -> None:
        _check(
            (self.t_min > 0) & (self.t_max > self.t_min) & (self.t_max <= 1),
            f"Cosine got t_min={self.t_min}, t_max={self.t_max}; allowed: 0 < t_min < t_max <= 1",
        )

    @property
    def _start(self) -> float:
        return self.offset / (1 + self.offset) * math.pi / 2

    def alpha(self, t: Any) -> Any:
        # the cosine of the angle as the sine of what is left of it: exactly 0 at t = 1
        left = (1 - jnp.asarray(t, float)) / (1 + self.offset) * math.pi / 2
        return jnp.sin(left) / math.cos(self._start)

    def sigma(self, t: Any) -> Any:
        # 1 - alpha^2 as a product of sines: exact near t = 0, where the difference of squares would cancel
        turned = jnp.asarray(t, float) / (1 + self.offset) * math.pi / 2
        return jnp.sqrt(jnp.sin(turned) * jnp.sin(turned + 2 * self._start)) / math.cos(self._start)
