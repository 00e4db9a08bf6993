"""Sampling-time grids: ends, order and the papers' formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.sde import grids
from tests.sde.test_paths import PATHS, every_path

GRIDS = {"uniform": grids.uniform, "karras": grids.karras, "log_snr": grids.log_snr, "natural": grids.natural}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


@every_path
@every_grid
@pytest.mark.parametrize("num_steps", [1, 3])
def test_length_ends_and_order(x64, path, grid, num_steps):
    got = np.asarray(grid(path, num_steps))
    assert got.shape == (num_steps + 1,) and np.all(np.diff(got) < 0)
    end = max(path.t_min, 1e-3)
    noise_free = grid is grids.karras or (grid is grids.natural and path.t_max > 1)
    if noise_free and float(path.sigma(0.0)) == 0:
        end = 0.0
    np.testing.assert_allclose([got[0], got[-1]], [path.t_max, end], rtol=1e-12)


@pytest.mark.parametrize("path", [PATHS[k] for k in ("VP", "EDM", "Cosine", "linear")], ids=repr)
@pytest.mark.parametrize("grid", [grids.karras, grids.log_snr])
def test_float32_grids_are_the_same(path, grid):
    got = grid(path, 25)
    assert got.dtype == jnp.float32 and np.all(np.diff(got) < 0) and float(got[0]) == np.float32(path.t_max)
    with jax.enable_x64(True):
        np.testing.assert_allclose(got, grid(path, 25), rtol=5e-3)


def test_karras_is_the_papers_formula(x64):
    """Karras et al. 2022, eq. 5: rho = 7 from 80 to .002, then 0."""
    i = np.arange(18)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    paper = np.append((high + i / 17 * (low - high)) ** 7, 0.0)
    np.testing.assert_allclose(grids.karras(jd.sde.EDM(), 18), paper, rtol=1e-9)
    quick = jd.sde.EDM(sigma_min=1e-4, sigma_max=10.0)  # a sigma_min below 1e-3 is kept: EDM's clock is not [0, 1]
    np.testing.assert_allclose(grids.karras(quick, 10)[-2], 1e-4, rtol=1e-9)
    np.testing.assert_allclose(grids.karras(jd.sde.EDM(), 3, rho=1.0), [80, 40.001, 0.002, 0], rtol=1e-9)


@every_path
def test_karras_and_log_snr_are_even_in_their_own_measure(x64, path):
    snr = jd.sde.log_snr(path, grids.log_snr(path, 12))
    np.testing.assert_allclose(np.diff(snr), (snr[-1] - snr[0]) / 12, rtol=1e-6)
    levels = np.exp(-0.5 * jd.sde.log_snr(path, grids.karras(path, 12)[:-1])) ** (1 / 7)
    np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)


@every_path
def test_uniform_is_even_and_t_end_is_kept(x64, path):
    span = path.t_max - path.t_min
    end = path.t_min + 0.1 * span
    np.testing.assert_allclose(grids.uniform(path, 8, t_end=end), np.linspace(path.t_max, end, 9), rtol=1e-12)
    np.testing.assert_allclose(grids.log_snr(path, 8, t_end=end)[-1], end, rtol=1e-12)
    stop = grids.karras(path, 8, t_end=end)
    np.testing.assert_allclose(stop[-2] if float(path.sigma(0.0)) == 0 else stop[-1], end, rtol=1e-9)


def test_discrete_and_respaced(x64):
    path = PATHS["linear"]
    np.testing.assert_array_equal(grids.discrete(path), np.arange(1000, -1, -1))
    np.testing.assert_array_equal(grids.discrete(path, 10), np.arange(1000, -1, -100))
    odd = np.asarray(grids.discrete(path, 37))
    assert np.all(odd == np.round(odd)) and np.all(np.diff(odd) < 0) and odd[-1] == 0
    np.testing.assert_array_equal(grids.discrete({"x": path, "y": path}, 5), grids.discrete(path, 5))
    np.testing.assert_array_equal(grids.natural(path, 10), grids.discrete(path, 10))


def test_natural_grid_is_the_clocks(x64):
    np.testing.assert_array_equal(grids.natural(jd.sde.VP(), 9), grids.uniform(jd.sde.VP(), 9))
    np.testing.assert_array_equal(grids.natural(jd.sde.EDM(), 9), grids.karras(jd.sde.EDM(), 9))
    both = {"y": jd.sde.VE(), "x": jd.sde.EDM()}
    np.testing.assert_array_equal(grids.natural(both, 9), grids.karras(jd.sde.EDM(), 9))


def test_grids_can_be_made_inside_jit():
    for path in (jd.sde.EDM(), PATHS["linear"]):
        for grid in (grids.karras, grids.log_snr, grids.natural):
            inside = jax.jit(lambda path=path, grid=grid: grid(path, 4))()
            np.testing.assert_allclose(inside, grid(path, 4), rtol=1e-5)


@pytest.mark.parametrize("call, word", [
    (lambda: grids.uniform(jd.sde.VP(), 0), "num_steps is 0"),
    (lambda: grids.karras(jd.sde.VP(), 2.5), "num_steps is 2.5"),
    (lambda: grids.log_snr(jd.sde.VP(), True), "num_steps is True"),
    (lambda: grids.uniform(jd.sde.VP(), 3, t_end=2.0), "t_end is 2.0"),
    (lambda: grids.discrete(jd.sde.VP(), 3), "a Discrete path"),
    (lambda: grids.discrete(PATHS["linear"], 1001), "1000"),
    (lambda: grids.karras(jd.sde.Flow(t_max=1.0), 3), "Karras.*alpha = 0"),
    (lambda: grids.log_snr(jd.sde.Cosine(t_max=1.0), 3), "log-SNR.*alpha = 0"),
])
def test_wrong_words_get_one_line(call, word):
    with pytest.raises(ValueError, match=word) as error:
        call()
    assert ("\n" not in str(error.value) and "allowed" in str(error.value)) or "mend" in str(error.value)


def test_uniform_grid_reaches_alpha_zero_where_allowed(x64):
    for path in (jd.sde.Flow(t_max=1.0), jd.sde.Cosine(t_max=1.0)):
        assert float(path.alpha(grids.uniform(path, 4)[0])) == 0.0
        assert dataclasses.replace(path, t_max=0.999) == type(path)()
