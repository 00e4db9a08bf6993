"""The discriminator of the 2-D toys: the residual perceptron of `mlp.py` with a score and, for SIDDM, its two heads."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.discriminator import LOGIT_INIT, heads_init, heads_of, minibatch_std
from jaxdiff.networks.embeddings import ClassEmbedding, TimeEmbedding
from jaxdiff.networks.layers import at_least_float32, dense
from jaxdiff.networks.mlp import perceptron
from jaxdiff.networks.slots import checked, enabled_keys, per_example, spatial_input
from jaxdiff.types import Array, Cond, Time


class PointDiscriminator(nn.Module):
    """x [B, D], c_noise t [B], cond -> {"logit": [B], "x0", "residual": [B, out_channels]}, float32.

    "x0" is there with `denoise`, "residual" with `regress` and "log_variance", like it, with `variance` (Xu et al. 2023,
    SIDDM); for a joint discriminator (Xiao et al. 2022, DDGAN) the caller puts x_t behind x_s. `depth`, `width`,
    `fourier_features`, `fourier_scale` (of all of x), `num_classes` (reads `cond["label"]`) and `image` (a known vector,
    `cond["image"]`) as in `MLP`. The activation is SiLU, which is smooth: a penalty on the score's gradient has a gradient
    everywhere. `minibatch_std` n > 0 shows one more layer, before the score, how much n neighbours of the batch differ.
    `train` changes nothing. Last layers in float32 (float64 if `dtype` is); the "residual" head starts at zero, and scores
    start near it.
    """

    out_channels: int = 2
    width: int = 128
    depth: int = 3
    fourier_features: int = 0
    fourier_scale: float = 1.0
    time_embedding: str = "sinusoidal"
    num_classes: int = 0
    image: bool = False
    minibatch_std: int = 0
    denoise: bool = False
    regress: bool = False
    variance: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = property(enabled_keys)

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Cond = None, train: bool = False) -> dict[str, Array]:
        if x.ndim != 2:
            raise ValueError(f"PointDiscriminator got x of shape {x.shape}; allowed: (B, D); use Discriminator for images")
        given = checked(self, cond)
        batch, kinds = x.shape[0], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        time = TimeEmbedding(self.width, 2 * (self.width // 2), self.time_embedding, **kinds, name="time")
        emb = time(per_example(t, batch, "t"))
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, self.width, **kinds, name="class")(given.get("label"), batch)
        h = perceptron(self, spatial_input(self, x, given), nn.silu(emb))
        last = {"dtype": at_least_float32(self.dtype), "param_dtype": self.param_dtype}
        seen = h
        if self.minibatch_std:
            std = minibatch_std(h, self.minibatch_std)[:, None].astype(h.dtype)
            seen = nn.silu(dense(self.width, **kinds, name="compare")(jnp.concatenate([h, std], axis=-1)))
        outputs = {"logit": nn.Dense(1, kernel_init=LOGIT_INIT, **last, name="logit")(seen)[:, 0]}
        heads = heads_of(self)
        if heads:
            init = heads_init(self, self.out_channels)
            both = nn.Dense(len(heads) * self.out_channels, kernel_init=init, **last, name="heads")(h)
            outputs |= dict(zip(heads, jnp.split(both, len(heads), axis=-1), strict=True))
        return outputs
