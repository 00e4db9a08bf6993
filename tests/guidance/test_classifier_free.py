"""Classifier-free guidance: its formula, its one batched call, its interval, and samplers that carry it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdiff as jd
from jaxdiff.trees import expand
from tests import oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(1)
PATH = jd.sde.VP()
CENTRES, CLASS_STD = jnp.array([-0.4, 0.0, 0.5]), 0.3
CLASSES = len(CENTRES)
FREE_MEAN, FREE_STD = 0.05, 0.6  # "no class" is a wider Gaussian, so that every guided score is linear
LABEL = jnp.array([0, 2, 1, 2], jnp.int32)
X_T = jnp.linspace(-2, 2, 12).reshape(4, 3)


def classes(path, calls=None):
    """The exact denoiser of each class, N(centre, std^2), and of no class; it counts its calls by batch size."""

    def denoise(key, x_t, t, cond=None):
        if calls is not None:
            calls.append(x_t.shape[0])
        free = (cond["label"] == CLASSES)[:, None]
        mean = jnp.where(free, FREE_MEAN, CENTRES[jnp.minimum(cond["label"], CLASSES - 1)][:, None])
        std = jnp.where(free, FREE_STD, CLASS_STD)
        prediction = oracle.gaussian(path, mean, std)(key, x_t, t)
        return prediction._replace(var_mix=jnp.broadcast_to(cond["label"][:, None] / 10, x_t.shape))

    return denoise


def guide(scale, path=PATH, calls=None):
    return jd.guidance.classifier_free(scale, CLASSES)(classes(path, calls))


def halves(path, x_t, t, label=LABEL):
    plain = classes(path)
    return plain(KEY, x_t, t, {"label": label}), plain(KEY, x_t, t, {"label": jnp.full_like(label, CLASSES)})


def test_scale_one_is_the_conditional_denoiser_itself():
    plain = classes(PATH)
    for scale in (1, 1.0, np.float32(1)):
        assert jd.guidance.classifier_free(scale, CLASSES)(plain) is plain


def test_scale_zero_is_the_unconditional_one_in_a_single_call():
    calls = []
    out = guide(0, calls=calls)(KEY, X_T, 0.5, {"label": LABEL})
    jax.tree.map(np.testing.assert_array_equal, out, halves(PATH, X_T, 0.5)[1])
    assert calls == [4]


@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.7, 7.5])
@pytest.mark.parametrize("time", [0.4, [0.02, 0.3, 0.7, 1.0]], ids=["scalar", "per_example"])
def test_formula_identity_and_one_batched_call(x64, scale, time):
    x_t, t, calls = X_T.astype(float), jnp.asarray(time), []
    out = guide(scale, calls=calls)(KEY, x_t, t, {"label": LABEL})
    assert calls == [8]  # both halves at once
    given, free = halves(PATH, x_t, t)
    np.testing.assert_allclose(out.x0, free.x0 + scale * (given.x0 - free.x0), rtol=1e-12)
    np.testing.assert_allclose(out.eps, free.eps + scale * (given.eps - free.eps), rtol=1e-12)
    np.testing.assert_array_equal(out.var_mix, given.var_mix)  # the conditional half's, unmixed
    alpha, sigma = expand(PATH.alpha(t), x_t), expand(PATH.sigma(t), x_t)
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-12)
    # its score is (1 - w) of the unconditional Gaussian's and w of the class's
    a, s = np.asarray(alpha), np.asarray(sigma)
    of = lambda mean, std: -(np.asarray(x_t) - a * mean) / (a**2 * std**2 + s**2)
    expected = (1 - scale) * of(FREE_MEAN, FREE_STD) + scale * of(np.asarray(CENTRES[LABEL])[:, None], CLASS_STD)
    np.testing.assert_allclose(jd.sde.score(PATH, out, t), expected, rtol=1e-6, atol=1e-6)


def test_random_linear_network_through_denoiser(x64):
    """Weights that sum to one commute with any parameterisation: mixing raw outputs or pairs is the same."""
    rng = np.random.default_rng(0)
    table, matrix = jnp.asarray(rng.standard_normal((CLASSES + 1, 3))), jnp.asarray(rng.standard_normal((3, 3)))
    network = lambda p, x, c, cond: x @ matrix + table[cond["label"]]
    mixed = lambda p, x, c, cond: x @ matrix + table[-1] + 2.5 * (table[cond["label"]] - table[-1])
    x_t, t = X_T.astype(float), jnp.array([0.1, 0.2, 0.6, 0.9])
    for name in ("eps", "x0", "v", "velocity", "edm"):
        parameterization = getattr(jd.parameterizations, name)()
        guided = jd.guidance.classifier_free(2.5, CLASSES)(jd.denoiser(network, {}, PATH, parameterization))
        expected = jd.denoiser(mixed, {}, PATH, parameterization)(KEY, x_t, t, {"label": LABEL})
        seen = guided(KEY, x_t, t, {"label": LABEL})
        np.testing.assert_allclose(seen.x0, expected.x0, rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(seen.eps, expected.eps, rtol=1e-9, atol=1e-9, err_msg=name)


def test_interval_acts_inside_only(x64):
    """Levels are sigma / alpha, its ends included: 0.3 to 3 of EDM, whose time is the level."""
    path, interval = jd.sde.EDM(), (0.3, 3.0)
    guided = jd.guidance.classifier_free(2.0, CLASSES, path, interval)(classes(path))
    x_t, cond = X_T.astype(float), {"label": LABEL}
    levels = jnp.array([0.1, 0.31, 2.9, 3.1])
    out = guided(KEY, x_t, levels, cond)
    given, free = halves(path, x_t, levels)
    whole = free.x0 + 2.0 * (given.x0 - free.x0)
    inside = np.array([False, True, True, False])
    np.testing.assert_allclose(out.x0, np.where(inside[:, None], whole, given.x0), rtol=1e-12)
    assert (abs(whole - given.x0) > 1e-3).any(1).all()
    for level, acts in zip(levels, inside, strict=True):  # the same with scalar times, under jit
        one = jax.jit(guided)(KEY, x_t, level, cond)
        given, free = halves(path, x_t, level)
        np.testing.assert_allclose(one.eps, free.eps + (2.0 if acts else 1.0) * (given.eps - free.eps), rtol=1e-10)
    vp = jd.guidance.classifier_free(2.0, CLASSES, PATH, interval)(classes(PATH))
    t = jd.sde.time_at(PATH, -2 * jnp.log(levels))  # the same levels on another path
    given, free = halves(PATH, x_t, t)
    whole = free.x0 + 2.0 * (given.x0 - free.x0)
    np.testing.assert_allclose(vp(KEY, x_t, t, cond).x0, np.where(inside[:, None], whole, given.x0), rtol=1e-10)


def test_scale_zero_still_keeps_to_its_interval(x64):
    """Outside it the prediction is the conditional one, whatever the scale."""
    path = jd.sde.EDM()
    guided = jd.guidance.classifier_free(0.0, CLASSES, path, (0.3, 3.0))(classes(path))
    given, free = halves(path, X_T.astype(float), levels := jnp.array([0.1, 0.31, 2.9, 3.1]))
    out = guided(KEY, X_T.astype(float), levels, {"label": LABEL})
    np.testing.assert_array_equal(out.x0[::3], given.x0[::3])
    np.testing.assert_allclose(out.x0[1:3], free.x0[1:3], rtol=1e-12)


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale(x64, phi):
    """phi = 1 has the conditional prediction's contrast, a phi between is the mixture; the pair still makes up x_t."""
    x_t, t, cond = X_T.astype(float), jnp.array([0.02, 0.3, 0.7, 1.0]), {"label": LABEL}
    given, _ = halves(PATH, x_t, t)
    plain = guide(4.0)(KEY, x_t, t, cond).x0
    out = jd.guidance.classifier_free(4.0, CLASSES, PATH, rescale=phi)(classes(PATH))(KEY, x_t, t, cond)
    whole = plain * np.std(given.x0, axis=1, keepdims=True) / np.std(plain, axis=1, keepdims=True)
    assert (np.abs(whole - plain) > 1e-3).any(1).all()
    np.testing.assert_allclose(out.x0, phi * whole + (1 - phi) * plain, rtol=1e-10)
    if phi == 1:
        np.testing.assert_allclose(np.std(out.x0, axis=1), np.std(given.x0, axis=1), rtol=1e-10)
    alpha, sigma = expand(PATH.alpha(t), x_t), expand(PATH.sigma(t), x_t)
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-12)


