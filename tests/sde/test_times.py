"""Training-time draws: their distributions (Kolmogorov-Smirnov), and that cutting the batch changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd
from jaxdiff.sde import times

INDEX = jnp.arange(20_000)
KEY = jax.random.key(3)
PATHS = {"VP": jd.sde.VP(), "VE": jd.sde.VE(), "EDM": jd.sde.EDM(), "Flow": jd.sde.Flow(), "Cosine": jd.sde.Cosine(),
         "Discrete": jd.sde.Discrete(jd.sde.linear_betas(1000))}
DRAWS = {"uniform": times.uniform(), "low_discrepancy": times.low_discrepancy(), "lognormal": times.lognormal(),
         "logit_normal": times.logit_normal(), "discrete": times.discrete(1000)}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def p_value(sample, cdf):
    return stats.kstest(np.asarray(sample, np.float64), cdf).pvalue


def share(path, t):
    return (np.asarray(t, np.float64) - path.t_min) / (path.t_max - path.t_min)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_uniform_and_logit_normal(path):
    assert p_value(share(path, times.uniform()(path, KEY, INDEX)), "uniform") > 1e-3
    t = np.clip(share(path, times.logit_normal(0.3, 0.8)(path, KEY, INDEX)), 1e-6, 1 - 1e-6)
    assert p_value((np.log(t / (1 - t)) - 0.3) / 0.8, "norm") > 1e-3


@pytest.mark.parametrize("path", [PATHS[k] for k in ("VP", "EDM", "Flow", "Cosine")], ids=repr)
def test_lognormal_noise_levels(x64, path):
    """ln(sigma / alpha) ~ N(-1.2, 1.2^2) on any path, away from where its times are clipped."""
    t = times.lognormal()(path, KEY, INDEX)
    assert np.all((t >= path.t_min) & (t <= path.t_max))
    levels = -0.5 * np.asarray(jd.sde.log_snr(path, t))
    assert p_value((levels + 1.2) / 1.2, "norm") > 1e-3
    shifted = -0.5 * np.asarray(jd.sde.log_snr(path, times.lognormal(0.5, 0.4)(path, KEY, INDEX)))
    np.testing.assert_allclose([shifted.mean(), shifted.std()], [0.5, 0.4], atol=0.01)


def test_discrete_steps_are_equally_likely():
    t = np.asarray(times.discrete()(PATHS["Discrete"], KEY, INDEX))
    assert set(t) <= set(range(1, 1001)) and {1.0, 1000.0} <= set(t)
    assert stats.chisquare(np.histogram(t, 50, (0.5, 1000.5))[0]).pvalue > 1e-3
    few = times.discrete(4)(jd.sde.VP(), KEY, INDEX[:500])
    np.testing.assert_allclose(np.unique(few), np.arange(1, 5) / 4 * (1 - 1e-3) + 1e-3, rtol=1e-6)  # DDGAN's times
    with pytest.raises(ValueError, match="num_steps"):
        times.discrete()(jd.sde.VP(), KEY, INDEX[:5])


@pytest.mark.parametrize("start", [0, 1_000_000_000])
def test_low_discrepancy_is_even_and_uniform(start):
    """64 times leave no gap wider than 2.62 / 64 (the golden ratio's bound), far along the count as well."""
    path = jd.sde.VP()
    index = start + jnp.arange(64)
    gaps = np.diff(np.sort(share(path, times.low_discrepancy()(path, KEY, index))))
    assert gaps.max() < 2.62 / 64 and gaps.min() > 0.2 / 64
    random_gaps = np.diff(np.sort(share(path, times.uniform()(path, KEY, index))))
    assert random_gaps.max() > 2.62 / 64
    first = jax.vmap(lambda k: times.low_discrepancy()(path, k, index[:1])[0])(jax.random.split(KEY, 5000))
    assert p_value(share(path, first), "uniform") > 1e-3


@every_draw
def test_cutting_the_batch_changes_nothing(draw):
    """Global index 0..7 on one device equals two devices of four, and any order.

    To four units in the last place: a vector's tail may take another instruction for exp than its body, so the last
    bits depend on the shape and the processor. Another random number would differ in the first digit.
    """
    same = partial(np.testing.assert_array_max_ulp, maxulp=4)
    path = PATHS["Flow"]
    index = jnp.arange(8)
    whole = draw(path, KEY, index)
    same(whole, jnp.concatenate([draw(path, KEY, index[:4]), draw(path, KEY, index[4:])]))
    same(whole[::-1], draw(path, KEY, index[::-1]))
    np.testing.assert_allclose(whole, jax.jit(draw, static_argnums=0)(path, KEY, index), rtol=1e-6)
    assert whole.shape == (8,) and whole.dtype == jnp.float32
    assert len(np.unique(whole)) > 4
    assert not np.array_equal(whole, draw(path, jax.random.key(4), index))


@every_draw
def test_a_dict_of_paths_draws_on_its_clock(draw):
    path = {"y": jd.sde.VE(), "x": jd.sde.Flow()}
    np.testing.assert_array_equal(draw(path, KEY, INDEX[:16]), draw(jd.sde.Flow(), KEY, INDEX[:16]))


def test_neighbours_are_independent():
    t = np.asarray(times.uniform()(jd.sde.VP(), KEY, INDEX))
    assert abs(np.corrcoef(t[:-1], t[1:])[0, 1]) < 0.03


def test_draws_are_cached():
    assert times.uniform() is times.uniform() and times.lognormal(0.0, 1.0) is times.lognormal(0.0, 1.0)
