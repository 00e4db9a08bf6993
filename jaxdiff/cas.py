"""The classification accuracy score: what a classifier that saw only samples knows of real pictures.

CAS (Ravuri & Vinyals 2019) is the top-1 accuracy, on real held-out pictures, of a classifier trained on a model's samples
with the labels they were drawn for. It falls where samples are wrong, where they look alike, and, class by class, where a
mode is missing. The same classifier trained in the same way on as many real pictures is its ceiling, and stands beside it.

Every training set gets a run directory of ours, WORKDIR/cas/samples-DIGEST or WORKDIR/cas/real-DIGEST, whose digest is of
the pictures and of everything that the classifier is made from: what was trained once is found again, an interrupted
training goes on, and other samples never meet an old classifier. Pictures train as 8-bit levels, as files hold them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, data, evaluation, fit, training
from jaxdiff.data.records import Source, Subset, take
from jaxdiff.facts import Facts
from jaxdiff.judge import classifier_config
from jaxdiff.run import Run, load_run
from jaxdiff.spread import by_example

PICTURES = "pictures.npz"  # a training set, beside its checkpoints until it is trained on
CHUNK = 1024  # records read at once, so that a large data set does not have to fit in memory


def of_run(run: Run, x: Any, label: Any, workdir: Any, progress: bool = True) -> dict[str, Any]:
    """`classification_accuracy` of samples `x` of a run, by the judge's kind of classifier of the run's own data.

    The run's seed; a smoke run (20 steps or fewer) gets a smoke classifier. Raises ValueError without classes.
    """
    if not run.facts.num_classes or len(run.facts.pixels) != 3:
        raise ValueError(f"cas needs samples of classes, and the run {run.config.name!r} draws none; allowed: "
                         "class-conditional runs on pictures")
    smoke = run.config.train.steps <= 20
    classifier = classifier_config(run.config.data, run.facts.pixels[0], run.config.seed, smoke=smoke)
    return classification_accuracy(classifier, x, label, workdir, progress)


def classification_accuracy(
    classifier: ConfigDict, x: Any, label: Any, workdir: Any, progress: bool = True
) -> dict[str, Any]:
    """CAS of labelled samples, whoever drew them, and its ceiling (Ravuri & Vinyals 2019, section 3).

    Args:
      classifier: the config of a classifier of the real data, such as `judge.classifier_config(config.data, side)`; its
        steps, seed and network serve both trainings, its data give the real training and test pictures.
      x: samples `[N, H, W, C]` of the shape of the real data, floats in [-1, 1] (clipped) or uint8.
      label: integers `[N]` in 0..K-1, what each was asked to be; a class that is not among them will never be read.
      workdir: the two classifiers go to `workdir`/cas.

    Returns: `cas` and `cas_real` in [0, 1], the accuracy on the `cas_n` real test pictures of the classifier trained on the
    `cas_trained_on` samples and on the `cas_real_trained_on` real pictures: as many, or all of the training split if it has
    fewer, as evenly over the classes as it allows; `cas_per_class` and `cas_real_per_class`, dicts by the classes of the
    test split. A low `cas_real` says that the classifier, not the samples, is what falls short.

    Raises ValueError for data without classes, and for samples or labels that do not fit it; KeyboardInterrupt after
    saving if a signal stopped a training.
    """
    known = _facts(classifier)
    x, label = _checked(x, label, known)
    home = Path(workdir) / "cas"
    real = min(len(x), len(build.source(classifier, "train")))
    digest = _digest(classifier, x.shape, x.tobytes(), label.tobytes())
    by_samples = _trained(classifier, home / f"samples-{digest}", "samples", progress, lambda: (x, label))
    by_real = _trained(classifier, home / f"real-{_digest(classifier, real)}", f"real pictures of {classifier.data.source}",
                       progress, lambda: _real(classifier, known, real))
    held_out = build.examples(classifier, known, "test")
    found: dict[str, Any] = {}
    for name, run, count in (("cas", by_samples, len(x)), ("cas_real", by_real, real)):
        found[name], found[f"{name}_per_class"] = _accuracies(run, held_out["x"], held_out["label"])
        found[f"{name}_trained_on"] = count
    return found | {"cas_n": len(held_out["label"])}


def _facts(classifier: ConfigDict) -> Facts:
    known = build.facts(classifier, build.source(classifier, "train"))
    if known.kind != "image" or known.num_classes < 2:
        raise ValueError(f"cas needs labelled pictures, and {classifier.data.source!r} has none; allowed: data with "
                         "classes, such as a folder with a class per subfolder")
    return known


def _checked(x: Any, label: Any, known: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Samples as uint8 `[N, H, W, C]` and labels as int32 `[N]`, or a ValueError."""
    x, label = np.asarray(x), np.asarray(label)
    if x.ndim != 4 or x.shape[1:] != known.shape or len(x) == 0:
        raise ValueError(f"samples have shape {x.shape}, the real pictures {known.shape}; allowed: "
                         f"(N, {', '.join(map(str, known.shape))}), at least one")
    if not (np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint8):
        raise ValueError(f"samples are {x.dtype}; allowed: floats in [-1, 1], or uint8")
    if label.shape != (len(x),) or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels are {label.dtype} {label.shape}; allowed: integers ({len(x)},), one for each sample")
    if label.min() < 0 or label.max() >= known.num_classes:
        raise ValueError(f"labels go from {label.min()} to {label.max()}; allowed: 0 to {known.num_classes - 1}")
    return evaluation.to_uint8(x), label.astype(np.int32)


