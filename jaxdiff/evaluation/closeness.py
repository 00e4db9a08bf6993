"""How close two pictures are, pixel by pixel: PSNR, over all pixels or some, and SSIM (from dm-pix), one number a pair."""

from __future__ import annotations

from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array

WINDOW, WINDOW_SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels (Wang et al. 2004)
PSNR_CAP = 100.0  # dB: a root mean square of 2e-5, a four-hundredth of an 8-bit level
FAR, FEW = 2.0, 0.05  # more than this share of the values further out than this: not pictures in [-1, 1]


def check_pictures(values: Any, name: str, rank: int = 4) -> np.ndarray:
    """`values` `[N, H, W, C]` (rank 5: `[K, N, H, W, C]`) as float32 on the host, clipped to [-1, 1] as files clip them.

    A sampler overshoots a little; what lies far outside, NaN, integers and other ranks are told in one line (ValueError).
    """
    x = np.asarray(values)
    if x.ndim != rank or 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}; allowed: [{'K, ' * (rank - 4)}N, H, W, C], nothing empty")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} is {x.dtype}; allowed: floats in [-1, 1] (from 8 bits: x / 127.5 - 1)")
    x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has {int((~np.isfinite(x)).sum())} of {x.size} values NaN or inf; allowed: [-1, 1]")
    far = float(np.mean(np.abs(x) > FAR))
    if far > FEW:
        raise ValueError(f"{name} is from {x.min():.3g} to {x.max():.3g}, {far:.0%} of it beyond {FAR}; allowed: [-1, 1]")
    return np.clip(x, -1, 1)


def same_shape(a: np.ndarray, b: np.ndarray, names: str) -> None:
    """ValueError unless the two have one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{names} have shapes {a.shape} and {b.shape}; give pictures of one shape")


@jax.jit
def _psnr(a: Array, b: Array, weight: Array) -> Array:
    weight = jnp.broadcast_to(weight, a.shape)
    square = jnp.sum(weight * (a - b) ** 2, (1, 2, 3)) / jnp.sum(weight, (1, 2, 3))
    return jnp.minimum(10 * jnp.log10(4 / jnp.maximum(square, 1e-20)), PSNR_CAP)


@jax.jit
def _ssim(a: Array, b: Array) -> Array:
    return dm_pix.ssim((a + 1) / 2, (b + 1) / 2, filter_size=WINDOW, filter_sigma=WINDOW_SIGMA)


def psnr(a: Any, b: Any, weight: Any = None) -> Array:
    """Peak signal-to-noise ratio of pictures `[N, H, W, C]` in [-1, 1]: 10 log10(2^2 / mean squared error), dB, `[N]`.

    Equal pictures, whose ratio is infinite, get 100 dB (`PSNR_CAP`), so that one of them leaves a table's mean readable.
    `weight` `[N, H, W, 1]`, with a sum above 0 in each example, makes the mean a weighted one: 1 for pixels that count.
    """
    a, b = check_pictures(a, "a"), check_pictures(b, "b")
    same_shape(a, b, "a and b")
    weight = np.ones((1, 1, 1, 1), np.float32) if weight is None else np.asarray(weight, np.float32)
    if weight.size > 1 and weight.shape != (*a.shape[:3], 1):
        raise ValueError(f"weight has shape {weight.shape}; allowed: {(*a.shape[:3], 1)}")
    return _psnr(a, b, weight)


def ssim(a: Any, b: Any) -> Array:
    """Structural similarity (Wang et al. 2004) of pictures `[N, H, W, C]` in [-1, 1], taken to [0, 1]; `[N]`, 1 if equal.

    A Gaussian window of 11 pixels, sigma 1.5, k1 = .01, k2 = .03; the mean is over the windows that lie wholly inside
    the picture and over channels. ValueError for pictures smaller than the window.
    """
    a, b = check_pictures(a, "a"), check_pictures(b, "b")
    same_shape(a, b, "a and b")
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM of pictures {a.shape[1]}x{a.shape[2]}; allowed: sides of at least its window, {WINDOW}")
    return _ssim(a, b)
