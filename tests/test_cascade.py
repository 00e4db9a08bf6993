"""A cascade of exact denoisers on Gaussian data at two resolutions, and what augmentation does to a low-resolution input."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import jaxdiff as jd
from jaxdiff.augmentation import NONE, blur, gaussian
from jaxdiff.cascade import Stage, cut, sample_cascade, sample_stage
from jaxdiff.trees import expand

AUGMENT = gaussian(jd.sde.VP())
NUM, KEY = 100_000, jax.random.key(0)
# 2x2 pictures and their block mean
MEAN = np.array([0.3, -0.2, 0.1, 0.4])
ROOT = np.array([[0.5, 0, 0, 0], [0.3, 0.4, 0, 0], [-0.2, 0.1, 0.35, 0], [0.1, 0.2, -0.1, 0.3]])
COV = ROOT @ ROOT.T
BLOCK = np.full((1, 4), 0.25)


def affine(path, mean, cov):
    """The exact denoiser of N(mean [B or 1, D], cov [D, D])."""

    def predict(x_t, t):
        flat = x_t.reshape(len(x_t), -1)
        alpha, sigma = path.alpha(t), path.sigma(t)
        centred = flat - alpha * mean
        solved = centred @ jnp.linalg.inv(alpha**2 * cov + sigma**2 * jnp.eye(flat.shape[1]))
        return jd.Prediction((mean + alpha * solved @ cov).reshape(x_t.shape), (sigma * solved).reshape(x_t.shape))

    return predict


def base(path, steps=120):
    predict = affine(path, jnp.asarray(BLOCK @ MEAN), jnp.asarray(BLOCK @ COV @ BLOCK.T))
    return Stage((1, 1, 1), path, lambda params, cond: lambda key, x, t, cond=None: predict(x, t), jd.samplers.heun(), steps)


def refiner(path, steps=120, augmentation=AUGMENT):
    """x given z_s = alpha(s) mean(x) + sigma(s) e, s as it is told (1000 s on VP)."""
    aug = jd.sde.VP()

    def denoise(key, x, t, cond=None):
        z = cond["low_res"].reshape(-1, 1)
        s = cond["low_res_t"][0] / 1000 if "low_res_t" in cond else jnp.asarray(0.0)  # one for all
        a, v = aug.alpha(s), aug.sigma(s) ** 2
        gain = a * COV @ BLOCK.T / (a**2 * BLOCK @ COV @ BLOCK.T + v)  # [4, 1]
        mean = MEAN + (z - a * (BLOCK @ MEAN)) @ gain.T
        cov = COV - a * gain @ BLOCK @ COV
        return affine(path, mean, cov)(x, t)

    return Stage((2, 2, 1), path, lambda params, cond: denoise, jd.samplers.heun(), steps, augmentation=augmentation)


PATHS = {"EDM": jd.sde.EDM(sigma_min=0.002, sigma_max=80.0), "VP": jd.sde.VP(),
         "Discrete": jd.sde.Discrete(jd.sde.linear_betas(200))}


@pytest.mark.parametrize("name, truncated, sampler", [
    *((name, truncated, jd.samplers.heun()) for name in PATHS for truncated in (False, True)),
    ("VP", True, jd.samplers.ancestral()),  # a state with noise of its own: handing on its mean would be wrong
])
def test_exact_stages_give_the_exact_joint(name, truncated, sampler):
    """Mean and covariance within 2 % of the data's, and the first stage's pictures as they should go with the second's."""
    first_order = sampler is not jd.samplers.heun()
    stages = replace(base(PATHS[name], 800 if first_order else 120), sampler=sampler), refiner(PATHS["EDM"])
    s = 0.08  # as much noise as signal: where either prevails, a wrong hand-over would show little
    low, high = jax.jit(lambda key: sample_cascade(key, stages, [None, None], num=NUM, s=s, truncated=truncated))(KEY)
    low, high = np.asarray(low).reshape(NUM, 1), np.asarray(high).reshape(NUM, 4)
    scale = np.sqrt(np.outer(np.diag(COV), np.diag(COV)))
    assert np.abs(high.mean(0) - MEAN).max() < 0.02 * np.sqrt(np.diag(COV)).max()
    assert (np.abs(np.cov(high.T) - COV) / scale).max() < 0.02
    # z_0 and x meet only through z_s: cov(z_0, x) = v_0 a / Var(z_s) * a A S, of z_0 itself and of E[z_0 | z_s] alike
    a, v, v_0 = float(AUGMENT.path.alpha(s)), float(AUGMENT.path.sigma(s)) ** 2, (BLOCK @ COV @ BLOCK.T).item()
    want = v_0 * a * a / (a**2 * v_0 + v) * (BLOCK @ COV)[0]
    got = ((low - low.mean()) * (high - high.mean(0))).mean(0)
    assert (np.abs(got - want) / np.sqrt(v_0 * np.diag(COV))).max() < 0.02
    assert low.var() == pytest.approx(v_0 * (a * a * v_0 / (a**2 * v_0 + v) if truncated else 1), rel=0.02)


