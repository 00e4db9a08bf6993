"""Scores of draws beside their truth: closed forms, scikit-image as a peer, cases by hand, and what must not be counted."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation import (
    consistency,
    diversity,
    feature_distance,
    frechet_distance,
    joint_frechet,
    moments_of,
    paired_report,
    pixels,
    psnr,
    ssim,
)

structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity


def noise(*shape, scale=0.4, seed=0):
    return np.clip(np.random.default_rng(seed).normal(size=shape) * scale, -1, 1).astype(np.float32)


def hide(x, mask):
    """Inpainting's true operator."""
    return x * (1 - mask)


def squares(n, side=12, hole=5):
    """A mask for each of `n` examples, a square in another place each, 1 = hidden."""
    mask = np.zeros((n, side, side, 1), np.float32)
    for i in range(n):
        mask[i, i : i + hole, 2 * i : 2 * i + hole] = 1
    return mask


# ---- closeness


def test_psnr_closed_forms():
    x = noise(4, 8, 9, 3)
    shifts = np.float32([0.5, 0.1, 0.01, 0]).reshape(4, 1, 1, 1)
    found = psnr(np.clip(x, -0.4, 0.4), np.clip(x, -0.4, 0.4) + shifts)
    assert found.shape == (4,)
    np.testing.assert_allclose(found, [20 * math.log10(2 / 0.5), 20 * math.log10(20), 20 * math.log10(200), 100], atol=1e-3)
    one = np.zeros((1, 10, 10, 1), np.float32)
    one[0, 3, 4] = 1  # one pixel in a hundred off by half the range: mean square .01, 4 / .01
    np.testing.assert_allclose(psnr(one, np.zeros_like(one)), 10 * math.log10(400), rtol=1e-6)
    weight = np.zeros((1, 10, 10, 1))
    weight[0, 3:5, 4] = 1  # that one and one that agrees: 4 / .5
    np.testing.assert_allclose(psnr(one, np.zeros_like(one), weight), 10 * math.log10(8), rtol=1e-6)
    np.testing.assert_allclose(psnr(-np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1))), 0, atol=1e-5)  # the worst there is


