"""Autoguidance: its formula, its interval, and the weaker model that it goes away from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from tests import oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY, PATH = jax.random.key(4), jd.sde.EDM()
X_T, LEVELS = jnp.linspace(-2, 2, 12).reshape(4, 3), jnp.array([0.1, 0.31, 2.9, 3.1])
STRONG, WEAK = oracle.gaussian(PATH, 0.3, 0.4), oracle.gaussian(PATH, 0.1, 0.9)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.4, 2.0, 7.5])
def test_formula(x64, scale):
    x = X_T.astype(float)
    out = jd.guidance.autoguidance(WEAK, scale)(STRONG)(KEY, x, LEVELS)
    strong, weak = STRONG(KEY, x, LEVELS), WEAK(KEY, x, LEVELS)
    np.testing.assert_allclose(out.x0, strong.x0 + (scale - 1) * (strong.x0 - weak.x0), rtol=1e-12)
    np.testing.assert_allclose(out.eps, strong.eps + (scale - 1) * (strong.eps - weak.eps), rtol=1e-12)
    np.testing.assert_allclose(out.x0 + LEVELS[:, None] * out.eps, x, atol=1e-12)


def test_a_weak_model_that_is_the_strong_one_changes_nothing():
    out = jd.guidance.autoguidance(STRONG, 5.0)(STRONG)(KEY, X_T, LEVELS)
    jax.tree.map(np.testing.assert_array_equal, out, STRONG(KEY, X_T, LEVELS))


def test_scale_one_is_the_denoiser_itself():
    assert jd.guidance.autoguidance(WEAK, 1)(STRONG) is STRONG


def test_interval_acts_inside_only():
    out = jd.guidance.autoguidance(WEAK, 2.0, PATH, (0.3, 3.0))(STRONG)(KEY, X_T, LEVELS)
    whole, plain = jd.guidance.autoguidance(WEAK, 2.0)(STRONG)(KEY, X_T, LEVELS), STRONG(KEY, X_T, LEVELS)
    np.testing.assert_array_equal(out.x0[1:3], whole.x0[1:3])
    np.testing.assert_array_equal(out.x0[::3], plain.x0[::3])
    assert float(jnp.abs(whole.x0 - plain.x0).min(1).min()) > 1e-4


def test_both_are_told_the_same():
    """Key, time and condition; the variance share is the strong model's."""
    told = []

    def model(mix):
        def denoise(key, x_t, t, cond=None):
            told.append((key, t, cond))
            return jd.Prediction(x_t, x_t, jnp.full_like(x_t, mix))

        return denoise

    cond = {"label": jnp.arange(4)}
    out = jd.guidance.autoguidance(model(0.2), 2.0)(model(0.7))(KEY, X_T, 0.5, cond)
    (key_1, t_1, cond_1), (key_2, t_2, cond_2) = told
    assert key_1 is key_2 and t_1 == t_2 and cond_1 is cond_2 is cond
    assert (out.var_mix == jnp.float32(0.7)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": float("inf")}, "scale is inf; allowed: a finite number"),
        ({"scale": True}, "scale is True; allowed"),
        ({"scale": 2.0, "weak": "runs/weak"}, "weak='runs/weak'; allowed: a denoiser"),
        ({"scale": 2.0, "interval": (0.3, 3.0)}, "autoguidance got an interval without a path"),
        ({"scale": 2.0, "interval": (3.0, 0.3), "path": PATH}, "low <= high"),
    ],
    ids=lambda v: None if isinstance(v, dict) else v[:30],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words) as error:
        jd.guidance.autoguidance(**{"weak": WEAK, **options})
    assert "\n" not in str(error.value)