def test_a_stage_that_is_not_told_s_is_wrong():
    """The test above can fail: with s at 0 for the network, the covariance is off by far more."""
    wrong = refiner(PATHS["EDM"], augmentation=AUGMENT._replace(tell=lambda z, s: AUGMENT.tell(z, 0.0)))
    _, high = sample_cascade(KEY, (base(PATHS["EDM"]), wrong), [None, None], num=20_000, s=0.35)
    scale = np.sqrt(np.outer(np.diag(COV), np.diag(COV)))
    assert (np.abs(np.cov(np.asarray(high).reshape(-1, 4).T) - COV) / scale).max() > 0.2


def test_s_0_is_no_augmentation_bit_for_bit():
    stages, plain = [base(PATHS["EDM"]), refiner(PATHS["VP"])], refiner(PATHS["VP"], augmentation=NONE)
    draw = lambda stages, **how: jax.jit(partial(sample_cascade, stages=stages, params=[None, None], num=16, **how))(KEY)
    ours, cut_short = draw(stages, s=0.0), draw(stages, s=0.0, truncated=True)
    without = draw([stages[0], plain])
    for a, b, c in zip(ours, cut_short, without, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    k_base, _ = jax.random.split(jax.random.fold_in(KEY, 0))
    alone = jax.jit(lambda key: sample_stage(key, stages[0], None, None, 16)[0])(k_base)
    np.testing.assert_allclose(ours[0], alone, rtol=1e-6)


def test_truncation_saves_steps_and_lands_on_the_level():
    """The hand-over is at equal log-SNR, whatever the processes; fewer steps are left."""
    for path in PATHS.values():
        for s in (0.1, 0.5, 0.9):
            stop = cut(path, AUGMENT, s)
            np.testing.assert_allclose(jd.sde.log_snr(path, stop.t), jd.sde.log_snr(AUGMENT.path, s), rtol=1e-3, atol=1e-3)
            assert stop.scale * path.alpha(stop.t) == pytest.approx(float(AUGMENT.path.alpha(s)), rel=1e-5)
            assert stop.scale * path.sigma(stop.t) == pytest.approx(float(AUGMENT.path.sigma(s)), rel=1e-3)
            times = base(path).times(stop.t)
            assert times[-1] == pytest.approx(stop.t) and (np.diff(times) < 0).all() and len(times) <= 121
    low = cut(PATHS["VP"], AUGMENT, 5e-4)  # below the last time of a uniform grid on VP, 1e-3
    assert base(PATHS["VP"]).times(low.t)[-1] == pytest.approx(5e-4, rel=1e-3)


def test_pure_jit_vmap_and_the_label_reaches_every_stage():
    seen = []

    def watching(stage):
        inner = stage.denoiser(None, None)

        def denoise(key, x, t, cond=None):
            seen.append(sorted(cond))
            return inner(key, x, t, cond)

        return replace(stage, denoiser=lambda params, cond: denoise, num_steps=3)

    stages = watching(base(PATHS["VP"])), watching(refiner(PATHS["EDM"]))
    cond = {"label": jnp.arange(4)}
    draw = lambda key: sample_cascade(key, stages, [None, None], cond, s=0.2)
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(draw)(keys)
    np.testing.assert_allclose(many[1][2], jax.jit(draw)(keys[2])[1], rtol=1e-4, atol=1e-5)
    assert ["label"] in seen and ["label", "low_res", "low_res_t"] in seen and len({tuple(s) for s in seen}) == 2


@pytest.mark.parametrize(
    "how, told",
    [
        ({"s": 1.5}, "s is 1.5; allowed: 0 to 1"), ({"s": [0.1, 0.2]}, "s has 2 values for 1"),
        ({"num": None}, "mend: num=16"), ({"params": [None]}, "2 stages and 1 params"), ({"s": -0.1}, "s is -0.1"),
    ],
)
def test_wrong_words(how, told):
    stages = base(PATHS["VP"]), refiner(PATHS["EDM"])
    with pytest.raises(ValueError, match=told):
        sample_cascade(KEY, stages, **{"params": [None, None], "num": 2, "s": 0.1, **how})


def test_a_stage_that_is_never_so_noisy_cannot_be_truncated():
    with pytest.raises(ValueError, match="noisier than the stage before"):
        cut(jd.sde.EDM(sigma_max=1.0), AUGMENT, 0.9)


# --- augmentation ---------------------------------------------------------------------------------------------------------

Y = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 3, 5, 2)), jnp.float32)
KEYS = jax.random.split(jax.random.key(1), len(Y))


