"""EDM's second-order sampler (Karras et al. 2022, algorithms 1 and 2), for any path.

d = dx/dt at (x, t);  x' = x + (s - t) d;  then, unless sigma(s) = 0, the trapezium x + (s - t)(d + d') / 2 with d' at
(x', s). Second order; 2 N - 1 network calls on a grid that ends at sigma = 0. With churn, noise is first added to raise
the level sigma / alpha by 1 + gamma, gamma = min(churn / N, sqrt 2 - 1), inside [churn_min, churn_max], but never beyond
t_max. The observe hook is asked again at the raised level and at (x', s).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import log_snr, needs_signal, time_at, transition_coefficients, velocity
from jaxdiff.trees import clock, expand, noise_like, over
from jaxdiff.types import Array, Key, Path


def _raise_noise(
    key: Key, x: Any, path: Any, t: Any, gamma: Any, noise_scale: float
) -> tuple[Any, Any]:
    """Forward-diffuse x from t to the time whose sigma / alpha is 1 + gamma times larger; never beyond t_max."""
    higher = jnp.minimum(time_at(path, log_snr(path, t) - 2 * jnp.log1p(gamma)), clock(path).t_max).astype(t.dtype)
    higher = jnp.maximum(higher, t)

    def one(p: Path, value: Array, z: Array) -> Array:
        a, v = transition_coefficients(p, t, higher)
        return expand(a, value) * value + noise_scale * expand(jnp.sqrt(v), value) * z

    return over(one, path, x, noise_like(key, x)), higher


@cache
def heun(
    churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf, noise_scale: float = 1.0
) -> Sampler:
    """EDM's sampler: deterministic by default, stochastic with `churn` > 0 (S_churn, S_tmin, S_tmax, S_noise)."""
    if churn < 0 or noise_scale <= 0 or churn_min > churn_max:
        raise ValueError(f"heun got churn={churn}, churn_min={churn_min}, churn_max={churn_max}, noise_scale={noise_scale}; "
                         "allowed: churn >= 0, churn_min <= churn_max, noise_scale > 0")

    def init(x_T: Any, grid: Array) -> State:
        return start(x_T, grid, jnp.asarray(min(churn / (grid.shape[0] - 1), math.sqrt(2) - 1), grid.dtype))

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        x = state.x
        if churn > 0:
            needs_signal(path, "churn")
            level = jnp.exp(-0.5 * log_snr(path, t))
            gamma = jnp.where((level >= churn_min) & (level <= churn_max), state.memory, 0)
            x, t = _raise_noise(key, x, path, t, gamma, noise_scale)
            x = model.observe(x, t)
        slope = velocity(path, model.predict(x, t), t)

        def advance(rate: Any) -> Any:
            return over(lambda _, value, d: value + expand(s - t, value) * d, path, x, rate)

        def trapezium(guess: Any) -> Any:
            slope_s = velocity(path, model.predict(model.observe(guess, s), s), s)
            return advance(over(lambda _, d, e: 0.5 * (d + e), path, slope, slope_s))

        new = jax.lax.cond(clock(path).sigma(s) > 0, trapezium, lambda guess: guess, advance(slope))
        return state._replace(x=new, mean=new)

    return Sampler(init, step, grids.karras, lambda n: 2 * n - 1)
