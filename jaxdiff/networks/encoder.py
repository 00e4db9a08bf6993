"""The encoder half of the U-Net: everything from the pixels down to the middle, and the embedding that steers it.

`UNet` puts a decoder on it; `Classifier` a pooled head; a discriminator may do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.attention import CrossAttention, SelfAttention
from jaxdiff.networks.embeddings import ClassEmbedding, LatentMapping, TextPool, TimeEmbedding
from jaxdiff.networks.layers import Downsample, ResidualBlock, at_least_float32, conv3x3, recomputing, space_to_depth
from jaxdiff.networks.slots import checked, enabled_keys, per_example, readable_text, spatial_input
from jaxdiff.types import Array, Cond, Time


class Encoded(NamedTuple):
    """What the encoder hands on: the middle feature map, one skip per block, and what every later block also needs."""

    h: Array
    skips: tuple[Array, ...]
    emb: Array
    text: Array | None
    text_mask: Array | None


class Block(nn.Module):
    """A residual block, then self-attention and cross-attention where asked for."""

    features: int
    attend: bool
    cross: bool
    head_channels: int
    dropout: float
    scale_shift: bool
    dtype: Any
    param_dtype: Any
    resample: str = ""

    @nn.compact
    def __call__(self, x: Array, emb: Array, text: Any, text_mask: Any, train: bool) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ResidualBlock(self.features, self.dropout, self.scale_shift, self.resample, **kinds, name="res")(
            x, emb, train
        )
        if self.attend:
            x = SelfAttention(self.head_channels, **kinds, name="attention")(x)
            if self.cross:
                x = CrossAttention(self.head_channels, **kinds, name="cross")(x, text, text_mask)
        return x


def block_builder(net: Any) -> Callable[..., Block]:
    """`Block` with `net`'s settings filled in, recomputing as `net.remat` says."""
    cls = recomputing(Block, net.remat, static_argnums=(5,))  # 5 = train, counted with self
    return partial(
        cls,
        cross=bool(net.text_dim),
        head_channels=net.head_channels,
        dropout=net.dropout,
        scale_shift=net.scale_shift,
        dtype=net.dtype,
        param_dtype=net.param_dtype,
    )


def blocks_per_level(num_blocks: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """One number for all levels, or one each.

    >>> blocks_per_level(2, 3), blocks_per_level((2, 4, 8), 3)
    ((2, 2, 2), (2, 4, 8))
    """
    counts = (num_blocks,) * levels if isinstance(num_blocks, int) else tuple(num_blocks)
    if len(counts) != levels or min(counts) < 1:
        raise ValueError(
            f"num_blocks={num_blocks} does not fit channel_mult of {levels} levels; one number >= 1, or one each"
        )
    return counts


def attends_at(h: Array, resolutions: Sequence[int]) -> bool:
    """Whether a feature map's longer side is one of `resolutions`."""
    return max(h.shape[1:3]) in tuple(resolutions)


def check_size(net: Any, x: Array) -> None:
    """ValueError unless x is [B, H, W, C] with H and W multiples of the encoder's total reduction."""
    if net.level_order not in ("adm", "efficient"):
        raise ValueError(f"level_order={net.level_order!r}; allowed: 'adm', 'efficient'")
    halvings = len(net.channel_mult) - (net.level_order == "adm")
    factor = net.patch_size * 2**halvings
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"x has shape {x.shape}; allowed: (B, H, W, C) with H and W multiples of {factor} "
            f"(patch_size={net.patch_size} and {halvings} halvings); resize the images or shorten channel_mult"
        )


class UNetEncoder(nn.Module):
    """Stem, levels and middle of the U-Net; fields as in `UNet`, which documents them.

    Skips, first to last: the stem, then one per block; in "adm" order also one per downsampling.
    """

    channels: int = 64
    channel_mult: Sequence[int] = (1, 2, 2)
    num_blocks: int | Sequence[int] = 2
    attention_resolutions: Sequence[int] = (16, 8)
    head_channels: int = 64
    num_classes: int = 0
    dropout: float = 0.0
    patch_size: int = 1
    level_order: str = "adm"
    resample_in_block: bool = True
    scale_shift: bool = True
    time_embedding: str = "sinusoidal"
    text_dim: int = 0
    low_res: str = ""
    low_res_t: bool = False
    image: bool = False
    mask: bool = False
    latent_dim: int = 0
    remat: bool | str = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = property(enabled_keys)

    @nn.compact
    def __call__(self, x: Array, t: Time | None, cond: Cond = None, train: bool = False) -> Encoded:
        """x [B, H, W, C], t [B] or None (no noise level is told) -> `Encoded`, feature maps in `dtype`."""
        check_size(self, x)
        given = checked(self, cond)
        text, text_mask = readable_text(self, given, x.shape[0]) if self.text_dim else (None, None)
        emb = self.embed(x.shape[0], t, given, text, text_mask)
        if text is not None:  # once, not in each layer that reads it: of the cost of reading it is a good part
            wide = at_least_float32(self.dtype)
            text = nn.LayerNorm(dtype=wide, param_dtype=self.param_dtype, name="norm_text")(text)
        block = block_builder(self)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def down(h: Array, features: int, name: str) -> Array:
            if self.resample_in_block:
                return block(features, attend=False, resample="down", name=name)(h, emb, text, text_mask, train)
            return Downsample(features, **kinds, name=name)(h)

        h = spatial_input(self, x, given)
        h = conv3x3(self.channels, **kinds, name="stem")(space_to_depth(h, self.patch_size))
        skips = [h]
        counts = blocks_per_level(self.num_blocks, len(self.channel_mult))
        for i, (mult, count) in enumerate(zip(self.channel_mult, counts, strict=True)):
            features = self.channels * mult
            if self.level_order == "efficient":
                h = down(h, features, f"down_{i}_resample")
            for j in range(count):
                # Imagen attends once a level, after its last block; ADM after every block.
                attend = attends_at(h, self.attention_resolutions) and (self.level_order == "adm" or j == count - 1)
                h = block(features, attend, name=f"down_{i}_{j}")(h, emb, text, text_mask, train)
                skips.append(h)
            if self.level_order == "adm" and i + 1 < len(self.channel_mult):
                h = down(h, features, f"down_{i}_resample")
                skips.append(h)
        h = block(h.shape[-1], attend=True, name="mid_0")(h, emb, text, text_mask, train)
        h = block(h.shape[-1], attend=False, name="mid_1")(h, emb, text, text_mask, train)
        return Encoded(h, tuple(skips), emb, text, text_mask)

    def embed(self, batch: int, t: Time | None, given: dict, text: Any, text_mask: Any) -> Array:
        """The sum of everything told as a vector, [B, 4 * channels]: time, class, low_res_t, pooled text, latent."""
        width = 4 * self.channels
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        time = partial(TimeEmbedding, width, self.channels, self.time_embedding, **kinds)
        emb = jnp.zeros((batch, width), at_least_float32(self.dtype))
        if t is not None:
            emb = emb + time(name="time")(per_example(t, batch, "t"))
        elif self.is_initializing():  # so that parameters initialised without t can later be called with it
            time(name="time")(jnp.zeros((batch,)))
        if self.low_res_t:
            emb = emb + time(name="low_res_time")(per_example(given["low_res_t"], batch, "cond['low_res_t']"))
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, width, **kinds, name="class")(given.get("label"), batch)
        if text is not None:
            emb = emb + TextPool(width, **kinds, name="text")(text, text_mask)
        if self.latent_dim:
            emb = emb + LatentMapping(self.latent_dim, width, **kinds, name="latent")(given["z"])
        return emb
