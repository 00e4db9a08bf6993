"""Thresholding: keep the predicted image in the range of images. It comes last, after the guidance that left the range."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.guidance.pairs import is_number, of_example, with_x0
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Prediction, Tree


def _check_bound(bound: Any) -> None:
    if not is_number(bound) or not 0 < bound < math.inf:
        raise ValueError(f"the threshold is {bound!r}; allowed: a number above 0 (images in [-1, 1]: 1)")


def _clipping(clip: Any, path: Any) -> Guidance:
    """`clip` on each variable of the predicted x0, eps recomputed."""

    def wrap(denoise: Denoiser) -> Denoiser:
        def thresholded(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            prediction = denoise(key, x_t, t, cond)
            return with_x0(path, prediction, x_t, jax.tree.map(clip, prediction.x0), t)

        return thresholded

    return wrap


def static_threshold(path: Any, bound: float = 1.0) -> Guidance:
    """Clip the predicted x0 to [-bound, bound], the range of images, and recompute eps (Ho et al. 2020's sampler; Saharia
    et al. 2022, section 2.3).

    An eps prediction divides its error by alpha, so a chain that ends near alpha = 0 (cosine betas) cannot be sampled
    without it. `path` is the denoiser's, or its dict of paths, each variable clipped alike.
    """
    _check_bound(bound)
    return _clipping(lambda x: jnp.clip(x, -bound, bound), path)


def dynamic_threshold(path: Any, percentile: float = 0.995, bound: float = 1.0) -> Guidance:
    """Clip each predicted x0 to [-s, s] and divide it by s / bound, eps recomputed (Saharia et al. 2022, section 2.3).

    s is that percentile of |x0| over one example's pixels (linear between them), or `bound` where that is larger: where
    strong guidance would push pixels beyond the range, the whole image is drawn back into it, and fewer saturate.

    Args:
      path: the denoiser's, or its dict of paths, each variable with an s of its own.
      percentile: share of the pixels, in (0, 1].
      bound: the range of images.
    """
    _check_bound(bound)
    if not is_number(percentile) or not 0 < percentile <= 1:
        raise ValueError(f"the threshold's percentile is {percentile!r}; allowed: a share above 0, up to 1 (usually 0.995)")

    def clip(x: Array) -> Array:
        s = jnp.quantile(jnp.abs(x), percentile, axis=of_example(x), keepdims=True)
        s = jnp.maximum(s, bound)
        return jnp.clip(x, -s, s) * (bound / s)

    return _clipping(clip, path)
