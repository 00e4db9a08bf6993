"""Pictures with captions: the pictures' own pixels, and words where they belong, whatever the caption."""

import numpy as np
import pytest

from jaxdiff.evaluation import captioned_grid

PAPER, GAP = 224, 10


def tiles(n, height=64, width=64, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


def corners(page, images, scale, columns, cell):
    """Where the pictures' upper left corners are, `(y, x)`, from the page's size; checks the pictures pixel by pixel."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    step = (page.shape[0] - GAP) // rows
    assert page.shape == (rows * step + GAP, columns * (cell + GAP) + GAP, channels)
    assert page.dtype == np.uint8
    found = []
    for i, image in enumerate(images):
        y, x = GAP + i // columns * step, GAP + i % columns * (cell + GAP) + (cell - width * scale) // 2
        shown = page[y : y + height * scale, x : x + width * scale]
        np.testing.assert_array_equal(shown, image.repeat(scale, 0).repeat(scale, 1))
        found.append((y, x))
    return found, step


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_whole_and_words_stand_under_their_own(channels):
    images = tiles(5, channels=channels)
    captions = ["cat face", "", "rabbit", "dog", "flag: Réunion"]
    page = captioned_grid(images, captions, columns=3)
    found, step = corners(page, images, 2, 3, 128)
    for (y, x), caption in zip(found, captions, strict=True):
        below = page[y + 128 : y + step, x - GAP // 2 : x + 128 + GAP // 2]
        assert (below < 100).any() == bool(caption)
        ink = np.nonzero((below < 150).any((0, 2)))[0]
        if caption:  # in the middle, within the picture's width
            assert abs(ink[0] + ink[-1] - (128 + GAP)) <= 4
            assert ink[0] >= GAP // 2 and ink[-1] < 128 + GAP // 2
    ground = page[found[3][0] :, found[4][1] + 128 + GAP // 2 :]  # the sixth place is empty
    assert (ground == PAPER).all()


def lines_of(page, top):
    """Lines of ink below a row of pictures: runs of rows that hold dark pixels with empty ones between them."""
    dark = (page[top:] < 150).any((1, 2)).astype(int)
    return int((np.diff(dark, prepend=0) == 1).sum())


def test_long_captions_are_wrapped_and_cut():
    image = tiles(1)
    heights = {}
    for lines in (1, 2, 3):
        page = captioned_grid(image, ["nnn nnn nnn " * 20], lines=lines)  # no dots, no descenders: one run of ink a line
        corners(page, image, 2, 1, 128)
        assert lines_of(page, GAP + 128) == lines
        heights[lines] = page.shape[0]
    assert heights[3] - heights[2] == heights[2] - heights[1] > 10
    long = captioned_grid(image, ["nnn nnn nnn nnn nnn nnn nnn " * 20])
    whole = captioned_grid(image, ["nnn nnn nnn"])
    assert lines_of(whole, GAP + 128) == 1 and whole.shape[0] < long.shape[0]
    np.testing.assert_array_equal(  # what is left out leaves only its ellipsis: not the words behind it
        captioned_grid(image, ["nnn nnn nnn " * 20], lines=1), captioned_grid(image, ["nnn nnn nnn nnn nnn zzz"], lines=1)
    )
    one_word = captioned_grid(image, ["n" * 40])
    assert lines_of(one_word, GAP + 128) == 3
    assert (one_word[:, [*range(GAP), *range(-GAP, 0)]] == PAPER).all()  # no word runs out of its cell


def test_ellipsis_says_that_there_was_more():
    words = [" ".join(["nnn"] * n) for n in range(1, 9)]
    plain = [captioned_grid(tiles(1), [text], lines=1) for text in words]
    ended = [captioned_grid(tiles(1), [text + "…"], lines=1) for text in words]
    fit = [np.array_equal(page, plain[-1]) for page in plain].index(True)  # from here on all are cut to the same line
    assert 2 <= fit < 6
    assert [np.array_equal(plain[-1], page) for page in ended].index(True) == fit - 1


def test_no_captions_take_no_room():
    page = captioned_grid(tiles(4), [""] * 4)
    assert page.shape == (2 * (128 + GAP) + GAP, 2 * (128 + GAP) + GAP, 3)


def test_sizes():
    assert captioned_grid(tiles(1, 8, 8), [""]).shape == (128 + 2 * GAP, 128 + 2 * GAP, 3)  # 16 times larger
    assert captioned_grid(tiles(1, 136, 136), [""]).shape == (136 + 2 * GAP, 136 + 2 * GAP, 3)  # as it is
    assert captioned_grid(tiles(1, 8, 8), [""], scale=3).shape[0] == 24 + 2 * GAP
    narrow = tiles(2, 64, 4)
    page = captioned_grid(narrow, ["watermelon", "x"], columns=2)
    corners(page, narrow, 2, 2, 84)  # a narrow picture stands in the middle of a cell that holds words
    floats = captioned_grid(np.full((1, 64, 64, 1), 0.5, np.float32), ["grey"])
    assert (floats[GAP : GAP + 128, GAP : GAP + 128] == 191).all()


@pytest.mark.parametrize(
    "caption", ["日本語 🐱", "a\x00b\nc\td", "half \ud800 pair", "\u200d\ufe0f", "שלום עולם", "e\u0301", "…"]
)
def test_any_character_may_come(caption):
    page = captioned_grid(tiles(1), [caption])
    corners(page, tiles(1), 2, 1, 128)


def test_control_characters_are_spaces():
    np.testing.assert_array_equal(captioned_grid(tiles(1), ["a\x00b\n\tc"]), captioned_grid(tiles(1), ["  a b c "]))


def test_what_does_not_fit_is_refused():
    for images, captions, words in (
        (tiles(3), ["a", "b"], "2 captions for 3 images; give a list with one for each"),
        (tiles(3), "abc", "one text for 3 images; give a list"),
        (tiles(3)[0], ["a"], r"images have shape \(64, 64, 3\); allowed: \[N, H, W, 1\]"),
        (tiles(2)[..., :2], ["a", "b"], "images have shape"),
        (tiles(2)[:0], [], "at least one"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            captioned_grid(images, captions)
        assert "\n" not in str(caught.value)
    for wrong in ({"columns": 0}, {"scale": 0}, {"lines": 0}):
        with pytest.raises(ValueError, match="allowed: each from 1"):
            captioned_grid(tiles(1), ["a"], **wrong)