def _digest(classifier: ConfigDict, *parts: Any) -> str:
    """Twelve hexadecimal digits that change with the classifier's config and with any of `parts`."""
    found = hashlib.sha256(json.dumps(classifier.to_dict(), sort_keys=True).encode())
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode())
    return found.hexdigest()[:12]


def _trained(
    classifier: ConfigDict, home: Path, what: str, progress: bool, pictures: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> Run:
    """The classifier in `home`, trained there on `pictures()`, uint8 and labels, unless it has been already."""
    steps = classifier.train.steps
    if steps not in training.steps(home):
        file = home.resolve() / PICTURES
        if not file.is_file():
            x, label = pictures()
            evaluation.save_npz(file, x=x, label=label)
        config = classifier.copy_and_resolve_references().unlock()
        with config.ignore_type():
            config.data.options = ConfigDict({"test": 0.0})
            config.data.update({"source": f"npz:{file}", "size": None, "channels": None, "resize": None, "crop": "center"})
        if progress:
            print(f"training a classifier on {what}, once, for the classification accuracy score")
        outcome = fit.train(config.lock(), home, progress)
        if outcome.signal is not None:
            raise KeyboardInterrupt(f"stopped at step {outcome.step} of {home} and saved; call again to go on")
    (home / PICTURES).unlink(missing_ok=True)  # samples of many evaluations would fill a disk; the digest stands for them
    return load_run(home, steps)


def _real(classifier: ConfigDict, known: Facts, num: int) -> tuple[np.ndarray, np.ndarray]:
    """`num` real training pictures and labels, as evenly over the classes as the training split allows."""
    records = build.source(classifier, "train")
    numbers, how = _even(records, num), build.preprocess(classifier, known)
    parts = [dataclasses.replace(records, records=Subset(records.records, numbers[i : i + CHUNK]))
             for i in range(0, num, CHUNK)]
    found = [data.preview(part, len(part), preprocess=how) for part in parts]
    return np.concatenate([evaluation.to_uint8(part["x"]) for part in found]), np.concatenate([p["label"] for p in found])


def _even(records: Source, num: int) -> np.ndarray:
    """Numbers of `num` records: each class gives one in turn, drawn by a fixed seed, for as long as it has any."""
    if num >= len(records):
        return np.arange(len(records))
    order = np.random.RandomState(0).permutation(len(records))
    label = np.concatenate([np.asarray(take(records.records, order[i : i + CHUNK])["label"])
                            for i in range(0, len(order), CHUNK)])
    turn = np.zeros(len(order), np.int64)
    for c in np.unique(label):
        turn[label == c] = np.arange((label == c).sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:num]])


def _accuracies(run: Run, x: np.ndarray, label: np.ndarray) -> tuple[float, dict[int, float]]:
    """Top-1 accuracy on `x` `[N, H, W, C]`, whole and per class; a class beyond the head's outputs is never right."""
    logits = by_example(lambda batch: run.network.apply({"params": run.params}, batch))
    right = evaluation.extract(logits, x).argmax(1) == label
    return float(right.mean()), {int(c): float(right[label == c].mean()) for c in np.unique(label)}
