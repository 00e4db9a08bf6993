"""The variational bound: its pieces by numerical integration, its total against the exact likelihood of its own chain."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

import jaxdiff as jd
from jaxdiff.losses.variational import binned_log_prob, kl_normal, prior_term, reverse_log_variance, step_term
from tests import oracle

KEY = jax.random.key(5)
MEAN, STD = 0.2, 0.4
BITS = np.log(2)


def chain(steps):
    """A path and its numpy tables at t = 0, ..., T: betas (from index 1), alpha-bar."""
    path = jd.sde.Discrete(jd.sde.linear_betas(steps))
    betas = np.concatenate([[np.nan], path.betas])
    return path, betas, np.concatenate([[1.0], np.cumprod(1 - betas[1:])])


def test_kl_normal_is_the_integral(x64):
    for mean_q, std_q, mean_p, std_p in [(0, 1, 0, 1), (0.3, 0.5, -0.2, 0.8), (1, 2, 0.5, 0.3), (-2, 0.1, -2.1, 0.2)]:
        q, p = stats.norm(mean_q, std_q), stats.norm(mean_p, std_p)
        ends = (mean_q - 12 * std_q, mean_q + 12 * std_q)
        expected = integrate.quad(lambda x, q=q, p=p: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *ends, epsabs=1e-13)[0]
        seen = kl_normal(*(jnp.asarray(v) for v in (mean_q, 2 * np.log(std_q), mean_p, 2 * np.log(std_p))))
        np.testing.assert_allclose(seen, expected, atol=1e-9)


MEANS, LOG_VARS = np.array([-3.0, -1.0, -0.37, 0.0, 0.004, 0.9, 2.5]), np.array([-16.0, -9.0, -5.0, -1.0, 2.0, 8.0])


@pytest.mark.parametrize("levels", [17, 256])
def test_bins_hold_the_whole_mass(x64, levels):
    data = 2 * jnp.arange(levels) / (levels - 1) - 1.0
    run = jax.jit(lambda mean, log_var: binned_log_prob(data, mean[..., None], log_var[..., None], levels))
    log_p = run(*np.meshgrid(MEANS, LOG_VARS))
    np.testing.assert_allclose(jax.scipy.special.logsumexp(log_p, axis=-1), 0.0, atol=1e-9)
    edges = np.concatenate([[-np.inf], (data[1:] + data[:-1]) / 2, [np.inf]])
    means, stds = (a[..., None] for a in np.meshgrid(MEANS, np.exp(0.5 * LOG_VARS)))
    np.testing.assert_allclose(np.exp(log_p), np.diff(stats.norm.cdf(edges, means, stds)), atol=1e-13)


def exact_log_mass(x, mean, log_var, levels):
    """The same logarithm in 60 digits."""
    with mpmath.workdps(60):
        half, std = mpmath.mpf(1) / (levels - 1), mpmath.e ** (mpmath.mpf(log_var) / 2)
        low = -mpmath.inf if x < -1 + half else (mpmath.mpf(x) - half - mean) / std
        high = mpmath.inf if x > 1 - half else (mpmath.mpf(x) + half - mean) / std
        if low + high > 0:  # 1 - ncdf cancels above the mean, ncdf below it does not
            low, high = -high, -low
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


def test_bins_far_out_in_the_tails(x64):
    """Up to 4,000 standard deviations away the logarithm has 1e-9 of relative error, and its gradient follows."""
    grid = np.meshgrid([-1.5, 0.003, 0.8], [-14.0, -7.0, 0.0, 5.0], [-1.0, -127 / 255, 1 / 255, 1.0])
    means, log_vars, xs = (a.ravel() for a in grid)
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda m, v, x: binned_log_prob(x, m, v, 256), (0, 1))))
    value, slopes = run(means, log_vars, xs)
    exact = lambda m, v: np.array([exact_log_mass(*row, 256) for row in zip(xs, m, v, strict=True)])
    np.testing.assert_allclose(value, exact(means, log_vars), rtol=1e-8, atol=1e-12)
    h = 1e-6
    for axis, seen in enumerate(slopes):
        up, down = (exact(means + (1 - axis) * d, log_vars + axis * d) for d in (h, -h))
        np.testing.assert_allclose(seen, (up - down) / (2 * h), rtol=2e-5, atol=1e-6)


def test_float32_bins_have_no_nan():
    """Every combination of level, mean and a variance from e^-30 to e^20: finite, at most 0, and finite gradients."""
    grid = jnp.meshgrid(jnp.linspace(-3, 3, 25), jnp.linspace(-30, 20, 26), 2 * jnp.arange(0, 256, 5) / 255 - 1)
    means, log_vars, xs = (a.ravel() for a in grid)
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda m, v, x: binned_log_prob(x, m, v, 256), (0, 1))))
    value, gradient = run(means, log_vars, xs)
    assert value.dtype == jnp.float32 and np.isfinite(value).all() and (value <= 0).all()
    assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_step_terms_by_hand(x64, variance):
    """Ho et al. 2020, eq. 6-8, at known x0, x_t and x0-hat, in numpy; with the small variance the term is also
    (SNR(t-1) - SNR(t)) |x0 - x0-hat|^2 / 2 (Kingma et al. 2021, eq. 14)."""
    steps, levels = 40, 256
    path, beta, bar = chain(steps)
    t = np.array([1, 2, 3, 20, steps])
    rng = np.random.default_rng(0)
    x0 = (2 * rng.integers(0, levels, (5, 3)) / (levels - 1)) - 1
    x_t, guess, mix = rng.standard_normal((3, 5, 3))
    mix = 0.5 + 0.2 * mix
    arrays = [jnp.asarray(a) for a in (x0, x_t, t.astype(float))]
    prediction = jd.Prediction(jnp.asarray(guess), jnp.zeros((5, 3)), jnp.asarray(mix) if variance == "learned" else None)
    seen = step_term(path, prediction, *arrays, levels, variance)

    b, now, before = beta[t][:, None], bar[t][:, None], bar[t - 1][:, None]
    tilde = b * (1 - before) / (1 - now)
    tilde_floor = np.where(t[:, None] == 1, beta[2] * (1 - bar[1]) / (1 - bar[2]), tilde)
    log_var = {"small": np.log(tilde_floor), "large": np.log(b) + 0 * x0}
    log_var["learned"] = mix * np.log(b) + (1 - mix) * log_var["small"]
    mean = lambda clean: (np.sqrt(before) * b * clean + np.sqrt(1 - b) * (1 - before) * x_t) / (1 - now)
    var = np.exp(log_var[variance])
    with np.errstate(divide="ignore"):
        kl = 0.5 * (np.log(var) - np.log(tilde) + (tilde + (mean(x0) - mean(guess)) ** 2) / var - 1)
    expected = kl.mean(1) / BITS
    std = np.broadcast_to(np.sqrt(var[0]), 3)
    first = [exact_log_mass(x, m, 2 * np.log(s), levels) for x, m, s in zip(x0[0], mean(guess)[0], std, strict=True)]
    expected[0] = -np.mean(first) / BITS
    np.testing.assert_allclose(seen, expected, rtol=1e-8)
    if variance == "small":
        snr = lambda a: a / (1 - a)
        with np.errstate(divide="ignore"):
            short = 0.5 * (snr(before) - snr(now)) * (x0 - guess) ** 2
        np.testing.assert_allclose(seen[1:], short[1:].mean(1) / BITS, rtol=1e-7)


def test_learned_variance_goes_from_beta_tilde_to_beta(x64):
    path, beta, bar = chain(40)
    t, like = jnp.array([1.0, 2.0, 30.0]), jnp.zeros((3, 1))
    whole = np.asarray(t, int)
    at = lambda mix: reverse_log_variance(path, jd.Prediction(like, like, like + mix), t, like, "learned")[:, 0]
    tilde = beta[1:] * (1 - bar[:-1]) / (1 - bar[1:])
    np.testing.assert_allclose(at(1.0), np.log(beta[whole]), rtol=1e-8)
    np.testing.assert_allclose(at(0.0), np.log(np.r_[tilde[1], tilde[1:]][whole - 1]), rtol=1e-8)
    np.testing.assert_allclose(at(0.3), 0.3 * at(1.0) + 0.7 * at(0.0), rtol=1e-12)
    single = jd.sde.Discrete([0.5])  # a chain of one step has no beta-tilde
    for variance in ("small", "large", "learned"):
        value = reverse_log_variance(single, jd.Prediction(like, like, like), jnp.ones(3), like, variance)
        np.testing.assert_allclose(value, np.log(0.5), rtol=1e-12)


def test_prior_term_is_the_closed_form(x64):
    path, _, bar = chain(30)
    x0 = np.random.default_rng(0).uniform(-1, 1, (4, 6))
    expected = 0.5 * bar[-1] * (x0**2).mean(1) / (1 - bar[-1]) / BITS  # equal variances: the mean's term alone
    np.testing.assert_allclose(prior_term(path, jnp.asarray(x0)), expected, rtol=1e-10)


LEVELS = 17
DATA = 2 * np.arange(LEVELS) / (LEVELS - 1) - 1


EDGES = np.concatenate([[-np.inf], (DATA[1:] + DATA[:-1]) / 2, [np.inf]])


def data_mass():
    return np.diff(stats.norm.cdf(EDGES, MEAN, STD))


def model_mass(steps, variance):
    """Exact p(x_0) of the whole chain in each bin: with a linear denoiser every x_t of the model is Gaussian."""
    _, beta, bar = chain(steps)
    m, v = 0.0, 1 - bar[-1]
    for t in range(steps, 0, -1):
        c = bar[t] * STD**2 + 1 - bar[t]
        tilde = beta[max(t, min(2, steps))] * (1 - bar[max(t, 2) - 1]) / (1 - bar[max(t, 2)])
        slope = np.sqrt(bar[t]) * STD**2 / c
        at_x0 = np.sqrt(bar[t - 1]) * beta[t] / (1 - bar[t])
        gain = np.sqrt(1 - beta[t]) * (1 - bar[t - 1]) / (1 - bar[t]) + at_x0 * slope
        m = gain * m + at_x0 * MEAN * (1 - np.sqrt(bar[t]) * slope)
        v = gain**2 * v + (tilde if variance == "small" else beta[t])
    return np.diff(stats.norm.cdf(EDGES, m, np.sqrt(v)))


def expected_bound(steps, variance):
    """E[L | x_0] of the exact Gaussian denoiser at every level, in bits: the terms t = 1..T [T, LEVELS], and L_T."""
    _, beta, bar = chain(steps)
    t = np.arange(2, steps + 1)[:, None]
    now, before, b = bar[t], bar[t - 1], beta[t]
    c = now * STD**2 + 1 - now
    error = ((1 - now) / c * (DATA - MEAN)) ** 2 + now * (1 - now) * (STD**2 / c) ** 2  # E (x0 - x0-hat)^2
    tilde = b * (1 - before) / (1 - now)
    var = tilde if variance == "small" else b
    kl = 0.5 * (np.log(var / tilde) + (tilde + before * (b / (1 - now)) ** 2 * error) / var - 1)
    # L_0, a one-dimensional integral over x_1
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    x_1 = np.sqrt(bar[1]) * DATA + np.sqrt(1 - bar[1]) * nodes[:, None]
    slope = np.sqrt(bar[1]) * STD**2 / (bar[1] * STD**2 + 1 - bar[1])
    guess = MEAN + slope * (x_1 - np.sqrt(bar[1]) * MEAN)
    std = np.sqrt(tilde[0, 0] if variance == "small" else beta[1])
    log_mass = [[exact_log_mass(x, g, 2 * np.log(std), LEVELS) for x, g in zip(DATA, row, strict=True)] for row in guess]
    first = -weights @ np.array(log_mass) / weights.sum()
    prior = 0.5 * bar[-1] * DATA**2 / (1 - bar[-1])
    return np.vstack([first, kl]) / BITS, prior / BITS


def measured_bound(path, denoise, variance, repeats):
    """The bound averaged over `repeats` examples of every level, in one call."""
    x0 = jnp.asarray(np.repeat(DATA, repeats)[:, None])
    run = jax.jit(lambda key, x0: jd.losses.variational_bound(denoise, path, x0, key, LEVELS, variance))
    bound = run(KEY, x0)
    np.testing.assert_allclose(bound.total, bound.prior + bound.terms.sum(0), rtol=1e-12)
    return jax.tree.map(lambda v: np.asarray(v).reshape(v.shape[:-1] + (LEVELS, repeats)).mean(-1), bound)


@pytest.mark.parametrize(("variance", "slack"), [("small", 2.9), ("large", 0.2)])
def test_bound_holds_and_is_close(x64, variance, slack):
    """At every level the bound is above -log2 of the chain's own exact mass there, which is above the data's entropy on
    average; each term is its closed form. The small variance is loose at T = 50: its steps are coarse near the data."""
    steps, mass = 50, data_mass()
    terms, prior = expected_bound(steps, variance)
    nll = -np.log2(model_mass(steps, variance))
    assert (terms.sum(0) + prior > nll).all()
    path = chain(steps)[0]
    bound = measured_bound(path, oracle.gaussian(path, MEAN, STD), variance, 4000)
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-9)
    np.testing.assert_allclose(bound.terms @ mass, terms @ mass, rtol=0.03)  # each t, all levels
    np.testing.assert_allclose(bound.total, terms.sum(0) + prior, rtol=0.04)  # each level, all t
    assert (bound.total > nll).all()
    assert -mass @ np.log2(mass) < mass @ nll < mass @ bound.total < mass @ nll + slack


def test_bound_falls_towards_the_entropy(x64):
    """With the exact denoiser of the binned data the bound tends to its entropy as the steps get finer (Kingma et al.
    2021): 4.2, 1.8 and .7 bits above it at T = 25, 100 and 400."""
    mass, seen = data_mass(), []
    for steps in (25, 100, 400):
        path = chain(steps)[0]
        bound = measured_bound(path, oracle.mixture(path, DATA[:, None], 0.0, mass), "small", 100)
        seen.append(mass @ (bound.total + np.log2(mass)))
    assert seen[0] > seen[1] + 1 > seen[2] + 1.5 and 0 < seen[2] < 1, seen


def test_bound_refuses_what_it_cannot_read():
    x0, denoise = jnp.zeros((2, 1)), oracle.gaussian(jd.sde.VP(), MEAN, STD)
    with pytest.raises(ValueError, match="allowed: a Discrete path"):
        jd.losses.variational_bound(denoise, jd.sde.VP(), x0, KEY)
    path = chain(25)[0]
    with pytest.raises(ValueError, match="'medium'; allowed: small, large, learned"):
        jd.losses.variational_bound(oracle.gaussian(path, MEAN, STD), path, x0, KEY, variance="medium")
    with pytest.raises(ValueError, match="without var_mix; mend"):
        jd.losses.variational_bound(oracle.gaussian(path, MEAN, STD), path, x0, KEY, variance="learned")
