"""Pictures of points in the plane: real beside sampled, and a table of panels, methods down and network calls across.

Axes follow the real points. Points beyond them are counted above or below their panel, never dropped unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.evaluation.points import checked_points

BLUE, RED = "#3b6ea5", "#c8553d"  # real, sampled


class _Window(NamedTuple):
    """The square that the axes show: `middle` `[2]` and half its side."""

    middle: np.ndarray
    reach: float

    def outside(self, points: np.ndarray) -> int:
        return int((~(np.abs(points - self.middle) <= self.reach).all(1)).sum())


def _window(real: np.ndarray) -> _Window:
    low, high = real.min(0), real.max(0)
    return _Window((low + high) / 2, 0.55 * max(float((high - low).max()), 1e-6))


def _dots(panel: Any, points: np.ndarray, window: _Window, colour: str, size: float, alpha: float) -> None:
    panel.scatter(*points.T, s=size, alpha=alpha, linewidths=0, color=colour)
    span = np.array([-window.reach, window.reach])
    panel.set(xlim=window.middle[0] + span, ylim=window.middle[1] + span)
    panel.set_aspect("equal")
    panel.spines[:].set(color="0.6", visible=True)


def _pixels(canvas: Any) -> np.ndarray:
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def scatter_picture(
    real: Any, fake: Any, title: str | None = None, labels: tuple[str, str] = ("real", "samples"), most: int = 5000
) -> np.ndarray:
    """Real points on the left, samples on the right, on the same equal axes: uint8 `[H, W, 3]`, for `save_png`.

    At most `most` points of each are drawn, picked at random, as many on the left as on the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rng = np.random.default_rng(0)
    real, fake = (rng.permutation(checked_points(x, name)) for x, name in ((real, "real points"), (fake, "fake points")))
    n, window = min(most, len(real), len(fake)), _window(real)
    figure = Figure(figsize=(9, 5.1), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, points, label, colour in zip(panels, (real[:n], fake[:n]), labels, (BLUE, RED), strict=True):
        outside = window.outside(points)
        # few points are drawn large, many small enough to show density
        _dots(panel, points, window, colour, float(np.clip(20_000 / n, 4, 25)), 0.4)
        panel.set_title(f"{label} ({n:,} points" + (f", {outside:,} outside)" if outside else ")"), fontsize=11)
        panel.grid(True, color="0.92", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9, color="0.6")
    if title:
        figure.suptitle(title, fontsize=12)
    return _pixels(canvas)


class Panel(NamedTuple):
    """One panel of `scatter_table`: its points `[N, 2]` and the figures in its title."""

    points: Any
    note: str = ""


def scatter_table(
    real: Any,
    panels: Mapping[str, Mapping[str, Panel]],
    columns: Sequence[str] = (),
    centres: Any = None,
    title: str | None = None,
    note: str = "",
    most: int = 5000,
) -> np.ndarray:
    """Real points on the left, then `panels[row][column]` on the same axes (Xu et al. 2023, figure 3): uint8 `[H, W, 3]`.

    Args:
      real: `[N, 2]`.
      panels: by the row's name and the column's, such as a method and its network calls; one that a row lacks is left out.
      columns: their order; () is the order in which rows first name them.
      centres: `[K, 2]`, drawn as faint rings under the samples, so that a mode that is missing is seen.
      title: over the whole.
      note: under the word "real".
      most: points drawn of each, picked at random.

    Raises ValueError for points that are not `[N, 2]` and for a table without a panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    named = list(dict.fromkeys(column for row in panels.values() for column in row))
    columns = [column for column in columns or named if column in named]
    if not columns:
        raise ValueError(f"a table of {len(panels)} rows has no panel; give at least one, panels[row][column]")
    rng, real = np.random.default_rng(0), checked_points(real, "real points")
    window = _window(real)
    figure = Figure(figsize=(0.3 + 2.1 * (len(columns) + 1), 0.4 + 2.3 * len(panels)), dpi=110,
                    layout=ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.05))
    canvas = FigureCanvasAgg(figure)
    places = figure.add_gridspec(len(panels), len(columns) + 1)

    def draw(place: Any, points: np.ndarray, colour: str, words: str) -> Any:
        panel = figure.add_subplot(place)
        if centres is not None:
            x, y = checked_points(centres, "centres").T
            panel.scatter(x, y, s=45, facecolors="none", edgecolors="0.75", linewidths=0.7)
        shown = rng.permutation(points)[:most]
        outside = window.outside(shown)
        _dots(panel, shown, window, colour, 1.6, 0.3)
        panel.set_title(words, fontsize=8)
        panel.set_xlabel(f"{outside:,} of {len(shown):,} outside" if outside else "", fontsize=7, color="0.4")
        panel.set(xticks=[], yticks=[])
        return panel

    draw(places[:, 0], real, BLUE, "\n".join(filter(None, ("real", note))))
    for i, (name, row) in enumerate(panels.items()):
        for k, column in enumerate(columns):
            if column not in row:
                continue
            points = checked_points(row[column].points, f"points of {name}, {column}")
            top = next(other for other in panels.values() if column in other) is row
            panel = draw(places[i, k + 1], points, RED, "\n".join(filter(None, (column if top else "", row[column].note))))
            if column == next(first for first in columns if first in row):
                panel.set_ylabel(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return _pixels(canvas)
