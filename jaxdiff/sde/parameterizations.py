"""What a network's raw output means. Each parameterisation is one converter into the pair (x0, eps).

Because `alpha x0 + sigma eps = x_t` always holds for that pair, every sampler, loss and guidance reads the pair and none
knows the parameterisation. With c = sigma^2 + alpha^2 sd^2 (the variance of x_t for data of standard deviation sd):

    eps       raw = eps
    x0        raw = x0
    v         raw = alpha eps - sigma x0                    (Salimans & Ho 2022, for any alpha, sigma)
    velocity  raw = alpha' x0 + sigma' eps                  (Lipman et al. 2023; for Flow this is eps - x0)
    edm       raw = (sigma x0 - alpha sd^2 eps) / (sd sqrt(c))   (Karras et al. 2022, eq. 7-8, c_skip and c_out resolved)

`target` is linear in (x0, eps), so target(predicted pair) is the raw output again: a loss in the raw space needs no raw.
Inputs are scaled by c_in = 1/sqrt(c) unless `scale_input=False` (public DDPM checkpoints).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdiff.sde.kernels import as_time, derivative, needs_signal
from jaxdiff.trees import clock, expand, over, unzip
from jaxdiff.types import Array, Path, Prediction, Tree

PairFn = Callable[[Path, Array, Array, Any], tuple[Array, Array]]


class Parameterization(NamedTuple):
    """`inputs(path, x_t, t) -> (net_x, c_noise)`, `predict(path, raw, x_t, t) -> Prediction`, `target(path, x0, eps, t)`."""

    inputs: Callable[[Any, Tree, Any], tuple[Tree, Array]]
    predict: Callable[[Any, Tree, Tree, Any], Prediction]
    target: Callable[[Any, Tree, Tree, Any], Tree]


def c_noise(path: Any, t: Any) -> Array:
    """How the network is told t: ln(sigma)/4 (VE, EDM), the index (Discrete), 1000 t (others); of the clock's path."""
    p, t = clock(path), as_time(t)
    return p.c_noise(t) if hasattr(p, "c_noise") else 1000 * t


def _coefficients(p: Path, x: Array, t: Any) -> tuple[Array, Array]:
    return expand(p.alpha(as_time(t)), x), expand(p.sigma(as_time(t)), x)


def _build(pair: PairFn, target: Callable[..., Array], sigma_data: float, scale_input: bool) -> Parameterization:
    if not sigma_data > 0:
        raise ValueError(f"sigma_data is {sigma_data}; allowed: the data's standard deviation, above 0 (images: 0.5)")

    def c_in(p: Path, x: Array, t: Any) -> Array:
        alpha, sigma = _coefficients(p, x, t)
        return x / jnp.sqrt(alpha**2 * sigma_data**2 + sigma**2)

    def inputs(path: Any, x_t: Tree, t: Any) -> tuple[Tree, Array]:
        net_x = over(lambda p, x: c_in(p, x, t), path, x_t) if scale_input else x_t
        return net_x, c_noise(path, t)

    def predict(path: Any, raw: Tree, x_t: Tree, t: Any) -> Prediction:
        x0, eps = unzip(path, over(lambda p, r, x: pair(p, r, x, t), path, raw, x_t), 2)
        return Prediction(x0, eps)

    def to_target(path: Any, x0: Tree, eps: Tree, t: Any) -> Tree:
        return over(lambda p, x, e: target(p, x, e, t), path, x0, eps)

    return Parameterization(inputs, predict, to_target)


def eps(sigma_data: float = 0.5, scale_input: bool = True) -> Parameterization:
    """The network predicts the noise (Ho et al. 2020). Refused where the path reaches alpha = 0."""

    def pair(p: Path, raw: Array, x: Array, t: Any) -> tuple[Array, Array]:
        needs_signal(p, "an eps prediction")
        alpha, sigma = _coefficients(p, x, t)
        return (x - sigma * raw) / alpha, raw

    return _build(pair, lambda p, x, e, t: e, sigma_data, scale_input)


