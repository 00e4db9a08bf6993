"""Curves as pictures: a panel a figure, its places by number, and real data as a line."""

import numpy as np
import pytest

from jaxdiff.evaluation import curves_picture

X, Y = (0.0, 0.4, 0.2), (3.0, 1.0, 2.0)


def coloured(picture):
    """Pixels that are no grey: the curves and their names."""
    return int((np.ptp(picture.astype(int), -1) > 40).sum())


def test_the_order_of_rows_does_not_matter_and_their_values_do():
    first = curves_picture({"a": {"m": (X, Y)}}, "s")
    assert first.dtype == np.uint8 and first.shape[2] == 3
    np.testing.assert_array_equal(first, curves_picture({"a": {"m": ((0.0, 0.2, 0.4), (3.0, 2.0, 1.0))}}, "s"))
    assert not np.array_equal(first, curves_picture({"a": {"m": (X, (3.0, 1.0, 2.5))}}, "s"))
    assert not np.array_equal(first, curves_picture({"a": {"m": (X, Y)}}, "s", {"a": 1.5}))
    np.testing.assert_array_equal(first, curves_picture({"a": {"m": (X, Y)}}, "s", {"b": 1.5}))


def test_panels_and_curves_add_up():
    one, two = ({"m": (X, Y)}, {"m": (X, Y), "n": (X, X)})
    assert coloured(curves_picture({"a": two}, "s")) > coloured(curves_picture({"a": one}, "s")) > 100
    wide, tall = (curves_picture(dict.fromkeys("abcd"[:k], one), "s") for k in (2, 4))
    assert wide.shape[1] > 1.5 * wide.shape[0] and tall.shape[0] > 1.5 * wide.shape[0]
    assert coloured(curves_picture({"a": {"m": (X, (None, 1.0, float("nan")))}}, "s")) > 20  # gaps


@pytest.mark.parametrize("panels, told", [({}, "no figures"), ({"a": {"m": (X, Y[:2])}}, "3 places and 2 values")])
def test_wrong_panels(panels, told):
    with pytest.raises(ValueError, match=told):
        curves_picture(panels, "s")


def test_errors_words_and_a_wide_range_are_drawn():
    """Error bars; words in the order in which they come; a logarithm, which gives evenly spaced octaves their places."""
    drawn = lambda x, y, *error: curves_picture({"a": {"m": (x, y, *error)}}, "s")
    assert not np.array_equal(drawn(X, Y), drawn(X, Y, (0.5, 0.5, 0.5)))
    words = drawn(("b", "a", "c"), Y)
    assert not np.array_equal(words, drawn(("a", "b", "c"), (Y[1], Y[0], Y[2])))

    def middle(x):
        """Where between the ends the peak stands."""
        picture = drawn(x, (0.0, 1.0, 0.0))[:-60]  # without the legend
        rows, columns = np.nonzero((picture[..., 2] > 150) & (picture[..., 0] < 60))
        return (columns[rows == rows.min()].mean() - columns.min()) / (columns.max() - columns.min())

    assert middle((1.0, 8.0, 64.0)) == pytest.approx(0.5, abs=0.02)
    assert middle((1.0, 32.5, 64.0)) == pytest.approx(np.log(32.5) / np.log(64), abs=0.02)
    assert middle((1.0, 8.0, 15.0)) == pytest.approx(0.5, abs=0.02)  # not wide
