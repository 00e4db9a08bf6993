"""The network of the 2-D toys: a residual multilayer perceptron on vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.networks.embeddings import ClassEmbedding, LatentMapping, TimeEmbedding, fourier
from jaxdiff.networks.layers import at_least_float32, dense
from jaxdiff.networks.slots import checked, enabled_keys, per_example, spatial_input
from jaxdiff.types import Array, Cond, Time


class MLP(nn.Module):
    """x [B, D], c_noise t [B], cond -> [B, out_channels] in float32 (float64 if `dtype` is).

    `depth` residual blocks of `width`: h + Dense(dropout(SiLU(Dense(h) + Dense(embedding)))). `fourier_features` F > 0
    adds F random Fourier features of x with frequencies of std `fourier_scale` (cycles per unit of x) beside x itself:
    sharp modes are out of a plain perceptron's reach. `num_classes` reads `cond["label"]`, `latent_dim` reads
    `cond["z"]` [B, latent_dim], `image` reads a known vector `cond["image"]` [B, any]. The last layer starts at zero.
    """

    out_channels: int = 2
    width: int = 128
    depth: int = 3
    fourier_features: int = 0
    fourier_scale: float = 1.0
    time_embedding: str = "sinusoidal"
    num_classes: int = 0
    latent_dim: int = 0
    image: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    cond_keys = property(enabled_keys)

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Cond = None, train: bool = False) -> Array:
        if x.ndim != 2:
            raise ValueError(f"MLP got x of shape {x.shape}; allowed: (B, D); use UNet for images")
        given = checked(self, cond)
        batch, kinds = x.shape[0], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        time = TimeEmbedding(self.width, 2 * (self.width // 2), self.time_embedding, **kinds, name="time")
        emb = time(per_example(t, batch, "t"))
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, self.width, **kinds, name="class")(given.get("label"), batch)
        if self.latent_dim:
            emb = emb + LatentMapping(self.latent_dim, self.width, **kinds, name="latent")(given["z"])
        h = perceptron(self, spatial_input(self, x, given), nn.silu(emb), nn.Dropout(self.dropout, deterministic=not train))
        wide = at_least_float32(self.dtype)
        return dense(self.out_channels, zero=True, dtype=wide, param_dtype=self.param_dtype, name="head")(h)


def perceptron(net: Any, x: Array, emb: Array, drop: Callable[[Array], Array] = lambda h: h) -> Array:
    """The residual blocks of `net` on x [B, D] under an embedding [B, width], activated at the end -> [B, width].

    Called in a compact method, whose module takes the layers; `net` has MLP's fields of size and Fourier features.
    """
    kinds = {"dtype": net.dtype, "param_dtype": net.param_dtype}
    if net.fourier_features:
        x = jnp.concatenate([x, fourier(x, net.fourier_features, net.fourier_scale).astype(x.dtype)], axis=-1)
    h = dense(net.width, **kinds, name="stem")(x)
    for i in range(net.depth):
        y = dense(net.width, **kinds, name=f"in_{i}")(h) + dense(net.width, **kinds, name=f"emb_{i}")(emb)
        h = h + dense(net.width, **kinds, name=f"out_{i}")(drop(nn.silu(y)))
    return nn.silu(h)
