"""What a network is told beside its input, as vectors [B, D]: noise level, class, pooled text, latent.

Noise levels arrive as c_noise, which may be negative or fractional (ln(sigma) / 4, or 1000 t), and are embedded in at
least float32: in bfloat16 neighbouring levels of a 1000-step process are the same number.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.networks.layers import at_least_float32, dense
from jaxdiff.types import Array, Time


def sinusoidal(t: Time, features: int, max_period: float = 10_000.0) -> Array:
    """[cos(t w), sin(t w)] with w_i = max_period^(-i / half), i < half = features // 2 (ADM's order).

    t [B], any real numbers -> [B, features], float32; `features` must be even.
    """
    if features % 2:
        raise ValueError(f"sinusoidal got features={features}; it must be even: half are cosines, half are sines")
    half = features // 2
    t = jnp.asarray(t, at_least_float32(jnp.asarray(t).dtype))
    freqs = jnp.exp(-np.log(max_period) / half * jnp.arange(half, dtype=t.dtype))
    angles = t[:, None] * freqs[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fourier(x: Array, features: int, scale: float = 1.0, seed: int = 0) -> Array:
    """[cos(2 pi x w), sin(2 pi x w)] with fixed w ~ N(0, scale^2) (Tancik et al. 2020; on time, Song et al. 2021).

    x [B] or [B, D] -> [B, features], at least float32. The frequencies come from numpy's frozen RandomState stream, so
    they are the same on every machine and version, are no parameters, and no optimizer moves them.
    """
    if features % 2:
        raise ValueError(f"fourier got features={features}; it must be even: half are cosines, half are sines")
    x = jnp.asarray(x, at_least_float32(jnp.asarray(x).dtype))
    x = x[:, None] if x.ndim == 1 else x
    freqs = np.random.RandomState(seed).standard_normal((x.shape[-1], features // 2)) * scale
    angles = 2 * np.pi * (x @ jnp.asarray(freqs, x.dtype))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Dense, SiLU, Dense on an embedding of c_noise [B] -> [B, features].

    Computed and returned in at least float32: these are a few vectors, and c_noise = ln(sigma) / 4 moves by little.
    `kind` "sinusoidal" (DDPM, ADM, EDM) or "fourier" (random frequencies of std 16, NCSN++: finer for ln(sigma) / 4).
    """

    features: int
    frequencies: int
    kind: str = "sinusoidal"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Time) -> Array:
        if self.kind not in ("sinusoidal", "fourier"):
            raise ValueError(f"time embedding got kind={self.kind!r}; allowed: 'sinusoidal', 'fourier'")
        kinds = {"dtype": at_least_float32(self.dtype), "param_dtype": self.param_dtype}
        waves = sinusoidal(t, self.frequencies) if self.kind == "sinusoidal" else fourier(t, self.frequencies, 16.0)
        return dense(self.features, name="out", **kinds)(nn.silu(dense(self.features, name="in", **kinds)(waves)))


class ClassEmbedding(nn.Module):
    """A row per class, and row `num_classes` for "no class"; label int [B], or None for no class -> [B, features]."""

    num_classes: int
    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, label: Array | None, batch: int) -> Array:
        label = jnp.full((batch,), self.num_classes) if label is None else jnp.asarray(label)
        if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(
                f"cond['label'] is {label.dtype} {label.shape}; it must be integers of shape ({batch},) in "
                f"0..{self.num_classes}, {self.num_classes} meaning no class"
            )
        init = nn.initializers.normal(1.0)
        rows = nn.Embed(
            self.num_classes + 1,
            self.features,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=init,
            name="table",
        )
        return rows(label)


class TextPool(nn.Module):
    """The mean of the readable tokens, normalised and projected: [B, L, D], bool [B, L] -> [B, features]."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, text: Array, mask: Array) -> Array:
        weight = mask[..., None].astype(at_least_float32(text.dtype))
        # where, not a product: a NaN or infinity in a masked token must not come through as NaN * 0.
        total = jnp.where(mask[..., None], text, 0).astype(weight.dtype).sum(axis=1)
        mean = total / jnp.maximum(weight.sum(axis=1), 1)
        mean = nn.LayerNorm(dtype=weight.dtype, param_dtype=self.param_dtype, name="norm")(mean)
        return dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="out")(mean)


class LatentMapping(nn.Module):
    """A GAN's latent z [B, latent_dim] to an embedding [B, features]: unit RMS, then three Dense + SiLU (DDGAN)."""

    latent_dim: int
    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        if z.ndim != 2 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"cond['z'] has shape {z.shape}; allowed: (B, latent_dim) = (B, {self.latent_dim})")
        h = jnp.asarray(z, at_least_float32(z.dtype))
        h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-8)
        for i in range(3):
            h = nn.silu(dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name=f"layer_{i}")(h))
        return h
