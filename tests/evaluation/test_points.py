"""The 25 Gaussians: what two moments cannot see, and what is reported beside them."""

import numpy as np
import pytest

from jaxdiff.evaluation import mode_report, point_report

STD = 1 / 3
CENTRES = np.stack(np.meshgrid(np.arange(0, 25, 5.0), np.arange(0, 25, 5.0)), -1).reshape(-1, 2)
HALF = np.sqrt(3 * (50 + STD**2))  # half-width of the uniform box with the mixture's mean and covariance


def mixture(n, seed, centres=CENTRES, std=STD):
    rng = np.random.default_rng(seed)
    return centres[rng.integers(len(centres), size=n)] + np.clip(std * rng.normal(size=(n, 2)), -1, 1)


@pytest.fixture(scope="module")
def real():
    return mixture(100_000, 0)


@pytest.fixture(scope="module")
def box():
    return 10 + HALF * np.random.default_rng(1).uniform(-1, 1, (50_000, 2))


def test_real_data_scores_as_real(real):
    got = point_report(real, mixture(50_000, 2), CENTRES, STD)
    assert got["frechet"] < 0.03
    assert (got["modes"], got["modes_of"]) == (25, 25)
    assert got["high_quality"] > 0.999
    assert got["kl"] < 24 / 50_000 * 2  # chi^2 with 24 degrees of freedom: its mean is 24 / 2n
    assert got["std_ratio"] == pytest.approx(1, abs=0.02)
    assert got["energy"] < 3 * got["energy_floor"]
    assert (got["n_real"], got["n_fake"], got["n_energy"]) == (50_000, 50_000, 5000)


def test_a_uniform_box_fools_the_moments_and_nothing_else(real, box):
    got = point_report(real, box, CENTRES, STD)
    assert got["frechet"] < 0.03
    share = 25 * np.pi * (4 * STD) ** 2 / (2 * HALF) ** 2  # area of the 25 discs over the box's
    assert share == pytest.approx(0.23, abs=0.005)
    assert got["high_quality"] == pytest.approx(share, abs=0.008)
    assert got["std_ratio"] == pytest.approx(2, abs=0.02)  # a disc of radius R has deviation R / 2 on each axis
    assert got["energy"] > 3 * got["energy_floor"]


def test_missing_modes_are_counted(real):
    got = point_report(real, mixture(20_000, 3, CENTRES[:15]), CENTRES, STD)
    assert got["modes"] == 15
    assert got["high_quality"] > 0.999
    assert got["kl"] == pytest.approx(np.log(25 / 15), abs=0.003)
    assert got["energy"] > 30 * got["energy_floor"]
    assert got["frechet"] > 10


def test_the_rule_of_coverage_is_a_tenth_of_the_fair_share():
    samples = np.repeat(CENTRES, 100, 0)
    samples[:91] = -50.0  # the first mode keeps 9 of the 100 that are its share
    assert mode_report(samples, CENTRES, STD).covered == 24
    samples[90] = CENTRES[0]
    found = mode_report(samples, CENTRES, STD)
    assert found.covered == 25
    assert found.counts[0] == 10
    assert found.high_quality == pytest.approx(1 - 90 / 2500)
    assert found.std_ratio == 0  # points, not modes


def test_within_mode_spread_ignores_a_shift():
    for scale in (0.5, 1.0):
        found = mode_report(mixture(50_000, 4, CENTRES + 0.2, STD * scale), CENTRES, STD)
        assert found.std_ratio == pytest.approx(scale, abs=0.02)


def test_points_in_no_mode():
    for lost in (np.full((100, 2), 1e6), np.full((100, 2), np.nan)):
        found = mode_report(lost, CENTRES, STD)
        assert (found.covered, found.high_quality, found.kl) == (0, 0, np.log(25))
        assert np.isnan(found.std_ratio)
    with pytest.raises(ValueError, match="samples have shape"):
        mode_report(np.zeros((5, 3)), CENTRES, STD)
    with pytest.raises(ValueError, match="std is 0"):
        mode_report(np.zeros((5, 2)), CENTRES, 0)
