"""Wrong words get one line; options of single samplers; paths and samplers that callers bring along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.samplers import (
    Sampler,
    ancestral,
    chain,
    ddim,
    dpm_solver,
    euler_maruyama,
    heun,
    langevin,
    reverse_diffusion,
    sample,
    start,
    unipc,
)
from tests import oracle

PATH = jd.sde.VP()
EXACT = oracle.gaussian(PATH, 0.4, 0.5)
KEY, X = jax.random.key(0), jnp.ones((4, 2))


@pytest.mark.parametrize("call, word", [
    (lambda: ancestral("medium"), "small, large, learned"), (lambda: ddim(1.5), "eta is 1.5"),
    (lambda: dpm_solver(3), "order is 3"), (lambda: unipc(1), "order is 1"), (lambda: langevin(0.0), "snr=0.0"),
    (lambda: langevin(num_steps=0), "num_steps=0"), (lambda: chain(heun()), r"1 sampler"),
    (lambda: heun(churn=-1.0), "churn=-1.0"), (lambda: heun(1.0, 2.0, 1.0), "churn_min=2.0"),
    (lambda: sample(ddim(), EXACT, PATH, jnp.ones(1), KEY, X), r"shape \(1,\)"),
    (lambda: sample(ddim(), EXACT, PATH, jnp.ones((3, 2)), KEY, X), r"shape \(3, 2\)"),
    (lambda: sample(ancestral("learned"), EXACT, PATH, jnp.asarray([1.0, 0.5]), KEY, X), "var_mix"),
])
def test_wrong_words_get_one_line(call, word):
    with pytest.raises(ValueError, match=word) as error:
        call()
    assert "\n" not in str(error.value) and ("allowed" in str(error.value) or "mend" in str(error.value))


def test_every_samplers_own_grid_fits_every_path():
    paths = (PATH, jd.sde.VE(), jd.sde.EDM(), jd.sde.Flow(), jd.sde.Discrete(jd.sde.linear_betas(100)))
    for sampler in (ancestral(), ddim(), euler_maruyama(), chain(langevin(), reverse_diffusion()), heun(), unipc()):
        for path in paths:
            grid = np.asarray(sampler.grid(path, 9))
            assert grid.shape == (10,) and np.all(np.diff(grid) < 0) and grid[0] == np.float32(path.t_max)
    assert sampler.grid is jd.sde.grids.log_snr and heun().grid is jd.sde.grids.karras


def test_ancestral_is_ddim_with_eta_1(x64):
    x_T = jax.random.normal(KEY, (4, 2))
    grid = jd.sde.grids.uniform(PATH, 12)
    a, b = (jax.jit(lambda s=s: sample(s, EXACT, PATH, grid, KEY, x_T))() for s in (ancestral(), ddim(1.0)))
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_learned_variance_ends_are_small_and_large(x64):
    """var_mix 0 is beta-tilde and 1 is beta, on a grid that ends at t = 0, where the small variance is 0."""
    path = jd.sde.Discrete(jd.sde.linear_betas(100))
    exact = oracle.gaussian(path, 0.4, 0.5)
    x_T, grid = jax.random.normal(KEY, (4, 2)), jd.sde.grids.discrete(path, 10)

    def mixed(share):
        return lambda key, x, t, cond: exact(key, x, t)._replace(var_mix=jnp.full_like(x, share))

    run = lambda variance, denoise: jax.jit(lambda: sample(ancestral(variance), denoise, path, grid, KEY, x_T))()
    for share, variance in ((0.0, "small"), (1.0, "large")):
        np.testing.assert_allclose(run("learned", mixed(share)), run(variance, exact), rtol=1e-9)
    total = jax.jit(jax.grad(lambda s: sample(ancestral("learned"), mixed(s), path, grid, KEY, x_T).sum()))
    assert np.isfinite(total(0.5))


def test_langevin_options(x64):
    """Two corrector steps cost two calls; per-example norms of one example are the batch's."""
    grid, one = jd.sde.grids.uniform(PATH, 8), jax.random.normal(KEY, (1, 16))
    run = lambda s, x: jax.jit(lambda: sample(s, EXACT, PATH, grid, KEY, x))()
    twice = chain(langevin(0.1, num_steps=2), reverse_diffusion())
    assert twice.evaluations(8) == 24
    assert np.all(np.isfinite(run(twice, one)))
    batch, own = (chain(langevin(0.1, per_example=flag), reverse_diffusion()) for flag in (False, True))
    np.testing.assert_allclose(run(batch, one), run(own, one), rtol=1e-12)
    many = jax.random.normal(KEY, (3, 16))
    assert not np.allclose(run(batch, many), run(own, many))


