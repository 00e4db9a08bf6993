"""Classifier-free guidance: away from what the model says when nothing is asked for, towards what it says of the class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import masked, null
from jaxdiff.guidance.pairs import Interval, beyond, is_number, of_example, strength, with_x0
from jaxdiff.sde.kernels import as_time
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Prediction, Tree


def _rescaled(guided: Array, given: Array, phi: float) -> Array:
    """phi (guided scaled to given's standard deviation over each example) + (1 - phi) guided."""
    axes = of_example(guided)
    ours, theirs = (v.var(axis=axes, keepdims=True) for v in (guided, given))
    factor = jnp.sqrt(jnp.where(ours > 0, theirs / jnp.where(ours > 0, ours, 1), 1))
    return guided * (phi * factor + (1 - phi))


def _paired(given: Any, free: Any) -> Any:
    """Both in one batch, each example's two side by side: where the batch is split over devices they stay on theirs."""
    return jax.tree.map(lambda u, v: jnp.stack([u, v], 1).reshape(-1, *u.shape[1:]), given, free)


def classifier_free(
    scale: float, num_classes: int, path: Any = None, interval: Interval = None, rescale: float = 0.0
) -> Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond), both in one batched call, an
    example's two side by side.

    Args:
      scale: 1 + the paper's w: 0 unconditional, 1 conditional (the denoiser itself, bit for bit), above 1 stronger.
      num_classes: the null label.
      path: the denoiser's, or its dict of paths; needed for `interval` and `rescale`.
      interval: noise levels `(low, high)` of sigma / alpha where guidance acts (Kynkaanniemi et al. 2024); outside it the
        conditional prediction is used.
      rescale: phi in [0, 1] (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section
        3.4; they use .7): a large scale stretches the predicted image's contrast. Its x0 is scaled to the standard
        deviation of the conditional x0, taken over each example, and mixed with the unscaled one; eps is recomputed. The
        paper scales the raw output of a v network; here it is x0, whose contrast is what is seen, so that the meaning does
        not hang on the parameterisation.
    """
    weight = strength(scale, path, interval, "classifier_free")
    if not is_number(rescale) or not 0 <= rescale <= 1:
        raise ValueError(f"the guidance rescale is {rescale!r}; allowed: a number from 0 (off) to 1, usually 0.7")
    if rescale and path is None:
        raise ValueError("classifier_free got a rescale without a path; mend: path=, which eps is recomputed on")

    def wrap(denoise: Denoiser) -> Denoiser:
        if scale == 1:
            return denoise

        def guided(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            if cond is None:
                raise ValueError("classifier_free got no condition; mend: pass cond, e.g. {'label': ...}")
            if "label" not in cond and "text" not in cond:
                raise ValueError(f"classifier_free got a condition of {sorted(cond)}; allowed: one with a label or text")
            blank = null(cond, num_classes)
            if scale == 0 and interval is None and not rescale:
                return denoise(key, x_t, t, blank)
            time = as_time(t)
            times = time if time.ndim == 0 else jnp.repeat(time, 2)
            both = denoise(key, _paired(x_t, x_t), times, _paired(masked(cond), blank))
            given, free = (jax.tree.map(lambda v, i=i: v.reshape(-1, 2, *v.shape[1:])[:, i], both) for i in (0, 1))
            mixed = beyond(weight(time), given, free)
            if not rescale:
                return mixed
            x0 = jax.tree.map(lambda a, b: _rescaled(a, b, rescale), mixed.x0, given.x0)
            return with_x0(path, mixed, x_t, x0, t)

        return guided

    return wrap
