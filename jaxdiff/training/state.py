"""What training carries from step to step, and the exponential moving averages (EMA) of the weights.

    ema <- ema + r_n (params - ema),   r_n = 1 - decay_n,   n = 0, 1, 2, ... updates made before this one

Everything is a plain pytree keyed by network name, so that it shards, donates and saves without special cases. The
averages stay in float32 whatever the parameters' dtype: at decay .9999 a bfloat16 average would round its step away.

Sources: warm-up min(d, (1+n)/(10+n)) from TensorFlow's ExponentialMovingAverage, as DDPM used it; half-life in images
and its ramp from Karras et al. 2022 (EDM); power-function averages from Karras et al. 2024 (EDM2), section 3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array, Key, Params, Tree


class TrainState(NamedTuple):
    """All that a run needs to go on: `step` int32 (updates done so far) and, by network name, the rest.

    `key` never changes: step n draws from `fold_in(key, n)`. `opt` is keyed by update name (see `step.update_names`),
    `ema` by network and then by the average's own name, `state` holds mutable collections such as batch statistics.
    """

    step: Array
    key: Key
    params: dict[str, Params]
    opt: dict[str, Any]
    ema: dict[str, dict[str, Tree]]
    state: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ema:
    """One moving average. Give exactly one of `decay`, `half_life` and `gamma`.

    decay: constant in [0, 1); with `warmup`, min(decay, (1+n)/(10+n)).
    half_life: in examples, so decay = .5 ** (examples_per_step / half_life); with examples_per_step 1 it counts steps.
        `ramp` shortens it early to `ramp` times the examples seen so far (EDM: .05).
    gamma: weights proportional to (n+1)^gamma, that is decay_n = (1 - 1/(n+1))^(gamma+1); see `power_gamma`.

    Raises ValueError for none or several of them, or for one out of range.
    """

    decay: float | None = None
    warmup: bool = False
    half_life: float | None = None
    examples_per_step: int = 1
    ramp: float | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k in ("decay", "half_life", "gamma") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            raise ValueError(f"an Ema takes exactly one of decay, half_life and gamma; it came with {given or 'none'}")
        if self.decay is not None and not 0.0 <= self.decay < 1.0:
            raise ValueError(f"Ema decay is {self.decay}; allowed: 0 <= decay < 1, for example 0.9999")
        if self.half_life is not None and self.half_life <= 0:
            raise ValueError(f"Ema half_life is {self.half_life}; allowed: a positive number of examples")
        if self.gamma is not None and self.gamma <= 0:
            raise ValueError(f"Ema gamma is {self.gamma}; allowed: above 0, for example power_gamma(0.05)")
        if self.warmup and self.decay is None:
            raise ValueError("Ema warmup belongs to decay; with half_life use ramp, and gamma needs neither")
        if self.ramp is not None and self.half_life is None:
            raise ValueError("Ema ramp belongs to half_life; with decay use warmup, and gamma needs neither")

    def rate(self, n: Any) -> Array:
        """1 - decay_n, float32: the share of the new weights at update number n = 0, 1, ...

        Computed directly rather than as 1 - decay: at n = 10^6 float32 keeps only five bits of the difference.
        """
        n = jnp.asarray(n, jnp.float32)
        if self.decay is not None:
            rate = jnp.full_like(n, 1.0 - self.decay)
            return jnp.maximum(rate, 9.0 / (10.0 + n)) if self.warmup else rate
        if self.half_life is not None:
            half_life = jnp.full_like(n, self.half_life)
            if self.ramp is not None:
                half_life = jnp.minimum(half_life, self.ramp * self.examples_per_step * n)
            # At n = 0 a ramp gives a half-life of 0, hence a rate of 1: the average starts as the first update.
            return -jnp.expm1(-math.log(2.0) * self.examples_per_step / jnp.maximum(half_life, 1e-8))
        assert self.gamma is not None
        return -jnp.expm1((self.gamma + 1.0) * jnp.log1p(-1.0 / (n + 1.0)))

    def update(self, average: Tree, params: Tree, n: Any) -> Tree:
        """The average after update number `n`; `average` is float32, `params` any float dtype."""
        rate = self.rate(n)
        return jax.tree.map(lambda a, p: a + rate.astype(a.dtype) * (p.astype(a.dtype) - a), average, params)


def power_gamma(relative_std: float) -> float:
    """The exponent whose averaging profile has this standard deviation relative to the run's length.

    EDM2, eq. 123: relative_std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); .05 gives 16.97, .10 gives 6.94.
    """
    if not 0.0 < relative_std < 0.28:  # at gamma = 0 the profile is flat, with std 1/sqrt(12) = .289
        raise ValueError(f"relative_std is {relative_std}; allowed: above 0 and below 0.28, for example 0.05 or 0.10")
    v = relative_std**-2
    return float(np.roots([1.0, 7.0, 16.0 - v, 12.0 - v]).real.max())
