"""Classifier guidance: along the gradient of a classifier that reads x_t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.guidance.pairs import check_scale
from jaxdiff.sde import parameterizations
from jaxdiff.sde.kernels import as_time
from jaxdiff.trees import clock, expand, over, unzip
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Params, Path, Prediction, Tree

LogProb = Callable[[Tree, Any, Cond], Array]


def classifier(log_prob: LogProb, scale: float, path: Any) -> Guidance:
    """eps - scale sigma grad_x log p(y | x_t): the score of p(x_t) p(y | x_t)^scale on any path.

    Dhariwal & Nichol 2021, algorithm 2, whose sqrt(1 - alpha-bar) is sigma; x0 moves by scale sigma^2 / alpha times the
    gradient, so that the pair still makes up x_t.

    Args:
      log_prob: `(x_t, t, cond) -> [B]`, nats, differentiable in x_t; example i's depends on x_t[i] alone.
      scale: 0 is no guidance (the denoiser itself), 1 the posterior where log_prob is exact, above 1 stronger.
      path: the denoiser's, or its dict of paths.

    At sigma = 0 the pair does not change, nor at alpha = 0, where x_t knows nothing of y; log_prob is not called at a
    time with sigma = 0, at which a network's noise level may be infinite.
    """
    check_scale(scale)
    if not callable(log_prob):
        raise ValueError(f"classifier guidance got log_prob={log_prob!r}; allowed: a function (x_t, t, cond) -> [B]")

    def wrap(denoise: Denoiser) -> Denoiser:
        if scale == 0:
            return denoise

        def guided(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
            if cond is None:
                raise ValueError("classifier guidance got no condition; mend: pass cond, e.g. {'label': ...}")
            prediction, time = denoise(key, x_t, t, cond), as_time(t)
            noisy = jnp.where(clock(path).sigma(time) > 0, time, clock(path).t_max)
            slope = jax.grad(lambda x: log_prob(x, noisy, cond).sum())(x_t)

            def pair(p: Path, x0: Array, eps: Array, up: Array) -> tuple[Array, Array]:
                alpha, sigma = p.alpha(time), p.sigma(time)
                push = scale * jnp.where(alpha > 0, sigma, 0)
                ratio = sigma / jnp.where(alpha > 0, alpha, 1)
                return x0 + expand(push * ratio, x0) * up, eps - expand(push, eps) * up

            moved = over(pair, path, prediction.x0, prediction.eps, slope)
            x0, eps = unzip(path, moved, 2)
            return prediction._replace(x0=x0, eps=eps)

        return guided

    return wrap


def classifier_logits(apply_fn: Callable[..., Array], params: Params, path: Any) -> Callable[[Array, Any], Array]:
    """`(x_t, t) -> logits [B, K]` of a classifier trained by `jd.losses.classification` with a path, in float32 at least.

    Args:
      apply_fn: `(params, x, c_noise, cond) -> logits [B, K]`; x is x_t scaled to unit variance for data of standard
        deviation 1/2, and c_noise float32 `[B]`, both as in that loss.
      params: of the classifier.
      path: the one it was trained on.
    """
    inputs = parameterizations.x0(sigma_data=0.5).inputs  # any one scales as the loss does

    def logits(x_t: Array, t: Any) -> Array:
        net_x, net_t = inputs(path, x_t, t)
        raw = apply_fn(params, net_x, jnp.broadcast_to(net_t, x_t.shape[:1]).astype(jnp.float32), None)
        return raw.astype(jnp.promote_types(raw.dtype, jnp.float32))

    return logits


def classifier_log_prob(apply_fn: Callable[..., Array], params: Params, path: Any) -> LogProb:
    """log p(label | x_t) of a classifier; the arguments are those of `classifier_logits`.

    Returns:
      `(x_t, t, cond) -> [B]` in float32 at least, t a scalar or `[B]`. It reads `cond["label"]`, int32 `[B]`; for the
      null label, which asks for nothing, it is 0.
    """
    read = classifier_logits(apply_fn, params, path)

    def log_prob(x_t: Tree, t: Any, cond: Cond) -> Array:
        if cond is None or "label" not in cond:
            held = None if cond is None else sorted(cond)
            raise ValueError(f"a classifier got a condition of {held}; allowed: one with a label")
        label, log_p = cond["label"], jax.nn.log_softmax(read(x_t, t))
        known = label < log_p.shape[1]
        chosen = jnp.take_along_axis(log_p, jnp.where(known, label, 0)[:, None], axis=1)[:, 0]
        return jnp.where(known, chosen, 0)

    return log_prob
