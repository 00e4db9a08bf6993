"""Sampling-time grids: `(path, num_steps) -> num_steps + 1` times, descending from t_max.

A grid that is given no `t_end` stops at t_min, and on a clock of [0, 1] not below 1e-3: networks see times down to t_min
in training and in likelihoods, but sampling gains nothing there (Song et al. 2021, appendix C). `karras` and `discrete`
go on to t = 0, where the path is noise-free. Grids are arrays of the default float dtype; a dict of paths uses its clock.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, needs_signal, time_at
from jaxdiff.sde.kernels import log_snr as log_snr_of
from jaxdiff.trees import clock
from jaxdiff.types import Array


def _check(num_steps: int) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; allowed: a whole number from 1")


def _ends(path: Any, t_end: float | None) -> tuple[Any, Any]:
    p = clock(path)
    floor = 1e-3 if p.t_max <= 1 else 0.0  # EDM's clock is the noise level, a Discrete path's counts steps
    end = max(p.t_min, floor) if t_end is None else t_end
    if not 0 <= end < p.t_max:
        raise ValueError(f"t_end is {end}; allowed: from 0 up to, not including, t_max = {p.t_max}")
    return p.t_max, end


def uniform(path: Any, num_steps: int, t_end: float | None = None) -> Array:
    """Equal steps in t."""
    _check(num_steps)
    return jnp.linspace(*_ends(path, t_end), num_steps + 1)


def log_snr(path: Any, num_steps: int, t_end: float | None = None) -> Array:
    """Equal steps in log-SNR, the natural grid of exponential integrators (Lu et al. 2022)."""
    _check(num_steps)
    needs_signal(path, "a log-SNR grid")
    start, end = _ends(path, t_end)
    times = time_at(path, jnp.linspace(log_snr_of(path, start), log_snr_of(path, end), num_steps + 1))
    return times.at[0].set(start).at[-1].set(end)


def karras(path: Any, num_steps: int, t_end: float | None = None, rho: float = 7.0) -> Array:
    """EDM's grid (Karras et al. 2022, eq. 5): equal steps in (sigma / alpha)^(1/rho), then a last step to t = 0.

    Where the path never becomes noise-free (VE: sigma(0) = sigma_min) the last time is t_end instead.
    """
    _check(num_steps)
    needs_signal(path, "a Karras grid")
    p = clock(path)
    start, end = _ends(path, t_end)
    with jax.ensure_compile_time_eval():
        to_zero = float(p.sigma(as_time(0.0))) == 0.0
    count = num_steps if to_zero else num_steps + 1
    noise = jnp.exp(-0.5 * log_snr_of(p, jnp.asarray([start, end], float)))
    ramp = jnp.linspace(0, 1, count) if count > 1 else jnp.zeros(1)
    sigmas = (noise[0] ** (1 / rho) + ramp * (noise[1] ** (1 / rho) - noise[0] ** (1 / rho))) ** rho
    times = time_at(p, -2 * jnp.log(sigmas)).at[0].set(start)
    return jnp.append(times, 0.0) if to_zero else times.at[-1].set(end)


def discrete(path: Any, num_steps: int | None = None) -> Array:
    """A Discrete path's own times T, ..., 1, 0, or `num_steps` of them evenly respaced (Nichol & Dhariwal 2021, s. 4)."""
    p = clock(path)
    total = getattr(p, "num_steps", None)
    if total is None:
        raise ValueError(f"grids.discrete got {p}; allowed: a Discrete path (others: uniform, karras, log_snr)")
    num_steps = total if num_steps is None else num_steps
    _check(num_steps)
    if num_steps > total:
        raise ValueError(f"num_steps is {num_steps}; allowed: up to the {total} steps that the path has")
    return jnp.round(jnp.linspace(float(total), 0.0, num_steps + 1))


def natural(path: Any, num_steps: int) -> Array:
    """The grid of a path's own clock: a Discrete path's times, equal steps of a clock on [0, 1], else Karras'.

    On EDM's clock, which is the noise level, equal steps would leave the data's scale to the last of them.
    """
    p = clock(path)
    if hasattr(p, "num_steps"):
        return discrete(path, num_steps)
    return uniform(path, num_steps) if p.t_max <= 1 else karras(path, num_steps)
