"""Guidance: functions from a Denoiser to a Denoiser, so that they stack and every sampler takes them.

Weights of classifier-free guidance sum to one, so the pair keeps `alpha x0 + sigma eps = x_t` without being recomputed;
after thresholding x0, eps is recomputed. Thresholding comes last: `static_threshold(path)(classifier_free(...)(denoise))`.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import masked, null
from jaxdiff.sde.kernels import as_time, log_snr
from jaxdiff.trees import expand, over
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Path, Prediction, Tree


def classifier_free(
    scale: float, num_classes: int, path: Any = None, interval: tuple[float, float] | None = None
) -> Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond), both halves in one batched call.

    Args:
      scale: 1 + the paper's w: 0 unconditional, 1 conditional (a single call, bit for bit), above 1 stronger.
      num_classes: the null label.
      path: needed for `interval`.
      interval: noise levels `(low, high)` of sigma / alpha where guidance acts (Kynkaanniemi et al. 2024); outside it the
        conditional prediction is used.
    """
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ValueError(f"the guidance scale is {scale!r}; allowed: a finite number (1 is the plain conditional model)")
    if interval is not None and path is None:
        raise ValueError("classifier_free got an interval without a path; mend: path=, whose noise levels it speaks of")
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"the guidance interval is {interval}; allowed: (low, high) of sigma / alpha, low <= high")

    def wrap(denoise: Denoiser) -> Denoiser:
        if scale == 1:
            return denoise

        def guided(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            if cond is None:
                raise ValueError("classifier_free got no condition; mend: pass cond, e.g. {'label': ...}")
            if "label" not in cond and "text" not in cond:
                raise ValueError(f"classifier_free got a condition of {sorted(cond)}; allowed: one with a label or text")
            blank = null(cond, num_classes)
            if scale == 0:
                return denoise(key, x_t, t, blank)
            twice = lambda a, b: jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)
            time = as_time(t)
            both = denoise(key, twice(x_t, x_t), time if time.ndim == 0 else jnp.tile(time, 2), twice(masked(cond), blank))
            half = jax.tree.leaves(x_t)[0].shape[0]
            given, free = (jax.tree.map(lambda v, part=part: v[part], both) for part in (slice(half), slice(half, None)))
            weight = jnp.asarray(float(scale))
            if interval is not None:
                level = jnp.exp(-0.5 * log_snr(path, time))
                weight = jnp.where((level >= interval[0]) & (level <= interval[1]), weight, 1.0)

            def mix(a: Any, b: Any) -> Any:
                w = weight.reshape(weight.shape + (1,) * (a.ndim - weight.ndim)).astype(a.dtype)
                return b + w * (a - b)

            return Prediction(
                jax.tree.map(mix, given.x0, free.x0), jax.tree.map(mix, given.eps, free.eps), given.var_mix
            )

        return guided

    return wrap


def static_threshold(path: Any, bound: float = 1.0) -> Guidance:
    """Clip the predicted x0 to [-bound, bound], the range of images, and recompute eps (Ho et al. 2020's sampler; Saharia
    et al. 2022, section 2.3).

    An eps prediction divides its error by alpha, so a chain that ends near alpha = 0 (cosine betas) cannot be sampled
    without it. `path` is the denoiser's, or its dict of paths, each variable clipped alike.
    """
    if not isinstance(bound, Real) or isinstance(bound, bool) or not 0 < bound < math.inf:
        raise ValueError(f"the threshold is {bound!r}; allowed: a number above 0 (images in [-1, 1]: 1)")

    def wrap(denoise: Denoiser) -> Denoiser:
        def thresholded(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            prediction, time = denoise(key, x_t, t, cond), as_time(t)
            x0 = jax.tree.map(lambda x: jnp.clip(x, -bound, bound), prediction.x0)

            def noise(p: Path, x: Array, clean: Array) -> Array:
                return (x - expand(p.alpha(time), x) * clean) / expand(p.sigma(time), x)

            return prediction._replace(x0=x0, eps=over(noise, path, x_t, x0))

        return thresholded

    return wrap
