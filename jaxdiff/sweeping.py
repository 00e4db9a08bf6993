"""A sweep over s, the conditioning augmentation of a cascade's last stage, which is chosen after training (Ho et al. 2022).

Non-truncated, one stored z_0 serves every s: the pictures of the stages before are drawn once and noised anew for each s.
Truncated, where those stages stop depends on s, and all are drawn anew. Everything lies in one directory:

    DIR/cascade.json    what is swept
    DIR/before/         the stages before, in parts, the last of them also as float32 (not truncated)
    DIR/s_0.1/          the pictures at one s, in parts
    DIR/sweep.jsonl     a row a value of s, there as soon as it is measured; a value that has one is passed over
    DIR/sweep.png       the figures against s

The same s, seed and batch size give the samples that the whole cascade gives in one go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import cascading, evaluation, stream
from jaxdiff.cascade import sample_stage
from jaxdiff.cascading import Cascade, Order
from jaxdiff.spread import Spread

# what is drawn and printed, in this order, where a row has it; and beside it what real data gets, under what name
SHOWN = {"frechet": "Frechet distance", "kid": "KID", "precision": "precision", "recall": "recall",
         "agreement": "class agreement", "inception_score": "Inception Score", "cas": "CAS"}
REAL = {"frechet": "frechet_floor", "agreement": "classifier_accuracy", "cas": "cas_real"}


def sweep(
    cascade: Cascade, order: Order, values: Sequence[float], folder: Any, metrics: Sequence[str], quiet: bool = False
) -> list[dict[str, Any]]:
    """Measure every value of s that has no row yet; the rows of all `values`, sorted. `order.s` is of the stages before.

    A row is `{"s", "metrics", "figures"}`, figures by stage: of the last one or, truncated, of all. Raises ValueError for a
    cascade of one stage, a value that the last stage was not trained at, and a folder with other things in it.
    """
    last, folder = len(cascade.stages) - 1, Path(folder)
    if last < 1:
        raise ValueError("a sweep over s needs a super-resolution stage; mend: a second --stage")
    for value in values:
        cascading.stops(cascade.stages, (*order.s, value), order.truncated)
    wanted = cascading.check_metrics(cascade, metrics)
    stream.claim(folder, cascading.words(cascade, order) | {"sweep": "s of the last stage"})
    measured = rows(folder)
    draw_at: Callable[[float], Callable[[int], dict[str, np.ndarray]]] | None = None
    for value in sorted(set(values)):
        asked = {"s": value, "metrics": [list(names) for names in wanted]}
        if any(asked.items() <= row.items() for row in measured):
            continue
        full = order._replace(s=(*order.s, value))
        if order.truncated:
            draw, held = cascading.drawer(cascade, full), range(last + 1)
        else:
            draw_at = draw_at or _last_stage(cascade, order, folder / "before", quiet)
            draw, held = draw_at(value), range(last, last + 1)
        home = folder / f"s_{value:g}"
        stream.fill(home, cascading.words(cascade, full) | {"stages_here": list(held)}, draw, quiet)
        figures = {f"stage_{k}": cascading.score_stage(cascade, k, home, wanted[k], quiet) for k in held}
        measured = [row for row in measured if row["s"] != value] + [{**asked, "figures": figures}]
        _write(folder, measured)
        if not quiet:
            print(f"s {value:g}: " + "; ".join(f"{name} {_said(found)}" for name, found in figures.items()), flush=True)
    return sorted((row for row in measured if row["s"] in values), key=lambda row: row["s"])


def _last_stage(
    cascade: Cascade, order: Order, before: Path, quiet: bool
) -> Callable[[float], Callable[[int], dict[str, np.ndarray]]]:
    """`(s) -> draw(i)`, of the last stage's pictures of z_0 as it lies in `before`; one program for every s."""
    last, size = len(cascade.stages) - 1, order.batch_size
    earlier = Cascade(cascade.runs[:-1], cascade.workdirs[:-1], cascade.stages[:-1], cascade.how[:-1])
    stream.fill(before, cascading.words(earlier, order) | {"handed": "float32"},
                cascading.drawer(earlier, order, hand_over=True), quiet)
    stage, params = cascade.stages[-1], cascade.params[-1]
    program = Spread(lambda params, key, cond, num: sample_stage(key, stage, params, cond, num)[0])

    def draw(i: int, s: float) -> dict[str, np.ndarray]:
        z_0 = stream.read(before, i, ("handed",))["handed"]
        z_0 = z_0[np.arange(size) % len(z_0)]  # a part that was cut is filled up again
        k_stage, _ = jax.random.split(jax.random.fold_in(order.key(i), last))  # the keys of `sample_cascade`
        _, k_noise = jax.random.split(jax.random.fold_in(order.key(i), last - 1))
        told: dict[str, Any] = dict(order.told(i))
        x = program(params, k_stage, told | stage.augmentation.noised(k_noise, jnp.asarray(z_0), s), size)
        return {f"stage_{last}": evaluation.to_uint8(x)} | order.told(i)

    return lambda s: partial(draw, s=s)


def rows(folder: Any) -> list[dict[str, Any]]:
    """The rows of `folder`/sweep.jsonl; none where there is no file."""
    path = Path(folder) / "sweep.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged; mend: remove it, and the sweep scores again what it has drawn") from None


def _write(folder: Path, measured: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in measured)
    evaluation.write_whole(folder / "sweep.jsonl", lambda file: file.write(text.encode()))


def _said(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures)


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: a row a value of s, a column a figure of a stage."""
    heads = [(stage, name) for stage in found[0]["figures"] for name in SHOWN if name in found[0]["figures"][stage]]
    lines = [["s", *(f"{stage} {name}" for stage, name in heads)]]
    for row in found:
        lines.append([f"{row['s']:g}", *(f"{row['figures'][stage][name]:.4f}" for stage, name in heads)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in lines]


def picture(cascade: Cascade, found: Sequence[dict[str, Any]]) -> np.ndarray:
    """The figures of the rows against s, a curve a stage, and what real held-out pictures get, uint8 `[H, W, 3]`."""
    sizes = {f"stage_{k}": f"{run.facts.pixels[0]} x {run.facts.pixels[1]}" for k, run in enumerate(cascade.runs)}
    panels: dict[str, dict[str, Any]] = {}
    real: dict[str, float] = {}
    for stage, figures in found[-1]["figures"].items():
        for name in (name for name in SHOWN if name in figures):
            places = [(row["s"], row["figures"][stage][name]) for row in found]
            panels.setdefault(SHOWN[name], {})[sizes[stage]] = tuple(zip(*places, strict=True))
            if REAL.get(name) in figures and stage == f"stage_{len(cascade.runs) - 1}":
                real[SHOWN[name]] = figures[REAL[name]]
    return evaluation.curves_picture(panels, "s", real)