def test_rescale_is_of_each_picture_whole(x64):
    """Over height, width and channels of one example; a flat prediction, which has no contrast, is left as it is."""
    shape = (2, 4, 4, 3)
    given, free = jax.random.normal(KEY, shape, float), jnp.zeros(shape)
    x0 = jnp.stack([given.at[1].set(0.5), free], 1).reshape(4, *shape[1:])  # each with its unconditional one
    denoise = lambda key, x, t, cond=None: jd.Prediction(x0, jnp.zeros_like(x0))
    wrap = jd.guidance.classifier_free(3.0, CLASSES, PATH, rescale=1.0)
    out = wrap(denoise)(KEY, jnp.zeros(shape), 0.5, {"label": LABEL[:2]}).x0
    np.testing.assert_allclose(out[0], given[0], rtol=1e-10)  # 3 x given, its contrast back at given's
    np.testing.assert_allclose(out[1], 1.5, rtol=1e-12)


def test_text_alone_is_masked_and_other_conditions_stay():
    seen = []

    def denoise(key, x_t, t, cond=None):
        seen.append(cond)
        return jd.Prediction(x_t, x_t)

    cond = {"text": jnp.ones((4, 2, 3)), "low_res": X_T}
    jd.guidance.classifier_free(3.0, CLASSES)(denoise)(KEY, X_T, 0.5, cond)
    assert seen[0]["text_mask"][::2].all() and not seen[0]["text_mask"][1::2].any()
    np.testing.assert_array_equal(seen[0]["low_res"], jnp.repeat(X_T, 2, axis=0))
    assert set(cond) == {"text", "low_res"}


