"""One row a sampler; every row has every property that callers inside jit, vmap, scan, grad, pmap and shard_map need.

All run on EDM's path over Karras' grid, whose last step goes to sigma = 0, with the exact denoiser of a Gaussian.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxdiff as jd
from jaxdiff.samplers import (
    ancestral,
    chain,
    ddim,
    dpm_solver,
    euler_maruyama,
    heun,
    langevin,
    repaint,
    reverse_diffusion,
    sample,
    unipc,
)
from tests import oracle

ROWS = {  # name: (maker, whether it draws noise, network calls for 6 steps)
    "ancestral-small": (partial(ancestral, "small"), True, 6),
    "ancestral-large": (partial(ancestral, "large"), True, 6),
    "ddim-0": (partial(ddim, 0.0), False, 6),
    "ddim-0.5": (partial(ddim, 0.5), True, 6),
    "euler_maruyama": (euler_maruyama, True, 6),
    "reverse_diffusion": (reverse_diffusion, True, 6),
    "predictor-corrector": (lambda: chain(langevin(), reverse_diffusion()), True, 12),
    "heun": (heun, False, 11),
    "heun-churn": (partial(heun, churn=5.0), True, 11),
    "dpm_solver": (dpm_solver, False, 6),
    "dpm_solver-sde": (partial(dpm_solver, sde=True), True, 6),
    "repaint": (lambda: repaint(ancestral(), 2, 2), True, 12),
    "unipc-2": (partial(unipc, 2), False, 6),
    "unipc-3": (partial(unipc, 3), False, 6),
}
every_sampler = pytest.mark.parametrize("name", ROWS)
PATH, STEPS, STD = jd.sde.EDM(), 6, 0.5
KEYS = jax.random.split(jax.random.key(7), 4)
X_T = 80 * jax.random.normal(jax.random.key(8), (4, 3))


def grid_of(name):
    """Karras' grid, and repaint's own way up and down it."""
    return ROWS[name][0]().grid(PATH, STEPS) if name == "repaint" else jd.sde.grids.karras(PATH, STEPS)


def run(name, key, x_T, mean=0.4, **options):
    grid = grid_of(name)
    return sample(ROWS[name][0](), oracle.gaussian(PATH, mean, STD), PATH, grid, key, x_T, **options)


@cache
def compiled(name):
    """The sampler under jit, with its trajectory, and the list of its traces."""
    traces = []

    @jax.jit
    def with_states(key, x_T):
        traces.append(name)
        return run(name, key, x_T, trajectory=True)

    return with_states, traces


def once(name, key, x_T):
    return compiled(name)[0](key, x_T)[0]


@every_sampler
def test_keys_and_traces(name):
    first, again, other = (once(name, key, X_T) for key in (KEYS[0], KEYS[0], KEYS[1]))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) is not ROWS[name][1]
    assert len(compiled(name)[1]) == 1
    assert first.shape == X_T.shape and np.all(np.isfinite(first))


@every_sampler
def test_factories_are_cached_so_that_a_static_sampler_does_not_retrace(name):
    traces = []

    @partial(jax.jit, static_argnums=0)
    def sampler_as_argument(sampler, x):
        traces.append(sampler)
        return x

    for _ in range(2):
        sampler_as_argument(ROWS[name][0](), 1.0)
    assert ROWS[name][0]() is ROWS[name][0]() and len(traces) == 1


@every_sampler
def test_jit_equals_eager_and_counts_its_network_calls(name):
    """With jit disabled the scan is a Python loop, so that the denoiser's calls can be counted."""
    calls = []
    exact = oracle.gaussian(PATH, 0.4, STD)

    def counted(key, x, t, cond=None):
        calls.append(t)
        return exact(key, x, t, cond)

    sampler, _, expected = ROWS[name][0](), *ROWS[name][1:]
    grid = grid_of(name)
    with jax.disable_jit():
        eager = sample(sampler, counted, PATH, grid, KEYS[0], X_T)
    np.testing.assert_allclose(eager, once(name, KEYS[0], X_T), rtol=2e-4, atol=2e-5)
    assert len(calls) == expected == sampler.evaluations(STEPS)


@every_sampler
def test_vmap_and_scan_equal_a_loop(name):
    loop = jnp.stack([once(name, key, X_T) for key in KEYS[:2]])

    @jax.jit
    def both(keys):
        one = lambda key: run(name, key, X_T)
        return jax.vmap(one)(keys), jax.lax.scan(lambda carry, key: (carry, one(key)), 0, keys)[1]

    for got in both(KEYS[:2]):
        np.testing.assert_allclose(got, loop, rtol=2e-4, atol=2e-5)


@every_sampler
def test_four_devices_equal_one(name):
    assert jax.device_count() == 4
    x_T = jnp.stack([X_T, X_T + 1, X_T - 1, 2 * X_T])
    loop = jnp.stack([once(name, key, x) for key, x in zip(KEYS, x_T, strict=True)])
    np.testing.assert_allclose(jax.pmap(partial(run, name))(KEYS, x_T), loop, rtol=2e-4, atol=2e-5)
    mesh = Mesh(np.asarray(jax.devices()), ("batch",))
    spec = PartitionSpec("batch")
    local = lambda keys, x: run(name, keys[0], x)
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(KEYS, x_T.reshape(16, 3)), loop.reshape(16, 3), rtol=2e-4, atol=2e-5)