def x0(sigma_data: float = 0.5, scale_input: bool = True) -> Parameterization:
    """The network predicts the clean data."""

    def pair(p: Path, raw: Array, x: Array, t: Any) -> tuple[Array, Array]:
        alpha, sigma = _coefficients(p, x, t)
        return raw, (x - alpha * raw) / sigma

    return _build(pair, lambda p, x, e, t: x, sigma_data, scale_input)


def v(sigma_data: float = 0.5, scale_input: bool = True) -> Parameterization:
    """The network predicts alpha eps - sigma x0 (Salimans & Ho 2022)."""

    def pair(p: Path, raw: Array, x: Array, t: Any) -> tuple[Array, Array]:
        alpha, sigma = _coefficients(p, x, t)
        norm = alpha**2 + sigma**2
        return (alpha * x - sigma * raw) / norm, (sigma * x + alpha * raw) / norm

    def target(p: Path, x: Array, e: Array, t: Any) -> Array:
        alpha, sigma = _coefficients(p, x, t)
        return alpha * e - sigma * x

    return _build(pair, target, sigma_data, scale_input)


def velocity(sigma_data: float = 0.5, scale_input: bool = True) -> Parameterization:
    """The network predicts the probability-flow velocity (flow matching): solve the 2x2 system for (x0, eps)."""

    def slopes(p: Path, x: Array, t: Any) -> tuple[Array, Array]:
        return expand(derivative(p.alpha, t), x), expand(derivative(p.sigma, t), x)

    def pair(p: Path, raw: Array, x: Array, t: Any) -> tuple[Array, Array]:
        (alpha, sigma), (d_alpha, d_sigma) = _coefficients(p, x, t), slopes(p, x, t)
        determinant = alpha * d_sigma - sigma * d_alpha
        return (d_sigma * x - sigma * raw) / determinant, (alpha * raw - d_alpha * x) / determinant

    def target(p: Path, x: Array, e: Array, t: Any) -> Array:
        d_alpha, d_sigma = slopes(p, x, t)
        return d_alpha * x + d_sigma * e

    return _build(pair, target, sigma_data, scale_input)


def edm(sigma_data: float = 0.5, scale_input: bool = True) -> Parameterization:
    """EDM's preconditioning, D = c_skip x + c_out F, carried to any alpha; F has unit variance at every noise level.

    A plain mean square of F is the paper's weighted denoising loss, (sigma^2 + sd^2) / (sigma sd)^2 |D - x0|^2.
    """

    def pair(p: Path, raw: Array, x: Array, t: Any) -> tuple[Array, Array]:
        alpha, sigma = _coefficients(p, x, t)
        total = sigma**2 + alpha**2 * sigma_data**2
        root = jnp.sqrt(total)
        clean = alpha * sigma_data**2 / total * x + sigma * sigma_data / root * raw
        return clean, sigma / total * x - alpha * sigma_data / root * raw  # eps without a division by sigma

    def target(p: Path, x: Array, e: Array, t: Any) -> Array:
        alpha, sigma = _coefficients(p, x, t)
        return (sigma * x - alpha * sigma_data**2 * e) / (sigma_data * jnp.sqrt(sigma**2 + alpha**2 * sigma_data**2))

    return _build(pair, target, sigma_data, scale_input)


def learned_variance(parameterization: Parameterization) -> Parameterization:
    """iDDPM's second half of the channels (Nichol & Dhariwal 2021, eq. 15): var_mix = (raw + 1) / 2.

    The raw output has twice the channels on the last axis; the reverse variance is
    exp(var_mix log beta + (1 - var_mix) log beta-tilde).
    """

    def predict(path: Any, raw: Tree, x_t: Tree, t: Any) -> Prediction:
        halves = over(lambda _, r: tuple(jnp.split(r, 2, axis=-1)), path, raw)
        mean, mix = unzip(path, halves, 2)
        share = over(lambda _, m: 0.5 * (m + 1), path, mix)
        return parameterization.predict(path, mean, x_t, t)._replace(var_mix=share)

    return parameterization._replace(predict=predict)
