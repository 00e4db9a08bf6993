"""The discriminators of few-step adversarial diffusion on images: DDGAN's, and SIDDM's U-Net form of it.

Xiao et al. 2022 ("Tackling the generative learning trilemma with denoising diffusion GANs", appendix C) ask whether
x_s, beside x_t on the channel axis or alone, is real at noise level t. Xu et al. 2023 ("Semi-implicit denoising
diffusion models") put a decoder on the same trunk: it guesses x0, which regularises the trunk, and it regresses x_t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.embeddings import ClassEmbedding, TimeEmbedding
from jaxdiff.networks.layers import (
    KERNEL_INIT,
    at_least_float32,
    conv3x3,
    dense,
    depth_to_space,
    double,
    halve,
    recomputing,
    space_to_depth,
)
from jaxdiff.networks.linear import convolve
from jaxdiff.networks.slots import checked, enabled_keys, per_example, spatial_input
from jaxdiff.types import Array, Cond, Time

# a hundredth of the usual variance: scores start near 0, and yet the trunk has a gradient from the first step
LOGIT_INIT = nn.initializers.variance_scaling(1e-2, "fan_avg", "uniform")


def leaky(x: Array) -> Array:
    """LeakyReLU of slope 0.2, the activation of DDGAN's discriminator."""
    return nn.leaky_relu(x, 0.2)


def heads_of(net: Any) -> tuple[str, ...]:
    """The outputs beside the logit that `net` was built for, in the order of their channels."""
    return ("x0",) * net.denoise + ("residual",) * net.regress + ("log_variance",) * net.variance


def heads_init(net: Any, channels: int) -> Any:
    """An initializer of the last kernel [..., channels * heads]: the house's for "x0", zeros for the rest.

    So the regression head in residual form starts as sqrt(1 - beta) x_s with variance beta, its best answer while it knows
    nothing.
    """
    live = channels * net.denoise

    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return KERNEL_INIT(key, shape, dtype).at[..., live:].set(0)

    return init


