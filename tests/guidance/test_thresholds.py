"""Thresholds: against numpy's clip and percentile, and what they rescue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.trees import expand
from tests import oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(1)
PATH = jd.sde.VP()


def test_threshold_clips_and_keeps_the_pair(x64):
    x_t, t = jnp.linspace(-9, 9, 12).reshape(4, 3), jnp.array([0.2, 0.5, 0.8, 1.0])
    plain = oracle.gaussian(PATH, 0.5, 2.0)(KEY, x_t, t)
    clipped = jd.guidance.static_threshold(PATH, 0.75)(oracle.gaussian(PATH, 0.5, 2.0))(KEY, x_t, t)
    assert float(jnp.abs(plain.x0).max()) > 2
    np.testing.assert_allclose(clipped.x0, np.clip(plain.x0, -0.75, 0.75), atol=1e-12)
    again = expand(PATH.alpha(t), x_t) * clipped.x0 + expand(PATH.sigma(t), x_t) * clipped.eps
    np.testing.assert_allclose(again, x_t, atol=1e-12)
    inside = jnp.abs(plain.x0) <= 0.75
    np.testing.assert_allclose(clipped.eps[inside], plain.eps[inside], atol=1e-12)


def test_threshold_rescues_an_eps_prediction_near_alpha_zero(x64):
    """An eps that errs by .05 and, as a network's, never exceeds 4: divided by alpha = 5e-5 its error throws the chain
    where no such eps brings it back from, unless x0 is clipped."""
    path = jd.sde.Discrete(jd.sde.cosine_betas(200))
    exact = oracle.gaussian(path, 0.1, 0.2)

    def wrong(key, x_t, t, cond=None):
        eps = jnp.clip(exact(key, x_t, t).eps + 0.05, -4, 4)
        return jd.Prediction((x_t - expand(path.sigma(t), x_t) * eps) / expand(path.alpha(t), x_t), eps)

    x_T = jd.sde.prior(path, KEY, jnp.zeros((4000, 1)))
    grid = jd.sde.grids.discrete(path, 50)
    run = lambda denoise: jd.samplers.sample(jd.samplers.ancestral(), denoise, path, grid, KEY, x_T)
    far, near = run(wrong), run(jd.guidance.static_threshold(path)(wrong))
    assert float(jnp.abs(far - 0.1).mean()) > 5 * float(jnp.abs(near - 0.1).mean())
    assert abs(float(near.mean()) - 0.1) < 0.1 and float(jnp.abs(near).max()) <= 1 + 1e-9


@pytest.mark.parametrize(("percentile", "bound"), [(0.995, 1.0), (0.8, 1.0), (1.0, 2.0), (0.5, 0.25)])
def test_dynamic_threshold_against_numpy(x64, percentile, bound):
    """Each picture by its own percentile; one that keeps to the range is only clipped; the pair is kept."""
    spread = jnp.array([0.1, 0.9, 3.0, 20.0])
    x_0 = spread[:, None, None, None] * jax.random.normal(KEY, (4, 5, 6, 3), float)
    x_t, t = jax.random.normal(jax.random.key(2), x_0.shape, float), jnp.array([0.2, 0.5, 0.8, 1.0])
    denoise = lambda key, x, t, cond=None: jd.Prediction(x_0, jnp.full_like(x, jnp.nan))  # eps is not read
    out = jd.guidance.dynamic_threshold(PATH, percentile, bound)(denoise)(KEY, x_t, t)
    grew = 0
    for seen, x in zip(out.x0, np.asarray(x_0), strict=True):
        s = max(np.percentile(np.abs(x), 100 * percentile), bound)
        grew += s > bound
        np.testing.assert_allclose(seen, np.clip(x, -s, s) / (s / bound), rtol=1e-10)
    assert 0 < grew < 4 and float(jnp.abs(out.x0).max()) <= bound + 1e-12
    alpha, sigma = expand(PATH.alpha(t), x_t), expand(PATH.sigma(t), x_t)
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-12)


def test_thresholds_at_sigma_zero_are_finite():
    """EDM's last time: x_t is the picture itself, and any eps will do."""
    exact = lambda key, x, t, cond=None: jd.Prediction(x, jnp.zeros_like(x))
    x = jnp.linspace(-3, 3, 12).reshape(4, 3)
    for wrap in (jd.guidance.static_threshold, jd.guidance.dynamic_threshold):
        out = wrap(jd.sde.EDM())(exact)(KEY, x, 0.0)
        assert bool(jnp.isfinite(out.x0).all() & jnp.isfinite(out.eps).all())


@pytest.mark.parametrize("percentile", [0, -0.5, 1.01, 99.5, float("nan"), "0.9", True, None])
def test_a_wrong_percentile_is_refused(percentile):
    with pytest.raises(ValueError, match=r"percentile is .*; allowed: a share above 0, up to 1") as error:
        jd.guidance.dynamic_threshold(PATH, percentile)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_threshold_refuses_a_wrong_bound(bound):
    with pytest.raises(ValueError, match="allowed: a number above 0"):
        jd.guidance.static_threshold(PATH, bound)
    with pytest.raises(ValueError, match="allowed: a number above 0"):
        jd.guidance.dynamic_threshold(PATH, bound=bound)
