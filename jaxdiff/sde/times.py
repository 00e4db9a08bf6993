"""Training-time draws: `draw(path, key, index) -> t`, `[B]`, one independent key per example of the global batch.

`index` int32 `[B]` numbers the examples in the global batch, so that one device, many devices and accumulated
micro-batches draw the same times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import time_at
from jaxdiff.trees import clock, example_keys
from jaxdiff.types import Array, Key

TimeDraw = Callable[[Any, Key, Array], Array]

# The golden ratio's fractional part times 2^32: its multiples fill [0, 1) evenly for any count, and in whole numbers they
# wrap around without losing digits, however large the index.
_GOLDEN = 2654435769


def _uniforms(key: Key, index: Array) -> Array:
    return jax.vmap(jax.random.uniform)(example_keys(key, index))


def _normals(key: Key, index: Array) -> Array:
    return jax.vmap(jax.random.normal)(example_keys(key, index))


def _between(path: Any, share: Array) -> Array:
    p = clock(path)
    return p.t_min + share * (p.t_max - p.t_min)


@cache
def uniform() -> TimeDraw:
    """t ~ U[t_min, t_max]."""
    return lambda path, key, index: _between(path, _uniforms(key, index))


@cache
def low_discrepancy() -> TimeDraw:
    """Uniform times that cover the interval evenly within a batch (Kingma et al. 2021, appendix I.1).

    Example i takes (u + i phi) mod 1 with one shared u: uniform for each example, evenly spread over the batch, and
    independent of how the batch is cut into devices.
    """

    def draw(path: Any, key: Key, index: Array) -> Array:
        turns = index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
        return _between(path, (jax.random.uniform(key) + turns.astype(float) * 2.0**-32) % 1.0)

    return draw


@cache
def lognormal(mean: float = -1.2, std: float = 1.2) -> TimeDraw:
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), clipped to the path's times."""

    def draw(path: Any, key: Key, index: Array) -> Array:
        p = clock(path)
        t = time_at(p, -2 * (mean + std * _normals(key, index)))
        return jnp.clip(t, p.t_min, p.t_max)

    return draw


@cache
def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDraw:
    """logit(t) ~ N(mean, std^2) on [t_min, t_max] (Esser et al. 2024, eq. 19): more of the middle."""
    return lambda path, key, index: _between(path, jax.nn.sigmoid(mean + std * _normals(key, index)))


@cache
def discrete(num_steps: int | None = None) -> TimeDraw:
    """t ~ U{1, ..., T} on a Discrete path; on another path, one of the `num_steps` noisy times of its uniform grid."""

    def draw(path: Any, key: Key, index: Array) -> Array:
        p = clock(path)
        steps = num_steps or getattr(p, "num_steps", None)
        if steps is None:
            raise ValueError(f"times.discrete() on {p} needs num_steps; allowed: a count, or a Discrete path's own T")
        k = jax.vmap(lambda one: jax.random.randint(one, (), 1, steps + 1))(example_keys(key, index))
        floor = 0.0 if hasattr(p, "num_steps") else max(p.t_min, 1e-3)
        return floor + k * ((p.t_max - floor) / steps)

    return draw
