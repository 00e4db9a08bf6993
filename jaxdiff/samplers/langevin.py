"""Predictor-corrector sampling (Song et al. 2021, algorithms 2-5): Langevin steps at t, then a predictor from t to s.

The corrector moves x by h score + sqrt(2 h) z with h = 2 a (snr r)^2, r = E|z| / E|score|, and a = (alpha_t / alpha_s)^2
(1 for VE, 1 - beta_i for a VP chain). Norms are averaged over the batch and E|z| is fixed at sqrt(D): per-example norms
bias the result by 4 % at D = 64 and diverge for D <= 2, so they are an option only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import score, transition_coefficients
from jaxdiff.trees import expand, noise_like, over
from jaxdiff.types import Array, Key, Path


@cache
def langevin(snr: float = 0.16, num_steps: int = 1, per_example: bool = False) -> Sampler:
    """A Langevin corrector: stays at t. Use it in `chain(langevin(snr), predictor)`; `num_steps` network calls a step."""
    if not snr > 0 or num_steps < 1:
        raise ValueError(f"langevin got snr={snr}, num_steps={num_steps}; allowed: snr above 0 and at least one step")

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        def move(p: Path, x: Array, grad: Array, z: Array) -> tuple[Array, Array]:
            a, _ = transition_coefficients(p, s, t)
            flat = grad.reshape(grad.shape[0], -1)
            norms = jnp.linalg.norm(flat, axis=1)
            r = jnp.sqrt(flat.shape[1]).astype(x.dtype) / (norms if per_example else norms.mean())
            h = expand(2 * (snr * r) ** 2, x) * expand(a**2, x)
            mean = x + h * grad
            return mean, mean + jnp.sqrt(2 * h) * z

        x = mean = state.x
        for i in range(num_steps):
            x = model.observe(x, t) if i else x
            slope = score(path, model.predict(x, t), t)
            both = over(move, path, x, slope, noise_like(jax.random.fold_in(key, i), x))
            mean, x = (over(lambda _, pair, k=k: pair[k], path, both) for k in (0, 1))
        return state._replace(x=x, mean=mean)

    return Sampler(start, step, grids.natural, lambda n: n * num_steps)


@cache
def chain(*samplers: Sampler) -> Sampler:
    """Run samplers one after another in every step, each from t to s: correctors first, then one predictor.

    The natural grid is the last one's, and the noise-free mean is the last one's.
    """
    if len(samplers) < 2:
        raise ValueError(f"chain got {len(samplers)} sampler(s); allowed: correctors, then a predictor, at least two")

    def init(x_T: Any, grid: Array) -> State:
        return start(x_T, grid, tuple(one.init(x_T, grid).memory for one in samplers))

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        memories = []
        for i, (one, memory) in enumerate(zip(samplers, state.memory, strict=True)):
            inner = state._replace(x=model.observe(state.x, t) if i else state.x, memory=memory)
            state = one.step(jax.random.fold_in(key, i), inner, model, path, t, s)
            memories.append(state.memory)
        return state._replace(memory=tuple(memories))

    return Sampler(init, step, samplers[-1].grid, lambda n: sum(one.evaluations(n) for one in samplers))
