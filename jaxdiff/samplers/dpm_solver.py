"""DPM-Solver++ 2M and its SDE form (Lu et al. 2022b, algorithm 2 and eq. 19): exponential integrators in log-SNR.

With l = log(alpha / sigma), h = l_s - l_t and D the predicted x0, extrapolated from the last two predictions,

    ODE: x_s = (sigma_s / sigma_t) x - alpha_s (e^{-h} - 1) D                         second order
    SDE: x_s = (sigma_s / sigma_t) e^{-h} x + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z

The first step is first order; so is a step to sigma = 0, where h is infinite and both give alpha_s D.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import needs_signal
from jaxdiff.trees import expand, noise_like, over
from jaxdiff.types import Array, Key, Path


def half_log_snr(path: Path, t: Any) -> Array:
    """l = log(alpha / sigma), with a floor under sigma so that t = 0 is a large finite number."""
    sigma = path.sigma(t)
    return jnp.log(path.alpha(t)) - jnp.log(jnp.maximum(sigma, jnp.finfo(sigma.dtype).tiny))


@cache
def dpm_solver(order: int = 2, sde: bool = False) -> Sampler:
    """DPM-Solver++ multistep of order 1 or 2, deterministic or as an SDE; one network call a step; log-SNR grid."""
    if order not in (1, 2):
        raise ValueError(f"order is {order}; allowed: 1, 2 (higher orders: unipc)")

    def init(x_T: Any, grid: Array) -> State:
        return start(x_T, grid, (x_T, grid[0]))  # the last prediction and its time

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        needs_signal(path, "DPM-Solver++")
        prediction = model.predict(state.x, t)
        before, t_before = state.memory

        def one(p: Path, x: Array, clean: Array, clean_before: Array) -> tuple[Array, Array]:
            sigma_t, sigma_s, alpha_s = p.sigma(t), p.sigma(s), p.alpha(s)
            h = half_log_snr(p, s) - half_log_snr(p, t)
            h_before = half_log_snr(p, t) - half_log_snr(p, t_before)
            second = (state.index > 0) & (sigma_s > 0) & (order == 2)
            share = jnp.where(second, 0.5 * h / jnp.where(second, h_before, 1), 0)  # 1 / (2 r), r = h_before / h
            extrapolated = clean + expand(share, x) * (clean - clean_before)
            decay = sigma_s / sigma_t * (jnp.exp(-h) if sde else 1)
            gain = -alpha_s * jnp.expm1(-2 * h if sde else -h)
            mean = expand(decay, x) * x + expand(gain, x) * extrapolated
            std = sigma_s * jnp.sqrt(-jnp.expm1(-2 * h)) if sde else jnp.zeros_like(sigma_s)
            return mean, expand(std, x)

        both = over(one, path, state.x, prediction.x0, before)
        mean, std = (over(lambda _, pair, k=k: pair[k], path, both) for k in (0, 1))
        x = over(lambda _, m, d, z: m + d * z, path, mean, std, noise_like(key, mean)) if sde else mean
        return state._replace(x=x, mean=mean, memory=(prediction.x0, t))

    return Sampler(init, step, grids.log_snr)
