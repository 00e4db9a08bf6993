"""Three modes in the plane: every sampler finds their weights, places and widths (float32, 5,000 draws)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from tests import oracle
from tests.samplers.test_gaussian import SAMPLERS

MEANS = np.array([[-0.8, -0.5], [0.9, -0.4], [0.1, 0.8]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
STD, DRAWS = 0.2, 5_000
PATHS = {"VP": jd.sde.VP(), "EDM": jd.sde.EDM()}


@pytest.mark.parametrize("name", SAMPLERS)
def test_modes(name):
    sampler, steps, _ = SAMPLERS[name]

    @jax.jit
    def run(number, grid, key):
        path = oracle.AnyPath(PATHS.values(), number)
        k_prior, k_steps = jax.random.split(key)
        x_T = path.sigma(path.t_max) * jax.random.normal(k_prior, (DRAWS, 2))
        denoise = oracle.mixture(path, MEANS.astype(np.float32), STD, WEIGHTS.astype(np.float32))
        return jd.samplers.sample(sampler, denoise, path, grid, k_steps, x_T)

    for number, (path_name, path) in enumerate(PATHS.items()):
        x = np.asarray(run(number, sampler.grid(path, steps), jax.random.key(2)))
        nearest = np.argmin(((x[:, None] - MEANS) ** 2).sum(-1), axis=1)
        weights = np.bincount(nearest, minlength=3) / DRAWS
        centres = np.stack([x[nearest == k].mean(0) for k in range(3)])
        widths = np.stack([x[nearest == k].std(0) for k in range(3)])
        print(f"{name:20s} {path_name:4s} weights {weights}, centres off {abs(centres - MEANS).max():.3f}, "
              f"widths off {100 * abs(widths / STD - 1).max():.1f} %")
        np.testing.assert_allclose(weights, WEIGHTS, atol=0.02, err_msg=path_name)  # standard error .007
        np.testing.assert_allclose(centres, MEANS, atol=0.025, err_msg=path_name)  # .007
        np.testing.assert_allclose(widths, STD, rtol=0.08, err_msg=path_name)  # 2 % for the smallest mode


def test_the_oracle_is_the_mixtures_score(x64):
    """The closed form against the gradient of log p_t, for a scalar time and one time per example."""
    path = jd.sde.SubVP()
    x, t = jnp.asarray([[0.2, -0.3], [1.0, 0.5]]), jnp.asarray([0.2, 0.6])

    def log_p(z, u):
        var = path.alpha(u) ** 2 * STD**2 + path.sigma(u) ** 2
        squares = ((z - path.alpha(u) * MEANS) ** 2).sum(-1)
        return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * squares / var)

    denoise = oracle.mixture(path, MEANS, STD, WEIGHTS)
    pair = jax.jit(denoise)(None, x, t)
    np.testing.assert_allclose(jd.sde.score(path, pair, t), jax.jit(jax.vmap(jax.grad(log_p)))(x, t), rtol=1e-10)
    np.testing.assert_allclose(jd.sde.perturb(path, pair.x0, pair.eps, t), x, rtol=1e-10)
    one = jax.jit(denoise)(None, x[:1], 0.2)
    np.testing.assert_allclose(one.x0, pair.x0[:1], rtol=1e-12)
