"""Cross entropy of a classifier, on clean images or on x_t at every t (classifier guidance; Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.losses.denoising import noised, split_batch
from jaxdiff.sde import times
from jaxdiff.sde.parameterizations import c_noise
from jaxdiff.sde.times import TimeDraw
from jaxdiff.trees import clock, expand
from jaxdiff.types import Array, Aux, Batch, Key, LossFn, Params


def log_likelihoods(logits: Array, label: Array) -> Array:
    """log p(label) of each example, `[B]`, from logits `[B, K]` and integer labels `[B]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def _report(logits: Array, label: Array, smoothing: float, state: Any) -> tuple[Array, Aux]:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    loss = -((1 - smoothing) * log_likelihoods(logits, label) + smoothing * log_p.mean(1)).mean()
    return loss, Aux({"loss": loss, "accuracy": (logits.argmax(1) == label).mean()}, state)


def classification(
    apply_fn: Callable[..., Array],
    path: Any | None = None,
    draw_times: TimeDraw | None = None,
    smoothing: float = 0.0,
    augment: Callable[[Key, Array], Array] | None = None,
    stochastic: bool = False,
    network: str = "classifier",
) -> LossFn:
    """Cross entropy against `batch["label"]`.

    Args:
      apply_fn: `(params, x, c_noise, cond) -> logits [B, K]` (and the key with `stochastic=True`); c_noise is None
        without a path. With a path x is x_t scaled to unit variance for data of standard deviation 1/2.
      path: noise the images as a denoiser's training does; None is a classifier of clean images.
      draw_times: uniform by default.
      smoothing: label smoothing in [0, 1).
      augment: `(key, x) -> x` on clean images.
      network: the key of its parameters.
    """
    draw_times = times.uniform() if draw_times is None else draw_times

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        if path is None:
            x, cond, index = split_batch(batch)
            k_augment, k_network = jax.random.split(jax.random.fold_in(key, index[0]))
            x = x if augment is None else augment(k_augment, x)
            t = None
        else:
            drawn = noised(path, draw_times, key, batch)
            cond, k_network, p = drawn.cond or {}, drawn.k_network, clock(path)
            scale = jnp.sqrt(0.25 * p.alpha(drawn.t) ** 2 + p.sigma(drawn.t) ** 2)
            x, t = drawn.x_t / expand(scale, drawn.x_t), c_noise(path, drawn.t).astype(jnp.float32)
        logits = apply_fn(params[network], x, t, None, *((k_network,) if stochastic else ()))
        return _report(logits, cond["label"], smoothing, state)

    return loss
