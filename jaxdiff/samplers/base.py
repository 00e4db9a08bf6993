"""The sampler contract, and the one loop that drives every sampler.

A sampler is two pure functions and the grid that suits it. `sample` runs any of them in a single `lax.scan`, so that a
sampler may be jitted, vmapped over keys, differentiated, or called inside another program's scan.

Time goes down the grid from t to s < t. At the start of each step the observe hook is written into the state; a sampler
that evaluates the network at another point asks `model.observe` there too, because rewriting only the network's input
would leave the state wrong. One key is split three ways in a step: network, noise, observe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time
from jaxdiff.types import Array, Cond, Denoiser, Key, Prediction, Tree

Observe = Callable[[Key, Tree, Any], Tree]


class State(NamedTuple):
    """`x` at the current time; `mean`, the same without the last step's noise; `index` of the step; the sampler's own
    `memory`. Shapes and dtypes are fixed, so a state can be carried by `lax.scan`."""

    x: Tree
    mean: Tree
    index: Array  # type: ignore[assignment]  # a tuple's own `index` method is not missed
    memory: Any = ()


class Model(NamedTuple):
    """What a step may ask: `predict(x, t) -> Prediction` and `observe(x, t) -> x` (the identity without a hook)."""

    predict: Callable[[Tree, Any], Prediction]
    observe: Callable[[Tree, Any], Tree]


class Sampler(NamedTuple):
    """`init(x_T, grid) -> State`, `step(key, state, model, path, t, s) -> State`, and `grid(path, num_steps)`.

    `step` leaves `index` to the loop. `evaluations(num_steps)` counts network calls (NFE).
    """

    init: Callable[[Tree, Array], State]
    step: Callable[[Key, State, Model, Any, Any, Any], State]
    grid: Callable[[Any, int], Array]
    evaluations: Callable[[int], int] = lambda num_steps: num_steps


def start(x_T: Tree, grid: Array, memory: Any = ()) -> State:
    """The first state of a sampler."""
    del grid
    return State(x_T, x_T, jnp.int32(0), memory)


def bind(denoise: Denoiser, key: Key, cond: Cond, observe: Observe | None) -> tuple[Model, Key]:
    """One step's model, and the key for its noise. Every network call and every observation gets a key of its own."""
    k_network, k_noise, k_observe = jax.random.split(key, 3)
    calls = {"network": 0, "observe": 0}  # counted while tracing: the n-th call in the program text

    def next_key(base: Key, kind: str) -> Key:
        calls[kind] += 1
        return jax.random.fold_in(base, calls[kind])

    def predict(x: Tree, t: Any) -> Prediction:
        prediction = denoise(next_key(k_network, "network"), x, t, cond)
        cast = lambda tree: jax.tree.map(lambda p, v: p.astype(v.dtype), tree, x)
        return prediction._replace(x0=cast(prediction.x0), eps=cast(prediction.eps))

    def watch(x: Tree, t: Any) -> Tree:
        return x if observe is None else observe(next_key(k_observe, "observe"), x, t)

    return Model(predict, watch), k_noise


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    path: Any,
    grid: Array,
    key: Key,
    x_T: Tree,
    cond: Cond = None,
    observe: Observe | None = None,
    trajectory: bool = False,
    noisy: bool = False,
) -> Any:
    """Run a sampler down a grid.

    Args:
      sampler: from this package, or your own `Sampler`.
      denoise: `(key, x_t, t, cond) -> Prediction`.
      path: the forward process, or a dict of them.
      grid: `[N + 1]` descending times, at least two; `repaint`'s goes up in between.
      key: a PRNG key; the same key gives the same samples.
      x_T: the start, `[B, ...]` or a dict, from `jd.sde.prior`; half precisions are raised to float32.
      cond: passed to the denoiser.
      observe: `(key, x_t, t) -> x_t`, what is known of the state, written into it at each step and at the last time.
      trajectory: also return the states at every time of the grid.
      noisy: return the state x at the last time in place of its mean: what a grid that stops before the data is drawn for.

    Returns:
      x_0 as x_T, the noise-free mean of the last step (or, `noisy`, the state); with `trajectory`,
      `(x_0, states [N + 1, B, ...])`.
    """
    grid = as_time(grid)
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid has shape {grid.shape}; allowed: [N + 1] descending times with N >= 1, from jd.sde.grids")
    x_T = jax.tree.map(lambda v: v.astype(jnp.promote_types(v.dtype, jnp.float32)), x_T)
    k_steps, k_last = jax.random.split(key)

    def body(state: State, times: tuple[Array, Array]) -> tuple[State, Any]:
        t, s = times
        model, k_noise = bind(denoise, jax.random.fold_in(k_steps, state.index), cond, observe)
        state = state._replace(x=model.observe(state.x, t))
        new = sampler.step(k_noise, state, model, path, t, s)
        return new._replace(index=state.index + 1), (state.x if trajectory else None)

    state, states = jax.lax.scan(body, sampler.init(x_T, grid), (grid[:-1], grid[1:]))
    end = state.x if noisy else state.mean
    last = end if observe is None else observe(k_last, end, grid[-1])
    if trajectory:
        return last, jax.tree.map(lambda all_, x: jnp.concatenate([all_, x[None]]), states, last)
    return last
