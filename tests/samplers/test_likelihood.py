"""The probability-flow likelihood against closed forms.

For data N(m, s^2) the flow keeps z = (x_t - alpha_t m) / std_t, std_t^2 = alpha_t^2 s^2 + sigma_t^2, so that the density
which the ODE defines at t_min is log N(alpha_T m + std_T z; 0, sigma_T^2) + log(std_T / std_tmin).
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd
from jaxdiff.samplers import bits_per_dim, log_likelihood
from tests import oracle

STD = 0.5
PATHS = {
    "VP": jd.sde.VP(), "SubVP": jd.sde.SubVP(), "VE": jd.sde.VE(), "EDM": jd.sde.EDM(), "Flow": jd.sde.Flow(),
    "Cosine": jd.sde.Cosine(), "linear": jd.sde.Discrete(jd.sde.linear_betas(1000)),
    "cosine": jd.sde.Discrete(jd.sde.cosine_betas(1000)), "few": jd.sde.Discrete(jd.sde.cosine_betas(50)),
    "Flow1": jd.sde.Flow(t_max=1.0), "Cosine1": jd.sde.Cosine(t_max=1.0),
}
every_path = pytest.mark.parametrize("name", PATHS)


@cache
def adaptive():
    """`(path number, mean, x) -> nats`, compiled once for every path."""

    @jax.jit
    def run(number, mean, x):
        path = oracle.AnyPath(PATHS.values(), number)
        return log_likelihood(oracle.gaussian(path, mean, STD), path, x, jax.random.key(0))

    return run


def closed_form(path, mean, z):
    """The state at t_min and its log density under the ODE, for one dimension."""
    std_0, std_T = (float(oracle.marginal_std(path, STD, t)) for t in (path.t_min, path.t_max))
    x = float(path.alpha(path.t_min)) * mean + std_0 * z
    x_T = float(path.alpha(path.t_max)) * mean + std_T * z
    return x, stats.norm.logpdf(x_T, scale=float(path.sigma(path.t_max))) + math.log(std_T / std_0)


@every_path
def test_density_of_the_ode_and_of_the_data(x64, name):
    """1e-5 nats of the ODE's own density; its gap to the data's is the closed form's; zero-mean data within 2e-3."""
    path, number, z = PATHS[name], list(PATHS).index(name), np.linspace(-3, 3, 13)
    for mean in (0.4, 0.0):
        x, own = closed_form(path, mean, z)
        got = np.asarray(adaptive()(number, mean, jnp.asarray(x)[:, None]))
        std_0 = float(oracle.marginal_std(path, STD, path.t_min))
        at_t_min = stats.norm.logpdf(x, float(path.alpha(path.t_min)) * mean, std_0)
        gap = np.abs(got - at_t_min).max()
        print(f"{name:8s} mean {mean}: error {np.abs(got - own).max():.1e}, gap to the noised data {gap:.1e}")
        np.testing.assert_allclose(got, own, atol=1e-5)
        np.testing.assert_allclose(got - at_t_min, own - at_t_min, atol=1e-5)
        if mean == 0.0 and name != "few":  # 50 cosine betas start at t = 1 with sigma .05, which is no longer the data
            np.testing.assert_allclose(got, stats.norm.logpdf(x, 0, STD), atol=2e-3)


