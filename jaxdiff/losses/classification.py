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
from jaxdiff.trees import clock, example_keys, expand
from jaxdiff.types import Array, Aux, Batch, Key, LossFn, Params


def log_likelihoods(logits: Array, label: Array) -> Array:
    """log p(label) of each example, `[B]`, from logits `[B, K]` and integer labels `[B]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def _report(logits: Array, label: Array, smoothing: float, state: Any) -> tuple[Array, Aux]:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    uniform = jax.nn.log_softmax(logits).mean(1)
    loss = -((1 - smoothing) * log_likelihoods(logits, label) + smoothing * uniform).mean()
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
    """Cross entropy against `batch["label"]`, in float32 at least, whatever the network's dtype.

    Args:
      apply_fn: `(params, x, c_noise, cond) -> logits [B, K]` (and the key with `stochastic=True`); c_noise is None
        without a path. With a path x is x_t scaled to unit variance for data of standard deviation 1/2.
      path: noise the images as a denoiser's training does; None is a classifier of clean images.
      draw_times: uniform by default.
      smoothing: label smoothing in [0, 1).
      augment: `(key, x) -> x` on one clean image `[H, W, C]`, before it is noised; mapped over the batch.
      network: the key of its parameters.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; allowed: from 0 up to, not including, 1 (usually 0 to .1)")
    draw_times = times.uniform() if draw_times is None else draw_times

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        k_augment, k_noise, k_network = jax.random.split(key, 3)
        x, _, index = split_batch(batch)
        x = x if augment is None else jax.vmap(augment)(example_keys(k_augment, index), x)
        t = None
        if path is not None:
            drawn, p = noised(path, draw_times, k_noise, {"x": x, "index": index}), clock(path)
            scale = jnp.sqrt(0.25 * p.alpha(drawn.t) ** 2 + p.sigma(drawn.t) ** 2)
            x, t = drawn.x_t / expand(scale, drawn.x_t), c_noise(path, drawn.t).astype(jnp.float32)
        k_network = jax.random.fold_in(k_network, index[0])  # one a batch, as in `noised`
        logits = apply_fn(params[network], x, t, None, *((k_network,) if stochastic else ()))
        return _report(logits, batch["label"], smoothing, state)

    return loss
