"""The words that every room of jaxdiff shares: arrays, keys, and the protocols that functions here agree on.

Shapes in this project are written in letters: `B` batch, `H W C` image, `L` tokens, `D` features, `...` any.
Time `t` is a scalar or `[B]`; small `t` is data and `t_max` is noise. Images are float32 in [-1, 1], NHWC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Float

Array = jax.Array
Key = jax.Array
Tree = Any  # an array, or a dict of arrays by variable name
Params = Any
Time = Float[Array, "*B"]

Cond = Mapping[str, Any] | None
"""What the network is told beside `x_t` and `t`. Keys: `label` int32 [B] (the class count itself is "no class"), `text`
[B, L, D], `text_mask` bool [B, L], `tokens` int32 [B, L] (where the text encoder is learned, in training), `low_res`
[B, h, w, C], `low_res_t` [B], `image` [B, H, W, C], `mask` [B, H, W, 1], `z` [B, D]."""

Batch = Mapping[str, Any]
"""One training batch: `x` is what is diffused (an array, or a dict of arrays), `index` int32 [B] numbers the examples
in the *global* batch, and every other key is `Cond`."""


@runtime_checkable
class Path(Protocol):
    """A forward process `x_t = alpha(t) x_0 + sigma(t) eps`, `eps ~ N(0, I)`; everything else is derived from it.

    `t_min` is the smallest time a network is trained at, `t_max` the noisiest. Both functions are elementwise in `t`.
    """

    @property
    def t_min(self) -> float: ...
    @property
    def t_max(self) -> float: ...
    def alpha(self, t: Any) -> Any: ...
    def sigma(self, t: Any) -> Any: ...


class Prediction(NamedTuple):
    """A guess of what `x_t` is made of: `alpha x0 + sigma eps = x_t`. `var_mix` in [0, 1] is iDDPM's variance share."""

    x0: Tree
    eps: Tree
    var_mix: Tree | None = None


class Denoiser(Protocol):
    """`(key, x_t, t, cond) -> Prediction`; `key` is for stochastic networks and may be ignored."""

    def __call__(self, key: Key, x_t: Tree, t: Any, cond: Cond = None) -> Prediction: ...


Guidance = Callable[[Denoiser], Denoiser]


class Aux(NamedTuple):
    """What a loss reports beside its value: scalar `metrics`, and the networks' new mutable `state`."""

    metrics: dict[str, Array]
    state: Any = None


class LossFn(Protocol):
    """`(params, state, key, batch, step) -> (scalar, Aux)`; `params` and `state` are dicts by network name."""

    def __call__(self, params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]: ...
