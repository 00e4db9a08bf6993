"""The variational bound of a Discrete chain, in bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021).

    L_T  = KL(q(x_T | x_0) || N(0, sigma_T^2))        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), t > 1
    L_0  = -log p(x_0 | x_1), a Gaussian integrated over bins of half-width 1 / (levels - 1), open at both ends

Data is `2 k / (levels - 1) - 1`, k = 0..levels - 1: not the dequantised map of the ODE likelihood. Everything is in nats
per dimension inside, bits per dimension outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import denoiser
from jaxdiff.losses import weightings
from jaxdiff.losses.denoising import CondDraw, mean_per_example, noised, weighted_error
from jaxdiff.sde import times
from jaxdiff.sde.discrete import Discrete
from jaxdiff.sde.kernels import perturb, posterior
from jaxdiff.sde.parameterizations import Parameterization
from jaxdiff.sde.times import TimeDraw
from jaxdiff.trees import expand, noise_like
from jaxdiff.types import Array, Aux, Batch, Cond, Denoiser, Key, LossFn, Params, Prediction, Tree

VARIANCES = ("small", "large", "learned")


def kl_normal(mean_q: Array, log_var_q: Array, mean_p: Array, log_var_p: Array) -> Array:
    """KL(N(mean_q, var_q) || N(mean_p, var_p)), elementwise, in nats."""
    ratio = jnp.exp(log_var_q - log_var_p)
    return 0.5 * (log_var_p - log_var_q + ratio - 1 + (mean_q - mean_p) ** 2 * jnp.exp(-log_var_p))


def binned_log_prob(x: Array, mean: Array, log_var: Array, levels: int) -> Array:
    """log of a Gaussian's mass in x's bin, elementwise; the first and the last bin are open (Ho et al. 2020, eq. 13)."""
    half, scale = 1 / (levels - 1), jnp.exp(-0.5 * log_var)
    upper, lower = (x + half - mean) * scale, (x - half - mean) * scale
    log_cdf = jax.scipy.stats.norm.logcdf
    # between two points the mass is a difference; taken on the side of the mean where both are small
    flip = (upper + lower) > 0
    high, low = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    gap = jnp.minimum(log_cdf(low) - log_cdf(high), -1e-7)
    middle = log_cdf(high) + jnp.log(-jnp.expm1(gap))
    first, last = x < -1 + half, x > 1 - half
    return jnp.where(first, log_cdf(upper), jnp.where(last, log_cdf(-lower), middle))


def reverse_log_variance(path: Discrete, prediction: Prediction, t: Array, like: Array, variance: str) -> Array:
    """log variance of p(x_{t-1} | x_t), t whole: log beta-tilde, log beta, or their learned mixture.

    beta-tilde is 0 at t = 1; as in the papers' code its place is taken by the value at t = 2 (by beta where T = 1).
    """
    betas = jnp.asarray(path.betas, t.dtype)
    large = expand(jnp.log(betas[(t - 1).astype(jnp.int32)]), like)
    if variance == "large" or path.num_steps == 1:
        return jnp.broadcast_to(large, like.shape)
    blank, floor = jnp.zeros_like(like), jnp.maximum(t, 2.0)
    small = 2 * jnp.log(posterior(path, blank, blank, floor, floor - 1)[1])
    if variance == "small":
        return jnp.broadcast_to(small, like.shape)
    if prediction.var_mix is None:
        raise ValueError("variance='learned' got a prediction without var_mix; mend: "
                         "parameterization.learned_variance=True, or variance='small'")
    return prediction.var_mix * large + (1 - prediction.var_mix) * small


def step_term(
    path: Discrete, prediction: Prediction, x0: Array, x_t: Array, t: Array, levels: int, variance: str
) -> Array:
    """L_{t-1} of each example in bits per dimension, `[B]`; at t = 1 the discretised likelihood L_0."""
    mean_q, std_q = posterior(path, x_t, x0, t, t - 1)
    mean_p, _ = posterior(path, x_t, prediction.x0, t, t - 1)
    log_var = reverse_log_variance(path, prediction, t, x_t, variance)
    first = expand(t, x_t) < 1.5
    log_var_q = 2 * jnp.log(jnp.where(first, 1.0, std_q))  # unused at t = 1, and then safe
    kl = kl_normal(mean_q, log_var_q, mean_p, log_var)
    nll = -binned_log_prob(x0, mean_p, log_var, levels)
    return mean_per_example(jnp.where(first, nll, kl)) / math.log(2)


def prior_term(path: Discrete, x0: Array) -> Array:
    """L_T in bits per dimension, `[B]`; the prior is N(0, sigma_T^2)."""
    t = jnp.asarray(path.t_max)
    variance = 2 * jnp.log(path.sigma(t)).astype(x0.dtype)
    return mean_per_example(kl_normal(expand(path.alpha(t), x0) * x0, variance, jnp.zeros_like(x0), variance)) / math.log(2)


class Bound(NamedTuple):
    """Bits per dimension, `[B]` each: `total = prior + terms.sum(0)`; `terms` is `[T, B]` for t = 1..T."""

    total: Array
    prior: Array
    terms: Array


def variational_bound(
    denoise: Denoiser, path: Discrete, x0: Array, key: Key, levels: int = 256, variance: str = "small", cond: Cond = None
) -> Bound:
    """The full bound: one network call for each of the T steps, one noise draw each, in one `lax.scan`."""
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; allowed: {', '.join(VARIANCES)}")
    if not hasattr(path, "betas"):
        raise ValueError(f"variational_bound got {path}; allowed: a Discrete path (others: samplers.log_likelihood)")

    def body(_: None, t: Array) -> tuple[None, Array]:
        k_noise, k_network = jax.random.split(jax.random.fold_in(key, t.astype(jnp.int32)))
        ts = jnp.full(x0.shape[:1], t)
        x_t = perturb(path, x0, noise_like(k_noise, x0), ts)
        return None, step_term(path, denoise(k_network, x_t, ts, cond), x0, x_t, ts, levels, variance)

    _, terms = jax.lax.scan(body, None, jnp.arange(1, path.num_steps + 1).astype(float))
    prior = prior_term(path, x0)
    return Bound(prior + terms.sum(0), prior, terms)


def hybrid(
    apply_fn: Callable[..., Tree],
    path: Discrete,
    parameterization: Parameterization,
    vlb_weight: float = 1e-3,
    levels: int = 256,
    draw_times: TimeDraw | None = None,
    draw_cond: CondDraw | None = None,
    stochastic: bool = False,
    network: str = "denoiser",
) -> LossFn:
    """iDDPM's hybrid loss, L_simple + `vlb_weight` L_vlb (eq. 16); the mean's gradient is stopped in L_vlb.

    L_vlb is T times the drawn term, an unbiased estimate of the sum, in bits per dimension.
    """
    draw_times = times.discrete() if draw_times is None else draw_times

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        drawn = noised(path, draw_times, key, batch, draw_cond)
        denoise = denoiser(apply_fn, params[network], path, parameterization, stochastic)
        prediction = denoise(drawn.k_network, drawn.x_t, drawn.t, drawn.cond)
        simple = weighted_error(path, parameterization, weightings.simple(), prediction, drawn).mean()
        held = prediction._replace(x0=jax.lax.stop_gradient(prediction.x0))
        term = step_term(path, held, drawn.x0, drawn.x_t, drawn.t, levels, "learned")
        vlb = path.num_steps * term.mean()
        value = simple + vlb_weight * vlb
        return value, Aux({"loss": value, "simple": simple, "vlb": vlb}, state)

    return loss
