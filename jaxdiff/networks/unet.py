"""The U-Net of this house: denoiser, super-resolver, inpainter, text-to-image network or GAN generator by its fields.

Architecture: ADM (Dhariwal & Nichol 2021, "Diffusion models beat GANs"), which with `scale_shift=False`,
`resample_in_block=False` and `head_channels=0` is DDPM's (Ho et al. 2020); level order "efficient" is Imagen's
Efficient U-Net (Saharia et al. 2022, appendix B.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.encoder import UNetEncoder, attends_at, block_builder, blocks_per_level
from jaxdiff.networks.layers import GroupNorm, Upsample, at_least_float32, conv3x3, depth_to_space
from jaxdiff.networks.slots import enabled_keys
from jaxdiff.networks.text_encoder import TextEncoder
from jaxdiff.types import Array, Cond, Time


class UNet(nn.Module):
    """x [B, H, W, C], c_noise t [B], cond -> [B, H, W, out_channels] in float32 (float64 if `dtype` is).

    Size. `channels` at full resolution, times `channel_mult` per level; `num_blocks` residual blocks a level (one
        number, or one per level); self-attention where the feature map's longer side is in `attention_resolutions`
        (sizes after the patch stem), and always in the middle; `head_channels` per head, 0 for a single head.
    Order. `level_order` "adm": a level's blocks, then halve, the last level excepted. "efficient": halve, then the
        level's blocks, on every level, so that only the stem and the head work at full resolution.
    Blocks. `resample_in_block`: BigGAN resampling inside a residual block, else (strided) convolutions. `scale_shift`:
        the embedding scales and shifts the second norm, else it is added. `dropout` acts when `train`, with the
        "dropout" rng. `remat` True recomputes each block in the backward pass: least memory, about a third more time;
        "products" all of it but convolutions and dense layers.
    Stem. `patch_size` p: p x p pixels become channels before the first convolution and pixels again after the last.
    Conditioning, off by default; a key of `cond` without its field, or a field without its key, is a ValueError.
        `num_classes` K reads `label` int [B], where K, or no label at all, is "no class". `text_dim` D reads `text`
        [B, L, D] and `text_mask` bool [B, L] (True = readable; absent = all) by pooled embedding and cross-attention
        wherever there is self-attention; absent text equals text with nothing readable. `text_encoder`, a TextEncoder of
        width D that is learned too, reads `tokens` int [B, L] in place of `text`. `low_res` "nearest" |
        "bilinear" | "bicubic" reads `low_res` [B, h, w, C], resized to x; `low_res_t` reads its noise level [B];
        `image` and `mask` read maps of x's height and width; `latent_dim` reads a GAN's latent `z` [B, latent_dim].
    Time. `time_embedding` "sinusoidal" or "fourier" of t, any real numbers, embedded in float32.
    Answer. `tanh` bounds it to (-1, 1), for generators of images that answer x_0 itself (DDGAN).
    Arithmetic in `dtype`, parameters in `param_dtype`; norms, softmax and the last convolution in float32. The last
        convolution starts at zero, so an untrained network answers 0.
    """

    channels: int = 64
    channel_mult: Sequence[int] = (1, 2, 2)
    num_blocks: int | Sequence[int] = 2
    attention_resolutions: Sequence[int] = (16, 8)
    head_channels: int = 64
    out_channels: int = 3
    num_classes: int = 0
    dropout: float = 0.0
    patch_size: int = 1
    level_order: str = "adm"
    resample_in_block: bool = True
    scale_shift: bool = True
    time_embedding: str = "sinusoidal"
    text_dim: int = 0
    text_encoder: TextEncoder | None = None
    low_res: str = ""
    low_res_t: bool = False
    image: bool = False
    mask: bool = False
    latent_dim: int = 0
    tanh: bool = False
    remat: bool | str = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = property(enabled_keys)

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Cond = None, train: bool = False) -> Array:
        if t is None:
            raise ValueError("UNet got t=None; it needs t, the noise level (c_noise) of each example, of shape (B,)")
        shared = {f.name: getattr(self, f.name) for f in fields(UNetEncoder) if f.name not in ("parent", "name")}
        if cond is not None and cond.get("tokens") is not None:
            cond = {**{key: value for key, value in cond.items() if key != "tokens"},
                    "text": self.read(cond["tokens"], cond.get("text_mask"))}
        h, skips, emb, text, text_mask = UNetEncoder(**shared, name="encoder")(x, t, cond, train)
        left = list(skips)
        block = block_builder(self)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        adm = self.level_order == "adm"

        def up(h: Array, features: int, name: str) -> Array:
            if self.resample_in_block:
                return block(features, attend=False, resample="up", name=name)(h, emb, text, text_mask, train)
            return Upsample(features, **kinds, name=name)(h)

        counts = blocks_per_level(self.num_blocks, len(self.channel_mult))
        for i in reversed(range(len(self.channel_mult))):
            features = self.channels * self.channel_mult[i]
            count = counts[i] + 1 if adm else counts[i]  # ADM's extra block reads the skip of stem or downsampling
            for j in range(count):
                attend = attends_at(h, self.attention_resolutions) and (adm or j == count - 1)
                h = jnp.concatenate([h, left.pop()], axis=-1)
                h = block(features, attend, name=f"up_{i}_{j}")(h, emb, text, text_mask, train)
            if adm and i > 0:
                h = up(h, features, f"up_{i}_resample")
            elif not adm:
                h = up(h, self.channels * (self.channel_mult[i - 1] if i > 0 else 1), f"up_{i}_resample")
        if not adm:
            h = jnp.concatenate([h, left.pop()], axis=-1)

        wide = at_least_float32(self.dtype)
        h = nn.silu(GroupNorm(self.param_dtype, name="head_norm")(h)).astype(wide)
        last = conv3x3(
            self.out_channels * self.patch_size**2, zero=True, dtype=wide, param_dtype=self.param_dtype, name="head"
        )
        out = depth_to_space(last(h), self.patch_size)
        return jnp.tanh(out) if self.tanh else out

    def read(self, tokens: Array, mask: Array | None = None) -> Array:
        """tokens int [B, L], mask bool [B, L] -> the embeddings `text` float32 [B, L, D] that `__call__` reads."""
        if self.text_encoder is None:
            raise ValueError("UNet got cond['tokens'] but was built without text_encoder; set it, or give cond['text']")
        return self.text_encoder(tokens, mask).hidden
