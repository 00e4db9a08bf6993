"""The variational bound of any path, cut at a time t > 0: what it costs to tell x_t of an example, and no more.

A model that is run from the prior down to t defines p(x_t). For q(x_t | x_0), the path's own noise,

    KL(q(x_t | x_0) || p(x_t)) <= KL(q(x_T | x_0) || N(0, sigma_T^2)) + everything between T and t,

where "everything between" is, with SNR = alpha^2 / sigma^2 and x' the prediction of x_0 (Kingma et al. 2021, VDM),

    a chain (Discrete)   sum over its steps t' -> s of KL(q(x_s | x_t', x_0) || p(x_s | x_t')); eq. 13 and appendix A
    any other path       1/2 integral of E |x_0 - x'|^2 dSNR = 1/2 integral of E |eps - eps'|^2 d log SNR; eq. 17

It is the first part of the bound of a cascade (Ho et al. 2022, CDM, section 4.3). Nothing here needs t to be on a grid:
the last step of a chain goes from the first whole time above t to t itself, as a truncated sampler's does. Equal log-SNR
is equal information, so a path and a scaled copy of it have the same bound. All values are in nats.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.losses.variational import VARIANCES
from jaxdiff.sde.discrete import Discrete
from jaxdiff.sde.kernels import as_time, log_snr, perturb, time_at
from jaxdiff.trees import expand, noise_like
from jaxdiff.types import Array, Cond, Denoiser, Key, Prediction


def _sum(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).sum(1)


def prior_kl(path: Any, x0: Array) -> Array:
    """KL(q(x_T | x_0) || N(0, sigma_T^2)) = SNR(t_max) |x_0|^2 / 2 of each example in nats, `[B]`."""
    return 0.5 * jnp.exp(log_snr(path, path.t_max)).astype(x0.dtype) * _sum(x0**2)


def step_kl(path: Any, prediction: Prediction, x0: Array, t: Array, s: Array, variance: str) -> Array:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each example in nats, `[B]`; 0 < s <= t, not necessarily whole.

    The means differ by x_0 - x' alone. With v = Var q(x_t | x_s) the posterior's variance is v sigma_s^2 / sigma_t^2, and
    the model's is that ("small"), v ("large", beta in a chain), or their mixture in the logarithm ("learned"): larger by
    e^d, d = mix log(sigma_t^2 / sigma_s^2). So

        KL = 1/2 [d - 1 + e^{-d} (1 + (SNR_s - SNR_t) |x_0 - x'|^2)]     in each dimension,

    which has no v left to cancel in, however close s is to t.
    """
    lambda_t, lambda_s = log_snr(path, t), log_snr(path, s)
    gain = expand(jnp.exp(lambda_t) * jnp.expm1(lambda_s - lambda_t), x0)
    mix: Any = {"small": 0.0, "large": 1.0}.get(variance, prediction.var_mix)
    d = mix * expand(2 * (jnp.log(path.sigma(t)) - jnp.log(path.sigma(s))), x0)
    return _sum(0.5 * (d - 1 + jnp.exp(-d) * (1 + gain * (x0 - prediction.x0) ** 2)))


def truncated_bound(
    denoise: Denoiser, path: Any, x0: Array, key: Key, t: float, cond: Cond = None, num_times: int = 32,
    variance: str = "small",
) -> Array:
    """The bound above, from t_max down to t: an upper bound of KL(q(x_t | x_0) || p(x_t)) in expectation over the key.

    Args:
      denoise: `(key, x_t, t, cond) -> Prediction`, of a model of x_0; exact ones make the bound of a continuous path tight.
      path: the model's process. A Discrete one is read as DDPM's chain: a network call for each whole time above t.
      x0: `[B, ...]` floating.
      t: where the model stops, a Python number in (0, t_max).
      num_times: network calls on a continuous path, one time of each example in each of as many strata of equal width in
        u = log(1 + SNR). There the integrand is (|x_0 - x'|^2 + |eps - eps'|^2) / 2, which stays finite at both ends, and is
        constant for data of unit variance; alpha = 0 at t_max is allowed.
      variance: of a chain's reverse steps, "small", "large" or "learned".

    Returns:
      nats, `[B]`. Raises ValueError for a t outside (0, t_max), fewer than 1 time, another variance, and a learned one
      that the prediction lacks. At t = 0 the KL of continuous data is infinite.
    """
    if not 0 < t < path.t_max:
        raise ValueError(f"t is {t}; allowed: above 0 and below t_max = {path.t_max:g}")
    if num_times < 1:
        raise ValueError(f"num_times is {num_times}; allowed: 1 or more")
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; allowed: {', '.join(VARIANCES)}")
    if hasattr(path, "betas"):
        return prior_kl(path, x0) + _chain(denoise, path, x0, key, t, cond, variance)
    return prior_kl(path, x0) + _integral(denoise, path, x0, key, t, cond, num_times)


def _chain(denoise: Denoiser, path: Discrete, x0: Array, key: Key, stop: float, cond: Cond, variance: str) -> Array:
    """The KLs of the steps T -> T - 1 -> ... -> stop, one noise draw each."""

    def body(total: Array, t: Array) -> tuple[Array, None]:
        k_noise, k_network = jax.random.split(jax.random.fold_in(key, t.astype(jnp.int32)))
        ts = jnp.full(x0.shape[:1], t)
        prediction = denoise(k_network, perturb(path, x0, noise_like(k_noise, x0), ts), ts, cond)
        if variance == "learned" and prediction.var_mix is None:
            raise ValueError("variance='learned' got a prediction without var_mix; mend: "
                             "parameterization.learned_variance=True, or variance='small'")
        return total + step_kl(path, prediction, x0, ts, jnp.maximum(ts - 1, stop), variance), None

    times = jnp.arange(math.floor(stop) + 1, path.num_steps + 1).astype(float)
    return jax.lax.scan(body, jnp.zeros(x0.shape[:1], x0.dtype), times)[0]


def _integral(denoise: Denoiser, path: Any, x0: Array, key: Key, stop: float, cond: Cond, num_times: int) -> Array:
    """1/2 integral of (|x_0 - x'|^2 + |eps - eps'|^2) du over u = log(1 + SNR), stratified."""
    low, high = (jax.nn.softplus(log_snr(path, t)) for t in (as_time(path.t_max), as_time(stop)))

    def body(total: Array, i: Array) -> tuple[Array, None]:
        k_time, k_noise, k_network = jax.random.split(jax.random.fold_in(key, i), 3)
        u = low + (high - low) * (i + jax.random.uniform(k_time, x0.shape[:1])) / num_times
        t = jnp.clip(time_at(path, jnp.log(jnp.expm1(u))), stop, path.t_max)
        eps = noise_like(k_noise, x0)
        prediction = denoise(k_network, perturb(path, x0, eps, t), t, cond)
        return total + _sum((x0 - prediction.x0) ** 2 + (eps - prediction.eps) ** 2), None

    total, _ = jax.lax.scan(body, jnp.zeros(x0.shape[:1], x0.dtype), jnp.arange(num_times))
    return 0.5 * ((high - low) / num_times).astype(x0.dtype) * total
