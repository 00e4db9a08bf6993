"""One optimizer recipe as an optax chain: clip -> scale -> decay -> learning rate.

    g <- g min(1, clip / |g|);   u <- scale_by_kind(g);   u <- u + weight_decay p;   p <- p - lr(n) u

The learning rate of update n = 0, 1, ... is lr min(1, (n+1)/warmup_steps) times the decay's factor. The first update
already moves: a ramp from n/warmup would spend a step on nothing.

Sources: Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (decoupled weight decay, cosine), Liu et al. 2020 (RAdam),
Chen et al. 2023 (Lion), Karras et al. 2024 (inverse square root decay).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.types import Array

KINDS = ("adam", "adamw", "radam", "nadam", "lion", "sgd")
DECAYS = ("constant", "cosine", "linear", "rsqrt")
_DECOUPLED = ("adamw", "lion")


class Optimizer(NamedTuple):
    """`transform` is what an `Update` takes; `schedule` maps an update's number to its learning rate, for logs."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule


def learning_rate_schedule(
    learning_rate: float,
    warmup_steps: int = 0,
    decay: str = "constant",
    total_steps: int | None = None,
    final_scale: float = 0.0,
    decay_start: int | None = None,
) -> optax.Schedule:
    """n -> learning rate, float32; see `optimizer` for the arguments and the errors."""
    if decay not in DECAYS:
        raise ValueError(f"decay is '{decay}'; allowed: {', '.join(DECAYS)}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate is {learning_rate}; allowed: above 0, for example 2e-4")
    if decay in ("cosine", "linear") and (total_steps is None or total_steps <= warmup_steps):
        raise ValueError(
            f"decay '{decay}' needs total_steps above warmup_steps ({warmup_steps}); it came as {total_steps}"
        )
    start = decay_start if decay_start is not None else max(warmup_steps, 1)

    def schedule(n: Any) -> Array:
        n = jnp.asarray(n, jnp.float32)
        warm = jnp.minimum(1.0, (n + 1.0) / max(warmup_steps, 1))
        if decay == "constant":
            factor = jnp.ones_like(n)
        elif decay == "rsqrt":
            factor = jnp.sqrt(start / jnp.maximum(n + 1.0, start))
        else:
            assert total_steps is not None
            progress = jnp.clip((n - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
            left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress)) if decay == "cosine" else 1.0 - progress
            factor = final_scale + (1.0 - final_scale) * left
        return learning_rate * warm * factor

    return schedule


def optimizer(
    kind: str = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay: str = "constant",
    total_steps: int | None = None,
    final_scale: float = 0.0,
    decay_start: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float | None = None,
) -> Optimizer:
    """An optax chain and its learning-rate schedule.

    kind: adam, adamw, radam, nadam, lion, sgd (momentum `b1`; 0 is plain gradient descent).
    decay: constant; cosine or linear, from the end of the warm-up to `final_scale * learning_rate` at `total_steps`;
        rsqrt, learning_rate / sqrt((n+1)/decay_start) after `decay_start` updates (default: the warm-up's end).
    weight_decay: decoupled for adamw and lion, otherwise added to the gradient (L2). Biases, norm scales and all
        other parameters of fewer than two dimensions are left out.
    clip: largest global norm of the gradient; None leaves it as it is.

    Counts are the optimizer's own: with `Update.every = k` the schedule advances once in k training steps.
    Raises ValueError for an unknown kind or decay, or a number out of range.
    """
    scale = {
        "adam": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        "adamw": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        "radam": lambda: optax.scale_by_radam(b1=b1, b2=b2, eps=eps),
        "nadam": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps, nesterov=True),
        "lion": lambda: optax.scale_by_lion(b1=b1, b2=b2),
        "sgd": lambda: optax.trace(decay=b1) if b1 else optax.identity(),
    }
    if kind not in scale:
        raise ValueError(f"optimizer kind is '{kind}'; allowed: {', '.join(KINDS)}")
    if clip is not None and clip <= 0:
        raise ValueError(f"clip is {clip}; allowed: a positive global norm, or None for no clipping")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; allowed: 0 or more")
    schedule = learning_rate_schedule(learning_rate, warmup_steps, decay, total_steps, final_scale, decay_start)
    matrices = lambda params: jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)
    shrink = [optax.add_decayed_weights(weight_decay, mask=matrices)] if weight_decay else []
    parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
    parts += [scale[kind](), *shrink] if kind in _DECOUPLED else [*shrink, scale[kind]()]
    return Optimizer(optax.chain(*parts, optax.scale_by_learning_rate(schedule)), schedule)
