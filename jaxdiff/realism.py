"""Pictures beside the real ones of a run's own data: class agreement, and distances over features.

The features are Inception's (where the user has the weights) or those of a classifier of the same data (judge.py). The
reference is the training split, its statistics saved once in the run directory; the test split's own distance to it is
the floor. Pictures come in parts, of which only features stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import build, cas, data, evaluation
from jaxdiff.evaluation import Moments, Statistics
from jaxdiff.judge import Judge, judge_of
from jaxdiff.run import Run
from jaxdiff.spread import by_example
from jaxdiff.types import Array


def real_examples(run: Run, split: str, num: int | None = None) -> dict[str, np.ndarray]:
    """Preprocessed examples of a split: all of them, or `num` drawn from it."""
    records = build.source(run.config, split)
    num = len(records) if num is None else num
    return data.preview(records, num, preprocess=build.preprocess(run.config, run.facts))


def nearest_real(run: Run, x: np.ndarray) -> np.ndarray:
    """Of every picture of `x` float32 [-1, 1] `[N, H, W, C]` the training picture nearest to it, pixel by pixel: what a
    model that only remembers would have drawn. The split is read batch by batch."""
    records = build.source(run.config, "train")
    flat, found = x.reshape(len(x), -1), np.zeros_like(x)
    least = np.full(len(x), np.inf)
    for batch in build.pipeline(run.config, records, batch_size=min(512, len(records))).epoch():
        real = batch["x"].reshape(len(batch["x"]), -1)
        distance = (flat**2).sum(1)[:, None] + (real**2).sum(1)[None] - 2 * flat @ real.T
        nearest, best = distance.argmin(1), distance.min(1)
        closer = best < least
        found[closer], least[closer] = batch["x"][nearest[closer]], best[closer]
    return found


def score_pictures(
    run: Run, workdir: Any, parts: Iterable[tuple[np.ndarray, Any]], wanted: Sequence[str], progress: bool = True
) -> dict[str, Any]:
    """What pictures are worth beside the run's own real ones, by `wanted` of IMAGE_METRICS.

    `parts` are batches `(x float32 [-1, 1] [B, H, W, C], label int32 [B] or None)`, read once, one after the other: of
    each only features and logits are kept, and for the Frechet distance alone only the features' moments; for "cas", 8 bits
    of each pixel.
    """
    part = run.config.evaluate
    found: dict[str, Any] = {}
    judge: Judge | None = None
    if set(wanted) != {"cas"} and (run.facts.num_classes or not part.inception):
        judge = judge_of(run, workdir, progress)
        found |= {"classifier_accuracy": judge.accuracy, "classifier_n": judge.n}
    if part.inception:
        name, features = "inception pool3", by_example(evaluation.inception_features(part.inception))
        logits: Callable[[Any], Array] = by_example(evaluation.inception_features(part.inception, "logits_unbiased"))
    elif judge is not None:
        name, features, logits = judge.name, judge.features, judge.logits
    distances, keep = {"frechet", "kid", "precision_recall"} & set(wanted), {"kid", "precision_recall"} & set(wanted)
    moments: Moments | None = None
    seen, read, asked, scored, kept = [], [], [], [], []
    for x, label in parts:
        if "agreement" in wanted:
            assert judge is not None
            read.append(evaluation.extract(judge.logits, x))
            asked.append(label)
        if distances:
            of_part = evaluation.extract(features, x)
            here = evaluation.moments_of(of_part)
            moments = here if moments is None else evaluation.merge_moments(moments, here)
            seen += [of_part] if keep else []
        if "inception_score" in wanted:
            scored.append(evaluation.extract(logits, x))
        if "cas" in wanted:
            kept.append((evaluation.to_uint8(x), label))
    if "agreement" in wanted:
        agreement = evaluation.class_agreement(lambda z: z, np.concatenate(read), np.concatenate(asked))
        found |= {"agreement": agreement["agreement"], "agreement_n": agreement["n"]}
        found["agreement_per_class"] = agreement["per_class"]
    if moments is not None:
        reference = _reference(run, Path(workdir) / "reference.npz", name, features)
        found |= _distances(reference, Statistics(name, moments, np.concatenate(seen) if keep else None), wanted)
        if "frechet" in wanted:
            held_out = evaluation.moments_of(evaluation.extract(features, real_examples(run, "test")["x"]))
            found["frechet_floor"] = evaluation.frechet_distance(reference.moments, held_out).value
            found["frechet_floor_n"] = held_out.n
        found["features"] = name
    if "inception_score" in wanted:
        result = evaluation.inception_score(np.concatenate(scored))
        found |= {"inception_score": result.mean, "inception_score_std": result.std}
    if "cas" in wanted:
        x, label = (np.concatenate(column) for column in zip(*kept, strict=True))
        found |= cas.of_run(run, x, label, workdir, progress)
    return found


def score_words(run: Run, workdir: Any, x: np.ndarray, prompts: Iterable[str], progress: bool = True) -> dict[str, Any]:
    """Whether pictures `x` `[N, H, W, C]` show what they were asked for: `evaluation.word_report` beside the training
    pictures and their captions, under the features of Inception or of a classifier."""
    part = run.config.evaluate
    if part.inception:
        name, features = "inception pool3", by_example(evaluation.inception_features(part.inception))
    else:
        judge = judge_of(run, workdir, progress)
        name, features = judge.name, judge.features
    real = _reference(run, Path(workdir) / "reference.npz", name, features).features
    captions = data.captions(build.source(run.config, "train"))
    return evaluation.word_report(evaluation.extract(features, x), list(prompts), real, captions)


def _reference(run: Run, path: Path, name: str, features: Callable[[Any], Array]) -> Statistics:
    """The training split's statistics, read if they are of these features, else measured and saved."""
    try:
        return evaluation.load_statistics(path, name)
    except (FileNotFoundError, ValueError):
        real = real_examples(run, "train")["x"]
        measured = evaluation.statistics_of(name, evaluation.extract(features, real))
        evaluation.save_statistics(path, measured)
        return measured


def _distances(reference: Statistics, fake: Statistics, wanted: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"n_real": reference.moments.n, "n_fake": fake.moments.n}
    if "frechet" in wanted:
        found["frechet"] = evaluation.frechet_distance(reference.moments, fake.moments).value
    if fake.features is None:
        return found
    assert reference.features is not None
    if "kid" in wanted:
        result = evaluation.kid(reference.features, fake.features)
        found |= {"kid": result.mean, "kid_std": result.std}
    if "precision_recall" in wanted:
        pair = evaluation.precision_recall(reference.features, fake.features)
        found |= {"precision": pair.precision, "recall": pair.recall}
    return found
