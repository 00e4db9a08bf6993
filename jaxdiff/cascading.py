"""A cascade of trained runs: read from their directories, drawn in parts or as a picture, and scored stage by stage.

What `jaxdiff cascade` does. Each stage's pictures are compared with its own run's real ones, so that the base's score and
the whole cascade's stand side by side (a stage alone, given real low-resolution pictures, is `jaxdiff evaluate`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import evaluation, realism, score, stream
from jaxdiff.cascade import Cut, Stage, cut, sample_cascade
from jaxdiff.facts import labels_from_text
from jaxdiff.run import Run, load_run
from jaxdiff.spread import Spread
from jaxdiff.stages import check_linked, stage_of, told
from jaxdiff.trees import fingerprint
from jaxdiff.types import Array, Cond, Key, Params

CAPTIONS = 1000  # of a run's own data at most, drawn in turn where no prompts are given
# sections of a run's config that decide what its params draw
DRAWING = ("path", "estimator", "parameterization", "network", "sampler", "grid", "augmentation", "augmentation_path")


class Cascade(NamedTuple):
    """Runs, base first, the directories they were read from, each as a stage, and the options of each: what it was asked."""

    runs: tuple[Run, ...]
    workdirs: tuple[str, ...]
    stages: tuple[Stage, ...]
    how: tuple[dict[str, Any], ...]

    @property
    def params(self) -> tuple[Params, ...]:
        return tuple(run.params for run in self.runs)


class Order(NamedTuple):
    """What is drawn of a cascade: `num` samples, `batch_size` at once, classes of `label` and texts of `prompt` in turn
    (None: there are none).

    s: of each super-resolution stage. Sample n is a function of seed, batch_size and n.
    """

    s: tuple[float, ...]
    truncated: bool
    num: int
    label: tuple[int, ...] | None
    prompt: tuple[str, ...] | None
    seed: int
    batch_size: int

    def asked(self, i: int) -> dict[str, np.ndarray]:
        """What batch i is asked for, `label` int32 and `prompt` str; the last batch is filled up by going on."""
        rows = np.arange(i * self.batch_size, (i + 1) * self.batch_size)
        label = {} if self.label is None else {"label": np.asarray(self.label, np.int32)}
        prompt = {} if self.prompt is None else {"prompt": np.asarray(self.prompt)}
        return {name: value[rows % len(value)] for name, value in (label | prompt).items()}

    def key(self, i: int) -> Key:
        return jax.random.fold_in(jax.random.key(self.seed), i)


def for_stages(how: Mapping[str, Sequence[Any] | None], count: int) -> list[dict[str, Any]]:
    """Options of each of `count` stages, from a value for all of them, or one for each, or None.

    Raises ValueError for another number of values.
    """
    for name, values in how.items():
        if values is not None and len(values) not in (1, count):
            raise ValueError(f"--{name.removeprefix('num_')} came {len(values)} times for {count} stages; allowed: once for "
                             "all, or once for each")
    return [{name: values[k if len(values) > 1 else 0] for name, values in how.items() if values is not None}
            for k in range(count)]


def open_cascade(workdirs: Sequence[str], how: Sequence[Mapping[str, Any]], inception: str | None = None) -> Cascade:
    """Read the runs and see that they chain. `how`: the options of `stage_of` for each; `inception`: weights to score by.

    Raises FileNotFoundError for a directory without a run, ValueError for runs that do not chain and for wrong options.
    """
    runs = tuple(load_run(workdir) for workdir in workdirs)
    for run in runs:
        if inception is not None:
            with run.config.unlocked():
                run.config.evaluate.inception = inception
    check_linked(runs)
    stages = tuple(stage_of(run, **one) for run, one in zip(runs, how, strict=True))
    return Cascade(runs, tuple(map(str, workdirs)), stages, tuple(dict(one) for one in how))


def levels(s: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """s of each of `count` super-resolution stages, from one for each, one for all, or None, 0 for all.

    Raises ValueError for another number of values.
    """
    if s is None:
        return (0.0,) * max(count, 0)
    if len(s) not in (1, count) or count < 1:
        raise ValueError(f"s has {len(s)} values for {max(count, 0)} super-resolution stages; allowed: one for each, or one "
                         "for all")
    return tuple(map(float, s)) if len(s) == count else (float(s[0]),) * count


def order(
    cascade: Cascade, s: tuple[float, ...], truncated: bool, num: int | None, label: str | None, seed: int, batch_size: int,
    prompts: Sequence[str] = (),
) -> Order:
    """What is drawn, from words: `label` a class by number or name, or several with commas; all classes in turn for None.

    num: by default what the last run's config evaluates with. prompts: for runs that read texts; by default captions of the
    last such run's own split for it. Raises ValueError for a class that the runs do not have, and for texts that none reads.
    """
    known = cascade.runs[-1].facts
    num = cascade.runs[-1].config.evaluate.num if num is None else num
    classes = tuple(range(known.num_classes)) or None
    if label is not None:
        classes = tuple(labels_from_text(label, len(label.split(",")), known).tolist())
    readers = [run for run in cascade.runs if run.reader is not None]
    if prompts and not readers:
        raise ValueError("prompts came, and no run of the cascade was trained with captions; mend: leave them out, or "
                         "stages of configs/cascade.py:cond=text")
    if readers and not prompts:
        prompts = score.captions(readers[-1], min(num, CAPTIONS)).tolist()
    return Order(s, truncated, num, classes, tuple(prompts) or None, seed, min(batch_size, num))


def remarks(cascade: Cascade, prompts: Sequence[str]) -> list[str]:
    """A line for each prompt that does not go whole into one of the runs."""
    return list(dict.fromkeys(line for run in cascade.runs if run.reader is not None for line in run.remarks(prompts)))


def stops(stages: Sequence[Stage], s: Sequence[float], truncated: bool) -> list[Cut | None]:
    """Where each stage ends for the next. Raises ValueError for an s that was not trained, or that a stage cannot end at."""
    for after, level in zip(stages[1:], s, strict=True):
        after.augmentation.check(level)
    return [cut(before.path, after.augmentation, level) if truncated and level else None
            for before, after, level in zip(stages, stages[1:], s, strict=False)] + [None]


def words(cascade: Cascade, order: Order) -> dict[str, Any]:
    """What decides the samples, as JSON holds it: of each run its name, step and digests, its options, and the order."""
    found: dict[str, Any] = {}
    for k, (run, how) in enumerate(zip(cascade.runs, cascade.how, strict=True)):
        drawing = {name: part for name, part in run.config.to_dict().items() if name in DRAWING}
        found[f"stage_{k}"] = {
            "config": run.config.name, "step": run.step,
            "params": fingerprint(run.params),
            "settings": hashlib.sha256(json.dumps(drawing, sort_keys=True, default=str).encode()).hexdigest()[:12],
            **how,
        }
    return found | order._asdict()


def drawer(cascade: Cascade, order: Order, hand_over: bool = False) -> Callable[[int], dict[str, np.ndarray]]:
    """`draw(i)`: batch i of the order as uint8 arrays `stage_0`, `stage_1`, ..., `label`, `prompt`; one program for all,
    each batch split over this process's devices.

    With `hand_over` also `handed`, the last stage's pictures as they are, float32, to be given to a further stage.
    """
    stops(cascade.stages, order.s, order.truncated)

    def whole(params: Sequence[Params], key: Key, conds: Sequence[Cond], num: int) -> list[Array]:
        return sample_cascade(key, cascade.stages, params, conds, num, order.s, order.truncated)

    program, params = Spread(whole), cascade.params

    def draw(i: int) -> dict[str, np.ndarray]:
        asked = order.asked(i)
        images = program(params, order.key(i), told(cascade.runs, asked), order.batch_size)
        found = {f"stage_{k}": evaluation.to_uint8(x) for k, x in enumerate(images)} | asked
        return found | ({"handed": images[-1]} if hand_over else {})

    return draw


def picture(cascade: Cascade, order: Order) -> np.ndarray:
    """A row a sample: every stage's picture, and the training picture of the last stage that is nearest to its own; behind
    the text that was asked for, where there is one."""
    draw = drawer(cascade, order)
    found = [draw(i) for i in range(-(-order.num // order.batch_size))]
    of_stage = [np.concatenate([part[f"stage_{k}"] for part in found])[: order.num] for k in range(len(cascade.stages))]
    columns = {f"{x.shape[1]} x {x.shape[2]}": x for x in of_stage}
    columns["nearest real"] = realism.nearest_real(cascade.runs[-1], stream.to_float(of_stage[-1]))
    asked = None if order.prompt is None else [order.prompt[n % len(order.prompt)] for n in range(order.num)]
    return evaluation.columns_picture(columns) if asked is None else evaluation.captioned_rows(columns, asked)


def check_metrics(cascade: Cascade, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """The metrics of each stage: those asked for, or with () all that suit its data. Raises as `score.check_metrics`."""
    return [score.check_metrics(run.config, run.facts, metrics) for run in cascade.runs]


def score_stage(cascade: Cascade, k: int, folder: Any, wanted: Sequence[str], quiet: bool = False) -> dict[str, Any]:
    """What stage k's pictures in the parts of `folder` are worth beside its run's real ones, one part at a time."""
    run, workdir = cascade.runs[k], cascade.workdirs[k]

    def drawn(name: str) -> Iterator[tuple[np.ndarray, Any]]:
        for part in stream.parts(folder, (f"stage_{k}", name)):
            yield stream.to_float(part[f"stage_{k}"]), part.get(name)

    found = realism.score_words(run, workdir, drawn("prompt"), not quiet) if "words" in wanted else {}
    rest = tuple(name for name in wanted if name != "words")
    return found | (realism.score_pictures(run, workdir, drawn("label"), rest, not quiet) if rest else {})


def score_parts(
    cascade: Cascade, order: Order, folder: Any, wanted: Sequence[Sequence[str]], quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Every stage's figures, `stage_0` and on, by the metrics `wanted` of each; `folder`/scores.json gains them, and keeps
    those of other metrics, which are of the same samples."""
    calls = network_calls(cascade.stages, order.s, order.truncated)
    found = {f"stage_{k}": {"config": run.config.name, "network_calls": calls[k],
                            **score_stage(cascade, k, folder, wanted[k], quiet)}
             for k, run in enumerate(cascade.runs)}
    file = Path(folder) / "scores.json"
    try:
        held = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # none, or one that was damaged by hand
        held = {}
    evaluation.write_json(file, {"num": order.num, **{name: held.get(name, {}) | part for name, part in found.items()}})
    return found


def network_calls(stages: Sequence[Stage], s: Sequence[float], truncated: bool) -> list[int]:
    """Calls of each stage's denoiser for one sample."""
    return [stage.sampler.evaluations(len(stage.times(None if stop is None else stop.t)) - 1)
            for stage, stop in zip(stages, stops(stages, s, truncated), strict=True)]


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table: a column a stage, a row a figure."""
    names = dict.fromkeys(name for one in found.values() for name, value in one.items() if not isinstance(value, dict))
    lines = [["", *found]]
    for name in names:
        lines.append([name, *(f"{value:.4f}" if isinstance(value, float) else str(value)
                              for value in (figures.get(name, "") for figures in found.values()))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
