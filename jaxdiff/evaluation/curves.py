"""Figures against one number: a panel a figure, a line a model, and a dotted line where real data stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def curves_picture(
    panels: Mapping[str, Mapping[str, tuple[Sequence[Any], ...]]],
    xlabel: str,
    real: Mapping[str, float] | None = None,
    columns: int = 3,
) -> np.ndarray:
    """Curves as a picture, uint8 `[H, W, 3]`, for `save_png`.

    Args:
      panels: by the figure's name, the curves by theirs, `(x [N], y [N])` or `(x, y, standard errors [N])` each, drawn in
        the order of x, or as they come where x are words; None or NaN in y is a gap. x is logarithmic where its numbers are
        above 0 and the largest is 20 times the smallest.
      xlabel: what x is.
      real: by the figure's name, what real data gets.

    Raises ValueError for no panel, and for x and y of different lengths.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not panels:
        raise ValueError("no figures came in; give at least one panel, panels[figure][curve] = (x, y)")
    columns = min(columns, len(panels))
    down = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.5, 1 + 4 * columns), 0.6 + 3 * down), dpi=110, layout=ConstrainedLayoutEngine())
    canvas = FigureCanvasAgg(figure)
    places = figure.subplots(down, columns, squeeze=False)
    given = [value for curves in panels.values() for x, *_ in curves.values() for value in x]
    words = any(isinstance(value, str) for value in given)
    wide = not words and given and min(given) > 0 and max(given) > 20 * min(given)
    for place, (name, curves) in zip(places.flat, panels.items(), strict=False):
        for word, (x, y, *error) in curves.items():
            if len(x) != len(y):
                raise ValueError(f"{name} of {word} has {len(x)} places and {len(y)} values; give one value a place")
            order = np.arange(len(x)) if words else np.argsort(np.asarray(x, float))
            across = np.asarray([str(value) for value in x] if words else x)[order]
            spread = np.asarray(error[0], float)[order] if error else None
            place.errorbar(across, np.asarray(y, float)[order], spread, fmt="o-", markersize=4, capsize=2, label=word)
        if wide:
            place.set_xscale("log")
        held = (real or {}).get(name)
        if held is not None:
            place.axhline(held, color="0.4", linestyle=":")
            high = held > sum(place.get_ylim()) / 2
            place.annotate("real", (0.99, held), (0, -3 if high else 3), ("axes fraction", "data"), "offset points",
                           color="0.4", ha="right", va="top" if high else "bottom")
        place.set(title=name, xlabel=xlabel)
        place.spines[["top", "right"]].set_visible(False)
    for place in places.flat[len(panels) :]:
        place.set_visible(False)
    named = {word: line for place in places.flat for line, word in zip(*place.get_legend_handles_labels(), strict=True)}
    beside = min(len(named), columns + 1)
    figure.legend(list(named.values()), list(named), loc="outside lower center", frameon=False, ncols=beside)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
