"""What follows from alpha and sigma, once for every path (and, through `over`, for a dict of paths on one clock).

With `f = d log alpha / dt` and `g^2 = d sigma^2 / dt - 2 f sigma^2` the path is the SDE `dx = f x dt + g dw`
(Song et al. 2021; Kingma et al. 2021, appendix A), so that for s < t

    q(x_t | x_s)      = N(a x_s, v),            a = alpha_t / alpha_s,  v = sigma_t^2 - a^2 sigma_s^2
    q(x_s | x_t, x_0) = N(m, v sigma_s^2 / sigma_t^2),  m = (a sigma_s^2 x_t + alpha_s v x_0) / sigma_t^2

and the probability-flow ODE is `dx/dt = alpha' x_0 + sigma' eps` at the predicted pair. Arrays are `[B, ...]`, times are
scalars or `[B]`; coefficients are computed in the time's dtype and cast to the array's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.trees import clock, expand, noise_like, over, unzip
from jaxdiff.types import Array, Key, Path, Prediction, Tree


def as_time(t: Any) -> Array:
    """A time as a floating array; integers and Python numbers take the default float dtype."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def derivative(fn: Callable[[Any], Any], t: Any) -> Array:
    """The elementwise derivative of a scalar function."""
    t = as_time(t)
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def drift_rate(path: Path, t: Any) -> Array:
    """f(t) = d log alpha / dt."""
    return derivative(lambda u: jnp.log(path.alpha(u)), t)


def _g2(path: Path, t: Any) -> Array:
    sigma = path.sigma(as_time(t))
    return 2 * sigma * derivative(path.sigma, t) - 2 * drift_rate(path, t) * sigma**2


def perturb(path: Any, x0: Tree, eps: Tree, t: Any) -> Tree:
    """x_t = alpha x_0 + sigma eps; `[B, ...]` in, the same out."""
    t = as_time(t)
    return over(lambda p, x, e: expand(p.alpha(t), x) * x + expand(p.sigma(t), x) * e, path, x0, eps)


def transition_coefficients(path: Path, s: Any, t: Any) -> tuple[Array, Array]:
    """`(a, v)` of q(x_t | x_s) = N(a x_s, v I), s < t."""
    s, t = as_time(s), as_time(t)
    a = path.alpha(t) / path.alpha(s)
    return a, jnp.maximum(path.sigma(t) ** 2 - a**2 * path.sigma(s) ** 2, 0)


def transition(path: Any, x_s: Tree, s: Any, t: Any) -> tuple[Tree, Tree]:
    """Mean `[B, ...]` and standard deviation (broadcastable) of q(x_t | x_s), s < t."""

    def one(p: Path, x: Array) -> tuple[Array, Array]:
        a, v = transition_coefficients(p, s, t)
        return expand(a, x) * x, expand(jnp.sqrt(v), x)

    return unzip(path, over(one, path, x_s), 2)  # type: ignore[return-value]


def posterior(path: Any, x_t: Tree, x0: Tree, t: Any, s: Any) -> tuple[Tree, Tree]:
    """Mean `[B, ...]` and standard deviation of q(x_s | x_t, x_0), s < t (Ho et al. 2020, eq. 6-7, for any path)."""

    def one(p: Path, x: Array, x_0: Array) -> tuple[Array, Array]:
        a, v = transition_coefficients(p, s, t)
        var_t, var_s, alpha_s = p.sigma(as_time(t)) ** 2, p.sigma(as_time(s)) ** 2, p.alpha(as_time(s))
        mean = expand(a * var_s / var_t, x) * x + expand(alpha_s * v / var_t, x) * x_0
        return mean, expand(jnp.sqrt(v * var_s / var_t), x)

    return unzip(path, over(one, path, x_t, x0), 2)  # type: ignore[return-value]


