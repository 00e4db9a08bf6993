"""The first stage of latent diffusion (Rombach et al. 2022, appendix G): pictures to a small map of latents and back.

The encoder and decoder of Esser et al. 2021 ("Taming transformers", table 7): residual blocks, self-attention at the
lowest resolution, strided convolutions down, nearest neighbour and a convolution up. Between them stands either a
Gaussian with a diagonal covariance, close to N(0, I) by a small weight (Kingma & Welling 2014), or a codebook
(`quantizer.py`). The network ends in `features` and `paint`, because the adaptive weight of its adversarial loss needs
the gradient of the last layer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks.encoder import blocks_per_level
from jaxdiff.networks.layers import at_least_float32, conv3x3, dense, depth_to_space, space_to_depth
from jaxdiff.networks.levels import Head, Level, Middle
from jaxdiff.networks.quantizer import histogram, quantize
from jaxdiff.types import Array, Key

KINDS = ("kl", "vq")
DOWNS = ("symmetric", "asymmetric")
LOG_VARIANCE = (-30.0, 20.0)  # beyond these, exp leaves float32's comfortable range


class Coded(NamedTuple):
    """What a training pass gives its loss: `features` [B, h, w, C] for `paint`; `costs`, each [B]; `told`, for the state.

    kl: costs {"kl"}, in nats, summed over the latent; told {}. vq: costs {"codebook", "commitment"}; told {"histogram"
    [K] in fair shares, "z_e" [B, h, w, D]}, neither of which carries a gradient.
    """

    features: Array
    costs: dict[str, Array]
    told: dict[str, Array]


def split_moments(moments: Array) -> tuple[Array, Array]:
    """[..., 2 z] -> (mean, log variance), each [..., z]."""
    mean, log_var = jnp.split(moments, 2, axis=-1)
    return mean, log_var


def sample_moments(key: Key, moments: Array) -> Array:
    """One draw, [..., z], from the Gaussian of moments [..., 2 z]; for a key each, `jax.vmap(sample_moments)(keys, m)`."""
    mean, log_var = split_moments(moments)
    return mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_to_normal(moments: Array) -> Array:
    """KL(N(mean, var) || N(0, I)) of each example, in nats: [B, ..., 2 z] -> [B] (Kingma & Welling 2014, appendix B)."""
    mean, log_var = split_moments(moments)
    return 0.5 * (mean**2 + jnp.expm1(log_var) - log_var).sum(axis=tuple(range(1, moments.ndim)))


class Autoencoder(nn.Module):
    """Pictures [B, H, W, out_channels] in [-1, 1] <-> latents [B, H/f, W/f, latent_channels], f = `reduction`.

    Methods, by `net.apply({"params": p}, ..., method="encode")`; all answer in float32 (float64 if `dtype` is):
        encode(x) -> kl: moments [B, h, w, 2 latent_channels], mean then log variance in [-30, 20]; vq: z_e, not quantised
        decode(z) -> x; with vq, z is taken to its nearest codes first
        code(x, keys) -> `Coded`, the training pass up to the last layer; keys [B], one an example, draw kl's latents
        features(z), paint(features): the two parts of decoding; the last layer is paint's, `last_layer`
        __call__(x) -> decode(mean or z_e): the reconstruction without noise, and what initialises

    Size. `channels` at full resolution (after the stem), times `channel_mult` per level; halved between levels, so
        f = patch_size 2^(levels - 1); `num_blocks` blocks a level (one number, or one per level), one more in the decoder.
    Attention where a map's longer side is in `attention_resolutions`, and in the middle if `attend`; `head_channels` a
        head, 0 for a single one (the published models).
    Stem. `patch_size` p: p x p pixels become channels before the first convolution and pixels again after the last.
    Latent. `kind` "kl", or "vq" with `num_codes` codes of size `latent_channels`, the parameter "codebook".
    `down` "symmetric" or "asymmetric" padding of the strided convolutions. `remat` is `layers.recomputing`'s.
    Arithmetic in `dtype`, parameters in `param_dtype`, norms and last layers in float32. The last convolution starts
    at zero, so an untrained network answers 0.
    """

    out_channels: int = 3
    channels: int = 64
    channel_mult: Sequence[int] = (1, 2, 2)
    num_blocks: int | Sequence[int] = 2
    attention_resolutions: Sequence[int] = ()
    attend: bool = True
    head_channels: int = 0
    patch_size: int = 1
    latent_channels: int = 4
    kind: str = "kl"
    num_codes: int = 0
    down: str = "symmetric"
    remat: bool | str = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    last_layer = ("head", "conv", "kernel")  # the path of the last kernel in the parameters

    @property
    def reduction(self) -> int:
        """Pixels a side for one latent position."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    def setup(self) -> None:
        if self.kind not in KINDS or self.down not in DOWNS:
            raise ValueError(f"kind={self.kind!r}, down={self.down!r}; allowed: {KINDS} and {DOWNS}")
        if (self.num_codes > 1) != (self.kind == "vq"):
            raise ValueError(
                f"kind={self.kind!r} came with num_codes={self.num_codes}; allowed: 'vq' with 2 or more, 'kl' with 0"
            )
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        wide = {"dtype": at_least_float32(self.dtype), "param_dtype": self.param_dtype}
        shared = {"head_channels": self.head_channels, "remat": self.remat, **kinds}
        level: Any = partial(Level, attention_resolutions=tuple(self.attention_resolutions), **shared)
        counts = blocks_per_level(self.num_blocks, len(self.channel_mult))
        widths, last = [self.channels * mult for mult in self.channel_mult], len(counts) - 1
        size = self.latent_channels * (2 if self.kind == "kl" else 1)

        self.encoder_stem = conv3x3(self.channels, **kinds)
        self.encoder_levels = [level(widths[i], counts[i], self.down if i < last else "") for i in range(last + 1)]
        self.encoder_middle = Middle(self.attend, **shared)
        self.encoder_head = Head(size, False, **kinds)
        self.to_latent = dense(size, **wide)
        if self.kind == "vq":
            start = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])
            self.codebook = self.param("codebook", start, (self.num_codes, self.latent_channels), self.param_dtype)
        self.from_latent = dense(self.latent_channels, **wide)
        self.decoder_stem = conv3x3(widths[-1], **kinds)
        self.decoder_middle = Middle(self.attend, **shared)
        self.decoder_levels = [level(widths[i], counts[i] + 1, "up" if i else "") for i in range(last, -1, -1)]
        self.head = Head(self.out_channels * self.patch_size**2, True, **kinds)

    def encode(self, x: Array) -> Array:
        """x [B, H, W, C] -> moments or z_e; ValueError unless H and W are multiples of `reduction`."""
        f = self.reduction
        if x.ndim != 4 or x.shape[3] != self.out_channels or x.shape[1] % f or x.shape[2] % f:
            raise ValueError(
                f"x has shape {x.shape}; allowed: (B, H, W, {self.out_channels}) with H and W multiples of {f} "
                f"(patch_size={self.patch_size} and {len(self.channel_mult) - 1} halvings)"
            )
        h = self.encoder_stem(space_to_depth(x, self.patch_size))
        for level in self.encoder_levels:
            h = level(h)
        h = self.to_latent(self.encoder_head(self.encoder_middle(h)))
        if self.kind == "vq":
            return h
        mean, log_var = split_moments(h)
        return jnp.concatenate([mean, jnp.clip(log_var, *LOG_VARIANCE)], axis=-1)

    def features(self, z: Array) -> Array:
        """z [B, h, w, latent_channels], used as it is -> what the last layer reads, [B, h', w', C] in `dtype`."""
        if z.ndim != 4 or z.shape[3] != self.latent_channels:
            raise ValueError(f"z has shape {z.shape}; allowed: (B, h, w, {self.latent_channels}), as this network encodes")
        h = self.decoder_middle(self.decoder_stem(self.from_latent(z)))
        for level in self.decoder_levels:
            h = level(h)
        return h

    def paint(self, features: Array) -> Array:
        """The last layer: norm, SiLU, convolution, and pixels out of patches."""
        return depth_to_space(self.head(features), self.patch_size)

    def decode(self, z: Array) -> Array:
        """Latents -> pictures, not clipped to [-1, 1]."""
        return self.paint(self.features(quantize(self.codebook, z).z if self.kind == "vq" else z))

    def code(self, x: Array, keys: Key) -> Coded:
        """The training pass: a draw from the moments, or the nearest codes with their straight-through gradient."""
        encoded = self.encode(x)
        if self.kind == "kl":
            z = jax.vmap(sample_moments)(keys, encoded)
            return Coded(self.features(z), {"kl": kl_to_normal(encoded)}, {})
        found = quantize(self.codebook, encoded)
        told = {"histogram": histogram(found.codes, self.num_codes), "z_e": jax.lax.stop_gradient(encoded)}
        return Coded(self.features(found.z), {"codebook": found.codebook, "commitment": found.commitment}, told)

    def __call__(self, x: Array) -> Array:
        encoded = self.encode(x)
        return self.decode(split_moments(encoded)[0] if self.kind == "kl" else encoded)
