"""Denoising score matching and flow matching: draw t, perturb, predict, compare (Ho et al. 2020; Lipman et al. 2023).

With one path or several on one clock (a shared t, independent noises). The error is averaged over all dimensions of all
variables; each variable's own weight at t multiplies its error, so with the likelihood weighting the weights form the
matrix diag(g_x^2, g_y^2) of CMDE (Batzolis et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import denoiser
from jaxdiff.losses import weightings
from jaxdiff.losses.weightings import Weighting
from jaxdiff.sde import times
from jaxdiff.sde.kernels import perturb
from jaxdiff.sde.parameterizations import Parameterization
from jaxdiff.sde.times import TimeDraw
from jaxdiff.trees import clock, example_keys, noise_per_example, over
from jaxdiff.types import Array, Aux, Batch, Cond, Key, LossFn, Params, Path, Tree

CondDraw = Callable[[Key, Any], Any]  # (per-example keys [B], cond) -> cond, e.g. label dropping


class Noised(NamedTuple):
    """One training example after the forward process: everything a loss compares."""

    x0: Tree
    eps: Tree
    x_t: Tree
    t: Array
    cond: Cond
    k_network: Key


def split_batch(batch: Batch) -> tuple[Tree, dict[str, Any], Array]:
    """`(x, cond, index)` of a batch; a batch without `index` is the whole global batch, and "shared" is no condition."""
    x = batch["x"]
    size = jax.tree.leaves(x)[0].shape[0]
    cond = {name: value for name, value in batch.items() if name not in ("x", "index", "shared")}
    return x, cond, batch["index"] if "index" in batch else jnp.arange(size)


def noised(path: Any, draw_times: TimeDraw, key: Key, batch: Batch, draw_cond: CondDraw | None = None) -> Noised:
    """Draw a time and noise for each example. Example i's draws depend on the key and its global number only."""
    x0, cond, index = split_batch(batch)
    k_time, k_noise, k_cond, k_network = jax.random.split(key, 4)
    t = draw_times(path, k_time, index)
    eps = noise_per_example(example_keys(k_noise, index), x0)
    if draw_cond is not None:
        cond = draw_cond(example_keys(k_cond, index), cond)
    # the network's key (dropout) is one a batch; its first index tells devices and micro-batches apart
    return Noised(x0, eps, perturb(path, x0, eps, t), t, cond or None, jax.random.fold_in(k_network, index[0]))


def jointly(loss: LossFn) -> LossFn:
    """A loss of two variables on batches of one: the condition `batch["image"]` is diffused as "y" beside "x"."""

    def joint(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        rest = {name: value for name, value in batch.items() if name != "image"}
        return loss(params, state, key, {**rest, "x": {"x": batch["x"], "y": batch["image"]}}, step)

    return joint


def mean_per_example(tree: Tree) -> Array:
    """The mean over all dimensions of all leaves, `[B]`."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=1).mean(1)


def weighted_error(
    path: Any, parameterization: Parameterization, weighting: Weighting, prediction: Any, drawn: Noised
) -> Array:
    """The weighted squared error of each example, `[B]`, in the weighting's space."""
    t = drawn.t
    if weighting.space == "raw":
        guess = parameterization.target(path, prediction.x0, prediction.eps, t)
        truth = parameterization.target(path, drawn.x0, drawn.eps, t)
    else:
        guess, truth = (getattr(pair, weighting.space) for pair in (prediction, drawn))

    def one(p: Path, a: Array, b: Array) -> Array:
        return jax.vmap(jnp.multiply)(weighting.weight(p, t).astype(a.dtype), (a - b) ** 2)

    return mean_per_example(over(one, path, guess, truth))


def denoising(
    apply_fn: Callable[..., Tree],
    path: Any,
    parameterization: Parameterization,
    draw_times: TimeDraw | None = None,
    weighting: Weighting | None = None,
    draw_cond: CondDraw | None = None,
    stochastic: bool = False,
    network: str = "denoiser",
) -> LossFn:
    """The training loss of a denoiser.

    Args:
      apply_fn: `(params, net_x, c_noise, cond) -> raw`, and the key as fifth argument with `stochastic=True`.
      path: a Path, a dict of Paths, or `path_at(step)` returning either (VS-CMDE), built inside the trace.
      parameterization: what raw means.
      draw_times: from `jd.sde.times`; uniform by default.
      weighting: from `jd.losses.weightings`; `simple` by default.
      draw_cond: changes the conditions per example, e.g. `jd.conditioning.drop`.
      network: the key of its parameters.

    Returns:
      A LossFn with metrics `loss`, and `loss_noisy`, `loss_clean`: the mean where sigma is above and below
      alpha. In float32 whatever the network's dtype.
    """
    draw_times = times.uniform() if draw_times is None else draw_times
    weighting = weightings.simple() if weighting is None else weighting

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        now = path if isinstance(path, dict) or hasattr(path, "alpha") else path(step)
        drawn = noised(now, draw_times, key, batch, draw_cond)
        denoise = denoiser(apply_fn, params[network], now, parameterization, stochastic)
        prediction = denoise(drawn.k_network, drawn.x_t, drawn.t, drawn.cond)
        errors = weighted_error(now, parameterization, weighting, prediction, drawn)
        value = errors.mean()
        p = clock(now)
        noisy = (p.sigma(drawn.t) > p.alpha(drawn.t)).astype(errors.dtype)
        halves = {
            "loss_noisy": (errors * noisy).sum() / jnp.maximum(noisy.sum(), 1),
            "loss_clean": (errors * (1 - noisy)).sum() / jnp.maximum((1 - noisy).sum(), 1),
        }
        return value, Aux({"loss": value, **halves}, state)

    return loss
