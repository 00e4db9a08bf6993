"""Score a run: draw samples, compare them with real data, and report every number with its sample size.

Images are compared under the features of Inception (where the user has the weights) or of a classifier of the same data
(judge.py); points under the mixture they come from. The reference is the training split, its statistics saved once in
the run directory; the test split's own distance to it is printed beside ours as the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import autoencoding, build, data, evaluation, inverse, observe, prompts
from jaxdiff.facts import Facts, check_condition, check_labels
from jaxdiff.losses import variational_bound
from jaxdiff.realism import real_examples, score_pictures, score_words
from jaxdiff.run import Run
from jaxdiff.samplers import bits_per_dim, log_likelihood
from jaxdiff.spread import Spread, here, shared
from jaxdiff.types import Array

IMAGE_METRICS = ("agreement", "frechet", "kid", "precision_recall", "inception_score", "words", "cas")
POINT_METRICS = ("points",)


class NoScores(ValueError):
    """Nothing here to measure samples against: unlabelled pictures without Inception weights, points without modes."""


class Samples(NamedTuple):
    """`x` float32 `[N, ...]` in the data's own units, and what they were asked with: `label`, `image`, `mask` `[N, ...]`,
    and `prompt`, a text for each; of an autoencoder `original`."""

    x: np.ndarray
    cond: dict[str, np.ndarray]


def balanced_labels(num: int, num_classes: int) -> np.ndarray:
    """Every class as often as any other, to within one: 0, 1, ..., K - 1, 0, 1, ..."""
    return np.arange(num, dtype=np.int32) % num_classes


def draw(
    run: Run, num: int, seed: int = 0, cond: Mapping[str, np.ndarray] | None = None, batch_size: int = 250, **how: Any
) -> Samples:
    """`num` samples in batches of one compiled size, each split over this process's devices; `how` goes to `run.sampler`.

    Sample i depends on seed and i's batch, and, but for rounding, on nothing else.

    `cond` holds `label`, `image`, `mask` `[num, ...]`, whatever of them the run takes, all classes in turn by default; and
    `prompt`, a text for each sample.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"num is {num}, batch_size {batch_size}; allowed: 1 or more")
    told = dict(cond or {})
    if "label" not in told and run.facts.num_classes:
        told["label"] = balanced_labels(num, run.facts.num_classes)
    if "label" in told:
        check_labels(told["label"], run.facts)
    texts = np.asarray(told.pop("prompt")) if "prompt" in told else None
    check_condition(told, run.facts, num)
    size = min(batch_size, num)
    sampler = Spread(run.sampler(**how))
    found = []
    for i, start in enumerate(range(0, num, size)):
        rows = np.arange(start, start + size) % num  # the last batch is filled up, and cut below
        part: dict[str, Any] = {name: value[rows] for name, value in told.items()}
        part |= {} if texts is None else run.read(texts[rows])
        found.append(sampler(run.params, jax.random.fold_in(jax.random.key(seed), i), part or None, size))
    return Samples(np.concatenate(found)[:num], told | ({} if texts is None else {"prompt": texts}))


def shown(run: Run, samples: Samples, most: int | None = None) -> tuple[np.ndarray, Facts, Any]:
    """What `fit.picture` takes: samples, up to `most` of them where they are pictures, and what they are shown beside."""
    if run.facts.kind == "points":
        return samples.x, run.facts, {"x": real_examples(run, "test")["x"]}
    spread = lambda count: np.linspace(0, count - 1, min(count, 32)).astype(int)  # test pictures may stand by class
    if "original" in samples.cond:
        rows = spread(len(samples.x))
        return samples.x[rows], run.facts, {"original": samples.cond["original"][rows]}
    if "image" not in samples.cond:
        texts = samples.cond.get("prompt")
        return samples.x[:most], run.facts, None if texts is None else {"caption": texts[:most]}
    count = len(samples.cond.get("x", samples.cond["image"]))
    rows = spread(count)
    draws = samples.x.reshape(-1, count, *samples.x.shape[1:])[:8, rows]
    beside = {name: samples.cond[name][rows] for name in ("image", "x") if name in samples.cond}
    return draws.reshape(-1, *samples.x.shape[1:]), run.facts, beside