def test_gaussian_augmentation():
    """s is uniform, the noise belongs to it, and it is told as c_noise; each example's draw depends on its key alone."""
    for path, scale in ((jd.sde.VP(), 1000.0), (jd.sde.Cosine(), 1000.0)):
        made = gaussian(path)
        out = made.draw(KEYS, {"low_res": Y, "label": jnp.zeros(len(Y))})
        s = np.asarray(out["low_res_t"]) / scale
        edges = np.quantile(s, [0.1, 0.5, 0.9]) / path.t_max
        np.testing.assert_allclose(edges, [0.1, 0.5, 0.9], atol=0.03)
        noise = (out["low_res"] - expand(path.alpha(s), Y) * Y) / expand(path.sigma(s), Y)
        assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
        one = made.draw(KEYS[7:8], {"low_res": Y[7:8]})
        np.testing.assert_allclose(one["low_res"][0], out["low_res"][7], rtol=1e-5, atol=1e-5)
        assert set(out) == {"low_res", "low_res_t", "label"}
    short = gaussian(jd.sde.VP(), s_max=0.3).draw(KEYS, {"low_res": Y})["low_res_t"]
    assert 290 < float(short.max()) <= 300


@pytest.mark.parametrize("path", [jd.sde.VE(), jd.sde.EDM()])
def test_paths_that_never_are_clean_are_refused(path):
    with pytest.raises(ValueError, match="clean at 0"):
        gaussian(path)


def test_s_max_out_of_range():
    with pytest.raises(ValueError, match="s_max is 2"):
        gaussian(jd.sde.VP(), s_max=2.0)


def test_blur_is_scipys():
    """A separable 3x3 Gaussian with repeated edges; half of the examples; widths between .4 and .6; none while sampling."""
    fixed = blur(1.0, 0.5, 0.5).draw(KEYS[:4], {"low_res": Y[:4]})["low_res"]
    want = ndimage.gaussian_filter(np.asarray(Y[:4]), (0, 0.5, 0.5, 0), mode="nearest", truncate=2.0)  # radius 1
    np.testing.assert_allclose(fixed, want, atol=1e-5)
    out = blur().draw(KEYS, {"low_res": Y})["low_res"]
    changed = np.asarray(jnp.abs(out - Y).max((1, 2, 3)) > 1e-6)
    assert abs(changed.mean() - 0.5) < 0.03
    flat = blur(1.0).draw(KEYS[:4], {"low_res": jnp.ones((4, 3, 3, 1))})["low_res"]
    np.testing.assert_allclose(flat, 1.0, rtol=1e-6)
    assert set(blur().tell(Y, 0.0)) == set(NONE.tell(Y, 0.0)) == {"low_res"}
    with pytest.raises(ValueError, match="share=2"):
        blur(2.0)
