"""Autoencoders as functions: what one gives back, a picture of it, and the eye that it is trained with.

The eye is a perceptual distance (Zhang et al. 2018): LPIPS with the weights of a file, or the squared distance of unit
features of a classifier's run, LPIPS's form on a network of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, evaluation
from jaxdiff.facts import Facts
from jaxdiff.run import load_run
from jaxdiff.types import Array, Params


def reconstruction(net: Any) -> Callable[[Params, Array], Array]:
    """`(params, x [B, H, W, C]) -> x_hat`, through the latent's mean or its nearest codes, clipped to [-1, 1]."""
    return lambda params, x: jnp.clip(net.apply({"params": params}, x), -1, 1)


def pair_picture(x: Any, x_hat: Any) -> np.ndarray:
    """original | reconstruction of `[N, H, W, C]` in [-1, 1], uint8 `[H', W', C]`."""
    return evaluation.columns_picture({"original": x, "reconstruction": x_hat})


def preview(config: ConfigDict, net: Any, known: Facts, params_of: Callable[[Any], Params]) -> Callable[..., Any]:
    """`(state, step) -> [(name, picture)]`: `train.preview` test pictures and their reconstructions, the same every time."""
    real = build.examples(config, known, "test", config.train.preview)["x"]
    again = jax.jit(reconstruction(net))

    def picture(state: Any, step: int) -> list[tuple[str, np.ndarray]]:
        del step
        return [("reconstructions", pair_picture(real, again(params_of(state), real)))]

    return picture


def perceptual(config: ConfigDict) -> Callable[[Array, Array], Array] | None:
    """`(x, x_hat) [B, H, W, C] -> [B]`, how unlike two pictures look, by the section `perceptual`; None is off.

    Raises ValueError for both a file and a classifier, or a run that is no classifier of clean pictures.
    """
    part = config.perceptual
    if part.weights and part.classifier:
        raise ValueError(f"perceptual.weights is {part.weights!r} and perceptual.classifier {part.classifier!r}; allowed: "
                         "one of them")
    if part.weights:
        return evaluation.lpips_distance(part.weights, part.net)
    if not part.classifier:
        return None
    run = load_run(part.classifier)
    if build.trains(run.config) != "classifier" or run.path is not None:
        raise ValueError(f"perceptual.classifier is {part.classifier!r}, the run of {run.config.name!r}; allowed: a "
                         "classifier of clean pictures, from configs/classifier.py")

    def features(x: Array) -> Array:
        found = run.network.apply({"params": run.params}, x, method="features")
        return found / jnp.sqrt(jnp.maximum((found**2).sum(-1, keepdims=True), 1e-12))  # no NaN gradient at 0

    return lambda x, x_hat: ((features(x) - features(x_hat)) ** 2).sum(-1)
