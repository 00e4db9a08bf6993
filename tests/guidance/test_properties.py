"""What holds for every guidance: one table of them runs through every property."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.trees import expand
from tests import oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY, PATH, CLASSES = jax.random.key(7), jd.sde.VP(), 3
X_T, LABEL = jnp.linspace(-1.5, 1.5, 12).reshape(4, 3), jnp.array([0, 2, 1, 2], jnp.int32)
MEANS = jnp.array([-0.4, 0.0, 0.5, 0.1])  # of three classes and of none
WEIGHTS = jnp.linspace(-1, 1, 9).reshape(3, 3)


def denoise(key, x_t, t, cond=None):
    """Classes of different means and widths, so that guidance does something everywhere."""
    label = cond["label"]
    return oracle.gaussian(PATH, MEANS[label][:, None], 0.2 + 0.2 * (label[:, None] == CLASSES))(key, x_t, t)


def weak(key, x_t, t, cond=None):
    return oracle.gaussian(PATH, MEANS[cond["label"]][:, None] / 2, 0.9)(key, x_t, t)


def logits(params, x, c, cond):
    return x @ WEIGHTS + 1e-3 * c[:, None]


log_prob = jd.guidance.classifier_log_prob(logits, {}, PATH)
GUIDANCE = {
    "classifier_free": jd.guidance.classifier_free(3.0, CLASSES),
    "classifier_free_interval": jd.guidance.classifier_free(3.0, CLASSES, PATH, (0.1, 5.0)),
    "classifier_free_rescale": jd.guidance.classifier_free(3.0, CLASSES, PATH, rescale=0.7),
    "classifier": jd.guidance.classifier(log_prob, 2.0, PATH),
    "autoguidance": jd.guidance.autoguidance(weak, 2.0, PATH, (0.1, 5.0)),
    "dynamic_threshold": jd.guidance.dynamic_threshold(PATH, 0.6, 0.3),
    "static_threshold": jd.guidance.static_threshold(PATH, 0.3),
}


@pytest.fixture(params=GUIDANCE)
def guided(request):
    return GUIDANCE[request.param](denoise)


def at(guided, x, t):
    return guided(KEY, x, t, {"label": LABEL})


def test_something_is_done_and_the_pair_is_kept(guided, x64):
    x, t = X_T.astype(float), jnp.array([0.1, 0.3, 0.5, 0.7])
    out, plain = at(guided, x, t), at(denoise, x, t)
    alpha, sigma = expand(PATH.alpha(t), x), expand(PATH.sigma(t), x)
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x, atol=1e-12)
    assert float(jnp.abs(out.x0 - plain.x0).max()) > 0.01
    scalar = at(guided, x, 0.3)
    np.testing.assert_allclose(scalar.x0[1], out.x0[1], rtol=1e-10)


def test_jit_vmap_and_scan_are_the_eager_call(guided):
    eager = at(guided, X_T, 0.5)
    assert eager.x0.dtype == eager.eps.dtype == jnp.float32

    @jax.jit
    def program(x):
        mapped = jax.vmap(lambda x, t: at(guided, x, t))(jnp.stack([-x, x]), jnp.array([0.2, 0.5]))
        _, scanned = jax.lax.scan(lambda x, t: (x, at(guided, x, t)), x, jnp.array([0.7, 0.5]))
        return at(guided, x, 0.5), jax.tree.map(lambda v: v[1], mapped), jax.tree.map(lambda v: v[1], scanned)

    for other in program(X_T):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, eager)


def test_gradients_are_finite_and_right(guided, x64):
    x, h = X_T.astype(float), 1e-6
    total = lambda x: (at(guided, x, 0.4).x0 ** 2).sum() + at(guided, x, 0.4).eps.sum()
    slope = jax.grad(total)(x)
    way = jax.random.normal(KEY, x.shape, float)
    assert bool(jnp.isfinite(slope).all())
    np.testing.assert_allclose((slope * way).sum(), (total(x + h * way) - total(x - h * way)) / (2 * h), rtol=1e-5)


def test_no_retrace(guided):
    traced = []

    @jax.jit
    def program(x, t, label):
        traced.append(1)
        return guided(KEY, x, t, {"label": label})

    for t in (0.3, 0.6):
        program(X_T, jnp.float32(t), LABEL)
    assert len(traced) == 1


def test_a_sampler_runs_on_every_one(guided):
    grid = jd.sde.grids.uniform(PATH, 4)
    run = jax.jit(lambda x: jd.samplers.sample(jd.samplers.heun(), guided, PATH, grid, KEY, x, {"label": LABEL}))
    out = run(X_T)
    assert out.shape == X_T.shape and bool(jnp.isfinite(out).all())


def test_the_first_is_nearest_the_network(x64):
    """Clipping after guidance bounds what comes out; guidance after clipping goes beyond the bound."""
    clip, strong = jd.guidance.static_threshold(PATH, 0.3), jd.guidance.classifier_free(8.0, CLASSES)
    x = X_T.astype(float)
    after, before = at(clip(strong(denoise)), x, 0.5).x0, at(strong(clip(denoise)), x, 0.5).x0
    np.testing.assert_allclose(after, jnp.clip(at(strong(denoise), x, 0.5).x0, -0.3, 0.3), atol=1e-12)
    assert float(jnp.abs(before).max()) > 0.5
    both = jd.guidance.autoguidance(weak, 2.0)(GUIDANCE["classifier"](denoise))
    inner, away = at(GUIDANCE["classifier"](denoise), x, 0.5), at(weak, x, 0.5)
    np.testing.assert_allclose(at(both, x, 0.5).x0, 2 * inner.x0 - away.x0, rtol=1e-10)


@pytest.mark.parametrize("name", ["classifier", "autoguidance", "dynamic_threshold", "static_threshold"])
def test_several_variables(x64, name):
    """A dict of variables: each is treated as it would be alone, by its own path."""
    path = {"x": PATH, "y": jd.sde.VE(sigma_max=5.0)}
    of = lambda width: lambda key, x_t, t, cond=None: jd.Prediction(*(
        {k: getattr(oracle.gaussian(path[k], 0.3, width)(key, x_t[k], t), part) for k in path} for part in ("x0", "eps")))
    make = {
        "classifier": lambda p: jd.guidance.classifier(
            lambda x, t, cond: sum((0.3 * v**2).sum(1) for v in jax.tree.leaves(x)), 2.0, p),
        "autoguidance": lambda p: jd.guidance.autoguidance(of(0.9) if p is path else one(p, 0.9), 2.0),
        "dynamic_threshold": lambda p: jd.guidance.dynamic_threshold(p, 0.6, 0.3),
        "static_threshold": lambda p: jd.guidance.static_threshold(p, 0.3),
    }[name]
    one = lambda p, width: oracle.gaussian(p, 0.3, width)
    x_t = {"x": X_T.astype(float), "y": -2 * X_T[:, :2].astype(float)}
    out = make(path)(of(0.4))(KEY, x_t, 0.5, {})
    for k in path:
        alone = make(path[k])(one(path[k], 0.4))(KEY, x_t[k], 0.5, {})
        np.testing.assert_allclose(out.x0[k], alone.x0, rtol=1e-10)
        np.testing.assert_allclose(out.eps[k], alone.eps, rtol=1e-10, atol=1e-12)
