"""The bricks of the convolutional networks: group norm, zero-initialised ends, resampling and the residual block.

Parameters are stored in `param_dtype` and arithmetic runs in `dtype` (bfloat16 on accelerators); norms always compute
in at least float32, because their sums over a feature map lose digits in bfloat16.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks.linear import PRODUCT, convolve, multiply
from jaxdiff.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # DDPM's choice for every layer
ZERO_INIT = nn.initializers.zeros


def count_params(params: Any) -> int:
    """Number of scalars in a tree of arrays or of `jax.ShapeDtypeStruct`s (so `jax.eval_shape` is enough)."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which norms, softmax and network outputs are held: float32, or float64 if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def group_count(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves 4 channels a group (32 from 128 channels on).

    With one channel a group, the norm would erase every channel's mean, and with it DDPM's added embedding.

    >>> group_count(128), group_count(64), group_count(48), group_count(7)
    (32, 16, 12, 1)
    """
    return next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of [B, ..., C], computed and returned in at least float32.

    Groups follow `group_count`; epsilon 1e-5 inside the square root. The variance is E[x^2] - E[x]^2, whose backward
    pass costs half of the two-pass form's; it is good while a group's |mean| is below some hundred times its std. Each
    channel is summed over its pixels first, and groups are made of these few sums: on CPUs a third of the time.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        x = x.astype(at_least_float32(x.dtype))
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        each = channels // group_count(channels)
        pixels = tuple(range(1, x.ndim - 1))

        mean, square = (over_groups(v.mean(pixels), each) for v in (x, x * x))
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + 1e-5)
        shift = bias - mean * factor
        return x * jnp.expand_dims(factor, pixels) + jnp.expand_dims(shift, pixels)


def over_groups(x: Array, each: int) -> Array:
    """[B, C] -> [B, C]: the mean over every `each` neighbours, in the place of each of them.

    On CPUs by a small matrix: XLA would find each pixel's group again in the loop over all pixels.
    """

    def by_matrix(x: Array) -> Array:
        group = jnp.arange(x.shape[-1]) // each
        same = (group[:, None] == jnp.arange(x.shape[-1] // each)).astype(x.dtype)
        return jnp.matmul(jnp.matmul(x, same / each, precision="highest"), same.T, precision="highest")

    def by_shape(x: Array) -> Array:
        return jnp.repeat(x.reshape(len(x), -1, each).mean(-1), each, axis=-1)

    return jax.lax.platform_dependent(x, cpu=by_matrix, default=by_shape)


def conv3x3(features: int, *, stride: int = 1, zero: bool = False, **kwargs: Any) -> nn.Conv:
    """A 3x3 convolution that pads one pixel on every side, also when it strides (XLA's "SAME" would pad one side)."""
    return nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        kernel_init=ZERO_INIT if zero else KERNEL_INIT,
        conv_general_dilated=convolve,
        **kwargs,
    )


def dense(features: int, *, zero: bool = False, **kwargs: Any) -> nn.Dense:
    """A dense layer with this project's initialisation, or all zeros."""
    return nn.Dense(features, kernel_init=ZERO_INIT if zero else KERNEL_INIT, dot_general=multiply, **kwargs)


def recomputing(module: Any, remat: bool | str, **kwargs: Any) -> Any:
    """`module`; with `remat` one that keeps little for the backward pass and computes the rest again.

    True keeps its inputs alone. "products" keeps the results of its convolutions and dense layers too, so that only norms,
    activations and attention are computed again. Raises ValueError for other words.
    """
    if remat not in (None, False, True, "products"):
        raise ValueError(f"network.remat is {remat!r}; allowed: False, True, products")
    if not remat:
        return module
    policy = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "products" else None
    return nn.remat(module, policy=policy, **kwargs)


def halve(x: Array) -> Array:
    """Mean over 2x2 pixels: [B, H, W, C] -> [B, H/2, W/2, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Array) -> Array:
    """Nearest neighbour: every pixel becomes 2x2. [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Array, patch: int) -> Array:
    """[B, H, W, C] -> [B, H/p, W/p, p*p*C]; a patch's pixels are in row-major order, channels innermost."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Array, patch: int) -> Array:
    """The inverse of `space_to_depth`: [B, h, w, p*p*C] -> [B, h*p, w*p, C]."""
    b, h, w, d = x.shape
    x = x.reshape(b, h, w, patch, patch, d // (patch * patch)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, d // (patch * patch))


class Downsample(nn.Module):
    """Halves a feature map by a strided 3x3 convolution (DDPM)."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return conv3x3(self.features, stride=2, dtype=self.dtype, param_dtype=self.param_dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles a feature map by nearest neighbour and a 3x3 convolution (DDPM)."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return conv3x3(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="conv")(double(x))


class ResidualBlock(nn.Module):
    """ADM's residual block (Dhariwal & Nichol 2021): norm, SiLU, conv, conditioned norm, SiLU, dropout, zero conv.

    `resample` "up" or "down" changes the resolution of both branches after the first activation (BigGAN). The embedding
    [B, D] sets a scale and shift of the second norm (`scale_shift`), or is added before it (DDPM). At initialisation
    the block is its skip connection, which is a 1x1 convolution where the width changes.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = True
    resample: str = ""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool = False) -> Array:
        """x [B, H, W, C], emb [B, D] -> [B, H', W', features] in `dtype`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        resample = {"": lambda v: v, "up": double, "down": halve}[self.resample]

        h = nn.silu(GroupNorm(self.param_dtype, name="norm_in")(x)).astype(self.dtype)
        h = conv3x3(self.features, name="conv_in", **kinds)(resample(h))
        width = 2 * self.features if self.scale_shift else self.features
        cond = dense(width, name="emb", **kinds)(nn.silu(emb))[:, None, None, :]
        norm = GroupNorm(self.param_dtype, name="norm_out")
        if self.scale_shift:
            scale, shift = jnp.split(cond, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + cond)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h).astype(self.dtype))
        h = conv3x3(self.features, zero=True, name="conv_out", **kinds)(h)

        skip = x.astype(self.dtype)
        if self.resample == "down":
            skip = halve(skip)
        if x.shape[-1] != self.features:  # a 1x1 convolution, as a matrix product: its gradient is 7x faster on CPUs
            skip = dense(self.features, name="skip", **kinds)(skip)
        if self.resample == "up":  # last, because a 1x1 convolution commutes with repeating pixels
            skip = double(skip)
        return skip + h
