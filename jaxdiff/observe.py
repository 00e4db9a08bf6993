"""Observe hooks: what is known while sampling, `(key, x_t, t) -> x_t`, written into the state by `jd.samplers.sample`.

A condition y that is diffused beside x (CDiffE, CMDE; Batzolis et al. 2021) is known at every t: `redraw` draws
y_t ~ q(y_t | y) afresh at each network call, as the paper does, `one_path` follows one Brownian path, `one_noise` keeps one
noise for all t, so that y_t is smooth in t and solvers of second order stay so. What x becomes differs between the three
(tests/conditional has their limits on Gaussians), less so the smaller y's noise is. Known pixels of an unconditional
model's state are replaced by `known_pixels` (Song et al. 2021, appendix I.2). All give y itself where the path is
noise-free.
"""

from __future__ import annotations

from typing import Any

import diffrax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, perturb
from jaxdiff.sde.slower import noise_level
from jaxdiff.trees import expand, noise_like
from jaxdiff.types import Array, Key, Tree


def redraw(path: Any, y: Array) -> Any:
    """`path` is the dict of paths, y `[B, ...]` the condition: the state's entry "y" is drawn afresh at every call."""

    def observe(key: Key, x_t: Tree, t: Any) -> Tree:
        return {**x_t, "y": perturb(path["y"], y, noise_like(key, y), t)}

    return observe


def one_path(path: Any, y: Array, key: Key) -> Any:
    """As `redraw`, but all y_t lie on one path of y's forward SDE, drawn from `key`; t must be one number for the batch.

    y_t / alpha is y plus Brownian motion in the clock (sigma / alpha)^2, which diffrax's virtual Brownian tree gives at any
    time, in any order, without storing it.
    """
    slow = path["y"]
    end = noise_level(slow, slow.t_max) ** 2
    finest = noise_level(slow, slow.t_min) ** 2
    motion = diffrax.VirtualBrownianTree(0.0, end, tol=finest / 2, shape=y.shape, key=key)

    def observe(key: Key, x_t: Tree, t: Any) -> Tree:
        moved = motion.evaluate(jnp.minimum(noise_level(slow, t) ** 2, end))
        return {**x_t, "y": expand(slow.alpha(as_time(t)), y) * (y + moved.astype(y.dtype))}

    return observe


def one_noise(path: Any, y: Array, key: Key) -> Any:
    """As `redraw`, with one draw of the noise for all times: y_t = alpha y + sigma eps."""
    eps = noise_like(key, y)

    def observe(key: Key, x_t: Tree, t: Any) -> Tree:
        return {**x_t, "y": perturb(path["y"], y, eps, t)}

    return observe


def known_pixels(path: Any, known: Array, mask: Array) -> Any:
    """Replacement inpainting: where `mask` `[B, H, W, 1]` is 0 the state becomes a draw of q(x_t | known).

    Biased: the hidden pixels never feel that the known ones were replaced. `jd.samplers.repaint` lessens it.
    """

    def observe(key: Key, x_t: Array, t: Any) -> Array:
        return jnp.where(mask > 0.5, x_t, perturb(path, known, noise_like(key, known), t))

    return observe
