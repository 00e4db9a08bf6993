"""Transition, posterior, prior, velocity and score against formulas written out in numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd
from jaxdiff.sde import EDM, VE, VP, Discrete, Flow, linear_betas
from jaxdiff.sde.kernels import transition_coefficients
from tests.sde.test_paths import PATHS, every_path


def three_times(path):
    """r < s < t inside the path's clock."""
    return tuple(path.t_min + share * (path.t_max - path.t_min) for share in (0.2, 0.5, 0.9))


def test_ddpm_posterior(x64):
    """Ho et al. 2020, eq. 6-7, at every step of the linear chain."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas = 1 - betas
    bar = np.cumprod(alphas)
    before = np.concatenate([[1.0], bar[:-1]])
    path = Discrete(linear_betas(1000))
    t = np.arange(1, 1001)
    x_t, x0 = np.full(1000, 1.3), np.full(1000, -0.4)
    mean, std = jd.sde.posterior(path, jnp.asarray(x_t), jnp.asarray(x0), t, t - 1)
    np.testing.assert_allclose(
        mean, np.sqrt(before) * betas / (1 - bar) * x0 + np.sqrt(alphas) * (1 - before) / (1 - bar) * x_t, atol=1e-9)
    np.testing.assert_allclose(std**2, (1 - before) / (1 - bar) * betas, atol=1e-9, rtol=1e-9)
    _, std = jd.sde.transition(path, jnp.asarray(x_t), t - 1, t)
    np.testing.assert_allclose(std**2, betas, rtol=1e-9)


def test_respaced_chain_is_the_chain_of_the_kept_steps(x64):
    """Nichol & Dhariwal 2021, section 4: beta' = 1 - bar_t / bar_s for kept times s < t."""
    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    kept = np.round(np.linspace(1000, 0, 26)).astype(int)
    np.testing.assert_array_equal(jd.sde.grids.discrete(PATHS["linear"], 25), kept)
    _, v = transition_coefficients(PATHS["linear"], kept[1:], kept[:-1])
    np.testing.assert_allclose(v, 1 - bar[kept[:-1]] / bar[kept[1:]], rtol=1e-9)


@every_path
def test_transitions_compose(x64, path):
    r, s, t = three_times(path)
    (a1, v1), (a2, v2), (a, v) = (transition_coefficients(path, *pair) for pair in ((r, s), (s, t), (r, t)))
    np.testing.assert_allclose(a1 * a2, a, rtol=1e-12)
    np.testing.assert_allclose(a2**2 * v1 + v2, v, rtol=1e-10)


@every_path
def test_transition_carries_the_marginal(x64, path):
    _, s, t = three_times(path)
    a, v = transition_coefficients(path, s, t)
    np.testing.assert_allclose(a * path.alpha(s), path.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(a**2 * path.sigma(s) ** 2 + v, path.sigma(t) ** 2, rtol=1e-12)


@every_path
def test_posterior_is_bayes_rule(x64, path):
    """q(x_s | x_t, x0) q(x_t | x0) = q(x_t | x_s) q(x_s | x0) as densities, at random points."""
    _, s, t = three_times(path)
    rng = np.random.default_rng(0)
    x0, x_s, x_t = rng.normal(size=(3, 7))
    mean, std = jd.sde.posterior(path, jnp.asarray(x_t), jnp.asarray(x0), t, s)
    forward_mean, forward_std = jd.sde.transition(path, jnp.asarray(x_s), s, t)

    def log_normal(x, mean, std):
        return stats.norm.logpdf(x, np.asarray(mean), np.asarray(std))

    left = log_normal(x_s, mean, std) + log_normal(x_t, path.alpha(t) * x0, path.sigma(t))
    right = log_normal(x_t, forward_mean, forward_std) + log_normal(x_s, path.alpha(s) * x0, path.sigma(s))
    np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8)


@every_path
def test_posterior_chained_back_is_the_marginal(x64, path):
    """Averaging q(x_s | x_t, x0) over q(x_t | x0) gives q(x_s | x0)."""
    _, s, t = three_times(path)
    x0 = jnp.asarray([0.7])
    mean, std = jd.sde.posterior(path, path.alpha(t) * x0, x0, t, s)
    slope = jd.sde.posterior(path, path.alpha(t) * x0 + 1, x0, t, s)[0] - mean
    np.testing.assert_allclose(mean, path.alpha(s) * x0, rtol=1e-10)
    np.testing.assert_allclose(slope**2 * path.sigma(t) ** 2 + std**2, path.sigma(s) ** 2, rtol=1e-9)


@every_path
def test_posterior_at_time_zero_is_the_data(x64, path):
    if float(path.sigma(0.0)) > 0:
        assert isinstance(path, VE)  # VE alone never becomes noise-free
        return
    mean, std = jd.sde.posterior(path, jnp.asarray([2.0]), jnp.asarray([0.7]), path.t_min, 0.0)
    np.testing.assert_allclose([mean[0], std.item()], [0.7, 0.0], atol=1e-12)


