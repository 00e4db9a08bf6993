"""Preprocessing: both maps and their inverses exactly, and pictures fitted to a shape."""

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.preprocess import Preprocess, examples, fit, uniform_bits

NO_BITS = np.zeros(16, np.uint16)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_exact_map_is_its_formula_and_inverts(levels):
    k = np.arange(levels)
    x = data.scale_exact(k, levels)
    assert x.dtype == np.float32 and x[0] == -1 and x[-1] == 1
    np.testing.assert_array_equal(x, (2 * k / (levels - 1) - 1).astype(np.float32))
    np.testing.assert_array_equal(data.to_levels(x, levels), k)
    if levels == 256:
        np.testing.assert_allclose(x, k / 127.5 - 1, atol=6e-8)  # as METHODS and DDPM write it


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_map_is_its_formula_and_inverts_for_every_draw(levels):
    u = (np.arange(2**15) + 0.5) * 2.0**-15  # every u that the pipeline can draw
    for k in (0, 1, levels // 2, levels - 1):
        x = data.scale_dequantised(np.full(u.shape, k), u, levels)
        assert x.dtype == np.float32 and x.min() >= -1 and x.max() < 1
        np.testing.assert_allclose(x, 2 * (k + u) / levels - 1, atol=1.3e-7)
        np.testing.assert_array_equal(data.to_levels(x, levels, "dequantise"), k)


def test_to_levels_clips_and_refuses_other_maps():
    np.testing.assert_array_equal(data.to_levels([-3.0, 0.0, 3.0], 17), [0, 8, 16])
    np.testing.assert_array_equal(data.to_levels([-3.0, 0.0, 1.0], 256, "dequantise"), [0, 128, 255])
    with pytest.raises(ValueError, match="allowed: exact, dequantise"):
        data.to_levels([0.0], scale="half")


def test_dequantised_examples_fill_their_bins_uniformly():
    images = np.full((400, 8, 8, 1), 5, np.uint8)
    x = examples(images, Preprocess(scale="dequantise"), 17, 3, 0, [""] * 400)
    u = (x + 1) * 8.5 - 5
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size) and abs(u.var() - 1 / 12) < 0.002
    np.testing.assert_array_equal(data.to_levels(x, 17, "dequantise"), images)


def test_draws_belong_to_positions_seeds_and_purposes():
    whole = uniform_bits(7, 1, 0, 12, 65)
    np.testing.assert_array_equal(uniform_bits(7, 1, 5, 4, 65), whole[5:9])
    for other in (uniform_bits(8, 1, 0, 12, 65), uniform_bits(7, 2, 0, 12, 65), uniform_bits(7, 1, 12, 12, 65)):
        assert (other == whole).mean() < 0.01
    assert len(np.unique(whole, axis=0)) == 12


def test_flips_happen_half_the_time_and_whole():
    images = np.zeros((4000, 1, 4, 1), np.uint8)
    images[:, 0, 0] = 200
    x = examples(images, Preprocess(flip=True), 256, 0, 0, [""] * 4000)[:, 0, :, 0]
    flipped = x[:, 3] > 0
    np.testing.assert_array_equal(x[~flipped], np.broadcast_to(data.scale_exact([200, 0, 0, 0], 256), x[~flipped].shape))
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_box_resize_is_the_block_mean():
    image = np.random.default_rng(0).uniform(-1, 1, (8, 12, 3)).astype(np.float32)
    small = fit(image, Preprocess((4, 6, 3), resample="box"), NO_BITS, 0, "a")
    np.testing.assert_allclose(small, image.reshape(4, 2, 6, 2, 3).mean((1, 3)), atol=1e-6)
    levels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    small = fit(levels, Preprocess((4, 6, 3), resample="box"), NO_BITS, 256, "a")
    assert np.abs(small - levels.reshape(4, 2, 6, 2, 3).mean((1, 3))).max() <= 1  # Pillow rounds rows, then columns


def test_resize_does_not_alias_and_does_not_leave_the_levels():
    stripes = np.zeros((16, 16, 1), np.uint8)
    stripes[:, ::2] = 16
    small = fit(stripes, Preprocess((4, 4, 1), resample="bilinear"), NO_BITS, 17, "a")
    assert np.abs(small.astype(int) - 8).max() <= 1  # nearest would give 0 or 16
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 16
    assert fit(edge, Preprocess((32, 32, 1), resample="lanczos"), NO_BITS, 17, "a").max() == 16


def test_crops():
    image = np.arange(8, dtype=np.uint8)[None, :, None].repeat(4, 0)
    np.testing.assert_array_equal(fit(image, Preprocess((4, 4, 1)), NO_BITS, 256, "a")[0, :, 0], [2, 3, 4, 5])
    how = Preprocess((4, 4, 1), crop="random")
    lefts = [fit(image, how, bits, 256, "a")[0, 0, 0] for bits in uniform_bits(0, 1, 0, 2000, 16)]
    counts = np.bincount(lefts, minlength=5)
    assert len(counts) == 5 and np.abs(counts - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)
    assert fit(image, Preprocess((4, 4, 1), resize=6), NO_BITS, 256, "a").shape == (4, 4, 1)


def test_grey_and_colour():
    colour = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    grey = fit(colour, Preprocess((5, 5, 1)), NO_BITS, 256, "a")
    assert np.abs(grey[..., 0].astype(int) - np.asarray(Image.fromarray(colour).convert("L"))).max() <= 1
    back = fit(grey, Preprocess((5, 5, 3)), NO_BITS, 256, "a")
    np.testing.assert_array_equal(back, np.repeat(grey, 3, 2))


def test_pictures_that_cannot_fit_are_named():
    with pytest.raises(ValueError, match=r"cat.png has shape \(4, 4, 2\) and cannot become \(4, 4, 3\)"):
        fit(np.zeros((4, 4, 2), np.uint8), Preprocess((4, 4, 3)), NO_BITS, 256, "cat.png")
    two = [np.zeros((4, 4, 1), np.uint8), np.zeros((5, 4, 1), np.uint8)]
    with pytest.raises(ValueError, match=r"b has shape \(5, 4, 1\), others \(4, 4, 1\); ask for a shape"):
        examples(two, Preprocess(), 256, 0, 0, ["a", "b"])


@pytest.mark.parametrize(
    "words, message",
    [
        ({"crop": "centre"}, "crop='centre' is not known; allowed: center, random"),
        ({"scale": "unit"}, "allowed: exact, dequantise"),
        ({"resample": "cubic"}, "allowed: nearest, box"),
        ({"shape": (8, 8, 4)}, r"shape=\(8, 8, 4\); allowed: \(H, W, 1\)"),
        ({"shape": (8, 8, 3), "resize": 6}, "resize=6 needs a shape that fits"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**words)
