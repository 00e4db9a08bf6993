"""A slower variable on another path's clock: CMDE's formula on VE, its limits, and its derivatives on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.sde import VE, VP, Cosine, Slower
from tests.sde.test_paths import PATHS, every_path, times


def test_on_ve_it_is_the_papers(x64):
    """sigma_y(t) = sigma_min_y (sigma_max_y / sigma_min_y)^t (Batzolis et al. 2021), and g_y^2 = d sigma_y^2 / dt."""
    path, t = VE(0.01, 50.0, t_min=1e-12), np.linspace(0, 1, 9)
    for low, high in ((None, 1.0), (None, 0.05), (0.002, 2.0)):
        least = min(0.01, high / 10) if low is None else low
        y = Slower(path, high, low)
        np.testing.assert_allclose(y.sigma(t), least * (high / least) ** t, rtol=1e-9)
        g2 = 2 * np.log(high / least) * np.asarray(y.sigma(t)) ** 2
        np.testing.assert_allclose(jd.sde.diffusion(y, t) ** 2, g2, rtol=1e-7)


@every_path
def test_with_the_paths_own_levels_it_is_the_path(x64, path):
    if isinstance(path, Slower) or path == PATHS["Cosine0"]:
        return
    t = times(path)
    low, high = (float(jd.sde.noise_level(path, end)) for end in (path.t_min, path.t_max))
    same = Slower(path, high, low)
    for name in ("alpha", "sigma"):
        np.testing.assert_allclose(getattr(same, name)(t), getattr(path, name)(t), rtol=1e-9, atol=1e-12)


@every_path
def test_its_levels_and_derivatives(x64, path):
    """From sigma_min to sigma_max; the derivative through time_at, a bisection for some paths, against differences."""
    y = Slower(path, 1.5)
    ends = jd.sde.noise_level(y, jnp.asarray([path.t_min, path.t_max]))
    np.testing.assert_allclose(ends[1], 1.5, rtol=1e-9)
    assert ends[0] <= 0.1501
    t = times(path, 7)[1:-1]
    h = 1e-5 * path.t_max
    slope = jax.vmap(jax.grad(lambda u: y.sigma(u)))(t)
    np.testing.assert_allclose(slope, (y.sigma(t + h) - y.sigma(t - h)) / (2 * h), rtol=2e-3)


def test_a_traced_level_and_wrong_words():
    level = jax.jit(lambda s: jd.sde.noise_level(Slower(VP(), s), 1.0))
    np.testing.assert_allclose(level(0.7), 0.7, rtol=1e-5)
    assert hash(Slower(VP(), 1.0)) == hash(Slower(VP(), 1.0))
    for build, word in ((lambda: Slower(VP(), 0.0), "sigma_max=0"), (lambda: Slower(VP(), 1.0, 2.0), "sigma_min=2"),
                        (lambda: Slower(Cosine(t_max=1.0), 1.0), "alpha = 0")):
        with pytest.raises(ValueError, match=word):
            build()
