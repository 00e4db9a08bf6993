"""A network bound to its path: what it is told, what it returns, and in which dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from tests import oracle

PATH = jd.sde.VP()
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))


def test_scalar_and_per_example_times_agree():
    seen = []

    def apply_fn(params, x, t, cond):
        seen.append((x.shape, t.shape, t.dtype))
        return params["w"] * x + t[:, None, None, None] / 1000

    denoise = jd.denoiser(apply_fn, {"w": 0.5}, PATH, jd.parameterizations.v())
    one = denoise(jax.random.key(0), X, 0.3)
    each = denoise(jax.random.key(0), X, jnp.full(3, 0.3))
    jax.tree.map(np.testing.assert_array_equal, one, each)
    assert seen == [((3, 2, 2, 1), (3,), jnp.float32)] * 2


def test_the_network_sees_c_in_and_c_noise_and_cond():
    got = {}

    def apply_fn(params, x, t, cond):
        got.update(x=x, t=t, cond=cond)
        return x

    t = jnp.asarray([0.1, 0.5, 0.9])
    jd.denoiser(apply_fn, None, PATH, jd.parameterizations.eps(sigma_data=0.5))(None, X, t, {"label": jnp.arange(3)})
    c_in = 1 / jnp.sqrt(0.25 * PATH.alpha(t) ** 2 + PATH.sigma(t) ** 2)
    np.testing.assert_allclose(got["x"], c_in[:, None, None, None] * X, rtol=1e-6)
    np.testing.assert_allclose(got["t"], 1000 * t)
    np.testing.assert_array_equal(got["cond"]["label"], [0, 1, 2])


@pytest.mark.parametrize("name", ["eps", "x0", "v", "velocity", "edm"])
def test_a_perfect_network_is_the_exact_denoiser(x64, name):
    """The network answers with the target of the exact pair, having only (c_in x, c_noise)."""
    parameterization = getattr(jd.parameterizations, name)(sigma_data=0.5)
    exact = oracle.gaussian(PATH, 0.4, 0.5)

    def apply_fn(params, net_x, net_t, cond):
        t = net_t.astype(float) / 1000
        x = net_x * jnp.sqrt(0.25 * PATH.alpha(t) ** 2 + PATH.sigma(t) ** 2)[:, None]
        pair = exact(None, x, t)
        return parameterization.target(PATH, pair.x0, pair.eps, t)

    x, t = jnp.asarray([[0.3], [-1.0]]), jnp.asarray([0.25, 0.75])  # times that float32 holds exactly
    got, want = jd.denoiser(apply_fn, None, PATH, parameterization)(None, x, t), exact(None, x, t)
    np.testing.assert_allclose(got.x0, want.x0, rtol=1e-10)
    np.testing.assert_allclose(got.eps, want.eps, rtol=1e-10)


@pytest.mark.parametrize("state", [jnp.float32, jnp.float64])
def test_a_bfloat16_network_leaves_the_state_alone(x64, state):
    half = lambda params, x, t, cond: x.astype(jnp.bfloat16) * 0.5
    pair = jd.denoiser(half, None, PATH, jd.parameterizations.edm())(None, X.astype(state), 0.4)
    assert pair.x0.dtype == pair.eps.dtype == state
    np.testing.assert_allclose(jd.sde.perturb(PATH, pair.x0, pair.eps, 0.4), X.astype(state), rtol=1e-4, atol=1e-5)


def test_a_stochastic_network_is_given_the_key():
    noisy = lambda params, x, t, cond, key: jax.random.normal(key, x.shape)
    denoise = jd.denoiser(noisy, None, PATH, jd.parameterizations.x0(), stochastic=True)
    a, b = (denoise(jax.random.key(k), X, 0.5).x0 for k in (1, 2))
    np.testing.assert_array_equal(a, denoise(jax.random.key(1), X, 0.5).x0)
    assert not np.array_equal(a, b)


def test_a_stochastic_network_draws_afresh_at_every_call_of_a_sampler():
    """Each network call of a step has its own key, Heun's two as well."""
    calls = []

    def apply_fn(params, x, t, cond, key):
        calls.append(np.asarray(jax.random.key_data(key)).tolist())
        return x

    denoise = jd.denoiser(apply_fn, None, PATH, jd.parameterizations.eps(), stochastic=True)
    with jax.disable_jit():
        jd.samplers.sample(jd.samplers.heun(), denoise, PATH, jd.sde.grids.uniform(PATH, 3), jax.random.key(0), X)
    assert len(calls) == 6 and len({tuple(key) for key in calls}) == 6


def test_learned_variance_and_a_dict_of_paths():
    doubled = lambda params, x, t, cond: {k: jnp.concatenate([v, 0 * v], -1) for k, v in x.items()}
    path = {"x": PATH, "y": jd.sde.VE()}
    state = {"x": X, "y": X[..., 0]}
    way = jd.parameterizations.learned_variance(jd.parameterizations.eps())
    pair = jd.denoiser(doubled, None, path, way)(None, state, 0.4)
    assert jax.tree.map(jnp.shape, pair.x0) == {"x": (3, 2, 2, 1), "y": (3, 2, 2)}
    jax.tree.map(lambda share: np.testing.assert_allclose(share, 0.5), pair.var_mix)


def test_denoisers_in_a_trained_loop_are_differentiable():
    """d loss / d params through a sampler run with the bound network is finite and not zero."""
    grid = jd.sde.grids.log_snr(PATH, 4)

    def loss(params):
        denoise = jd.denoiser(lambda p, x, t, c: p * jnp.tanh(x), params, PATH, jd.parameterizations.edm())
        return jd.samplers.sample(jd.samplers.unipc(2), denoise, PATH, grid, jax.random.key(0), X).sum()

    slope = float(jax.jit(jax.grad(loss))(0.3))
    assert np.isfinite(slope) and abs(slope) > 1e-3
