"""The condition vocabulary: dropping conditions while training for classifier-free guidance.

The keys of a condition are listed at `jaxdiff.types.Cond`. "No class" is the label that equals the class count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.types import Array, Key


def null(cond: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The condition with nothing asked for: the null label, every text token masked; other keys stay as they are."""
    blank = dict(cond)
    if "label" in cond:
        blank["label"] = jnp.full_like(cond["label"], num_classes)
    if "text_mask" in cond:
        blank["text_mask"] = jnp.zeros_like(cond["text_mask"])
    return blank


def drop(rate: float, num_classes: int) -> Any:
    """`(keys [B], cond) -> cond`: each example's label and text are dropped together with probability `rate`."""
    if not 0 <= rate <= 1:
        raise ValueError(f"the drop rate is {rate}; allowed: from 0 to 1 (usually .1 to .2)")

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        gone = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
        blank = null(cond, num_classes)

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(gone.reshape(gone.shape + (1,) * (a.ndim - 1)), b, a)

        return {name: choose(cond[name], blank[name]) if blank[name] is not cond[name] else cond[name] for name in cond}

    return draw