@pytest.mark.parametrize("shape", [(3, 20, 31, 1), (2, 11, 14, 3)])
def test_ssim_equals_scikit_image(shape):
    """scikit-image also averages over the windows that lie inside the picture, so borders need no cutting on either side."""
    a = noise(*shape)
    a[0] = np.linspace(-1, 1, shape[2])[None, :, None]
    b = np.clip(a + noise(*shape, scale=0.3, seed=1), -1, 1)
    b[1] = -a[1]
    found = ssim(a, b)
    expected = [
        structural_similarity((x + 1) / 2, (y + 1) / 2, data_range=1.0, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False, channel_axis=-1)
        for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    a, b = np.full((1, 12, 12, 1), 0.0), np.full((1, 12, 12, 1), 0.6)  # .5 and .8 of the range [0, 1]
    c1 = 0.01**2
    np.testing.assert_allclose(ssim(a, b), (2 * 0.5 * 0.8 + c1) / (0.25 + 0.64 + c1), rtol=1e-4)


# ---- features


def test_feature_distance_is_twice_one_minus_the_cosine():
    a, b = noise(5, 4, 4, 1), noise(5, 4, 4, 1, seed=1)
    u, v = a.reshape(5, -1), b.reshape(5, -1)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(feature_distance(pixels, a, b, batch_size=2), 2 - 2 * cosine, rtol=1e-5)
    np.testing.assert_allclose(feature_distance(pixels, a, -a / 2), 4, rtol=1e-5)
    np.testing.assert_allclose(feature_distance(pixels, a * 0, a), 1, rtol=1e-5)  # nothing has no direction
    # one channel at every position: 0 where the signs agree, else 4
    signs = np.mean(np.sign(a) != np.sign(b), (1, 2, 3))
    np.testing.assert_allclose(feature_distance(lambda x: jnp.asarray(x), a, b), 4 * signs, rtol=1e-5)


def one_pixel(*values):
    return np.float32(values).reshape(-1, 1, 1, 1)


def test_joint_frechet_by_hand():
    """y and x are +-1/2 each, variance 1/2 (n - 1 = 1): the covariances are [[1, 1], [1, 1]] / 2 and [[1, -1], [-1, 1]] / 2,
    whose product is 0, so that the distance is the sum of the traces, 2. Neither margin differs."""
    y = x = one_pixel(0.5, -0.5)
    wrong = joint_frechet(pixels, y, -x, x)
    np.testing.assert_allclose(wrong.value, 2, rtol=1e-6)
    assert (wrong.n_real, wrong.n_fake) == (2, 2)
    assert joint_frechet(pixels, y, x, x).value < 1e-6
    np.testing.assert_allclose(joint_frechet(pixels, y, x + 0.25, x).value, 0.0625, rtol=1e-5)  # a mean off by 1/4
    assert frechet_distance(moments_of(x.reshape(2, 1)), moments_of(-x.reshape(2, 1))).value < 1e-6
    # the pairs (y, x) and (y, -x) together: uncorrelated, each of variance (4 / 4) / 3, so the covariance I / 3 against
    # [[1, 1], [1, 1]] / 2, whose one eigenvalue is 1: the distance is 1 + 2/3 - 2 sqrt(1/3)
    both = joint_frechet(pixels, y, np.stack([x, -x]), x)
    np.testing.assert_allclose(both.value, 1 + 2 / 3 - 2 * math.sqrt(1 / 3), rtol=1e-6)
    assert (both.n_real, both.n_fake) == (2, 4)
    # the right draw twice: [[1, 1], [1, 1]] / 3 against / 2, since n - 1 is 3 now
    twice = joint_frechet(pixels, y, np.stack([x, x]), x).value
    np.testing.assert_allclose(twice, 1 + 2 / 3 - 2 * math.sqrt(2 / 3), rtol=1e-6)


def test_joint_frechet_gives_y_the_channels_of_x():
    x, y = noise(9, 3, 3, 3), noise(9, 3, 3, 1, seed=1)
    drawn = noise(9, 3, 3, 3, seed=2)
    repeated = joint_frechet(pixels, y.repeat(3, -1), drawn, x).value
    assert joint_frechet(pixels, y, drawn, x).value == repeated
    grey = joint_frechet(pixels, x.mean(-1, keepdims=True), drawn[..., :1], y).value
    np.testing.assert_allclose(joint_frechet(pixels, x, drawn[..., :1], y).value, grey, rtol=1e-6)
    with pytest.raises(ValueError, match=r"condition has 2 channels, the truth 3; allowed"):
        joint_frechet(pixels, x[..., :2], drawn, x)


# ---- draws


def test_diversity_by_hand():
    draws = np.zeros((2, 2, 1, 2, 1), np.float32)
    draws[:, 0, 0, 0, 0] = -0.5, 0.5  # std sqrt(1/2); the pixel beside it does not move
    found = diversity(draws)
    np.testing.assert_allclose(found, [math.sqrt(0.5) / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(diversity(noise(400, 1, 9, 9, 1, scale=0.2)), 0.2, rtol=0.02)
    with pytest.raises(ValueError, match="diversity of K = 1"):
        diversity(draws[:1])


def test_consistency_counts_known_pixels_only_under_the_examples_own_mask():
    x, mask = noise(3, 12, 12, 1), squares(3)
    y = hide(x, mask)
    filled = [x * (1 - mask) + mask * noise(3, 12, 12, 1, seed=s) for s in (1, 2)]  # anything at all in the hole
    np.testing.assert_array_equal(consistency(hide, filled, y, mask, batch_size=4), np.full((2, 3), 100))
    base = np.clip(x, -0.8, 0.8)  # .1 off everywhere is 20 log10(2 / .1), however large the hole
    off = consistency(hide, base[None] + np.float32(0.1), hide(base, mask), mask)
    np.testing.assert_allclose(off, 20 * math.log10(20), rtol=1e-5)
    fresh = consistency(hide, filled, y, np.roll(mask, 1, 0))  # another example's mask: the hole is scored
    assert fresh.max() < 30
    assert consistency(lambda x: x[..., ::-1, :], [x], x[..., ::-1, :])[0].min() == 100  # no mask: an operator of x alone


def report_case():
    """Three draws of four conditions: two noisy, and the last one perfect."""
    x, mask = np.clip(noise(4, 12, 12, 1), -0.9, 0.9), squares(4, hole=4)
    draws = np.stack([np.clip(x + noise(4, 12, 12, 1, scale=s, seed=7), -1, 1) for s in (0.1, 0.3)] + [x])
    return x, draws, hide(x, mask), mask


def test_report_is_the_mean_over_all_draws():
    x, draws, y, mask = report_case()
    found = paired_report(x, draws, y, operator=hide, mask=mask, features=pixels, batch_size=5,
                          lpips=lambda a, b: np.abs(a - b).mean((1, 2, 3)))  # fmt: skip
    assert found["n"] == 4
    assert found["k"] == 3
    known = np.broadcast_to(1 - mask, x.shape).astype(bool)
    scores = {name: np.zeros((3, 4)) for name in ("psnr", "ssim", "lpips", "feature_distance", "consistency")}
    for k in range(3):
        for i in range(4):
            a, b = draws[k, i].astype(np.float64), x[i].astype(np.float64)
            square = (a - b) ** 2
            scores["psnr"][k, i] = 10 * math.log10(4 / square.mean()) if square.any() else 100
            inside = square[known[i]]
            scores["consistency"][k, i] = 10 * math.log10(4 / inside.mean()) if inside.any() else 100
            scores["ssim"][k, i] = structural_similarity((a[..., 0] + 1) / 2, (b[..., 0] + 1) / 2, data_range=1.0,
                                                         gaussian_weights=True, use_sample_covariance=False)  # fmt: skip
            scores["lpips"][k, i] = np.abs(a - b).mean()
            scores["feature_distance"][k, i] = 2 - 2 * (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    for name, each in scores.items():
        np.testing.assert_allclose(found[name], each.mean(), rtol=2e-5, err_msg=name)
        np.testing.assert_allclose(found[f"{name}_se"], each.mean(0).std(ddof=1) / 2, rtol=2e-3, err_msg=name)
    assert found["psnr_capped"] == found["consistency_capped"] == 4
    spread = draws.astype(np.float64).std(0, ddof=1).mean((1, 2, 3))
    np.testing.assert_allclose(found["diversity"], spread.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["diversity_se"], spread.std(ddof=1) / 2, rtol=1e-5)
    flat = draws.reshape(12, -1)
    alone = frechet_distance(moments_of(x.reshape(4, -1)), moments_of(flat)).value
    np.testing.assert_allclose(found["frechet"], alone, rtol=1e-6)
    np.testing.assert_allclose(found["joint_frechet"], joint_frechet(pixels, y, draws, x).value, rtol=1e-6)
    assert (found["frechet_n_real"], found["frechet_n_fake"]) == (4, 12)


def test_report_measures_what_suits_and_says_what_does_not():
    x, draws, y, _ = report_case()
    assert set(paired_report(x, draws[:1], y)) == {"n", "k", "psnr", "psnr_se", "psnr_capped", "ssim", "ssim_se"}
    small = paired_report(x[:, :8, :8], draws[:, :, :8, :8], y[:, :8, :8])  # smaller than SSIM's window
    assert "diversity" in small
    assert "ssim" not in small
    one = paired_report(x[:1], draws[:, :1], y[:1], features=pixels)
    assert math.isnan(one["psnr_se"])
    assert "frechet" not in one
    assert set(paired_report(x, draws, y, metrics=["diversity"])) == {"n", "k", "diversity", "diversity_se"}
    for name, words, given in (
        ("diversity", "K of at least 2 draws", {"draws": draws[:1]}),
        ("ssim", "sides of at least 11", {"truth": x[:, :8, :8], "draws": draws[:, :, :8, :8], "condition": y[:, :8, :8]}),
        ("lpips", "lpips_distance", {}),
        ("consistency", "operator", {}),
        ("feature_distance", "needs features", {}),
        ("joint_frechet", "N of at least 2",
         {"truth": x[:1], "draws": draws[:, :1], "condition": y[:1], "features": pixels}),
        ("fid", "allowed: psnr, ssim", {}),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            paired_report(**{"truth": x, "draws": draws, "condition": y, "metrics": (name,), **given})


# ---- bad input


def test_pictures_that_cannot_be_right_are_told():
    x, draws, y, _ = report_case()
    levels = (x + 1) * 127.5
    with pytest.raises(ValueError, match=r"a is from 12.8 to 242, 100% of it beyond 2.0; allowed: \[-1, 1\]"):
        psnr(levels, x)
    with pytest.raises(ValueError, match=r"a is uint8; allowed: floats in \[-1, 1\]"):
        psnr(levels.astype(np.uint8), x)
    bad = draws.copy()
    bad[1, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="draws has 1 of 1728 values NaN or inf"):
        paired_report(x, bad, y)
    with pytest.raises(ValueError, match="SSIM of pictures 8x12; allowed: sides of at least its window, 11"):
        ssim(x[:, :8], x[:, :8])
    with pytest.raises(ValueError, match=r"\(4, 12, 12, 1\) and \(3, 12, 12, 1\)"):
        psnr(x, x[:3])
    with pytest.raises(ValueError, match=r"draws has shape \(4, 12, 12, 1\); allowed: \[K, N, H, W, C\]"):
        paired_report(x, x, y)
    with pytest.raises(ValueError, match=r"draws \(3, 3, 12, 12, 1\) and condition \(4, 12, 12, 1\) do not fit"):
        paired_report(x, draws[:, :3], y)
    far = x.copy()
    far[0, 0, 0] = 7  # a sampler's stray pixel is clipped, as in a saved picture
    np.testing.assert_array_equal(psnr(far, x), psnr(np.clip(far, -1, 1), x))


def test_masks_and_operators_that_do_not_fit():
    x, draws, y, mask = report_case()
    with pytest.raises(ValueError, match=r"mask has shape \(4, 12, 12\); allowed: \(4, 12, 12, 1\)"):
        consistency(hide, draws, y, mask[..., 0])
    with pytest.raises(ValueError, match=r"mask is from 0 to 0\.5; allowed: 0"):
        consistency(hide, draws, y, mask / 2)
    full = mask.copy()
    full[2] = 1
    with pytest.raises(ValueError, match="the mask of example 2 hides everything"):
        paired_report(x, draws, y, operator=hide, mask=full)
    with pytest.raises(ValueError, match=r"operator's answer and the condition have shapes \(12, 6, 6, 1\)"):
        consistency(lambda x: x[:, ::2, ::2], draws, y)
    with pytest.raises(ValueError, match=r"draws have shape .* condition .*; give \[K, N, H, W, C\]"):
        consistency(hide, draws, y[:2], mask[:2])