def test_several_variables_are_guided_together(x64):
    path = {"x": PATH, "y": jd.sde.VE()}
    x_t = {"x": X_T.astype(float), "y": X_T[:, :1].astype(float)}

    def denoise(key, x_t, t, cond=None):
        assert x_t["x"].shape[0] == x_t["y"].shape[0]
        both = {name: classes(path[name])(key, x_t[name], t, cond) for name in path}
        return jd.Prediction({k: v.x0 for k, v in both.items()}, {k: v.eps for k, v in both.items()})

    out = jd.guidance.classifier_free(2.0, CLASSES)(denoise)(KEY, x_t, 0.5, {"label": LABEL})
    for name in path:
        given, free = halves(path[name], x_t[name], 0.5)
        np.testing.assert_allclose(out.x0[name], 2 * given.x0 - free.x0, rtol=1e-10)
        np.testing.assert_allclose(out.eps[name], 2 * given.eps - free.eps, rtol=1e-10)


@pytest.mark.parametrize(("sampler", "error"), [("heun", 1e-4), ("ddim", 1e-2), ("dpm_solver", 2e-3)])
def test_inside_a_sampler_it_follows_the_guided_ode(x64, sampler, error):
    """The guided score is linear, so scipy integrates the same probability flow on its own; jit, vmap over labels,
    and a single label give one answer."""
    scale, steps = 2.5, 200
    path = jd.sde.Flow()
    grid = jd.sde.grids.uniform(path, steps, 1e-3)
    x_T = jnp.array([[-1.5], [0.2], [0.9], [1.4]], float)
    denoise = guide(scale, path)

    @jax.jit
    def run(label):
        return jd.samplers.sample(getattr(jd.samplers, sampler)(), denoise, path, grid, KEY, x_T, {"label": label})

    labels = jnp.stack([LABEL, LABEL[::-1]])
    both = jax.vmap(run)(labels)
    np.testing.assert_allclose(both[0], run(labels[0]), rtol=1e-12)

    def flow(t, x, centre):  # Flow: dx/dt = eps - x0, both linear in x
        total = 0
        for weight, mean, std in ((1 - scale, FREE_MEAN, FREE_STD), (scale, centre, CLASS_STD)):
            c = (1 - t) ** 2 * std**2 + t**2
            residual = x - (1 - t) * mean
            total = total + weight * (t / c * residual - mean - (1 - t) * std**2 / c * residual)
        return total

    for label, seen in zip(labels, both, strict=True):
        centre = np.asarray(CENTRES[label])
        span, start = (float(grid[0]), 1e-3), np.asarray(x_T)[:, 0]
        exact = solve_ivp(flow, span, start, "DOP853", args=(centre,), rtol=1e-10, atol=1e-10).y[:, -1]
        np.testing.assert_allclose(seen[:, 0], exact, atol=error)


