"""UniPC (Zhao et al. 2023): a predictor and a corrector of order p that share every network call, B(h) = e^h - 1 ("bh2").

Data-prediction form. With l = log(alpha / sigma), h = l_s - l_t and nodes r_k = (l_k - l_t) / h at earlier times,
differences d_k = (D_k - D_t) / r_k and phi-moments b, both parts are

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D_t - alpha_s B sum_k rho_k d_k,   R rho = b

where the corrector's nodes include r = 1, the prediction at s: it is applied at the start of the next step, when that
prediction is made anyway. Order p + 1 with the corrector; one network call a step. The first steps, and a step to
sigma = 0, use what history they have.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.samplers.dpm_solver import half_log_snr
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import needs_signal
from jaxdiff.trees import expand, over
from jaxdiff.types import Array, Key, Path


def _moments(h: Any, count: int) -> tuple[Any, list[Any]]:
    """B(-h) and the right-hand sides b_1..b_count of the order conditions, for the step -h of data prediction."""
    hh = -h
    b_h = jnp.expm1(hh)
    phi, factorial, sides = b_h / hh - 1, 1.0, []
    for k in range(1, count + 1):
        factorial *= k
        sides.append(phi * factorial / b_h)
        phi = phi / hh - 1 / (factorial * (k + 1))
    return b_h, sides


def _weights(nodes: list[Any], sides: list[Any]) -> list[Any]:
    """Solve the Vandermonde system sum_k rho_k r_k^(i-1) = b_i."""
    if not nodes:
        return []
    powers = jnp.stack([jnp.stack([node**i for node in nodes]) for i in range(len(nodes))])
    solution = jnp.linalg.solve(powers, jnp.stack(sides[: len(nodes)]))
    return [solution[k] for k in range(len(nodes))]


def _update(p: Path, x: Array, t: Any, s: Any, current: Array, times: list[Any], clean: list[Array]) -> Array:
    """One step from t to s with the prediction `current` at t and others `clean` at `times` (earlier, or s itself)."""
    l_t, l_s = half_log_snr(p, t), half_log_snr(p, s)
    h = l_s - l_t
    nodes = [(half_log_snr(p, u) - l_t) / h for u in times]
    b_h, sides = _moments(h, len(nodes))
    alpha_s = p.alpha(s)
    new = expand(p.sigma(s) / p.sigma(t), x) * x - expand(alpha_s * b_h, x) * current
    # with one node the published solver takes the weight 1/2, which is the limit h -> 0 of its condition
    weights = [jnp.asarray(0.5, l_t.dtype)] if len(nodes) == 1 else _weights(nodes, sides)
    for rho, r, d in zip(weights, nodes, clean, strict=True):
        new = new - expand(alpha_s * b_h * rho / r, x) * (d - current)
    return new


@cache
def unipc(order: int = 2) -> Sampler:
    """UniPC-p, p = 2 or 3, with its corrector; one network call a step; log-SNR grid."""
    if order not in (2, 3):
        raise ValueError(f"order is {order}; allowed: 2, 3")

    def init(x_T: Any, grid: Array) -> State:
        history = ([x_T] * order, [grid[0]] * order)  # predictions and times, newest first
        return start(x_T, grid, (x_T, *history))

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        del key
        needs_signal(path, "UniPC")
        x_before, clean, times = state.memory
        current = model.predict(state.x, t).x0

        def correct(count: int) -> Any:
            # redo the step times[0] -> t with the new prediction as its last node
            others = list(range(1, count))
            return lambda: over(
                lambda p, x, new, *old: _update(
                    p, x, times[0], t, old[0], [times[k] for k in others] + [t], [old[k] for k in others] + [new]
                ),
                path, x_before, current, *clean,
            )

        def predict(count: int) -> Any:
            return lambda x: over(
                lambda p, value, new, *old: _update(
                    p, value, t, s, new, [times[k] for k in range(count - 1)], [old[k] for k in range(count - 1)]
                ),
                path, x, current, *clean,
            )

        corrections = [lambda: state.x] + [correct(k) for k in range(1, order + 1)]
        x = jax.lax.switch(jnp.minimum(state.index, order), corrections)
        x = model.observe(x, t)
        known = jnp.minimum(state.index + 1, order)
        to_noise = jnp.stack(jax.tree.leaves(over(lambda p: p.sigma(s), path))).min() > 0
        new = jax.lax.switch(jnp.where(to_noise, known - 1, 0), [predict(k) for k in range(1, order + 1)], x)
        memory = (x, [current, *clean[:-1]], [t, *times[:-1]])
        return state._replace(x=new, mean=new, memory=memory)

    return Sampler(init, step, grids.log_snr)