def prior(path: Any, key: Key, like: Tree) -> Tree:
    """A draw of x_T ~ N(0, sigma(t_max)^2), of `like`'s shapes; `like` may hold arrays or jax.ShapeDtypeStructs."""
    noise = noise_like(key, like)
    return over(lambda p, z: expand(p.sigma(as_time(p.t_max)), z) * z, path, noise)


def prior_log_prob(path: Any, x: Tree) -> Array:
    """log N(x; 0, sigma(t_max)^2) in nats, summed over all dimensions and variables, `[B]`."""

    def one(p: Path, z: Array) -> Array:
        sigma = expand(p.sigma(as_time(p.t_max)), z)
        terms = -0.5 * (z / sigma) ** 2 - jnp.log(sigma) - 0.5 * jnp.log(2 * jnp.pi).astype(z.dtype)
        return terms.reshape(z.shape[0], -1).sum(1)

    return jnp.stack(jax.tree.leaves(over(one, path, x))).sum(0)


def drift(path: Any, x: Tree, t: Any) -> Tree:
    """f(t) x, the forward SDE's drift."""
    return over(lambda p, z: expand(drift_rate(p, t), z) * z, path, x)


def diffusion(path: Any, t: Any) -> Tree:
    """g(t), the forward SDE's diffusion coefficient; a dict for a dict of paths."""
    return over(lambda p: jnp.sqrt(_g2(p, t)), path)


def velocity(path: Any, prediction: Prediction, t: Any) -> Tree:
    """dx/dt of the probability-flow ODE, alpha' x_0 + sigma' eps."""

    def one(p: Path, x0: Array, eps: Array) -> Array:
        return expand(derivative(p.alpha, t), x0) * x0 + expand(derivative(p.sigma, t), eps) * eps

    return over(one, path, prediction.x0, prediction.eps)


def score(path: Any, prediction: Prediction, t: Any) -> Tree:
    """The score of the marginal at t, -eps / sigma."""
    return over(lambda p, e: -e / expand(p.sigma(as_time(t)), e), path, prediction.eps)


def log_snr(path: Any, t: Any) -> Array:
    """log(alpha^2 / sigma^2) of the clock's path; infinite where sigma = 0."""
    p, t = clock(path), as_time(t)
    return 2 * (jnp.log(p.alpha(t)) - jnp.log(p.sigma(t)))


def time_at(path: Any, log_snr_value: Any) -> Array:
    """The time at which the log-SNR takes a value: the path's closed form, or 64 bisections on [0, t_max].

    Differentiable in the value (once): the bisection's derivative is that of the inverse function.
    """
    p, target = clock(path), as_time(log_snr_value)
    if hasattr(p, "time_at"):
        return p.time_at(target)

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        too_clean = log_snr(p, middle) > target
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    low, high = jax.lax.fori_loop(0, 64, halve, (jnp.zeros_like(target), jnp.full_like(target, p.t_max)))
    found = jax.lax.stop_gradient(0.5 * (low + high))
    slope = jax.lax.stop_gradient(derivative(lambda u: log_snr(p, u), found))
    inside = jnp.isfinite(target) & jnp.isfinite(slope)
    value = jnp.where(inside, target, 0)  # where the log-SNR is infinite there is no slope to follow
    return found + (value - jax.lax.stop_gradient(value)) / jnp.where(inside, slope, 1)


def needs_signal(path: Any, what: str) -> None:
    """Refuse a path that ends at alpha = 0 where `what` divides by alpha or takes its logarithm."""
    for p in jax.tree.leaves(path, is_leaf=lambda q: hasattr(q, "alpha")):
        with jax.ensure_compile_time_eval():
            alpha = p.alpha(as_time(p.t_max))
        if not isinstance(alpha, jax.core.Tracer) and float(alpha) == 0.0:
            raise ValueError(f"{what} is undefined at alpha = 0, but {p} reaches it; mend: t_max=.999, or x0, v, velocity "
                             "or edm prediction with ddim, ancestral or heun on a uniform grid")
