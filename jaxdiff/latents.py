"""Latent diffusion (Rombach et al. 2022): what is diffused is not the picture but what an autoencoder makes of it.

    z = scale E(x),   x = D(z / scale),   scale = 1 / std of E(x) over the training data        (their appendix G)

so that z has unit deviation, as pictures roughly do, and every path, sampler and guidance works on it unchanged. A KL
autoencoder's z is drawn from its moments at every step; a codebook's is taken before the codebook, which decoding applies.
What the network makes of a picture is the same at every step and may be kept (`caching.py`); the draw is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.networks.autoencoder import sample_moments
from jaxdiff.trees import fingerprint
from jaxdiff.types import Array, Key, Params


class Latents(NamedTuple):
    """Pictures x `[B, H, W, C]` to latents z `[B, h, w, c]`, in unit deviation, and back.

    moments: `x -> [B, h, w, 2c]`, mean and log variance of a KL autoencoder, or a codebook's `[B, h, w, c]`; not scaled.
    draw: `(keys [B], moments) -> z`, one draw, scaled. decode: `z -> x` in [-1, 1].
    name: the fingerprint of the autoencoder's parameters (`trees.fingerprint`). scale: see the module's head.
    """

    moments: Callable[[Array], Array]
    draw: Callable[[Key, Array], Array]
    decode: Callable[[Array], Array]
    name: str
    scale: float

    def encode(self, keys: Key, x: Array) -> Array:
        """`(keys [B], x [B, H, W, C]) -> z [B, h, w, c]`: a draw of its moments."""
        return self.draw(keys, self.moments(x))


def of_network(net: Any, params: Params, scale: float = 1.0) -> Latents:
    """The latents of a trained `networks.Autoencoder`; `params` are held as they are, and not trained."""

    def moments(x: Array) -> Array:
        return net.apply({"params": params}, x, method="encode")

    def draw(keys: Key, found: Array) -> Array:
        return scale * (found if net.num_codes else jax.vmap(sample_moments)(keys, found))

    def decode(z: Array) -> Array:
        return jnp.clip(net.apply({"params": params}, z / scale, method="decode"), -1, 1)

    return Latents(moments, draw, decode, fingerprint(params), scale)


def shape_of(latents: Latents, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The latents' shape for pictures of `shape` (H, W, C); raises as the network does for sizes it does not divide."""
    keys = jax.random.split(jax.random.key(0), 1)
    return jax.eval_shape(latents.encode, keys, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]


def unit_scale(latents: Latents, x: np.ndarray, batch_size: int = 64) -> float:
    """`scale` that gives the latents of pictures `x` `[N, H, W, C]` a standard deviation of 1, over all their numbers."""
    encode = jax.jit(latents.encode)
    total = square = count = 0.0
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size]
        z = np.asarray(encode(jax.random.split(jax.random.key(start), len(part)), part), np.float64)
        total, square, count = total + z.sum(), square + (z**2).sum(), count + z.size
    return float(latents.scale / np.sqrt(square / count - (total / count) ** 2))