def score(
    run: Run,
    workdir: Any,
    num: int | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
    **how: Any,
) -> tuple[dict[str, Any], Samples]:
    """`(numbers by name, the samples)`. `metrics` picks from IMAGE_METRICS or POINT_METRICS; () is all that suit, but
    "cas" only when it is named: it trains two classifiers.

    Raises NoScores where this data has nothing to be measured against, ValueError for a metric that does not suit it.
    """
    part = run.config.evaluate
    num = part.num if num is None else num
    if build.trains(run.config) == "autoencoder":
        if set(how.values()) - {None}:
            raise ValueError(f"the run {run.config.name!r} is an autoencoder, which is not sampled; mend: leave the options "
                             "of sampling out")
        found, x, x_hat = autoencoding.score(run, workdir, num, metrics, progress)
        return found, Samples(x_hat, {"original": x})
    wanted = check_metrics(run.config, run.facts, metrics)
    if run.facts.low_res and "cas" in wanted:
        raise ValueError("cas of a stage alone would train on what is made from the test pictures; allowed: cas of a whole "
                         "cascade, by jaxdiff cascade")
    if run.facts.condition and not run.facts.low_res:
        return _score_pairs(run, workdir, num, wanted, seed, progress, how)
    given = _low_res(run, num) if run.facts.low_res else {"prompt": captions(run, num)} if run.facts.text else None
    samples = draw(run, num, seed, given, part.batch_size, **how)
    calls = {"network_calls": network_calls(run, **how)}
    if run.facts.kind == "points":
        return calls | _score_points(run, samples), samples
    if "words" in wanted:
        calls |= score_words(run, workdir, [(samples.x, samples.cond["prompt"])], progress)
    wanted = tuple(name for name in wanted if name != "words")
    return calls | score_pictures(run, workdir, [(samples.x, samples.cond.get("label"))], wanted, progress), samples


def captions(run: Run, num: int) -> np.ndarray:
    """`num` captions of the split `evaluate.captions`, drawn from all of it by a fixed seed, in turn where it has fewer."""
    return np.resize(build.examples(run.config, run.facts, run.config.evaluate.captions, num)["prompt"], num)


def _low_res(run: Run, num: int) -> dict[str, np.ndarray]:
    """What a stage of a cascade is given, `num` times: real low-resolution test pictures and their classes, in turn."""
    given = inverse.examples(run, num)
    rows = np.arange(num) % len(given["image"])
    wanted = {"image": True, "label": run.facts.num_classes, "prompt": run.facts.text}
    return {name: given[name][rows] for name, there in wanted.items() if there}


def _score_pairs(
    run: Run, workdir: Any, num: int, wanted: Sequence[str], seed: int, progress: bool, how: dict[str, Any]
) -> tuple[dict[str, Any], Samples]:
    """`num` conditions, each drawn `evaluate.draws` times."""
    part = run.config.evaluate
    given = inverse.examples(run, num)
    cond = inverse.repeat({name: given[name] for name in ("label", "image", "mask", "prompt") if name in given},
                          part.draws)
    if not run.facts.num_classes:
        cond.pop("label", None)
    samples = draw(run, len(cond["image"]), seed, cond, part.batch_size, **how)
    draws = samples.x.reshape(part.draws, -1, *samples.x.shape[1:])
    found = inverse.report(run, workdir, given, draws, wanted, progress)
    return found, samples._replace(cond={**samples.cond, "x": given["x"]})


def check_words(config: ConfigDict) -> None:
    """What can be known of `config.evaluate` before there is data: metrics by their names, files by their being there."""
    part, known = config.evaluate, tuple(dict.fromkeys([*IMAGE_METRICS, *POINT_METRICS, *inverse.PAIRED_METRICS]))
    for name in part.metrics:
        if name not in known:
            raise ValueError(f"evaluate.metrics has {name!r}; allowed: {', '.join(known)}")
    for key in ("inception", "classifier", "lpips"):
        if part[key] and not Path(part[key]).exists():
            raise FileNotFoundError(f"evaluate.{key} is {part[key]!r}, where nothing is; mend: its path, or leave it out")


