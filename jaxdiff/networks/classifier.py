"""A classifier made of the U-Net's encoder: for guidance on noisy images, and for features and accuracy on clean ones.

Dhariwal & Nichol 2021, section 4: the downsampling trunk of the U-Net with an attention pool at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.attention import AttentionPool
from jaxdiff.networks.encoder import UNetEncoder
from jaxdiff.networks.layers import GroupNorm, at_least_float32
from jaxdiff.types import Array, Cond, Time


class Classifier(nn.Module):
    """x [B, H, W, C], c_noise t [B] or None -> logits [B, num_classes] in float32 (float64 if `dtype` is).

    Fields as in `UNet`; `pool` is "attention" or "mean". With t None the network is told no noise level: a classifier
    of clean images, or one that judges the level for itself. `cond["label"]` is its target and is never read.
    """

    num_classes: int
    channels: int = 32
    channel_mult: Sequence[int] = (1, 2, 2)
    num_blocks: int | Sequence[int] = 2
    attention_resolutions: Sequence[int] = (8,)
    head_channels: int = 64
    dropout: float = 0.0
    patch_size: int = 1
    level_order: str = "adm"
    resample_in_block: bool = True
    scale_shift: bool = True
    time_embedding: str = "sinusoidal"
    pool: str = "attention"
    remat: bool | str = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = frozenset[str]()

    def setup(self) -> None:
        if self.pool not in ("attention", "mean"):
            raise ValueError(f"Classifier got pool={self.pool!r}; allowed: 'attention', 'mean'")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = UNetEncoder(
            channels=self.channels,
            channel_mult=self.channel_mult,
            num_blocks=self.num_blocks,
            attention_resolutions=self.attention_resolutions,
            head_channels=self.head_channels,
            dropout=self.dropout,
            patch_size=self.patch_size,
            level_order=self.level_order,
            resample_in_block=self.resample_in_block,
            scale_shift=self.scale_shift,
            time_embedding=self.time_embedding,
            remat=self.remat,
            **kinds,
        )
        self.norm = GroupNorm(self.param_dtype)
        self.pooling = AttentionPool(self.head_channels, **kinds) if self.pool == "attention" else None
        self.head = nn.Dense(self.num_classes, dtype=at_least_float32(self.dtype), param_dtype=self.param_dtype)

    def features(self, x: Array, t: Time | None = None, cond: Cond = None, train: bool = False) -> Array:
        """The vector before the last layer, [B, channels * channel_mult[-1]], float32; Frechet distances use it.

        `net.apply({"params": p}, x, method="features")`.
        """
        cond = {key: value for key, value in (cond or {}).items() if key != "label"}
        h = nn.silu(self.norm(self.encoder(x, t, cond, train).h))
        h = h.mean(axis=(1, 2)) if self.pooling is None else self.pooling(h)
        return h.astype(at_least_float32(self.dtype))

    def __call__(self, x: Array, t: Time | None = None, cond: Cond = None, train: bool = False) -> Array:
        return self.head(self.features(x, t, cond, train))
