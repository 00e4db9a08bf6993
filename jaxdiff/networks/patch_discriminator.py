"""The discriminator of patches (Isola et al. 2017, "pix2pix", section 3.2), which Esser et al. 2021 set on autoencoders.

Every answer judges the patch that it sees (70 x 70 pixels with three layers). Group norm takes the place of batch norm:
the network stays a pure function of its parameters, and examples do not see each other.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.discriminator import leaky
from jaxdiff.networks.layers import GroupNorm, at_least_float32
from jaxdiff.networks.linear import convolve
from jaxdiff.types import Array

INIT = nn.initializers.normal(0.02)  # the paper's, section 6.2


class PatchDiscriminator(nn.Module):
    """x [B, H, W, C] -> logits [B, h, w], float32 (float64 if `dtype` is); higher for what looks real.

    `num_layers` 4x4 convolutions of stride 2, of widths `channels`, 2, 4, 8, 8, ... times it, one more of stride 1, and the
    last; norms after all but the first and the last, LeakyReLU .2 between. h = floor(H / 2^num_layers) - 2, and so w.
    Arithmetic in `dtype`, parameters in `param_dtype`, the norms and the last layer in float32.
    """

    channels: int = 64
    num_layers: int = 3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        least = 3 * 2**self.num_layers
        if self.num_layers < 1 or x.ndim != 4 or min(x.shape[1:3]) < least:
            raise ValueError(
                f"x has shape {x.shape} and num_layers={self.num_layers}; allowed: (B, H, W, C) with H and W at least "
                f"{least}, 3 x 2^num_layers, and 1 layer or more; take fewer layers for small pictures"
            )

        def conv(features: int, stride: int, dtype: Any, name: str) -> nn.Conv:
            pad = ((1, 1), (1, 1))
            return nn.Conv(features, (4, 4), stride, pad, kernel_init=INIT, conv_general_dilated=convolve, dtype=dtype,
                           param_dtype=self.param_dtype, name=name)

        h = leaky(conv(self.channels, 2, self.dtype, "conv_0")(x))
        for i in range(1, self.num_layers + 1):
            h = conv(self.channels * min(2**i, 8), 2 if i < self.num_layers else 1, self.dtype, f"conv_{i}")(h)
            h = leaky(GroupNorm(self.param_dtype, name=f"norm_{i}")(h)).astype(self.dtype)
        wide = at_least_float32(self.dtype)
        return conv(1, 1, wide, "logits")(h.astype(wide))[..., 0]