def test_hutchinson_is_exact_in_one_dimension_and_unbiased_in_more(x64):
    """Data with correlated dimensions: a diagonal Jacobian would make every Rademacher probe exact."""
    path = jd.sde.VP()
    cov = jnp.asarray([[0.3, 0.15, 0.0], [0.15, 0.25, -0.1], [0.0, -0.1, 0.2]])

    def correlated(key, x, t, cond=None):
        alpha, sigma = path.alpha(t), path.sigma(t)
        eps = sigma * jnp.linalg.solve(alpha**2 * cov + sigma**2 * jnp.eye(3), x.T).T
        return jd.Prediction((x - sigma * eps) / alpha, eps)

    x = jnp.asarray([[0.3, -0.2, 0.5], [-0.6, 0.4, 0.1]])
    grid = jnp.linspace(path.t_max, path.t_min, 31) ** 2
    grid = grid.at[-1].set(path.t_min)
    exact = jax.jit(lambda: log_likelihood(correlated, path, x, jax.random.key(0), grid=grid))()
    one = lambda key: log_likelihood(correlated, path, x, key, trace="hutchinson", grid=grid, num_probes=2)
    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 400)))
    assert draws.std(0).min() > 0.01  # it is an estimate
    np.testing.assert_array_less(np.abs(draws.mean(0) - exact), 4 * draws.std(0) / 20)
    marginal = stats.multivariate_normal(np.zeros(3), np.asarray(cov)).logpdf(np.asarray(x))
    np.testing.assert_allclose(exact, marginal, atol=2e-3)

    scalar = oracle.gaussian(path, 0.1, STD)
    both = jax.jit(lambda key: [
        log_likelihood(scalar, path, x[:, :1], key, trace=trace, grid=grid) for trace in ("exact", "hutchinson")])
    np.testing.assert_allclose(*both(jax.random.key(5)), rtol=1e-12)


def test_fixed_grid_is_fifth_order_and_close_to_adaptive(x64):
    path, z = jd.sde.Flow(), np.linspace(-2, 2, 5)
    x, own = closed_form(path, 0.4, z)
    run = jax.jit(lambda grid: log_likelihood(
        oracle.gaussian(path, 0.4, STD), path, jnp.asarray(x)[:, None], jax.random.key(0), grid=grid))
    errors = [float(np.abs(run(jnp.linspace(path.t_max, path.t_min, n + 1)) - own).max()) for n in (32, 128)]
    order = np.log2(errors[0] / errors[1]) / 2
    print(f"order {order:.2f}, error {errors[1]:.1e} at 128 steps")
    assert abs(order - 5) < 0.5 and errors[1] < 1e-11
    np.testing.assert_allclose(run(jnp.linspace(path.t_min, path.t_max, 65)), own, atol=1e-7)  # either direction


def test_a_grid_above_t_min_gives_the_density_there(x64):
    """x is then the state at the grid's smallest time."""
    path, end = jd.sde.VP(), 0.02
    grid = jd.sde.grids.log_snr(path, 40, t_end=end)
    std = float(oracle.marginal_std(path, STD, end))
    x = jnp.asarray([[0.3], [-0.8]])
    got = log_likelihood(oracle.gaussian(path, 0.0, STD), path, x, jax.random.key(0), grid=grid)
    np.testing.assert_allclose(got, stats.norm.logpdf(x[:, 0], 0, std), atol=2e-3)


def test_a_mixture_integrates_to_one(x64):
    path = jd.sde.VP()
    means, weights = np.array([[-0.8, -0.5], [0.9, -0.4], [0.1, 0.8]]), np.array([0.5, 0.3, 0.2])
    side = np.linspace(-3, 3, 61)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    grid = jd.sde.grids.log_snr(path, 60, t_end=path.t_min)
    run = jax.jit(lambda x: log_likelihood(
        oracle.mixture(path, means, 0.3, weights), path, x, jax.random.key(0), grid=grid))
    density = np.exp(run(jnp.asarray(points)))
    assert abs(density.sum() * (side[1] - side[0]) ** 2 - 1) < 2e-3
    truth = sum(w * stats.multivariate_normal(m, 0.09).pdf(points) for w, m in zip(weights, means, strict=True))
    print(f"largest error of the density {np.abs(density - truth).max():.1e}, of {truth.max():.2f}")
    np.testing.assert_allclose(density, truth, atol=0.01)