def test_jit_vmap_scan_and_gradient():
    guided, cond, step = guide(3.0), {"label": LABEL}, 1e-2
    at = lambda x, t: guided(KEY, x, t, cond)

    @jax.jit
    def transformed():
        mapped = jax.vmap(at)(jnp.stack([-X_T, X_T]), jnp.array([0.2, 0.5]))
        _, scanned = jax.lax.scan(lambda x, t: (x, at(x, t)), X_T, jnp.array([0.7, 0.5]))
        slope = jax.grad(lambda x: at(x, 0.5).x0.sum())(X_T)
        numeric = (at(X_T + step, 0.5).x0 - at(X_T - step, 0.5).x0) / (2 * step)
        return at(X_T, 0.5), mapped, scanned, slope, numeric

    plain = at(X_T, 0.5)
    jitted, mapped, scanned, slope, numeric = transformed()
    assert plain.x0.dtype == jnp.float32
    for other in (jitted, jax.tree.map(lambda v: v[1], mapped), jax.tree.map(lambda v: v[1], scanned)):
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6), other, plain)
    np.testing.assert_allclose(slope, numeric, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": float("nan")}, "guidance scale is nan; allowed: a finite number"),
        ({"scale": float("inf")}, "guidance scale is inf; allowed"),
        ({"scale": "2.0"}, "guidance scale is '2.0'; allowed"),
        ({"scale": True}, "guidance scale is True; allowed"),
        ({"scale": None}, "guidance scale is None; allowed"),
        ({"scale": 2.0, "interval": (0.3, 3.0)}, "an interval without a path; mend: path="),
        ({"scale": 2.0, "interval": (3.0, 0.3), "path": PATH}, "low <= high"),
        ({"scale": 2.0, "interval": (-1.0, 0.3), "path": PATH}, "0 <= low"),
        ({"scale": 2.0, "interval": 0.3, "path": PATH}, r"interval is 0.3; allowed: \(low, high\)"),
        ({"scale": 2.0, "interval": (0.3, float("nan")), "path": PATH}, "low <= high"),
        ({"scale": 2.0, "rescale": 0.7}, "a rescale without a path; mend: path="),
        ({"scale": 2.0, "rescale": 1.1, "path": PATH}, "rescale is 1.1; allowed: a number from 0"),
        ({"scale": 2.0, "rescale": -0.1, "path": PATH}, "rescale is -0.1; allowed"),
        ({"scale": 2.0, "rescale": "much", "path": PATH}, "rescale is 'much'; allowed"),
    ],
    ids=lambda v: None if isinstance(v, dict) else v[:30],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words) as error:
        jd.guidance.classifier_free(num_classes=CLASSES, **options)
    assert "\n" not in str(error.value)


def test_a_condition_with_nothing_to_drop_is_refused():
    for cond, words in ((None, "got no condition; mend: pass cond"), ({"z": X_T}, r"\['z'\]; allowed: one with a label")):
        with pytest.raises(ValueError, match=words) as error:
            guide(2.0)(KEY, X_T, 0.5, cond)
        assert "\n" not in str(error.value)
