"""Which conditioning a network was built for, read from its fields, and one-line refusals of anything else.

A key that nobody reads would be a silent defect (a class label that never arrives), so unknown keys are refused, as
are missing ones. Only class and text may be absent: they have a "nothing" of their own, which classifier-free guidance
needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.types import Array, Cond

ENABLED_BY = {
    "label": "num_classes",
    "text": "text_dim",
    "text_mask": "text_dim",
    "tokens": "text_encoder",
    "low_res": "low_res",
    "low_res_t": "low_res_t",
    "image": "image",
    "mask": "mask",
    "z": "latent_dim",
}
OPTIONAL = frozenset({"label", "text", "text_mask", "tokens"})
RESIZES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


def enabled_keys(net: Any) -> frozenset[str]:
    """The keys of `cond` that `net` reads, those whose field in `ENABLED_BY` is set: its property `cond_keys`.

    >>> from jaxdiff.networks import UNet
    >>> sorted(UNet(num_classes=10, low_res="bilinear").cond_keys)
    ['label', 'low_res']
    """
    return frozenset(key for key, field in ENABLED_BY.items() if getattr(net, field, None))


def checked(net: Any, cond: Cond) -> dict[str, Any]:
    """`cond` as a dict with None entries removed; ValueError on a key that `net` does not read, or on a missing one."""
    given = {key: value for key, value in (cond or {}).items() if value is not None}
    reads = enabled_keys(net)
    kind = type(net).__name__
    for key in given:
        if key not in ENABLED_BY:
            raise ValueError(f"{kind} got cond[{key!r}]; allowed keys: {', '.join(ENABLED_BY)}")
        if key not in reads:
            if not hasattr(net, ENABLED_BY[key]):
                raise ValueError(f"{kind} got cond[{key!r}], which this kind of network never reads; leave it out")
            raise ValueError(
                f"{kind} got cond[{key!r}] but was built without it; set {ENABLED_BY[key]}, or leave it out"
            )
    for key in sorted(reads - OPTIONAL):
        if key not in given:
            raise ValueError(
                f"{kind} was built with {ENABLED_BY[key]}={getattr(net, ENABLED_BY[key])!r} and needs cond[{key!r}]"
            )
    if "text_mask" in given and "text" not in given:
        raise ValueError(f"{kind} got cond['text_mask'] without cond['text']; pass both, or neither for no text")
    return given


def spatial_input(net: Any, x: Array, given: Mapping[str, Any]) -> Array:
    """x [B, H, W, C] with `low_res` (resized to H x W), `image` and `mask` behind its channels, in that order."""
    parts = [x]
    if "low_res" in given:
        if net.low_res not in RESIZES:
            raise ValueError(f"low_res={net.low_res!r} is no way to resize; allowed: {', '.join(RESIZES)}")
        low = given["low_res"]
        if low.ndim != 4 or low.shape[0] != x.shape[0] or low.shape[1] > x.shape[1] or low.shape[2] > x.shape[2]:
            raise ValueError(
                f"cond['low_res'] has shape {low.shape}; allowed: (B, h, w, C) no larger than x, {x.shape}"
            )
        shape = (*x.shape[:3], low.shape[-1])
        parts.append(low if low.shape == shape else jax.image.resize(low, shape, RESIZES[net.low_res]))
    for key in ("image", "mask"):
        if key in given:
            extra = jnp.asarray(given[key])
            if extra.ndim != x.ndim or extra.shape[:-1] != x.shape[:-1]:
                raise ValueError(f"cond[{key!r}] has shape {extra.shape}; allowed: {(*x.shape[:-1], 'C')}, as x")
            parts.append(extra)
    return jnp.concatenate([part.astype(x.dtype) for part in parts], axis=-1)


def readable_text(net: Any, given: Mapping[str, Any], batch: int) -> tuple[Array, Array]:
    """Tokens [B, L, D] with the unreadable ones zeroed, and their bool mask [B, L]; without text, one unreadable token.

    Zeroing keeps whatever padding holds (even NaN) out of every later sum.
    """
    text = given.get("text")
    if text is None:
        return jnp.zeros((batch, 1, net.text_dim)), jnp.zeros((batch, 1), bool)
    if text.ndim != 3 or text.shape[0] != batch or text.shape[-1] != net.text_dim:
        raise ValueError(
            f"cond['text'] has shape {text.shape}; allowed: (B, L, text_dim) = ({batch}, L, {net.text_dim})"
        )
    mask = given.get("text_mask")
    mask = jnp.ones(text.shape[:2], bool) if mask is None else jnp.asarray(mask)
    if mask.shape != text.shape[:2] or mask.dtype != bool:
        raise ValueError(f"cond['text_mask'] is {mask.dtype} {mask.shape}; it must be bool {text.shape[:2]}")
    return jnp.where(mask[..., None], text, 0), mask


def per_example(t: Any, batch: int, what: str) -> Array:
    """A scalar or [B] noise embedding input as [B]; ValueError for any other shape."""
    t = jnp.asarray(t)
    if t.shape not in ((), (1,), (batch,)):
        raise ValueError(f"{what} has shape {t.shape}; allowed: a scalar or ({batch},), one value per example")
    return jnp.broadcast_to(t, (batch,))
