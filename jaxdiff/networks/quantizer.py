"""The codebook of a VQ autoencoder (van den Oord et al. 2017): nearest code, straight-through gradient, use and revival.

    code_k(z_e) = argmin_k |z_e - e_k|^2,     z = z_e + sg[e - z_e]                       (their eq. 2 and section 3.2)
    codebook    = |sg[z_e] - e|^2,            commitment = |z_e - sg[e]|^2                (the last two terms of their eq. 3)

The codebook `[K, D]` is an ordinary parameter, moved by the gradient of the codebook term. What cannot be a parameter is
how often each code was used lately: a moving average, with a few recent encoder outputs from which dead codes start anew
(Dhariwal et al. 2020, "Jukebox", section 3.1). Both are mutable state of the network, small and of fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.types import Array, Key

Arrays = dict[str, Array]


class Quantized(NamedTuple):
    """`z` [B, ..., D], whose gradient is z_e's; `codes` int32 [B, ...]; the two squared errors, `[B]`, as means over
    positions and dimensions. They are equal in value: one's gradient reaches the codebook only, the other's z_e only."""

    z: Array
    codes: Array
    codebook: Array
    commitment: Array


def nearest(codebook: Array, z_e: Array) -> Array:
    """The number of the code closest to each vector: codebook [K, D], z_e [..., D] -> int32 [...]; ties take the first.

    In float32 at full matrix precision: the default of accelerators would confuse close neighbours.
    """
    if z_e.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"z_e has shape {z_e.shape} and the codebook {codebook.shape}; allowed: the same last size")
    wide = jnp.promote_types(z_e.dtype, jnp.float32)
    z, e = z_e.astype(wide), codebook.astype(wide)
    cross = jnp.matmul(z, e.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(e * e, axis=-1) - 2 * cross, axis=-1).astype(jnp.int32)  # |z|^2 is the same for all


def lookup(codebook: Array, codes: Array) -> Array:
    """The vectors of integer codes [...]: -> [..., D] in the codebook's dtype; its gradient is the codebook's."""
    return jnp.take(codebook, codes, axis=0)


def quantize(codebook: Array, z_e: Array) -> Quantized:
    """Replace every vector of z_e [B, ..., D] by its nearest code, and say what that cost."""
    codes = nearest(codebook, z_e)
    e = lookup(codebook, codes).astype(z_e.dtype)
    axes = tuple(range(1, z_e.ndim))
    held = jax.lax.stop_gradient
    z = z_e + held(e - z_e)
    return Quantized(z, codes, ((held(z_e) - e) ** 2).mean(axes), ((z_e - held(e)) ** 2).mean(axes))


def histogram(codes: Array, num_codes: int) -> Array:
    """How often each code occurs, float32 [num_codes], in fair shares: 1 is one position in `num_codes`, the mean."""
    counts = jnp.bincount(codes.reshape(-1), length=num_codes)
    return counts.astype(jnp.float32) * (num_codes / codes.size)


def usage(counts: Array, threshold: float = 0.0) -> Array:
    """The share of codes whose count [K], in any unit, is above `threshold`: a scalar in [0, 1]."""
    return jnp.mean(counts > threshold, dtype=jnp.float32)


def perplexity(counts: Array) -> Array:
    """exp of the entropy of counts [K], in any unit: from 1, a single code, to K, all alike; a scalar."""
    p = counts / jnp.maximum(counts.sum(), jnp.finfo(counts.dtype).tiny)
    return jnp.exp(jax.scipy.special.entr(p).sum())


def reset_dead(key: Key, codebook: Array, counts: Array, z_e: Array, threshold: float) -> Array:
    """The codebook [K, D] with each code whose count is not above `threshold` replaced by a random row of z_e [..., D].

    counts: [K], in the threshold's unit; `track` keeps fair shares. Live codes come back bit for bit.
    """
    rows = z_e.reshape(-1, z_e.shape[-1]).astype(codebook.dtype)
    drawn = rows[jax.random.randint(key, counts.shape, 0, len(rows))]
    return jnp.where((counts <= threshold)[:, None], drawn, codebook)


def fresh_use(num_codes: int, dim: int) -> Arrays:
    """The state before training: `counts` float32 [K], all 0 (so that the first revival draws the codebook from the
    data), and `pool` float32 [K, D], which `track` fills at every step."""
    return {"counts": jnp.zeros(num_codes), "pool": jnp.zeros((num_codes, dim))}


def track(
    decay: float = 0.99, threshold: float = 0.03
) -> Callable[[Arrays, Key, Arrays], tuple[Arrays, Arrays]]:
    """Carry the use of the codes from step to step: `(state, key, {"histogram", "z_e"}) -> (state, metrics)`.

    `state` is as `fresh_use` makes it: counts <- decay counts + (1 - decay) histogram, in fair shares, and `pool` takes K
    random vectors of z_e, with replacement. Metrics: `usage`, the share of codes above `threshold`, and
    `perplexity`, both of the new counts. The average of the counts over devices is that of the whole batch; of pools, any
    one's will do.
    Raises ValueError for a decay or a threshold outside [0, 1).
    """
    if not 0 <= decay < 1 or not 0 <= threshold < 1:
        raise ValueError(f"a codebook's decay is {decay} and threshold {threshold}; allowed: both from 0 and below 1")

    def update(state: Arrays, key: Key, told: Arrays) -> tuple[Arrays, Arrays]:
        counts = decay * state["counts"] + (1 - decay) * told["histogram"]
        rows = told["z_e"].reshape(-1, told["z_e"].shape[-1])
        pool = rows[jax.random.randint(key, counts.shape, 0, len(rows))].astype(state["pool"].dtype)
        metrics = {"usage": usage(counts, threshold), "perplexity": perplexity(counts)}
        return {"counts": counts, "pool": pool}, metrics

    return update
