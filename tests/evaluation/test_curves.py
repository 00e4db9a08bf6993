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