def check_metrics(config: ConfigDict, known: Facts, metrics: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics asked for, or the config's, or all that suit the data; raises as `score` does."""
    check_words(config)
    part = config.evaluate
    if known.condition and not known.low_res:
        return inverse.check_metrics(config, known.pixels, tuple(metrics) or tuple(part.metrics))
    allowed: tuple[str, ...] = POINT_METRICS if known.kind == "points" else IMAGE_METRICS
    if known.kind == "points" and config.data.source != "gaussians25":
        raise NoScores(f"points of {config.data.source!r} have no known modes to score; allowed: gaussians25")
    if known.kind == "image" and not known.num_classes:
        allowed = tuple(name for name in allowed if name not in ("agreement", "cas"))
    if not known.text:
        allowed = tuple(name for name in allowed if name != "words")
    wanted = tuple(metrics) or tuple(part.metrics) or tuple(name for name in allowed if name != "cas")
    for name in wanted:
        if name not in allowed:
            needs = "captions" if name == "words" else "classes"
            why = f", which needs {needs}" if name in IMAGE_METRICS and known.kind == "image" else ""
            raise ValueError(f"metric is {name!r}{why}; allowed for this run: {', '.join(allowed)}")
    judged = known.kind == "points" or known.num_classes or part.inception or part.classifier
    if not judged and build.source(config, "train").num_classes == 0:
        raise NoScores("pictures without classes are scored by Inception's features; mend: --inception=FILE, its weights")
    return wanted


def _score_points(run: Run, samples: Samples) -> dict[str, Any]:
    """In the mixture's raw units, whatever scale the network saw, so that distances compare with published ones."""
    raw = lambda x: data.gaussians25_to_raw(x, dict(run.config.data.options).get("scale") or "raw")
    real = real_examples(run, "test")["x"]
    return evaluation.point_report(raw(real), raw(samples.x), data.gaussians25_centres("raw"), data.gaussians25_std("raw"))


def network_calls(run: Run, num_steps: int | None = None, sampler: Any = None, **_: Any) -> int:
    """Calls of the (possibly guided) denoiser for one sample (NFE) under these options of `run.sampler`."""
    return build.sampler(run.config, sampler).evaluations(run.config.sampler.num_steps if num_steps is None else num_steps)


def likelihood(
    run: Run, num: int | None = None, seed: int = 0, trace: str | None = None, probes: int = 1
) -> dict[str, Any]:
    """Mean negative log-likelihood of the test split; `trace` is "exact", "hutchinson", or by default what D affords.

    A Discrete run: the variational bound in bits/dim. Others: the probability-flow ODE, of images dequantised with one
    uniform draw, in bits/dim; of points, in nats.
    """
    config, known = run.config.copy_and_resolve_references(), run.facts
    if build.adversarial(config):
        raise ValueError(f"the run {config.name!r} is a few-step generator, which gives samples and no likelihood; allowed: "
                         "the run of a denoiser")
    if known.picture:
        raise ValueError(f"the run {config.name!r} diffuses latents, whose likelihood is none of pictures; allowed: a run "
                         "on pixels")
    denoise, key = run.denoiser(run.params), jax.random.key(seed)
    bound = hasattr(run.path, "betas")
    if bound and not known.levels:
        raise ValueError("a Discrete path's likelihood is a bound on grey levels, and this data is continuous; allowed: a "
                         "run on another path, such as edm or vp")
    if known.kind == "image" and not bound:
        config.data.scale = "dequantise" if known.levels else "exact"
    records = build.source(config, "test")
    num = len(records) if num is None else min(num, len(records))
    batch = data.preview(records, num, preprocess=build.preprocess(config, known), seed=seed, task=build.task(config),
                         tokenize=run.reader and run.reader.tokens)
    batch = next(prompts.told(iter([batch]), run.reader))
    keys = [name for name in build.batch_keys(config, known) if name not in ("x", "index")]
    trace = trace or ("exact" if known.dim <= 16 else "hutchinson")
    variance = "learned" if config.parameterization.learned_variance else "small"

    @jax.jit
    def per_example(x: Array, cond: Any) -> Array:
        cond = build.told(config, known, cond)
        if bound:
            return variational_bound(denoise, run.path, x, key, known.levels, variance, cond).total
        hook = None
        if build.joint(config):
            cond = dict(cond)
            hook = observe.redraw(run.path, cond.pop("image"))
        log_p = log_likelihood(denoise, run.path, x, key, cond or None, hook, trace=trace, num_probes=probes)
        return bits_per_dim(log_p, known.dim, known.levels) if known.levels else -log_p

    values, size, mesh = [], min(config.evaluate.batch_size, num), here()
    for start in range(0, num, size):
        part = np.arange(start, start + size) % num  # the last batch is filled up, so that one program serves all
        cond = {name: batch[name][part] for name in keys} or None
        values.append(np.asarray(per_example(*shared((batch["x"][part], cond), mesh))))
    all_ = np.concatenate(values)[:num]
    return {
        "value": float(all_.mean()),
        "standard_error": float(all_.std(ddof=1) / np.sqrt(len(all_))) if len(all_) > 1 else float("nan"),
        "unit": "bits/dim" if known.levels or bound else "nats",
        "kind": "variational bound" if bound else f"probability-flow ODE, {trace} trace",
        "n": len(all_),
    }
