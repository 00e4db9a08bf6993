"""Pictures of points: what is drawn where, what stands in a title, and what is refused."""

import numpy as np
import pytest

from jaxdiff.evaluation import Panel, scatter_picture, scatter_table

CENTRES = np.stack(np.meshgrid(np.arange(0, 25, 5.0), np.arange(0, 25, 5.0)), -1).reshape(-1, 2)


def mixture(n, centres=CENTRES):
    rng = np.random.default_rng(0)
    return centres[rng.integers(len(centres), size=n)] + rng.normal(size=(n, 2)) / 3


def blue(part):
    return (part[..., 2] - part[..., 0] > 40).sum()


def red(part):
    return (part[..., 0] - part[..., 2] > 40).sum()


@pytest.fixture
def titles(monkeypatch):
    """The words above every panel, as they are set, and those below it where there are any."""
    from matplotlib.axes import Axes

    said, above, below = [], Axes.set_title, Axes.set_xlabel
    monkeypatch.setattr(Axes, "set_title", lambda self, words, **how: (said.append(words), above(self, words, **how)))
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, words, **how: (
        said.extend([words] if words else []), below(self, words, **how)))
    return said


def test_scatter_picture_holds_both_panels(titles):
    picture = scatter_picture(mixture(5000), np.concatenate([mixture(3999), [[900.0, 0.0]]]), title="25 Gaussians")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] > picture.shape[0] > 400
    left, right = np.split(picture.astype(int), [picture.shape[1] // 2], 1)
    assert blue(left) > 500 > blue(right) == 0
    assert red(right) > 500 > red(left) == 0
    assert titles == ["real (4,000 points)", "samples (4,000 points, 1 outside)"]


def test_scatter_table_puts_each_panel_in_its_place(titles):
    """Two rows, two columns, one run missing: the real points are on the left, and a hole is white."""
    far, points = np.full((7, 2), 1e3), mixture(3000)
    panels = {"b": {"T = 4": Panel(np.concatenate([points, far]), "FD 0.2"), "T = 2": Panel(points)},
              "a": {"T = 4": Panel(points[:40])}}
    picture = scatter_table(points, panels, ("T = 2", "T = 4", "T = 8"), CENTRES, title="few steps", note="floor 0.1")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    cells = [np.array_split(row, 3, 1) for row in np.array_split(picture.astype(int), 2, 0)]
    assert sum(blue(row[0]) for row in cells) > 500 and sum(blue(row[k]) for row in cells for k in (1, 2)) == 0
    assert min(red(cells[0][k]) for k in (1, 2)) > 500 > red(cells[1][2]) > 10
    middle = cells[1][1][20:-20, 20:-20]
    assert (middle == 255).all(), "a panel that is not there leaves a hole"
    assert titles == ["real\nfloor 0.1", "T = 2", "T = 4\nFD 0.2", "7 of 3,007 outside", ""]


def test_a_table_draws_at_most_so_many(titles):
    few = scatter_table(mixture(500), {"a": {"T": Panel(mixture(5000))}}, most=30)
    assert red(few.astype(int)) < red(scatter_table(mixture(500), {"a": {"T": Panel(mixture(5000))}}).astype(int)) / 4


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="1 rows has no panel"):
        scatter_table(mixture(10), {"a": {}})
    with pytest.raises(ValueError, match=r"points of a, T have shape \(3,\)"):
        scatter_table(mixture(10), {"a": {"T": Panel(np.zeros(3))}})
