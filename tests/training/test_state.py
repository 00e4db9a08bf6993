"""EMA against closed forms, and its schedules against published numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import Ema, power_gamma


def run(ema, values):
    average = {"w": jnp.zeros((2,), jnp.float32)}
    for n, v in enumerate(values):
        average = ema.update(average, {"w": jnp.full((2,), v)}, n)
    return np.asarray(average["w"])


def test_constant_decay_is_a_geometric_sum():
    values = np.linspace(-1, 2, 30)
    weights = 0.9 ** np.arange(29, -1, -1) * 0.1
    np.testing.assert_allclose(run(Ema(decay=0.9), values), weights @ values, rtol=1e-5)


def test_constant_parameters_stay_put():
    for ema in (Ema(decay=0.99, warmup=True), Ema(half_life=500, examples_per_step=64, ramp=0.05), Ema(gamma=16.97)):
        average = {"w": jnp.full((2,), 3.0)}
        for n in range(5):
            average = ema.update(average, {"w": jnp.full((2,), 3.0)}, n)
        np.testing.assert_allclose(average["w"], 3.0, rtol=1e-7)


def test_power_function_weights_are_powers():
    """After N updates the weight of update n is proportional to the integral of t^gamma over [n, n+1]."""
    gamma, values = 6.94, np.random.default_rng(0).normal(size=40)
    n = np.arange(41.0)
    weights = np.diff((n / 40) ** (gamma + 1))
    np.testing.assert_allclose(run(Ema(gamma=gamma), values), weights @ values, rtol=2e-5)


def test_power_gamma_is_the_published_pair():
    assert round(power_gamma(0.05), 2) == 16.97
    assert round(power_gamma(0.10), 2) == 6.94


def test_warmup_and_half_life():
    warm = Ema(decay=0.9999, warmup=True)
    for n in (0, 5, 90):
        assert float(1 - warm.rate(n)) == pytest.approx((1 + n) / (10 + n), abs=1e-6)
    assert float(warm.rate(10**6)) == pytest.approx(1e-4, rel=1e-6)
    assert float(1 - Ema(half_life=256, examples_per_step=64).rate(3)) ** 4 == pytest.approx(0.5, rel=1e-6)
    ramped = Ema(half_life=500_000, examples_per_step=512, ramp=0.05)
    assert float(1 - ramped.rate(100)) == pytest.approx(0.5 ** (512 / (0.05 * 51_200)), rel=1e-6)
    assert float(ramped.rate(0)) == 1.0


def test_rate_keeps_its_digits_late():
    n = 2_000_000
    assert float(Ema(gamma=16.97).rate(n)) == pytest.approx(-np.expm1(17.97 * np.log1p(-1 / (n + 1))), rel=1e-6)


def test_average_is_float32_beside_bfloat16():
    average = Ema(decay=0.9999).update({"w": jnp.ones(3)}, {"w": jnp.full((3,), 2.0, jnp.bfloat16)}, 0)
    assert average["w"].dtype == jnp.float32
    np.testing.assert_allclose(average["w"], 1.0001, rtol=1e-7)


@pytest.mark.parametrize(
    "words",
    [{}, {"decay": 0.9, "gamma": 3.0}, {"decay": 1.0}, {"gamma": -1}, {"half_life": 0}, {"gamma": 3, "ramp": 1}],
)
def test_wrong_words(words):
    with pytest.raises(ValueError, match="Ema"):
        Ema(**words)
