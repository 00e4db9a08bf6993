"""A second variable on the clock of the first, diffused more slowly: what CMDE does to its condition.

Batzolis et al. 2021 give y its own sigma, sigma_y(t) = sigma_min_y (sigma_max_y / sigma_min_y)^t beside x's VE path. Said
without VE, that is: the logarithm of y's noise level sigma / alpha is an affine function of the logarithm of x's. So y
follows x's own process, at the time at which that process is as noisy as y is meant to be; this holds for every path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, log_snr, needs_signal, time_at
from jaxdiff.types import Array


def noise_level(path: Any, t: Any) -> Array:
    """sigma / alpha at t, of the clock's path: what VE and EDM call sigma."""
    return jnp.exp(-0.5 * log_snr(path, t))


@dataclass(frozen=True)
class Slower:
    """`path`, run so that its noise level sigma / alpha goes from `sigma_min` at t_min to `sigma_max` at t_max.

    With `sigma_max` that of `path` it is `path` (CDiffE); towards 0 the variable stays clean (CDE). `sigma_min` None is
    the smaller of the path's own and sigma_max / 10. Levels are in units of the data, for data in [-1, 1] twice the
    values published for [0, 1]. `sigma_max` may be a traced number (VS-CMDE).
    """

    path: Any
    sigma_max: Any = 1.0
    sigma_min: float | None = None

    def __post_init__(self) -> None:
        needs_signal(self.path, "a slower second variable")
        low = 0 if self.sigma_min is None else self.sigma_min
        if not isinstance(self.sigma_max, jax.core.Tracer) and not 0 <= low < self.sigma_max:
            raise ValueError(f"Slower got sigma_max={self.sigma_max}, sigma_min={self.sigma_min}; allowed: 0 < sigma_min < "
                             "sigma_max, noise levels sigma / alpha")

    @property
    def t_min(self) -> float:
        return self.path.t_min

    @property
    def t_max(self) -> float:
        return self.path.t_max

    def time(self, t: Any) -> Array:
        """The time at which `path` is as noisy as this variable is at t."""
        p = self.path
        low, high = (-0.5 * log_snr(p, end) for end in (p.t_min, p.t_max))
        least = jnp.minimum(jnp.exp(low), self.sigma_max / 10) if self.sigma_min is None else self.sigma_min
        to_low, to_high = jnp.log(least), jnp.log(self.sigma_max)
        share = (-0.5 * log_snr(p, t) - low) / (high - low)
        return time_at(p, -2 * (to_low + share * (to_high - to_low)))

    def alpha(self, t: Any) -> Any:
        return self.path.alpha(self.time(as_time(t)))

    def sigma(self, t: Any) -> Any:
        return self.path.sigma(self.time(as_time(t)))


def falling(step: Any, start: float, target: float, horizon: int) -> Array:
    """VS-CMDE's sigma_max of y after `step` training steps: K s* s0 / (n (s0 - s*) + K s*), from s0 = `start` down to
    s* = `target` at n = K = `horizon`, and s* from there on (Batzolis et al. 2021, appendix; their code falls on)."""
    n = jnp.minimum(jnp.asarray(step, float), horizon)
    return horizon * target * start / (n * (start - target) + horizon * target)
