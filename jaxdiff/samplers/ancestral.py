"""Ancestral sampling: draw x_s from q(x_s | x_t, x_0) at the predicted x_0 (Ho et al. 2020, algorithm 2).

It holds for any path and any grid: on a respaced grid the transition between kept times is the respaced chain
(Nichol & Dhariwal 2021, section 4). The variance of the reverse step is `v sigma_s^2 / sigma_t^2` ("small", DDPM's
beta-tilde), `v` ("large", DDPM's beta), or a learned mixture of their logarithms ("learned", iDDPM eq. 15), with v
the variance of q(x_t | x_s).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State, start
from jaxdiff.sde import grids
from jaxdiff.sde.kernels import posterior, transition_coefficients
from jaxdiff.trees import expand, noise_like, over
from jaxdiff.types import Array, Key, Path

VARIANCES = ("small", "large", "learned")


def reverse_std(variance: str, path: Any, small: Any, var_mix: Any, t: Any, s: Any) -> Any:
    """Standard deviation of the reverse step; `small` is the posterior's, `var_mix` in [0, 1] for "learned"."""
    if variance == "small":
        return small

    def large(p: Path, std: Array) -> Array:
        return expand(jnp.sqrt(transition_coefficients(p, s, t)[1]), std)

    if variance == "large":
        return over(large, path, small)
    if var_mix is None:
        raise ValueError("ancestral(variance='learned') got a prediction without var_mix; mend: a network trained with "
                         "learned_variance, or variance='small'")

    def mixed(p: Path, std: Array, share: Array) -> Array:
        # at the last step the small one is 0: a floor keeps its logarithm finite, and no noise is kept there anyway
        tiny = jnp.finfo(share.dtype).tiny
        return jnp.exp(share * jnp.log(large(p, std)) + (1 - share) * jnp.log(jnp.maximum(std, tiny)))

    return over(mixed, path, small, var_mix)


@cache
def ancestral(variance: str = "small") -> Sampler:
    """DDPM's sampler; one network call a step. `variance`: "small", "large" or "learned"."""
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; allowed: {', '.join(VARIANCES)}")

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        prediction = model.predict(state.x, t)
        mean, small = posterior(path, state.x, prediction.x0, t, s)
        std = reverse_std(variance, path, small, prediction.var_mix, t, s)
        noise = noise_like(key, mean)
        x = over(lambda _, m, d, z: m + d * z, path, mean, std, noise)
        return state._replace(x=x, mean=mean)

    return Sampler(start, step, grids.natural)
