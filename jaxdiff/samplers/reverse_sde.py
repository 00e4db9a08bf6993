"""Samplers of the reverse SDE dx = (f x - g^2 score) dt + g dw (Song et al. 2021).

`euler_maruyama` steps the equation itself; `reverse_diffusion` (their algorithms 2-3) steps the chain that the forward
transition defines, x_t = a x_s + sqrt(v) z, so its reverse mean is (2 - a) x + v score. Strong order 1/2 and weak order 1,
Ito. The noise-free mean of the last step is what `sample` returns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import diffusion, drift, needs_signal, score, transition_coefficients
from jaxdiff.trees import expand, noise_like, over, unzip
from jaxdiff.types import Array, Key, Path


def _finish(key: Key, state: State, path: Any, mean: Any, std: Any) -> State:
    x = over(lambda _, m, d, z: m + expand(d, m) * z, path, mean, std, noise_like(key, mean))
    return state._replace(x=x, mean=mean)


@cache
def euler_maruyama() -> Sampler:
    """Euler-Maruyama on the reverse SDE; one network call a step."""

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        needs_signal(path, "the drift of the reverse SDE")
        slope = score(path, model.predict(state.x, t), t)
        forward, g = drift(path, state.x, t), diffusion(path, t)

        def one(_: Path, x: Array, f: Array, grad: Array, rate: Array) -> Array:
            return x + expand(s - t, x) * (f - expand(rate**2, x) * grad)

        mean = over(one, path, state.x, forward, slope, g)
        return _finish(key, state, path, mean, over(lambda _, rate: rate * jnp.sqrt(t - s), path, g))

    return Sampler(start, step, grids.natural)


@cache
def reverse_diffusion() -> Sampler:
    """The reverse-diffusion predictor; one network call a step."""

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        needs_signal(path, "the reverse-diffusion predictor")
        slope = score(path, model.predict(state.x, t), t)

        def one(p: Path, x: Array, grad: Array) -> tuple[Array, Array]:
            a, v = transition_coefficients(p, s, t)
            return expand(2 - a, x) * x + expand(v, x) * grad, jnp.sqrt(v)

        mean, std = unzip(path, over(one, path, state.x, slope), 2)
        return _finish(key, state, path, mean, std)

    return Sampler(start, step, grids.natural)