@every_sampler
def test_gradient_equals_finite_differences(x64, name):
    """d x_0 / d (the data's mean), and d x_0 / d x_T, in reverse mode."""
    x_T = jnp.asarray(X_T, float)
    total = jax.jit(jax.value_and_grad(lambda mean, shift: run(name, KEYS[0], x_T + shift, mean).sum(), (0, 1)))
    _, slopes = total(0.4, 0.0)
    h = 1e-4
    by_mean = (total(0.4 + h, 0.0)[0] - total(0.4 - h, 0.0)[0]) / (2 * h)
    by_shift = (total(0.4, h)[0] - total(0.4, -h)[0]) / (2 * h)
    np.testing.assert_allclose(slopes, [by_mean, by_shift], rtol=1e-5, atol=1e-8)
    assert float(slopes[0]) > 6  # 12 numbers, each nearly the mean plus a share of the noise


@every_sampler
def test_dtypes(name):
    """float32 and float64 states are kept; bfloat16 states, and a bfloat16 network's answers, become float32."""

    def low(key, x, t, cond=None):
        return jax.tree.map(lambda v: v.astype(jnp.bfloat16), oracle.gaussian(PATH, 0.4, STD)(key, x, t))

    def state_dtype(dtype, denoise=oracle.gaussian(PATH, 0.4, STD)):
        grid = grid_of(name)
        x_T = jax.ShapeDtypeStruct((4, 3), dtype)
        call = lambda x: sample(ROWS[name][0](), denoise, PATH, grid, KEYS[0], x, trajectory=True)
        shapes = jax.eval_shape(call, x_T)
        assert shapes[0].shape == (4, 3) and shapes[1].shape == (*grid.shape, 4, 3)
        assert shapes[0].dtype == shapes[1].dtype
        return shapes[0].dtype

    for enabled in (False, True):
        with jax.enable_x64(enabled):
            assert state_dtype(jnp.float32) == jnp.float32
            assert state_dtype(jnp.bfloat16) == jnp.float32
            assert state_dtype(jnp.float16) == jnp.float32
            assert state_dtype(jnp.float32, low) == jnp.float32
    with jax.enable_x64(True):
        assert state_dtype(jnp.float64) == jnp.float64
        assert state_dtype(jnp.float64, low) == jnp.float64


@every_sampler
def test_a_pinned_pixel_stays_pinned_and_the_path_is_returned(name):
    """The first pixel follows a known path. Every network call must see it there, Heun's second ones as well, and the
    result must hold it; a denoiser that answers NaN elsewhere is the witness."""
    pinned = lambda t: 1.2 + 0.7 * t
    exact = oracle.gaussian(PATH, 0.4, STD)

    def watchful(key, x, t, cond=None):
        pair = exact(key, x, t)
        seen = jnp.abs(x[:, 0] - pinned(t)) < 1e-3
        return pair._replace(x0=jnp.where(seen[:, None], pair.x0, jnp.nan))

    def observe(key, x, t):
        return x.at[:, 0].set(pinned(t))

    grid = jd.sde.grids.karras(PATH, STEPS)
    run_observed = jax.jit(lambda key: sample(
        ROWS[name][0](), watchful, PATH, grid, key, X_T, observe=observe, trajectory=True))
    x_0, states = run_observed(KEYS[0])
    assert np.all(np.isfinite(states))
    np.testing.assert_allclose(states[:, :, 0], np.broadcast_to(pinned(grid)[:, None], states.shape[:2]), rtol=1e-5)
    np.testing.assert_array_equal(states[-1], x_0)
    np.testing.assert_allclose(x_0[:, 0], 1.2, rtol=1e-6)
    np.testing.assert_array_equal(states[0][:, 1:], X_T[:, 1:])


@every_sampler
def test_trajectory(name):
    x_0, states = compiled(name)[0](KEYS[0], X_T)
    assert states.shape == (len(grid_of(name)), *X_T.shape)
    np.testing.assert_array_equal(states[0], X_T)
    np.testing.assert_array_equal(states[-1], x_0)
    assert np.abs(states[-1]).mean() < 0.2 * np.abs(states[0]).mean()


@every_sampler
def test_two_variables_on_one_clock(name):
    """A dict of paths: each variable reaches its own data, and their noises are independent."""
    path = {"x": PATH, "y": jd.sde.EDM(sigma_max=100.0)}
    means, stds, n = {"x": 0.4, "y": -0.3}, {"x": 0.5, "y": 0.3}, 4000
    sampler, noisy, _ = ROWS[name][0](), *ROWS[name][1:]
    grid = jd.sde.grids.karras(PATH, 150)
    z = jax.random.normal(KEYS[2], (2, n, 1)) if noisy else jnp.broadcast_to(jnp.asarray([[-1.0], [1.0]]), (2, 2, 1))

    def joint(key, x, t, cond=None):
        pairs = {k: oracle.gaussian(path[k], means[k], stds[k])(key, x[k], t) for k in path}
        return jd.Prediction({k: pairs[k].x0 for k in path}, {k: pairs[k].eps for k in path})

    got = jax.jit(lambda key: sample(sampler, joint, path, grid, key, {"x": 80 * z[0], "y": 80 * z[1]}))(KEYS[0])
    for k in path:
        assert abs(float(got[k].mean()) - means[k]) < 0.03
        assert abs(float(got[k].std()) / stds[k] - 1) < 0.08  # 150 steps of a first-order sampler leave 4 %
    if noisy:
        assert abs(np.corrcoef(got["x"][:, 0], got["y"][:, 0])[0, 1]) < 0.1