@every_path
def test_prior_follows_the_path(x64, path):
    x = jd.sde.prior(path, jax.random.key(0), jax.ShapeDtypeStruct((100_000,), jnp.float64))
    sigma = float(path.sigma(path.t_max))
    assert stats.kstest(np.asarray(x) / sigma, "norm").pvalue > 1e-3
    if isinstance(path, VE | EDM):
        np.testing.assert_allclose(sigma, path.sigma_max, rtol=1e-12)
    z = jnp.asarray([[0.3, -2.0], [1.0, 0.5]])
    np.testing.assert_allclose(
        jd.sde.prior_log_prob(path, z), stats.norm.logpdf(z, scale=sigma).sum(1), rtol=1e-12)


@every_path
def test_velocity_is_the_time_derivative_of_a_straight_pair(x64, path):
    _, s, _ = three_times(path)
    pair = jd.Prediction(jnp.asarray([0.4]), jnp.asarray([-1.1]))
    h = 1e-5 * (path.t_max - path.t_min)
    after, before = (jd.sde.perturb(path, *pair[:2], s + d) for d in (h, -h))
    np.testing.assert_allclose(jd.sde.velocity(path, pair, s), (after - before) / (2 * h), rtol=1e-5)


@every_path
def test_velocity_is_drift_less_half_the_diffusion_times_score(x64, path):
    """dx/dt = f x - g^2 score / 2 (Song et al. 2021, eq. 13) equals alpha' x0 + sigma' eps."""
    _, s, _ = three_times(path)
    pair = jd.Prediction(jnp.asarray([0.4, 2.0]), jnp.asarray([-1.1, 0.3]))
    x = jd.sde.perturb(path, *pair[:2], s)
    score = jd.sde.score(path, pair, s)
    np.testing.assert_allclose(score, -pair.eps / path.sigma(s), rtol=1e-12)
    ode = jd.sde.drift(path, x, s) - 0.5 * jd.sde.diffusion(path, s) ** 2 * score
    np.testing.assert_allclose(jd.sde.velocity(path, pair, s), ode, rtol=1e-9)


def test_several_variables_on_one_clock(x64):
    """A dict of paths gives, entry by entry, what each path gives alone."""
    path = {"x": VP(), "y": VE(0.01, 3.0)}
    key = jax.random.key(0)
    draw = lambda k: {"x": jax.random.normal(k, (4, 3)), "y": jax.random.normal(k, (4, 2, 2))}
    x0, eps = draw(key), draw(jax.random.fold_in(key, 1))
    t = jnp.asarray([0.2, 0.4, 0.6, 0.8])
    pair = jd.Prediction(x0, eps)
    calls = {
        "perturb": lambda p, a, b, q: jd.sde.perturb(p, a, b, t),
        "transition": lambda p, a, b, q: jd.sde.transition(p, a, t / 2, t),
        "posterior": lambda p, a, b, q: jd.sde.posterior(p, b, a, t, t / 2),
        "drift": lambda p, a, b, q: jd.sde.drift(p, a, t),
        "diffusion": lambda p, a, b, q: jd.sde.diffusion(p, t),
        "velocity": lambda p, a, b, q: jd.sde.velocity(p, q, t),
        "score": lambda p, a, b, q: jd.sde.score(p, q, t),
    }
    for call in calls.values():
        together = call(path, x0, eps, pair)
        for k in path:
            alone = call(path[k], x0[k], eps[k], jd.Prediction(x0[k], eps[k]))
            mine = tuple(part[k] for part in together) if isinstance(together, tuple) else together[k]
            jax.tree.map(np.testing.assert_array_equal, mine, alone)
    np.testing.assert_array_equal(jd.sde.log_snr(path, t), jd.sde.log_snr(VP(), t))
    both = jd.sde.prior_log_prob(path, x0)
    np.testing.assert_allclose(both, jd.sde.prior_log_prob(VP(), x0["x"]) + jd.sde.prior_log_prob(path["y"], x0["y"]))
    noise = jd.sde.prior(path, key, x0)
    assert abs(np.corrcoef(noise["x"].ravel()[:12], noise["y"].ravel()[:12])[0, 1]) < 0.9  # two draws, not one
    alone = jd.sde.prior({"x": VP()}, key, {"x": x0["x"]})["x"]
    np.testing.assert_array_equal(alone, jd.sde.prior(VP(), key, x0["x"]))


def test_times_may_be_scalars_or_one_per_example():
    x = jnp.ones((3, 2, 2, 1))
    scalar = jd.sde.perturb(VP(), x, x, 0.3)
    np.testing.assert_array_max_ulp(scalar, jd.sde.perturb(VP(), x, x, jnp.full(3, 0.3)), 4)
    np.testing.assert_array_equal(jd.sde.perturb(Discrete((0.1, 0.2)), x, x, 2), jd.sde.perturb(
        Discrete((0.1, 0.2)), x, x, jnp.asarray([2, 2, 2])))
    assert jd.sde.perturb(VP(), x.astype(jnp.bfloat16), x.astype(jnp.bfloat16), 0.3).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"shape \(3, 1\)"):
        jd.sde.perturb(VP(), x, x, jnp.ones((3, 1)))


def test_gradients_through_kernels_are_finite():
    total = lambda x: sum(p.sum() for p in jd.sde.posterior(Flow(), x, x, 0.5, 0.0)) + jd.sde.transition(
        VP(), x, 0.1, 0.2)[0].sum()
    assert np.all(np.isfinite(jax.grad(total)(jnp.ones(3))))
