"""Blocks, levels and ends of a convolutional network that is told nothing beside its picture: no time, no condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.attention import SelfAttention
from jaxdiff.networks.encoder import attends_at
from jaxdiff.networks.layers import (
    KERNEL_INIT,
    Downsample,
    GroupNorm,
    Upsample,
    at_least_float32,
    conv3x3,
    dense,
    recomputing,
)
from jaxdiff.networks.linear import convolve
from jaxdiff.types import Array


class PlainBlock(nn.Module):
    """`ResidualBlock` without an embedding: norm, SiLU, conv, norm, SiLU, zero conv, plus the skip; then self-attention.

    x [B, H, W, C] -> [B, H, W, features] in `dtype`; at initialisation it is its skip.
    """

    features: int
    attend: bool = False
    head_channels: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = nn.silu(GroupNorm(self.param_dtype, name="norm_in")(x)).astype(self.dtype)
        h = conv3x3(self.features, name="conv_in", **kinds)(h)
        h = nn.silu(GroupNorm(self.param_dtype, name="norm_out")(h)).astype(self.dtype)
        h = conv3x3(self.features, zero=True, name="conv_out", **kinds)(h)
        x = x.astype(self.dtype)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="skip", **kinds)(x)
        x = x + h
        return SelfAttention(self.head_channels, **kinds, name="attention")(x) if self.attend else x


class Level(nn.Module):
    """`count` blocks of one width, with attention where the map's longer side is asked for; then `resample`: "", "up" or

    "symmetric" or "asymmetric" halving; the latter pads right and below only, as latent diffusion's public weights want it.
    """

    features: int
    count: int
    resample: str
    attention_resolutions: Sequence[int]
    head_channels: int
    remat: bool | str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = recomputing(PlainBlock, self.remat)
        attend = attends_at(x, self.attention_resolutions)
        for j in range(self.count):
            x = block(self.features, attend, self.head_channels, **kinds, name=f"block_{j}")(x)
        if self.resample == "up":
            return Upsample(self.features, **kinds, name="up")(x)
        if self.resample == "symmetric":
            return Downsample(self.features, **kinds, name="down")(x)
        if self.resample == "asymmetric":
            pad, init = ((0, 1), (0, 1)), KERNEL_INIT
            return nn.Conv(self.features, (3, 3), 2, padding=pad, kernel_init=init, conv_general_dilated=convolve, **kinds,
                           name="down")(x)
        return x


class Middle(nn.Module):
    """A block, with self-attention if `attend`, and a block."""

    attend: bool
    head_channels: int
    remat: bool | str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = recomputing(PlainBlock, self.remat)
        x = block(x.shape[-1], self.attend, self.head_channels, **kinds, name="block_0")(x)
        return block(x.shape[-1], **kinds, name="block_1")(x)


class Head(nn.Module):
    """Norm, SiLU and the last 3x3 convolution, which computes and answers in at least float32."""

    features: int
    zero: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = at_least_float32(self.dtype)
        h = nn.silu(GroupNorm(self.param_dtype, name="norm")(x)).astype(wide)
        return conv3x3(self.features, zero=self.zero, dtype=wide, param_dtype=self.param_dtype, name="conv")(h)
