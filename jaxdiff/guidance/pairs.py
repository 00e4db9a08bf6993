"""What every guidance does to predicted pairs (x0, eps): go beyond one, away from another; put another x0 in.

Weights that sum to one keep `alpha x0 + sigma eps = x_t` without recomputing anything; with another x0, eps is recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, log_snr
from jaxdiff.trees import expand, over
from jaxdiff.types import Array, Path, Prediction, Tree

Interval = tuple[float, float] | None


def is_number(value: Any) -> bool:
    """A real number that may be infinite or NaN; True and False are not numbers."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_scale(scale: Any) -> None:
    """Refuse a scale that is not a finite number."""
    if not is_number(scale) or not math.isfinite(scale):
        raise ValueError(f"the guidance scale is {scale!r}; allowed: a finite number (1 is the model without guidance)")


def strength(scale: float, path: Any, interval: Interval, name: str) -> Callable[[Any], Array]:
    """`t -> scale`, and 1 at the noise levels sigma / alpha outside `interval`, its ends being inside; shaped as t.

    Guidance at all levels costs variety at high ones and does nothing at low ones (Kynkaanniemi et al. 2024).
    """
    check_scale(scale)
    if interval is None:
        return lambda t: jnp.asarray(float(scale))
    ok = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(map(is_number, interval))
    if not ok or not 0 <= interval[0] <= interval[1]:
        raise ValueError(f"the guidance interval is {interval!r}; allowed: (low, high) of sigma / alpha, 0 <= low <= high")
    if path is None:
        raise ValueError(f"{name} got an interval without a path; mend: path=, whose noise levels it speaks of")
    low, high = interval

    def at(t: Any) -> Array:
        level = jnp.exp(-0.5 * log_snr(path, t))
        return jnp.where((level >= low) & (level <= high), float(scale), 1.0)

    return at


def beyond(weight: Array, towards: Prediction, away: Prediction) -> Prediction:
    """away + weight (towards - away) of x0 and of eps, written so that weight 1 is `towards` exactly; its var_mix."""

    def mix(a: Array, b: Array) -> Array:
        return a + expand(weight - 1, a) * (a - b)

    return towards._replace(x0=jax.tree.map(mix, towards.x0, away.x0), eps=jax.tree.map(mix, towards.eps, away.eps))


def with_x0(path: Any, prediction: Prediction, x_t: Tree, x0: Tree, t: Any) -> Prediction:
    """The prediction with another x0, and the eps that goes with it: (x_t - alpha x0) / sigma; finite at sigma = 0."""
    time = as_time(t)

    def noise(p: Path, x: Array, clean: Array) -> Array:
        sigma = p.sigma(time)
        return (x - expand(p.alpha(time), x) * clean) / expand(jnp.where(sigma > 0, sigma, 1), x)

    return prediction._replace(x0=x0, eps=over(noise, path, x_t, x0))


def of_example(v: Array) -> tuple[int, ...]:
    """The axes of one example in `[B, ...]`."""
    return tuple(range(1, v.ndim))
