"""How much each noise level counts. A weighting names the space of the error and a weight there, `(path, t) -> [B]`.

The error may be taken of the network's raw output ("raw"), of the noise ("eps") or of the clean data ("x0"); the three
are proportional at a given t, so any weighting serves any parameterisation. SNR is alpha^2 / sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, derivative, diffusion, log_snr
from jaxdiff.types import Array, Path


class Weighting(NamedTuple):
    """`space` is "raw", "eps" or "x0"; `weight(path, t)` multiplies that space's squared error, for one path."""

    space: str
    weight: Callable[[Path, Any], Array]


def _snr(path: Path, t: Any) -> Array:
    return jnp.exp(log_snr(path, t))


@cache
def simple() -> Weighting:
    """1 in the raw space: DDPM's L_simple for eps, flow matching for velocity, EDM's weighting for edm."""
    return Weighting("raw", lambda path, t: jnp.ones_like(as_time(t)))


@cache
def likelihood() -> Weighting:
    """g^2 of the score's error (Song et al. 2021b, theorem 1): half its time integral bounds the negative log-likelihood."""
    return Weighting("eps", lambda path, t: (diffusion(path, t) / path.sigma(as_time(t))) ** 2)


@cache
def edm(sigma_data: float = 0.5) -> Weighting:
    """(s^2 + sd^2) / (s sd)^2 of the x0 error, s = sigma / alpha (Karras et al. 2022, table 1), for any parameterisation."""
    return Weighting("x0", lambda path, t: 1 / sigma_data**2 + _snr(path, t))


@cache
def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) of the x0 error (Hang et al. 2023, eq. 7)."""
    return Weighting("x0", lambda path, t: jnp.minimum(_snr(path, t), gamma))


@cache
def sigmoid(bias: float = -1.0) -> Weighting:
    """sigmoid(bias - log SNR) -d log SNR / dt of the noise error (Kingma & Gao 2023; Hoogeboom et al. 2024, eq. 9)."""

    def weight(path: Path, t: Any) -> Array:
        return jax.nn.sigmoid(bias - log_snr(path, t)) * -derivative(lambda u: log_snr(path, u), t)

    return Weighting("eps", weight)


@cache
def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma of the noise error (Choi et al. 2022, eq. 8)."""
    return Weighting("eps", lambda path, t: (k + _snr(path, t)) ** -gamma)