def test_langevin_leaves_the_marginal_alone(x64):
    """At a fixed time, 300 corrector steps find the marginal and keep it (small steps: within 2 %)."""
    t = 0.4
    std = float(oracle.marginal_std(PATH, 0.5, t))
    x = float(PATH.alpha(t)) * 0.4 + 2 * std * jax.random.normal(KEY, (20_000, 2))  # starts twice too wide
    still = chain(langevin(0.1, num_steps=1), Sampler(start, lambda key, state, *_: state, jd.sde.grids.uniform))
    got = jax.jit(lambda: sample(still, EXACT, PATH, jnp.linspace(t + 1e-6, t, 301), KEY, x))()
    assert abs(float(got.std()) / std - 1) < 0.02 and abs(float(got.mean()) - 0.4 * float(PATH.alpha(t))) < 0.02


def test_a_sampler_of_ones_own():
    """Two functions and a grid are enough: a step that returns the predicted x0."""
    def step(key, state, model, path, t, s):
        x0 = model.predict(state.x, t).x0
        return state._replace(x=x0, mean=x0)

    mine = Sampler(start, step, jd.sde.grids.uniform)
    got = sample(mine, lambda key, x, t, cond: jd.Prediction(0 * x + 0.25, x), PATH, mine.grid(PATH, 3), KEY, X)
    np.testing.assert_array_equal(got, jnp.full((4, 2), 0.25))
    assert mine.evaluations(3) == 3


def test_a_path_that_changes_while_training():
    """CMDE's y: its sigma_max is a traced number, on the clock of x."""

    @jax.jit
    def run(sigma_max):
        path = {"x": jd.sde.VE(0.01, 20.0), "y": jd.sde.VE(0.01, sigma_max)}
        joint = lambda key, x, t, cond: jd.Prediction({k: 0 * v for k, v in x.items()}, {
            k: v / path[k].sigma(t) for k, v in x.items()})
        x_T = jd.sde.prior(path, KEY, {"x": X, "y": X})
        return sample(reverse_diffusion(), joint, path, jd.sde.grids.log_snr(path, 200), KEY, x_T), x_T

    (got, x_T), (_, narrow) = run(5.0), run(0.5)
    assert np.abs(got["x"]).max() < 0.2 and np.abs(got["y"]).max() < 0.2  # the data is a point at 0
    np.testing.assert_allclose(x_T["y"], 10 * narrow["y"], rtol=1e-5)


def test_observations_are_drawn_afresh_at_each_step_and_at_the_end():
    """`observe` re-draws y_t ~ q(y_t | y): every call has its own key, and the last one is at the last time."""
    calls = []

    def observe(key, x, t):
        calls.append((tuple(np.asarray(jax.random.key_data(key)).tolist()), float(t)))
        return x

    grid = jd.sde.grids.uniform(PATH, 3)
    for sampler, count in ((ddim(), 4), (heun(), 7), (chain(langevin(), reverse_diffusion()), 7)):
        calls.clear()
        with jax.disable_jit():
            sample(sampler, EXACT, PATH, grid, KEY, X, observe=observe)
        assert len(calls) == count == len({key for key, _ in calls})
        assert calls[0][1] == 1.0 and calls[-1][1] == float(grid[-1])