def minibatch_std(x: Array, group: int) -> Array:
    """How much the examples of a group differ: [B, ...] -> [B], in at least float32, one number a group.

    The standard deviation of every feature over the group's examples, averaged over the features (Karras et al. 2018,
    section 3); sqrt(var + 1e-8), so 1e-4 for a collapsed group, with a finite gradient. Groups are `group` neighbours
    in the batch, so that real and generated examples stacked in one batch stay apart and a group stays on one device;
    where `group` does not divide B, the largest divisor of B below it takes its place.

    >>> [float(v.round(3)) for v in minibatch_std(jnp.array([[0.0], [2.0], [5.0], [5.0]]), 2)]
    [1.0, 1.0, 0.0, 0.0]
    """
    if group < 1:
        raise ValueError(f"minibatch_std={group}; allowed: the examples in a group, at least 1, or 0 for no such feature")
    batch = x.shape[0]
    size = next(g for g in range(min(group, batch), 0, -1) if batch % g == 0)
    y = x.astype(at_least_float32(x.dtype)).reshape(batch // size, size, -1)
    std = jnp.sqrt(y.var(axis=1) + 1e-8).mean(axis=-1)
    return jnp.broadcast_to(std[:, None], (batch // size, size)).reshape(batch)


class DiscriminatorBlock(nn.Module):
    """DDGAN's block: LeakyReLU, conv, + embedding, LeakyReLU, (halve), conv; plus the skip, over sqrt 2; no norms.

    x [B, H, W, C], emb [B, D] (already activated) -> [B, H', W', features] in `dtype`; `down` halves H and W.
    """

    features: int
    down: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = conv3x3(self.features, name="conv_in", **kinds)(leaky(x))
        h = leaky(h + dense(self.features, name="emb", **kinds)(emb)[:, None, None, :])
        if self.down:  # both branches before their last layer, which then works on a quarter of the pixels
            h, x = halve(h), halve(x)
        h = conv3x3(self.features, name="conv_out", **kinds)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="skip", **kinds)(x)
        return (x + h) * 0.5**0.5


class Discriminator(nn.Module):
    """x [B, H, W, C], c_noise t [B], cond -> {"logit": [B], "x0", "residual": [B, H, W, out_channels]}, float32.

    "x0" is there with `denoise`, "residual" with `regress`, and with `variance` "log_variance", of the residual's shape;
    without them there is no decoder. For a joint discriminator the caller puts x_t behind the channels of x_s. Scores are
    higher for what looks real.

    Size. `channels` at full resolution, times `channel_mult` per level; every level after the first halves first;
        `num_blocks` blocks a level. The decoder mirrors the levels: nearest doubling, the level's skip, its blocks.
    Score. `minibatch_std` examples are compared as a group before the last convolution (0: none are); its activations
        are summed over positions. It is the one output in which an example sees others.
    Stem. `patch_size` p: p x p pixels become channels before the first layer, and pixels again after the decoder's.
    Conditioning, off by default; a key of `cond` without its field, or a field without its key, is a ValueError.
        `num_classes` K reads `label` int [B], where K, or no label, is "no class"; `image` and `mask` read maps of x's
        height and width.
    Time. `time_embedding` "sinusoidal" or "fourier". `remat` is `layers.recomputing`'s. `train` is
        accepted as by every network, and changes nothing.
    Arithmetic in `dtype`, parameters in `param_dtype`, last layers in float32 (float64 if `dtype` is). The "residual"
        head starts at zero, and scores start near it.
    """

    out_channels: int = 1
    channels: int = 64
    channel_mult: Sequence[int] = (1, 2, 4, 4)
    num_blocks: int = 1
    num_classes: int = 0
    patch_size: int = 1
    minibatch_std: int = 4
    denoise: bool = False
    regress: bool = False
    variance: bool = False
    time_embedding: str = "sinusoidal"
    image: bool = False
    mask: bool = False
    remat: bool | str = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = property(enabled_keys)

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Cond = None, train: bool = False) -> dict[str, Array]:
        self.check_size(x)
        given = checked(self, cond)
        batch, kinds = x.shape[0], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block: Callable[..., DiscriminatorBlock] = partial(recomputing(DiscriminatorBlock, self.remat), **kinds)
        width = 4 * self.channels
        emb = TimeEmbedding(width, self.channels, self.time_embedding, **kinds, name="time")(per_example(t, batch, "t"))
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, width, **kinds, name="class")(given.get("label"), batch)
        emb = leaky(emb).astype(self.dtype)

        h = space_to_depth(spatial_input(self, x, given), self.patch_size)
        h = dense(self.channels * self.channel_mult[0], **kinds, name="stem")(h)
        skips = []
        for i, mult in enumerate(self.channel_mult):
            for j in range(self.num_blocks):
                h = block(self.channels * mult, i > 0 and j == 0, name=f"down_{i}_{j}")(h, emb)
            skips.append(h)

        outputs = {"logit": self.score(h)}
        heads = heads_of(self)
        if heads:
            for i in reversed(range(len(skips) - 1)):
                h = jnp.concatenate([double(h), skips[i]], axis=-1)
                for j in range(self.num_blocks):
                    h = block(self.channels * self.channel_mult[i], name=f"up_{i}_{j}")(h, emb)
            maps = self.decode(leaky(h), len(heads))
            outputs |= {head: depth_to_space(m, self.patch_size) for head, m in zip(heads, maps, strict=True)}
        return outputs

    def check_size(self, x: Array) -> None:
        """ValueError unless x is [B, H, W, C] with H and W multiples of the total reduction, and blocks are asked for."""
        halvings = len(self.channel_mult) - 1
        factor = self.patch_size * 2**halvings
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"x has shape {x.shape}; allowed: (B, H, W, C) with H and W multiples of {factor} "
                f"(patch_size={self.patch_size} and {halvings} halvings); resize the images or shorten channel_mult"
            )
        if self.num_blocks < 1:
            raise ValueError(f"Discriminator got num_blocks={self.num_blocks}; it needs at least 1 block a level")

    def score(self, h: Array) -> Array:
        """The trunk's last feature map [B, h, w, C] -> logit [B]."""
        wide, features = at_least_float32(self.dtype), h.shape[-1]
        if self.minibatch_std:
            std = minibatch_std(h, self.minibatch_std).astype(h.dtype)
            h = jnp.concatenate([h, jnp.broadcast_to(std[:, None, None, None], (*h.shape[:3], 1))], axis=-1)
        h = leaky(conv3x3(features, dtype=self.dtype, param_dtype=self.param_dtype, name="last")(h))
        h = h.astype(wide).sum(axis=(1, 2))
        return nn.Dense(1, kernel_init=LOGIT_INIT, dtype=wide, param_dtype=self.param_dtype, name="logit")(h)[:, 0]

    def decode(self, h: Array, heads: int) -> list[Array]:
        """The decoder's activations [B, h, w, C] -> one map [B, h, w, p*p*out_channels] per head, by one convolution."""
        each = self.out_channels * self.patch_size**2
        last = nn.Conv(
            heads * each,
            (3, 3),
            padding=((1, 1), (1, 1)),
            kernel_init=heads_init(self, each),
            conv_general_dilated=convolve,
            dtype=at_least_float32(self.dtype),
            param_dtype=self.param_dtype,
            name="heads",
        )
        return jnp.split(last(h), heads, axis=-1)
