"""CDE, CDiffE and CMDE on jointly Gaussian data, against the exact x | y and against every sampler's own limit.

Moments are propagated through each step's affine map (gaussian.py), so nothing here is random.
"""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.samplers import (
    ancestral,
    ddim,
    dpm_solver,
    euler_maruyama,
    heun,
    log_likelihood,
    reverse_diffusion,
    unipc,
)
from tests.conditional.gaussian import KEY, Pair, error, follow, limit, moments

PAIR = Pair()
LIKE = {"x": jnp.zeros(3), "y": jnp.zeros(2)}
PATHS = {"VE": jd.sde.VE(0.01, 50.0), "VP": jd.sde.VP(), "SubVP": jd.sde.SubVP(), "EDM": jd.sde.EDM()}
SAMPLERS = {  # name: (sampler, whether it is an SDE's, first order in the step)
    "ancestral": (ancestral(), True, True), "reverse_diffusion": (reverse_diffusion(), True, True),
    "euler_maruyama": (euler_maruyama(), True, True), "ddim": (ddim(), False, True), "heun": (heun(), False, False),
    "dpm_solver": (dpm_solver(), False, False), "dpm_solver-sde": (dpm_solver(sde=True), True, False),
    "unipc": (unipc(2), False, False),
}


@pytest.fixture(autouse=True)
def in_float64(x64):
    pass


def cmde(name, sigma_max):
    return {"x": PATHS[name], "y": jd.sde.Slower(PATHS[name], sigma_max)}


def fresh(path, pair=PAIR):
    return jd.observe.redraw(path, jnp.asarray(pair.y)[None])


@pytest.mark.parametrize("name", PATHS)
def test_cmde_reaches_the_truth(name, monkeypatch):
    """sigma_max of y .1, the reverse SDE, y_t drawn afresh: mean and covariance of x | y within 1 %, on every path."""
    path, sampler = cmde(name, 0.1), reverse_diffusion()
    found = moments(sampler, PAIR.denoise(path), path, sampler.grid(path, 1600), LIKE, fresh(path), monkeypatch)
    assert error(found, PAIR.given()) < 0.01


@cache
def limit_of(name, sigma_max, stochastic, mode):
    path = cmde(name, sigma_max)
    return limit(PAIR, path, float(jd.sde.grids.log_snr(path, 2)[-1]), stochastic, mode)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_its_own_limit(sampler, monkeypatch):
    """CDiffE redrawn and CMDE with one noise, as an SDE or as an ODE: what comes out is what the moment equations say."""
    made, stochastic, first_order = SAMPLERS[sampler]
    run = lambda path, steps, hook, shared=0: moments(
        made, PAIR.denoise(path), path, jd.sde.grids.log_snr(path, steps), LIKE, hook, monkeypatch, shared)
    cdiffe = cmde("VE", 50.0)
    found = run(cdiffe, 800, fresh(cdiffe))
    assert error(found, limit_of("VE", 50.0, stochastic, "redraw")) < (0.015 if first_order else 0.003)
    path, y = cmde("VP", 1.0), jnp.asarray(PAIR.y)
    one_noise = lambda eps: lambda key, z, t: {**z, "y": path["y"].alpha(t) * y[None] + path["y"].sigma(t) * eps[None]}
    found = run(path, 400, one_noise, 2)
    assert error(found, limit_of("VP", 1.0, stochastic, "one_noise")) < (0.03 if first_order else 0.002)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver"])
def test_along_one_path(sampler, monkeypatch):
    made, stochastic, first_order = SAMPLERS[sampler]
    path = cmde("VE", 50.0)
    grid = jd.sde.grids.log_snr(path, 150)
    hook, shared = follow(path, grid, jnp.asarray(PAIR.y))
    found = moments(made, PAIR.denoise(path), path, grid, LIKE, hook, monkeypatch, shared)
    assert error(found, limit_of("VE", 50.0, stochastic, "one_path")) < (0.05 if first_order else 0.003)


def test_the_limits_of_a_scalar_pair():
    """METHODS.md: correlation .8, y = 1.2, sigma_max of y 50: SDE .600/.495, with one noise .600/.580, ODE .416/.599."""
    pair = Pair(1, 1)
    pair.cov, pair.mean, pair.y = np.array([[1.0, 0.8], [0.8, 1.0]]), np.zeros(2), np.array([1.2])
    path = {"x": PATHS["VE"], "y": PATHS["VE"]}
    for stochastic, mode, want in ((True, "redraw", (0.600, 0.495)), (True, "one_noise", (0.600, 0.580)),
                                   (False, "redraw", (0.416, 0.599)), (True, "one_path", (0.600, 0.539))):
        mean, cov = limit(pair, path, 1e-4, stochastic, mode)
        np.testing.assert_allclose((mean[0], cov[0, 0]), want, atol=1.5e-3)
    mean, cov = pair.given()
    np.testing.assert_allclose((mean[0], cov[0, 0]), (0.96, 0.36), rtol=1e-12)


