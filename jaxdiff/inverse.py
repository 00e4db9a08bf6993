"""Runs that are given a picture: the conditions they are asked with, and what their draws are worth beside the truth.

Conditions come from the test split, made by the run's own task, or from pictures that the user brings. Every draw is
scored against the true picture that its condition was made from; the inpainting mask that made the condition is the one
the metrics use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, data, evaluation, tables
from jaxdiff.data.pictures import SUFFIXES, read_picture
from jaxdiff.data.preprocess import examples as fitted
from jaxdiff.judge import judge_of
from jaxdiff.run import Run
from jaxdiff.spread import by_example

PAIRED_METRICS = ("psnr", "ssim", "lpips", "feature_distance", "consistency", "diversity", "frechet", "joint_frechet")


def examples(run: Run, num: int, task: str | None = None) -> dict[str, np.ndarray]:
    """`num` test examples: `x` the truth, `image` the condition, and `mask`, `label`, `prompt` where there are such.

    `task` replaces the run's own: an unconditional run inpaints with "inpaint", by replacing the known pixels.
    """
    config = run.config
    if task is not None:
        config = config.copy_and_resolve_references().unlock()
        config.task = tables.section(tables.TASKS, task)
    if config.task.kind == "none":
        raise ValueError(f"the run {run.config.name!r} has no condition picture; allowed: --task=inpaint, which fills in "
                         "pictures with an unconditional run")
    chosen = build.task(config)
    if not run.facts.condition and not (chosen and chosen.masked):
        raise ValueError(f"task is {task!r} for a run without a condition picture; allowed: inpaint, by replacing the known "
                         "pixels")
    if task is not None and run.facts.condition and tuple(run.config.task.items()) != tuple(config.task.items()):
        raise ValueError(f"task is {task!r} but the run was trained for {run.config.task.kind!r}; mend: leave --task out")
    found = build.examples(config, run.facts, "test", num)
    return {name: found[name] for name in ("x", "image", "mask", "label", "prompt") if name in found}


def from_pictures(run: Run, path: Any) -> dict[str, np.ndarray]:
    """Conditions `image` from a picture file or a folder of them, fitted to the shape that the run was trained with."""
    if not run.facts.condition:
        raise ValueError(f"the run {run.config.name!r} takes no condition picture; mend: leave --image out")
    height, width, channels = run.facts.condition
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"no picture at {str(path)!r}; allowed: a picture file, or a folder of them")
    files = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
    if not files:
        raise FileNotFoundError(f"no pictures in {str(path)!r}; allowed: {', '.join(SUFFIXES)}")
    how = data.Preprocess((height, width, channels))
    pixels = [read_picture(file, channels) for file in files]
    return {"image": fitted(pixels, how, 256, 0, 0, [str(file) for file in files])}


def repeat(given: Mapping[str, np.ndarray], draws: int) -> dict[str, np.ndarray]:
    """The conditions K times over, `[K N, ...]`: draw k of condition i stands at k N + i."""
    return {name: np.concatenate([value] * draws) for name, value in given.items()}


def operator_of(config: ConfigDict) -> Any:
    """The true forward operator `(x, mask) -> y` of the run's task; None for pairs, where nobody knows it."""
    chosen = build.task(config)
    return None if chosen is None else chosen.operator


def check_metrics(
    config: ConfigDict, shape: Sequence[int], metrics: Sequence[str], allowed: Sequence[str] = PAIRED_METRICS,
) -> tuple[str, ...]:
    """The metrics asked for, of those `allowed`, or all that this run can give for pictures of `shape` (H, W, C)."""
    part = config.evaluate
    features = part.inception or part.classifier or build.source(config, "train").num_classes
    blind = (not features, "pictures without classes need Inception's features; mend: --inception=FILE, its weights")
    missing = {"feature_distance": blind, "frechet": blind, "joint_frechet": blind,
               "lpips": (not part.lpips, "mend: --lpips=FILE, weights of its network"),
               "consistency": (operator_of(config) is None, "nobody knows the operator of pairs"),
               "ssim": (min(shape[:2]) < 11, "it needs pictures of 11 pixels or more"),
               "diversity": (part.draws < 2, "mend: --draws=2 or more"),
               "codebook": (not config.network.num_codes, "this autoencoder has no codebook")}
    possible = [name for name in allowed if not missing.get(name, (False,))[0]]
    for name in metrics:
        if name not in allowed:
            raise ValueError(f"metric is {name!r}; allowed for this run: {', '.join(allowed)}")
        if name not in possible:
            raise ValueError(f"metric {name!r} cannot be had here; {missing[name][1]}")
    return tuple(metrics) or tuple(possible)


def report(
    run: Run, workdir: Any, given: Mapping[str, np.ndarray], draws: np.ndarray, metrics: Sequence[str], progress: bool
) -> dict[str, Any]:
    """Every paired number with its sample size, of draws `[K, N, H, W, C]` against `given["x"]` `[N, H, W, C]`."""
    part = run.config.evaluate
    judged = {"feature_distance", "frechet", "joint_frechet"} & set(metrics)
    features: Any = None
    name = ""
    if judged and part.inception:
        name, features = "inception pool3", by_example(evaluation.inception_features(part.inception))
    elif judged:
        judge = judge_of(run, workdir, progress)
        name, features = judge.name, judge.features
    lpips = evaluation.lpips_distance(part.lpips, part.lpips_net) if "lpips" in metrics else None
    found = evaluation.paired_report(
        given["x"], np.clip(draws, -1, 1), given["image"], operator=operator_of(run.config), mask=given.get("mask"),
        features=features, lpips=lpips, metrics=metrics,
    )
    return found | ({"features": name} if features is not None else {})
