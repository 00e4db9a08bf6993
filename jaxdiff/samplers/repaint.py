"""RePaint's resampling (Lugmayr et al. 2022, section 4.2): go down, jump back up by diffusing forward, go down again.

Replacing known pixels leaves the hidden ones out of tune with them; each jump back lets the next steps down bring the two
together. The schedule of times goes up as well as down, so the sampler is driven by the same `sample` as all others.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.samplers.base import Model, Sampler, State
from jaxdiff.sde.kernels import transition_coefficients
from jaxdiff.trees import expand, noise_like, over
from jaxdiff.types import Array, Key, Path


@cache
def repaint(predictor: Sampler, jump: int = 10, repeats: int = 10) -> Sampler:
    """Go back `jump` steps after every `jump` steps, so that each stretch of the grid is walked `repeats` times.

    Args:
      predictor: a one-step sampler (no memory between steps): ancestral, ddim, euler_maruyama, reverse_diffusion, chain.
      jump: steps that are undone at once (the paper's jump length).
      repeats: how often each stretch is sampled; 1 is the predictor itself.
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"repaint got jump={jump}, repeats={repeats}; allowed: whole numbers from 1")

    def turns(num_steps: int) -> list[int]:
        order = [0]
        for first in range(0, num_steps, jump):
            last = min(first + jump, num_steps)
            down = list(range(first + 1, last + 1))
            order += down
            for _ in range(repeats - 1):
                order += [*reversed(range(first, last)), *down]
        return order

    def grid(path: Any, num_steps: int) -> Array:
        return predictor.grid(path, num_steps)[jnp.asarray(turns(num_steps))]

    def init(x_T: Any, grid: Array) -> State:
        state = predictor.init(x_T, grid)
        if jax.tree.leaves(state.memory):
            raise ValueError("repaint got a predictor that remembers earlier steps; allowed: ancestral, ddim, "
                             "euler_maruyama, reverse_diffusion, or a chain of them")
        return state

    def step(key: Key, state: State, model: Model, path: Any, t: Any, s: Any) -> State:
        def up(state: State) -> State:
            def one(p: Path, x: Array, z: Array) -> Array:
                a, v = transition_coefficients(p, t, s)
                return expand(a, x) * x + expand(jnp.sqrt(v), x) * z

            x = over(one, path, state.x, noise_like(key, state.x))
            return state._replace(x=x, mean=x)

        return jax.lax.cond(s > t, up, lambda now: predictor.step(key, now, model, path, t, s), state)

    return Sampler(init, step, grid, lambda n: predictor.evaluations(n) * repeats)
