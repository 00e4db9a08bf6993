"""Autoguidance: away from what a weaker version of the same model says."""

from __future__ import annotations

from typing import Any

from jaxdiff.guidance.pairs import Interval, beyond, strength
from jaxdiff.sde.kernels import as_time
from jaxdiff.types import Cond, Denoiser, Guidance, Key, Prediction, Tree


def autoguidance(weak: Denoiser, scale: float, path: Any = None, interval: Interval = None) -> Guidance:
    """strong + (scale - 1) (strong - weak) (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself").

    It needs no class: both are told the same condition, so it raises quality without narrowing what a class may look like.

    Args:
      weak: a denoiser of the same path and shape, smaller or less trained than the one it is wrapped around (the paper:
        an early checkpoint of a smaller network), or degraded in the same way.
      scale: the paper's w: 1 is the strong model itself (the weak one is not called), 0 the weak one, 1.5 to 3 usual.
      path: needed for `interval`.
      interval: noise levels `(low, high)` of sigma / alpha where guidance acts; outside it the strong model's prediction
        is used.
    """
    if not callable(weak):
        raise ValueError(f"autoguidance got weak={weak!r}; allowed: a denoiser, such as run.denoiser(run.params)")
    weight = strength(scale, path, interval, "autoguidance")

    def wrap(denoise: Denoiser) -> Denoiser:
        if scale == 1:
            return denoise

        def guided(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            return beyond(weight(as_time(t)), denoise(key, x_t, t, cond), weak(key, x_t, t, cond))

        return guided

    return wrap