def test_conditional_likelihood_of_one_of_two_variables(x64):
    """A dict path whose y is filled in by `observe`: the divergence is over x only. With y_t fixed to alpha y the exact
    joint denoiser's x-half is the Gaussian of x alone here (independent), so the answer is x's own density."""
    path = {"x": jd.sde.Flow(), "y": jd.sde.VE(0.01, 5.0)}
    y = jnp.asarray([[1.0, 2.0], [0.5, -0.5], [0.0, 0.0]])
    seen = []

    def joint(key, state, t, cond=None):
        seen.append(jax.tree.map(jnp.shape, state))
        x = oracle.gaussian(path["x"], 0.4, STD)(key, state["x"], t)
        shift = jnp.mean(state["y"], -1, keepdims=True) * cond["gain"]  # moves x's mean by what y says
        alpha, sigma = path["x"].alpha(t), path["x"].sigma(t)
        c = alpha**2 * STD**2 + sigma**2
        eps = x.eps - sigma / c * alpha * shift
        return jd.Prediction({"x": (state["x"] - sigma * eps) / alpha, "y": state["y"]}, {"x": eps, "y": state["y"]})

    def observe(key, state, t):
        return {"x": state["x"] + 100.0, "y": y}  # what it writes into x is not used: x is what is integrated

    x = jnp.asarray([[0.3], [-0.2], [1.0]])
    got = jax.jit(lambda: log_likelihood(joint, path, x, jax.random.key(0), {"gain": 0.1}, observe))()
    assert seen[0] == {"x": (3, 1), "y": (3, 2)}
    for k in range(3):
        mean = 0.4 + 0.1 * float(y[k].mean())
        z = (float(x[k, 0]) - float(path["x"].alpha(1e-5)) * mean) / float(oracle.marginal_std(path["x"], STD, 1e-5))
        np.testing.assert_allclose(got[k], closed_form(path["x"], mean, z)[1], atol=1e-5)


def test_float32_by_default_and_images(x64):
    path = jd.sde.VP()
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 2), jnp.float32) * STD
    got = jax.jit(lambda x: log_likelihood(oracle.gaussian(path, 0.0, STD), path, x, jax.random.key(0)))(x)
    assert got.shape == (2,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, stats.norm.logpdf(x, 0, STD).sum((1, 2, 3)), atol=0.02)


def test_likelihood_has_a_gradient(x64):
    """d log p / d x is the score: -x / std^2 for zero-mean data."""
    path = jd.sde.Flow()
    grid = jnp.linspace(path.t_max, path.t_min, 17)
    total = lambda x: log_likelihood(oracle.gaussian(path, 0.0, STD), path, x, jax.random.key(0), grid=grid).sum()
    x = jnp.asarray([[0.3], [-0.7]])
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), -x / STD**2, rtol=1e-3)


def test_bits_per_dim():
    """Uniform data on [-1, 1] costs log2(levels) bits a dimension: 1 bit of density and the offset."""
    assert float(bits_per_dim(0.0, 1, 256)) == 7.0
    assert float(bits_per_dim(0.0, 1, 17)) == pytest.approx(3.087, abs=5e-4)
    uniform = jnp.asarray([-64 * math.log(2)])
    np.testing.assert_allclose(bits_per_dim(uniform, 64, 256), [8.0], rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(uniform, 64, 17), [math.log2(17)], rtol=1e-6)


X = jnp.ones((2, 1))


@pytest.mark.parametrize("options, word", [
    ({"trace": "skilling"}, "trace is 'skilling'"),
    ({"grid": jnp.asarray([1.0])}, r"shape \(1,\)"),
    ({"grid": jnp.ones((2, 2))}, r"shape \(2, 2\)"),
    ({"grid": jnp.asarray([0.5, 1e-3])}, "to 0.5"),
    ({"grid": jnp.asarray([1.0, 0.0])}, "from 0.0"),
    ({"grid": jnp.asarray([1.0, 0.5, 0.5, 0.1])}, "smallest step of 0.0"),
])
def test_wrong_words_get_one_line(options, word):
    with pytest.raises(ValueError, match=word) as error:
        log_likelihood(oracle.gaussian(jd.sde.VP(), 0.0, 1.0), jd.sde.VP(), X, jax.random.key(0), **options)
    assert "allowed" in str(error.value) and "\n" not in str(error.value)


def test_wrong_levels():
    with pytest.raises(ValueError, match="levels=1"):
        bits_per_dim(0.0, 4, 1)
