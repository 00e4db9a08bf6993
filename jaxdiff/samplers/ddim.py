"""DDIM (Song, Meng & Ermon 2021, eq. 12): keep the predicted pair, move it to the next time.

x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d z,   d = eta * (the posterior's standard deviation)

`eta=0` is the probability-flow ODE, Euler in sigma / alpha: first order. `eta=1` is ancestral sampling. Time s may be 0.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import posterior
from jaxdiff.trees import expand, noise_like, over
from jaxdiff.types import Array, Key, Path


def move(path: Any, x0: Any, eps: Any, s: Any) -> Any:
    """alpha_s x0 + sigma_s eps."""
    return over(lambda p, x, e: expand(p.alpha(s), x) * x + expand(p.sigma(s), e) * e, path, x0, eps)


@cache
def ddim(eta: float = 0.0) -> Sampler:
    """DDIM with noise share `eta` in [0, 1]; one network call a step."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; allowed: from 0 (deterministic) to 1 (ancestral)")

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        prediction = model.predict(state.x, t)
        if eta == 0:
            x = move(path, prediction.x0, prediction.eps, s)
            return state._replace(x=x, mean=x)
        _, std = posterior(path, state.x, prediction.x0, t, s)

        def one(p: Path, x0: Array, eps: Array, d: Array) -> Array:
            rest = jnp.sqrt(jnp.maximum(expand(p.sigma(s), eps) ** 2 - (eta * d) ** 2, 0))
            return expand(p.alpha(s), x0) * x0 + rest * eps

        mean = over(one, path, prediction.x0, prediction.eps, std)
        x = over(lambda _, m, d, z: m + eta * d * z, path, mean, std, noise_like(key, mean))
        return state._replace(x=x, mean=mean)

    return Sampler(start, step, grids.natural)
