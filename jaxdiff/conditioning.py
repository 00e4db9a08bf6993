"""The condition vocabulary: dropping conditions while training for classifier-free guidance.

The keys of a condition are listed at `jaxdiff.types.Cond`. "No class" is the label that equals the class count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.types import Array, Key


def masked(cond: Mapping[str, Any]) -> dict[str, Any]:
    """The same condition with its text mask written out: text without one is readable everywhere."""
    if "text" in cond and "text_mask" not in cond:
        return {**cond, "text_mask": jnp.ones(cond["text"].shape[:2], bool)}
    return dict(cond)


def null(cond: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The condition with nothing asked for: the null label, every text token masked; other keys stay as they are."""
    blank = masked(cond)
    if "label" in blank:
        blank["label"] = jnp.full_like(blank["label"], num_classes)
    if "text_mask" in blank:
        blank["text_mask"] = jnp.zeros_like(blank["text_mask"])
    return blank


def chain(*draws: Any) -> Any:
    """Several `(keys [B], cond) -> cond` one after the other, each with random numbers of its own."""

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        for i, one in enumerate(draws):
            cond = one(jax.vmap(jax.random.fold_in, (0, None))(keys, i) if i else keys, cond)
        return dict(cond)

    return draw


def drop(rate: float, num_classes: int) -> Any:
    """`(keys [B], cond) -> cond`: each example's label and text are dropped together with probability `rate`.

    Text without a mask is given one, since a dropped text is a masked one.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the drop rate is {rate}; allowed: from 0 to 1 (usually .1 to .2)")

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        gone = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
        given, blank = masked(cond), null(cond, num_classes)

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(gone.reshape(gone.shape + (1,) * (a.ndim - 1)), b, a)

        return {name: choose(a, blank[name]) if name in ("label", "text_mask") else a for name, a in given.items()}

    return draw
