"""Grids pixel by pixel, and files that are whole or not there."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxdiff.evaluation import (
    columns_picture,
    condition_picture,
    image_grid,
    save_npz,
    save_png,
    to_uint8,
    write_json,
    write_whole,
)


def test_to_uint8_rounds_and_clips():
    levels = np.arange(256)
    np.testing.assert_array_equal(to_uint8(np.float32(levels / 127.5 - 1)), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, -1, 0, 1, 7])), [0, 0, 128, 255, 255])
    kept = np.array([0, 1, 254], np.uint8)
    assert to_uint8(kept) is kept
    with pytest.raises(ValueError, match="1 of 2 pixels are NaN"):
        to_uint8(np.array([np.nan, 0]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("pad", "scale"), [(1, 1), (2, 3), (0, 2)])
def test_grid_pixel_by_pixel(channels, pad, scale):
    tiles = np.random.default_rng(0).integers(0, 255, (5, 4, 6, channels)).astype(np.uint8)
    grid = image_grid(tiles, columns=3, pad=pad, scale=scale)
    assert grid.shape == ((2 * (4 + pad) + pad) * scale, (3 * (6 + pad) + pad) * scale, channels)
    white = np.ones(grid.shape[:2], bool)
    for i in range(5):
        for y in range(4):
            for x in range(6):
                top, left = (pad + i // 3 * (4 + pad) + y) * scale, (pad + i % 3 * (6 + pad) + x) * scale
                assert (grid[top : top + scale, left : left + scale] == tiles[i, y, x]).all()
                white[top : top + scale, left : left + scale] = False
    assert (grid[white] == 224).all()


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert image_grid(np.zeros((1, 8, 8, 1)), pad=0).shape == (48, 48, 1)
    assert image_grid(np.zeros((1, 28, 28, 1)), pad=0).shape == (56, 56, 1)
    assert image_grid(np.zeros((1, 64, 64, 3)), pad=0).shape == (64, 64, 3)
    assert image_grid(np.zeros((10, 8, 8, 1)), pad=0, scale=1).shape == (24, 32, 1)  # four columns


@pytest.mark.parametrize("channels", [1, 3])
def test_words_leave_the_pixels_alone(channels):
    tiles = np.random.default_rng(1).uniform(-1, 1, (6, 8, 8, channels))
    bare = image_grid(tiles, columns=3)
    page = image_grid(tiles, columns=3, row_labels=["one", "two"], title="six samples")
    top, left = page.shape[0] - bare.shape[0], page.shape[1] - bare.shape[1]
    assert top > 0
    assert left > 0
    np.testing.assert_array_equal(page[top:, left:], bare)
    for words in (page[:top], page[top : top + 54, :left], page[top + 54 :, :left]):
        assert words.min() < 100  # ink
        assert (words == 224).mean() > 0.5
    margin = page[top:, :left]
    assert (margin[:, -2:] == 224).all()  # no letter touches a tile
    wide = image_grid(tiles[:1], title="a title far wider than the only picture below it")
    assert wide.shape[1] > 200


def boxes(page, level):
    """Top, bottom, left, right of all pixels of one grey level below the words."""
    rows, columns = np.nonzero((page[28:] == level).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 84), (70, 70)])
def test_condition_picture_lays_out_condition_draws_truth(side, cell):
    levels = np.arange(10, dtype=np.uint8).reshape(5, 2) * 10  # columns: condition, three draws, truth; rows: two conditions
    tiles = np.broadcast_to(levels[..., None, None, None], (5, 2, side, side, 1)).copy()
    tiles[2, 1, :, side // 2 :] = 200  # the right half of the second condition's second draw
    page = condition_picture(tiles[0], tiles[1:4], tiles[4])
    assert page.shape[-1] == 1
    assert page[:28].min() < 100  # words
    edges = {(c, r): boxes(page, levels[c, r]) for c in range(5) for r in range(2)}
    for (column, row), (top, bottom, left, right) in edges.items():
        halved = 2 if (column, row) == (2, 1) else 1
        assert (bottom - top, right - left) == (cell, cell // halved)
        assert (top, left) == (edges[0, row][0], edges[column, 0][2])
    assert edges[0, 0][1] < edges[0, 1][0]
    gaps = [edges[c + 1, 0][2] - edges[c, 0][3] for c in range(4)]
    assert gaps[1] == gaps[2] < gaps[0] == gaps[3]  # draws stand together
    right_half = boxes(page, 200)
    assert right_half[2:] == (edges[2, 1][3], edges[2, 0][3])


def test_condition_picture_mixes_grey_and_colour():
    rng = np.random.default_rng(0)
    colour, grey = rng.uniform(-1, 1, (2, 1, 2, 8, 8, 3)), rng.uniform(-1, 1, (2, 8, 8, 1))
    page = condition_picture(grey, colour[0], colour[1, 0])
    np.testing.assert_array_equal(page, condition_picture(grey.repeat(3, -1), colour[0], colour[1, 0]))
    assert page.shape[-1] == 3
    thin = condition_picture(grey[:, :, :1], grey[None, :, :, :1], grey[:, :, :1])  # 64 x 8 cells, narrower than the words
    assert (thin[:28, [0, -1]] == 224).all()
    assert thin.shape[1] > 120
    with pytest.raises(ValueError, match=r"draws \(2, 8, 8, 3\) and truth .* do not fit; give \[N, H, W, C'\], \[K"):
        condition_picture(grey, colour[0, 0], colour[1, 0])


def test_png_and_npz_round_trip(tmp_path):
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3)):
        array = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
        path = save_png(tmp_path / "new" / "picture.png", array)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), array.squeeze())
    samples = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
    with np.load(save_npz(tmp_path / "samples.npz", samples=samples, label=np.arange(4))) as held:
        np.testing.assert_array_equal(held["samples"], samples)
        assert held["samples"].dtype == np.float32
        assert sorted(held.files) == ["label", "samples"]
    assert sorted(os.listdir(tmp_path)) == ["new", "samples.npz"]  # no temporary file is left


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def breaks(file):
        file.write(b"half of the new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_whole(path, breaks)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_wrong_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\); allowed: \[N, H, W, 1\]"):
        image_grid(np.zeros((4, 8, 8)))
    with pytest.raises(ValueError, match="3 row labels for 2 rows"):
        image_grid(np.zeros((4, 8, 8, 1)), row_labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="columns=0"):
        image_grid(np.zeros((4, 8, 8, 1)), columns=0)
    with pytest.raises(ValueError, match="see image_grid"):
        save_png(tmp_path / "x.png", np.zeros((2, 4, 4, 3)))
    assert not os.listdir(tmp_path)


def test_columns_of_different_sizes_share_their_rows():
    """A 2x2 picture beside a 4x4 one is enlarged to it; K pictures a row stand together; grey beside colour is colour."""
    small, large = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2, 1) * 20, np.full((2, 3, 4, 4, 3), 200, np.uint8)
    page = columns_picture({"a": small, "b": large}, scale=2)
    assert page.dtype == np.uint8 and page.shape[2] == 3
    blocks = [(page == level).all(-1) for level in (*range(20, 160, 20), 200)]
    assert [int(block.sum()) for block in blocks[:-1]] == [4 * 4] * 7  # a pixel twice larger, then twice again
    assert int(blocks[-1].sum()) == 2 * 3 * 8 * 8
    tops = [np.nonzero(block.any(1))[0][0] for block in blocks]
    assert tops[0] == tops[-1] and tops[3] > tops[1]  # the rows of both blocks start together
    for wrong in ({"a": small, "b": large[:1]}, {"a": small, "b": np.zeros((2, 3, 3, 1))}, {"a": small[0]}):
        with pytest.raises(ValueError, match="pictures have shapes"):
            columns_picture(wrong)


def test_json_has_no_nan(tmp_path):
    values = {"a": float("nan"), "b": {3: float("-inf"), "c": 0.5}, "d": [1, "x"]}
    file = write_json(tmp_path / "a.json", values)
    assert json.loads(file.read_text()) == {"a": None, "b": {"3": None, "c": 0.5}, "d": [1, "x"]}