def test_limits_of_sigma_y_are_cdiffe_and_cde(monkeypatch):
    """sigma_max of y that of x: CDiffE's numbers. Towards zero: CDE's. Both to 1e-6."""
    p, sampler = PATHS["VE"], reverse_diffusion()
    grid = sampler.grid(p, 60)
    run = lambda path, denoise, hook: moments(sampler, denoise, path, grid, LIKE, hook, monkeypatch)
    same = {"x": p, "y": jd.sde.Slower(p, 50.0, float(p.sigma(p.t_min)))}
    cdiffe = {"x": p, "y": p}
    found, want = run(same, PAIR.denoise(same), fresh(same)), run(cdiffe, PAIR.denoise(cdiffe), fresh(cdiffe))
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    clean = {"x": p, "y": jd.sde.Slower(p, 1e-6)}
    told = {"image": jnp.asarray(PAIR.y)[None]}
    cde = lambda key, x, t, cond=None: PAIR.denoise_given(p)(key, x, t, told)
    alone = moments(sampler, cde, p, grid, LIKE["x"], None, monkeypatch)
    for a, b in zip(run(clean, PAIR.denoise(clean), fresh(clean)), alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_the_scores_error_falls_with_sigma_y(name):
    """E |s(x | y_t) - s(x | y)|^2 over (x_t, y, y_t), exactly, at three times: smaller noise of y, smaller error."""
    p, n = PATHS[name], PAIR.dx
    for level in (0.3, 1.0, 5.0):
        t = jd.sde.time_at(p, -2 * jnp.log(level))
        errors = []
        for sigma_max in (50.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.01):
            path = cmde(name, sigma_max)
            alpha, sigma = (np.asarray(v) for v in PAIR.scales(path, t))
            # z = (x_t, y_t, y) is Gaussian; both scores are linear in it, and so is their difference
            lift = np.block([[np.diag(alpha)], [np.zeros((2, n)), np.eye(2)]])
            noise = np.zeros((n + 4, n + 4))
            noise[: n + 2, : n + 2] = np.diag(sigma**2)
            z = lift @ PAIR.cov @ lift.T + noise
            by_yt = -np.linalg.inv(z[: n + 2, : n + 2])[:n]
            keep = [*range(n), n + 2, n + 3]
            by_y = -np.linalg.inv(z[np.ix_(keep, keep)])[:n]
            gap = np.zeros((n, n + 4))
            gap[:, : n + 2] += by_yt
            gap[:, keep] -= by_y
            errors.append(np.trace(gap @ z @ gap.T))
        assert all(a > b for a, b in pairwise(errors)), errors
        # and ours is the first of the two: the joint denoiser's score at a point
        point = {"x": jnp.ones((1, n)), "y": -jnp.ones((1, 2))}
        ours = jd.sde.score(path, PAIR.denoise(path)(KEY, point, t), t)["x"][0]
        centred = np.concatenate([np.ones(n), -np.ones(2)]) - alpha * PAIR.mean
        np.testing.assert_allclose(ours, by_yt @ centred, rtol=1e-8)


def test_cde_likelihood_is_exact_and_cmdes_gap_falls():
    """CDE: log p(x | y) of the ODE within 5e-3 nats of the truth. CMDE: the gap against sigma_y, which must shrink."""
    p = jd.sde.VE(0.01, 500.0)
    mean, cov = PAIR.given()
    x = jnp.asarray(np.random.default_rng(1).multivariate_normal(mean, cov, 6))
    noisy = cov + 1e-4 * np.eye(3)  # x is taken as the state at t_min, of sigma .01
    gap = x - mean
    truth = -0.5 * ((gap @ np.linalg.inv(noisy)) * gap).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * noisy)[1]
    y = jnp.broadcast_to(jnp.asarray(PAIR.y), (6, 2))
    found = log_likelihood(PAIR.denoise_given(p), p, x, KEY, {"image": y}, rtol=1e-6, atol=1e-6)
    assert np.abs(found - truth).max() < 5e-3

    def mean_gap(sigma_max):
        path = {"x": p, "y": jd.sde.Slower(p, sigma_max)}
        per_key = lambda key: log_likelihood(PAIR.denoise(path), path, x, key, None, jd.observe.redraw(path, y),
                                             grid=jd.sde.grids.uniform(p, 60, p.t_min))
        return np.abs(np.asarray(jax.vmap(per_key)(jax.random.split(KEY, 32))) - truth).mean()

    gaps = [mean_gap(sigma) for sigma in (2.0, 0.5, 0.1, 0.02)]
    print("CMDE's mean gap in nats at sigma_max of y 2, .5, .1, .02:", gaps)
    assert all(a > b for a, b in pairwise(gaps)) and gaps[-1] < 0.05
