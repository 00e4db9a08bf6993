"""Classifier guidance: the exact posterior where everything is Gaussian, and a classifier read as it was trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.losses.denoising import noised
from jaxdiff.trees import expand
from tests import oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(3)
MEAN, STD = 0.3, 0.5  # of the data, N(MEAN, STD^2 I) in the plane
W, NOISE = np.array([1.0, 0.5]), 0.3  # what is observed: y = W x_0 + NOISE z
PATHS = [jd.sde.VP(), jd.sde.Flow(), jd.sde.EDM(sigma_max=200.0), jd.sde.SubVP()]


def observed(path):
    """log p(y | x_t): x_0 given x_t is N(m, v I), so y given x_t is N(W m, |W|^2 v + NOISE^2)."""
    exact = oracle.gaussian(path, MEAN, STD)

    def log_prob(x_t, t, cond):
        alpha, sigma = path.alpha(jnp.asarray(t)), path.sigma(jnp.asarray(t))
        v = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
        variance = (W**2).sum() * v + NOISE**2
        residual = cond["y"] - exact(KEY, x_t, t).x0 @ W
        return -0.5 * residual**2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)

    return log_prob


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_the_exact_posterior(x64, path):
    """The guided flow is linear, so the images of 0 and of the two unit vectors tell its mean and its whole covariance."""
    y = 1.1
    guided = jd.guidance.classifier(observed(path), 1.0, path)(oracle.gaussian(path, MEAN, STD))
    heun = jd.samplers.heun()
    x_T = float(path.sigma(jnp.asarray(path.t_max))) * jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    grid = jd.sde.grids.log_snr(path, 300, path.t_min)
    run = jax.jit(lambda x: jd.samplers.sample(heun, guided, path, grid, KEY, x, {"y": jnp.full(3, y)}))
    origin, *columns = np.asarray(run(x_T))
    map_ = np.stack([column - origin for column in columns], axis=1)
    precision = np.eye(2) / STD**2 + np.outer(W, W) / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.full(2, MEAN) / STD**2 + W * y / NOISE**2)
    np.testing.assert_allclose(origin, mean, rtol=0.01)
    np.testing.assert_allclose(map_ @ map_.T, covariance, rtol=0.01)
    assert abs(mean - MEAN).min() > 0.1 and covariance[0, 1] < -0.05  # guidance moved it and tied the two together


@pytest.mark.parametrize("time", [0.4, [0.02, 0.3, 0.7]], ids=["scalar", "per_example"])
def test_formula(x64, time):
    """eps - scale sigma grad log p, the gradient by hand; x0 follows, so that the pair still makes up x_t."""
    x_t, y, t, scale = jnp.linspace(-1, 1, 6).reshape(3, 2), jnp.array([0.2, 1.0, -0.5]), jnp.asarray(time), 2.5
    for path in PATHS:
        plain = oracle.gaussian(path, MEAN, STD)
        out = jd.guidance.classifier(observed(path), scale, path)(plain)(KEY, x_t, t, {"y": y})
        before = plain(KEY, x_t, t)
        alpha, sigma = (np.asarray(expand(v(t), x_t)) for v in (path.alpha, path.sigma))
        c = alpha**2 * STD**2 + sigma**2
        variance = (W**2).sum() * STD**2 * sigma**2 / c + NOISE**2
        residual = np.asarray(y - before.x0 @ W)[:, None]
        slope = residual / variance * W * (alpha * STD**2 / c)
        np.testing.assert_allclose(out.eps, before.eps - scale * sigma * slope, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-12)


def test_the_ends_of_a_path():
    """Where there is no noise, and where there is no signal, the prediction stays, though a network's noise level there is
    infinite and alpha divides."""
    path, x = jd.sde.Flow(t_max=1.0), jnp.ones((2, 2))
    plain = lambda key, x_t, t, cond=None: jd.Prediction(0.5 * x_t, 0.5 * x_t)
    guided = jd.guidance.classifier(lambda x_t, t, cond: (x_t**2).sum(1), 2.0, path)(plain)
    for t in (0.0, 1.0, jnp.array([0.0, 1.0])):
        out = guided(KEY, x, t, {})
        np.testing.assert_array_equal(out.x0, 0.5 * x)
        np.testing.assert_array_equal(out.eps, 0.5 * x)
    assert float(jnp.abs(guided(KEY, x, 0.5, {}).x0 - 0.5 * x).min()) > 0.1
    edm = jd.sde.EDM()
    network = lambda p, x, c, cond: jnp.stack([x.sum(1) * c, -c * x.sum(1)], axis=1)  # c is -inf at sigma = 0
    log_prob = jd.guidance.classifier_log_prob(network, {}, edm)
    guided = jd.guidance.classifier(log_prob, 2.0, edm)(plain)
    at = lambda x: guided(KEY, x, 0.0, {"label": jnp.array([0, 1])})
    np.testing.assert_array_equal(at(x).x0, 0.5 * x)
    assert bool(jnp.isfinite(jax.grad(lambda x: at(x).x0.sum() + at(x).eps.sum())(x)).all())


@pytest.mark.parametrize("path", [jd.sde.VP(), jd.sde.EDM(), jd.sde.Discrete(jd.sde.linear_betas(100))],
                         ids=lambda p: type(p).__name__)
def test_it_reads_x_t_as_the_loss_trained_it(path):
    """The training loss of the very same x_t is minus the mean of log p: scaling, noise level and label agree."""
    rng = np.random.default_rng(0)
    params = {"classifier": {"w": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)}}
    network = lambda p, x, c, cond: x @ p["w"] + jnp.sin(c)[:, None] * jnp.arange(5.0)
    batch = {"x": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), "label": jnp.arange(8) % 5, "index": jnp.arange(8)}
    draw = jd.sde.times.uniform()
    loss, _ = jd.losses.classification(network, path, draw)(params, {}, KEY, batch, 0)
    drawn = noised(path, draw, jax.random.split(KEY, 3)[1], {name: batch[name] for name in ("x", "index")})
    log_prob = jd.guidance.classifier_log_prob(network, params["classifier"], path)
    seen = log_prob(drawn.x_t, drawn.t, {"label": batch["label"]})
    assert seen.shape == (8,)
    np.testing.assert_allclose(-seen.mean(), loss, rtol=1e-5)
    one = log_prob(drawn.x_t, drawn.t[0], {"label": batch["label"]})  # a scalar time is everyone's
    np.testing.assert_allclose(one[0], seen[0], rtol=1e-5)


def test_no_class_asks_for_nothing():
    """The null label: log p is 0, and the prediction stays; its neighbours in the batch are guided."""
    path = jd.sde.VP()
    network = lambda p, x, c, cond: x @ jnp.arange(6.0).reshape(2, 3)
    log_prob = jd.guidance.classifier_log_prob(network, {}, path)
    plain = oracle.gaussian(path, MEAN, STD)
    guided = jd.guidance.classifier(log_prob, 2.0, path)(plain)
    x, label = jnp.array([[0.3, -0.2], [0.3, -0.2]]), jnp.array([3, 1])
    assert log_prob(x, 0.5, {"label": label})[0] == 0
    moved = guided(KEY, x, 0.5, {"label": label}).x0 - plain(KEY, x, 0.5).x0
    assert not moved[0].any() and abs(moved[1]).min() > 1e-3


def test_scale_zero_is_the_denoiser_itself():
    plain = oracle.gaussian(PATHS[0], MEAN, STD)
    assert jd.guidance.classifier(observed(PATHS[0]), 0, PATHS[0])(plain) is plain


def test_refusals():
    path = jd.sde.VP()
    plain = oracle.gaussian(path, MEAN, STD)
    log_prob = jd.guidance.classifier_log_prob(lambda p, x, c, cond: x, {}, path)
    cases = [
        (lambda: jd.guidance.classifier(log_prob, float("nan"), path), "scale is nan; allowed: a finite number"),
        (lambda: jd.guidance.classifier(log_prob, "2", path), "scale is '2'; allowed"),
        (lambda: jd.guidance.classifier(None, 2.0, path), "log_prob=None; allowed: a function"),
        (lambda: jd.guidance.classifier(log_prob, 2.0, path)(plain)(KEY, jnp.ones((2, 2)), 0.5), "got no condition; mend"),
        (lambda: log_prob(jnp.ones((2, 2)), 0.5, {"z": 1}), "condition of ['z']; allowed: one with a label"),
        (lambda: log_prob(jnp.ones((2, 2)), 0.5, None), "condition of None; allowed: one with a label"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value) and "\n" not in str(error.value)
