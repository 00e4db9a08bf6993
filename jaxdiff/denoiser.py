"""A network, its parameters, a path and a parameterisation become a `Denoiser`: one function that predicts (x0, eps)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.sde.parameterizations import Parameterization
from jaxdiff.types import Array, Cond, Denoiser, Key, Params, Prediction, Tree


def stacked(apply_fn: Callable[..., Tree], channels: Mapping[str, int]) -> Callable[..., Tree]:
    """One network for several variables: their channels side by side, in and out.

    Args:
      apply_fn: `(params, net_x [B, ..., C], c_noise, cond, ...) -> raw [B, ..., C]`, C the sum of `channels`.
      channels: of each variable, in the order in which they stand.

    Returns:
      The same with a dict of arrays for net_x and raw. The variables share their height and width.
    """
    ends = list(itertools.accumulate(channels.values()))

    def apply(params: Params, net_x: Tree, *rest: Any) -> Tree:
        together = jnp.concatenate([net_x[name] for name in channels], axis=-1)
        raw = apply_fn(params, together, *rest)
        return dict(zip(channels, jnp.split(raw, ends[:-1], axis=-1), strict=True))

    return apply


def with_latent(apply_fn: Callable[..., Array], size: int) -> Callable[..., Array]:
    """A generator that draws its own latent z ~ N(0, I), `[B, size]`, at each call, unless `cond["z"]` gives it.

    `apply_fn(params, net_x, c_noise, cond) -> raw` becomes the same with the key as fifth argument.
    """

    def apply(params: Params, net_x: Array, c_noise: Array, cond: Cond, key: Key) -> Array:
        told = dict(cond or {})
        if "z" not in told:
            told["z"] = jax.random.normal(key, (len(net_x), size))
        return apply_fn(params, net_x, c_noise, told)

    return apply


def denoiser(
    apply_fn: Callable[..., Tree],
    params: Params,
    path: Any,
    parameterization: Parameterization,
    stochastic: bool = False,
) -> Denoiser:
    """Bind a network to its path.

    Args:
      apply_fn: `(params, net_x, c_noise, cond) -> raw`; net_x as x_t `[B, ...]`, c_noise float32 `[B]`. With
        `stochastic=True` it is given the key as a fifth argument (dropout, GAN latents).
      params: the network's parameters.
      path: a Path or a dict of paths.
      parameterization: what raw means.

    Returns:
      `(key, x_t, t, cond=None) -> Prediction`; t is a scalar or `[B]`, the prediction has x_t's dtype, so that a bfloat16
      network leaves float32 sampler states alone.
    """

    def denoise(key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction:
        net_x, net_t = parameterization.inputs(path, x_t, t)
        batch = jax.tree.leaves(x_t)[0].shape[:1]
        net_t = jnp.broadcast_to(net_t, batch).astype(jnp.float32)
        raw = apply_fn(params, net_x, net_t, cond, *((key,) if stochastic else ()))
        raw = jax.tree.map(lambda r, x: r.astype(x.dtype), raw, x_t)
        return parameterization.predict(path, raw, x_t, t)

    return denoise
