"""Attention over the pixels of a feature map, and from them to a sequence of text tokens.

Heads are moved before the tokens by explicit transposes, so that both products are plain batched matrix products:
on CPUs `jax.nn.dot_product_attention` is about ten times slower when heads are many and narrow. Softmax runs in at
least float32 whatever the compute dtype.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks.layers import GroupNorm, at_least_float32, dense
from jaxdiff.types import Array


def head_count(channels: int, head_channels: int) -> int:
    """Heads of `head_channels` channels each; 0, or a width below `head_channels`, means a single head (DDPM).

    >>> head_count(256, 64), head_count(32, 64), head_count(256, 0)
    (4, 1, 1)
    """
    if head_channels <= 0 or channels <= head_channels:
        return 1
    if channels % head_channels:
        raise ValueError(
            f"attention got {channels} channels, not a multiple of head_channels={head_channels}; "
            "change head_channels (0 = one head), channels or channel_mult"
        )
    return channels // head_channels


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(d)) v per head, Vaswani et al. 2017, eq. 1.

    The sum of the exponentials divides the product, not its Tk factors: on CPUs three fifths of the time, both ways.

    q [B, h, Tq, d], k and v [B, h, Tk, d], mask bool [B, Tk] (True = may be read) -> [B, h, Tq, d] in v's dtype. Where
    nothing may be read the answer is exactly zero.
    """
    wide = at_least_float32(q.dtype)
    logits = jnp.matmul(q, k.transpose(0, 1, 3, 2), preferred_element_type=wide) * (q.shape[-1] ** -0.5)
    if mask is not None:
        # A finite floor, not -inf: exp(-inf + inf) of a fully masked row is NaN, in its gradient even behind a where.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(wide).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    if mask is not None:
        weights *= mask[:, None, None, :]
    read = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
    total = weights.sum(axis=-1, keepdims=True)  # 1 or more, or nothing may be read
    return (read / jnp.where(total > 0, total, 1)).astype(v.dtype)


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, h*d] -> [B, h, T, d]."""
    b, t, c = x.shape
    return x.reshape(b, t, heads, c // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """[B, h, T, d] -> [B, T, h*d]."""
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)


class SelfAttention(nn.Module):
    """Residual self-attention of all pixels with each other; starts as identity (zero-initialised projection).

    q, k and v come from one product, in that order, each cut into heads (the layout of torch's MultiheadAttention).
    """

    head_channels: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, ..., C] -> the same shape, in `dtype`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, c = x.shape[0], x.shape[-1]
        heads = head_count(c, self.head_channels)
        h = GroupNorm(self.param_dtype, name="norm")(x).astype(self.dtype).reshape(b, -1, c)
        q, k, v = (split_heads(y, heads) for y in jnp.split(dense(3 * c, name="qkv", **kinds)(h), 3, axis=-1))
        h = dense(c, zero=True, name="out", **kinds)(merge_heads(attend(q, k, v)))
        return x.astype(self.dtype) + h.reshape(x.shape)


class CrossAttention(nn.Module):
    """Residual attention from pixels to text tokens (Rombach et al. 2022); starts as identity.

    The tokens come normalised, once for all layers (`UNetEncoder`). One whose mask is False has no influence at all; an
    example with no readable token gets only the output bias.
    """

    head_channels: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text: Array, mask: Array) -> Array:
        """x [B, ..., C], text [B, L, D], mask bool [B, L] -> x's shape, in `dtype`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, c = x.shape[0], x.shape[-1]
        heads = head_count(c, self.head_channels)
        h = GroupNorm(self.param_dtype, name="norm")(x).astype(self.dtype).reshape(b, -1, c)
        q = split_heads(dense(c, name="q", **kinds)(h), heads)
        kv = dense(2 * c, name="kv", **kinds)(text.astype(self.dtype))
        k, v = (split_heads(y, heads) for y in jnp.split(kv, 2, axis=-1))
        h = dense(c, zero=True, name="out", **kinds)(merge_heads(attend(q, k, v, mask)))
        return x.astype(self.dtype) + h.reshape(x.shape)


class AttentionPool(nn.Module):
    """[B, ..., C] -> [B, C]: the mean token asks, all tokens answer (the classifier head of Dhariwal & Nichol 2021).

    Without their position table, so that one set of parameters serves every image size.
    """

    head_channels: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, c = x.shape[0], x.shape[-1]
        heads = head_count(c, self.head_channels)
        tokens = x.astype(self.dtype).reshape(b, -1, c)
        mean = tokens.mean(axis=1, keepdims=True)
        q = split_heads(dense(c, name="q", **kinds)(mean), heads)
        both = jnp.concatenate([mean, tokens], axis=1)
        k, v = (split_heads(y, heads) for y in jnp.split(dense(2 * c, name="kv", **kinds)(both), 2, axis=-1))
        return dense(c, name="out", **kinds)(merge_heads(attend(q, k, v)))[:, 0]
