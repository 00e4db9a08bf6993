"""Conditioning augmentation of a super-resolution stage: its low-resolution input is spoilt in training (Ho et al. 2022).

A stage that was trained on clean low-resolution pictures and is given a generated one meets what it has never seen. So

    gaussian   z_s = alpha(s) y + sigma(s) e,  s uniform on the times of a path of its own, told to the network
    blur       a 3x3 Gaussian of width U(.4, .6) for half of the examples, never at sampling
    none       y as it is

The Gaussian one is also how a stage is sampled from: s is chosen then, by a sweep (section 4.2; cascade.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, perturb
from jaxdiff.sde.parameterizations import c_noise
from jaxdiff.trees import expand
from jaxdiff.types import Array, Key


class Augmentation(NamedTuple):
    """`draw(keys [B], cond) -> cond` spoils `cond["low_res"]` in training, example by example.

    `tell(z_s, s) -> cond` is what a stage is told while sampling: `low_res` and, if it knows s, `low_res_t`. `path` is the
    process whose times s are, and `s_max` the last that was trained; None and 0 where only s = 0 is allowed.
    """

    draw: Callable[[Key, Mapping[str, Any]], dict[str, Any]]
    tell: Callable[[Array, Any], dict[str, Array]]
    path: Any = None
    s_max: float = 0.0

    def check(self, s: float) -> None:
        """Raise ValueError for an s, a Python number, that was never trained."""
        if not 0 <= s <= self.s_max:
            raise ValueError(f"s is {s:g}; allowed: 0 to {self.s_max:g}, the times of this stage's augmentation"
                             + ("" if self.s_max else " (it has none)"))

    def noised(self, key: Key, low_res: Array, s: float) -> dict[str, Array]:
        """What a stage is told of clean pictures [B, h, w, C] at s: z_s ~ q(z_s | low_res) and s; at 0 the pictures."""
        noise = jax.random.normal(key, low_res.shape, low_res.dtype)
        return self.tell(low_res if s == 0 else perturb(self.path, low_res, noise, s), s)


def gaussian(path: Any, s_max: float | None = None) -> Augmentation:
    """Noise of a `path` that starts clean (VP, sub-VP, Cosine, Flow, Discrete); s ~ U[0, s_max], the path's end by default.

    The network must read `low_res_t`, which is c_noise(path, s). Raises ValueError for a path that is never clean, or whose
    c_noise is not finite at 0 (VE, EDM), and for s_max outside (0, t_max].
    """
    most = path.t_max if s_max is None else s_max
    with jax.ensure_compile_time_eval():
        start = float(path.sigma(as_time(0.0))), float(c_noise(path, 0.0))
    if start[0] != 0.0 or abs(start[1]) == float("inf"):
        raise ValueError(f"conditioning augmentation got {path}; allowed: a path that is clean at 0: VP, SubVP, Cosine, "
                         "Flow, Discrete")
    if not 0 < most <= path.t_max:
        raise ValueError(f"s_max is {most}; allowed: above 0, up to the path's t_max = {path.t_max}")

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        def one(key: Key, y: Array) -> tuple[Array, Array]:
            k_s, k_noise = jax.random.split(key)
            s = jax.random.uniform(k_s, maxval=most)
            return s, jax.random.normal(k_noise, y.shape, y.dtype)

        s, noise = jax.vmap(one)(keys, cond["low_res"])
        return {**cond, **tell(perturb(path, cond["low_res"], noise, s), s)}

    def tell(z_s: Array, s: Any) -> dict[str, Array]:
        return {"low_res": z_s, "low_res_t": jnp.broadcast_to(c_noise(path, s), (len(z_s),)).astype(jnp.float32)}

    return Augmentation(draw, tell, path, most)


def blur(share: float = 0.5, low: float = 0.4, high: float = 0.6) -> Augmentation:
    """A 3x3 Gaussian blur, its width in pixels U[low, high], of a `share` of the examples; edges repeat their pixels."""
    if not 0 <= share <= 1 or not 0 < low <= high:
        raise ValueError(f"blur got share={share}, widths {low} to {high}; allowed: a share in [0, 1], 0 < low <= high")

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        def one(key: Key) -> tuple[Array, Array]:
            k_share, k_width = jax.random.split(key)
            return jax.random.bernoulli(k_share, share), jax.random.uniform(k_width, minval=low, maxval=high)

        chosen, width = jax.vmap(one)(keys)
        y = cond["low_res"]
        side = expand(jnp.where(chosen, jnp.exp(-0.5 / width**2), 0.0), y)  # weight of a neighbour; the middle one has 1
        for axis in (1, 2):
            before = jnp.concatenate([jax.lax.slice_in_dim(y, 0, 1, axis=axis),
                                      jax.lax.slice_in_dim(y, 0, y.shape[axis] - 1, axis=axis)], axis)
            after = jnp.concatenate([jax.lax.slice_in_dim(y, 1, None, axis=axis),
                                     jax.lax.slice_in_dim(y, y.shape[axis] - 1, None, axis=axis)], axis)
            y = (y + side * (before + after)) / (1 + 2 * side)
        return {**cond, "low_res": y}

    return Augmentation(draw, _plain)


def _plain(z_s: Array, s: Any) -> dict[str, Array]:
    del s
    return {"low_res": z_s}


NONE = Augmentation(lambda keys, cond: dict(cond), _plain)
"""The low-resolution picture as it is."""
