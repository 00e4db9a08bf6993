"""Weightings against their closed forms, in every error space and on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import jaxdiff as jd
from jaxdiff.losses import weightings
from jaxdiff.losses.denoising import Noised, weighted_error
from tests.losses.closed_forms import PARAMETERIZATIONS, ROWS, raw_per_x0


def snr(row, t):
    return (row.alpha(t) / row.sigma(t)) ** 2


def falling(row, t):
    """-d log SNR / dt = g^2 / sigma^2, which holds for every path (Kingma et al. 2021)."""
    return row.g2(t) / row.sigma(t) ** 2


# what each paper multiplies the squared error of x0 by
PER_X0 = {
    "likelihood": (weightings.likelihood(), lambda row, t: row.g2(t) * (row.alpha(t) / row.sigma(t) ** 2) ** 2),
    "edm": (
        weightings.edm(0.7),
        lambda row, t: ((row.sigma(t) / row.alpha(t)) ** 2 + 0.49) / (0.7 * row.sigma(t) / row.alpha(t)) ** 2,
    ),
    "min_snr": (weightings.min_snr(3.0), lambda row, t: np.minimum(snr(row, t), 3.0)),
    "sigmoid": (
        weightings.sigmoid(-0.5),
        lambda row, t: special.expit(-0.5 - np.log(snr(row, t))) * falling(row, t) * snr(row, t),
    ),
    "p2": (weightings.p2(0.5, 2.0), lambda row, t: snr(row, t) / (2.0 + snr(row, t)) ** 0.5),
}


@pytest.mark.parametrize("name", ROWS)
def test_closed_forms_in_every_space(x64, name):
    """A weight times its own space's error is the paper's weight times the x0 error, for every pair of guesses that keeps
    alpha x0 + sigma eps = x_t; `simple` is each raw space's own square."""
    row = ROWS[name]
    t = np.array(row.times)
    rng = np.random.default_rng(0)
    x0, eps, guess = rng.standard_normal((3, 3, 5))
    x_t = row.alpha(t)[:, None] * x0 + row.sigma(t)[:, None] * eps
    prediction = jd.Prediction(guess, (x_t - row.alpha(t)[:, None] * guess) / row.sigma(t)[:, None])
    prediction, drawn = jax.tree.map(jnp.asarray, (prediction, Noised(x0, eps, x_t, t, None, None)))
    error = ((guess - x0) ** 2).mean(1)

    for label, (weighting, per_x0) in PER_X0.items():
        seen = weighted_error(row.path, None, weighting, prediction, drawn)
        np.testing.assert_allclose(seen, per_x0(row, t) * error, rtol=2e-6, err_msg=label)
    for kind in PARAMETERIZATIONS:
        parameterization = getattr(jd.parameterizations, kind)()
        seen = weighted_error(row.path, parameterization, weightings.simple(), prediction, drawn)
        np.testing.assert_allclose(seen, raw_per_x0(kind, row, t) * error, rtol=2e-6, err_msg=kind)


def test_likelihood_weight_is_g2_of_the_score(x64):
    """The score is -eps / sigma: g^2 |score error|^2 with jd.sde.score on both sides."""
    row, t = ROWS["VP"], jnp.array([0.05, 0.4, 0.9])
    rng = np.random.default_rng(1)
    truth, guess = (jd.Prediction(*jnp.asarray(rng.standard_normal((2, 3, 4)))) for _ in range(2))
    seen = weighted_error(row.path, None, weightings.likelihood(), guess, Noised(truth.x0, truth.eps, None, t, None, None))
    gap = jd.sde.score(row.path, guess, t) - jd.sde.score(row.path, truth, t)
    np.testing.assert_allclose(seen, row.g2(np.asarray(t)) * (gap**2).mean(1), rtol=1e-10)


def test_min_snr_flattens_where_the_data_is_clean(x64):
    path, t = jd.sde.VP(), jnp.array([1e-3, 0.05, 0.9])
    ratio = np.exp(np.asarray(jd.sde.log_snr(path, t)))
    np.testing.assert_allclose(weightings.min_snr().weight(path, t), [5.0, 5.0, ratio[2]], rtol=1e-10)
    assert ratio[1] > 5 > ratio[2]


CONTINUOUS = [name for name in ROWS if name != "Discrete"]


def test_weighted_integral_does_not_depend_on_the_path(x64):
    """An error that depends on log-SNR alone has one integral over t on every path: sigmoid weights carry -d log SNR / dt
    (Kingma & Gao 2023), and so does the likelihood weighting (Kingma et al. 2021)."""
    low, high = -6.0, 6.0
    error = lambda log_snr: 0.16 * np.exp(log_snr) / (0.16 * np.exp(log_snr) + 1)  # of eps, data of std 0.4
    nodes, weights = np.polynomial.legendre.leggauss(200)
    tables = {
        "sigmoid": (weightings.sigmoid(), lambda u: special.expit(-1.0 - u)),
        "likelihood": (weightings.likelihood(), lambda u: 1.0),
    }
    for label, (weighting, density) in tables.items():
        expected = integrate.quad(lambda u, density=density: density(u) * error(u), low, high, epsabs=1e-12)[0]
        for name in CONTINUOUS:
            path = ROWS[name].path
            ends = np.asarray(jd.sde.time_at(path, jnp.array([high, low])))
            # Gauss-Legendre in log t, where every path is smooth
            start, end = np.log(ends)
            t = np.exp(0.5 * (end - start) * nodes + 0.5 * (end + start))
            value = np.asarray(weighting.weight(path, jnp.asarray(t))) * error(np.asarray(jd.sde.log_snr(path, t)))
            total = (weights * value * t).sum() * 0.5 * (end - start)
            np.testing.assert_allclose(total, expected, rtol=1e-7, err_msg=f"{label} {name}")


BUILDERS = (
    weightings.simple, weightings.likelihood, weightings.edm, weightings.min_snr, weightings.sigmoid, weightings.p2
)


@pytest.mark.parametrize("path", [jd.sde.VP(), jd.sde.EDM(), jd.sde.Flow()], ids=lambda p: type(p).__name__)
def test_shapes_dtypes_and_gradients(path):
    """A weight is as its time: scalar or [B], float32; it and its slope are finite from t_min to t_max."""
    every = lambda t: [build().weight(path, t) for build in BUILDERS]
    values, slopes = jax.jit(lambda t: jax.jvp(every, (t,), (jnp.ones_like(t),)))(jnp.array([path.t_min, path.t_max]))
    for build, value, slope in zip(BUILDERS, values, slopes, strict=True):
        assert build() is build()  # the same object, so that nothing retraces
        assert value.shape == (2,) and value.dtype == jnp.float32 and np.isfinite(value).all(), build
        assert np.isfinite(slope).all(), build
        assert jax.eval_shape(lambda t, build=build: build().weight(path, t), jnp.float32(0.5)).shape == ()
