"""The bound of a cascade: how likely real pictures are under all of its stages together (Ho et al. 2022, CDM, section 4.3).

What one stage hands to the next, z_s, is the latent variable of a model of pictures x whose smaller version is y = A(x):

    -log p(x) <= E_{q(z_s | y)} [-log p(x | z_s)] + KL(q(z_s | y) || p(z_s)),     q(z_s | y) = N(alpha(s) y, sigma(s)^2)

The last stage gives its whole likelihood, as `jaxdiff likelihood` of the stage alone would, told a drawn z_s. Every stage
before it gives the variational bound of its own process from the prior down to s (losses/bound.py), told the z of the
stage before it, at the time of its own path that has the log-SNR of s. With two exact stages in continuous time the bound
is tight in expectation. With three it is not: the third sees z of the second alone, and what z of the first still tells
beside it, I(x; z_1 | z_2) nats, is lost. The smaller s, the more the stages before the last must tell; at s = 0 a picture
itself, infinitely many bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import build, data
from jaxdiff.cascade import PIXELS, Stage, cut, each_cond
from jaxdiff.losses import truncated_bound, variational_bound
from jaxdiff.run import Run
from jaxdiff.samplers import bits_per_dim, log_likelihood
from jaxdiff.stages import check_linked, stage_of, told
from jaxdiff.types import Array, Cond, Key, Params


def cascade_bound(
    key: Key,
    stages: Sequence[Stage],
    params: Sequence[Params],
    pictures: Sequence[Array],
    cond: Cond | Sequence[Cond] = None,
    s: float | Sequence[float] = 0.0,
    levels: int = 0,
    variance: str | Sequence[str] = "small",
    num_times: int = 32,
    **ode: Any,
) -> Array:
    """Each stage's part of the bound, `[S, B]`, in bits per dimension of the last stage's pictures; their sum is the bound.

    A pure function of key, params, pictures and cond. It is of the stages' models themselves, without their guidance and
    their samplers: a Discrete stage is the chain that it was trained as, any other a continuous process.

    Args:
      stages: base first. params: of each.
      pictures: of each stage `[B, h, w, C]`, smallest first, each the low-resolution version of the next; the last ones
        `2 k / (levels - 1) - 1` for a Discrete stage, dequantised for any other.
      cond: told to every stage, such as `label` `[B]`, or of each its own.
      s: the augmentation's time for each super-resolution stage, or one for all; Python numbers above 0.
      levels: grey levels of the last stage's pictures, 0 for a density: then bits are not of grey levels but of x.
      variance: of the reverse steps of Discrete stages, "small", "large" or "learned", of each or of all.
      num_times: network calls for each continuous stage before the last, one for each stratum of times.
      ode: options of `samplers.log_likelihood` for a last stage that is not Discrete: trace, num_probes, rtol, ...

    Raises ValueError in one line for numbers of things that differ, pictures of other shapes than the stages', an s that
    is 0 or that an augmentation lacks, a stage that is never as noisy as s, a codec, and a Discrete last stage without
    levels.
    """
    times = _times(stages, s)
    if not len(stages) == len(params) == len(pictures):
        raise ValueError(f"{len(stages)} stages, {len(params)} params and pictures of {len(pictures)} sizes; allowed: as "
                         "many of each")
    for stage, x in zip(stages, pictures, strict=True):
        if x.shape[1:] != stage.shape:
            raise ValueError(f"pictures of shape {x.shape[1:]} for a stage of {stage.shape}; allowed: the stage's own shape")
        if stage.codec is not PIXELS:
            raise ValueError("a stage with a codec is a model of what it encodes, no bound on pictures; allowed: no codec")
    variances = [variance] * len(stages) if isinstance(variance, str) else list(variance)
    dim = math.prod(stages[-1].shape)
    conds, terms = each_cond(cond, len(stages)), []
    given: dict[str, Any] = {}
    for i, (stage, x) in enumerate(zip(stages, pictures, strict=True)):
        k_stage, k_noise = jax.random.split(jax.random.fold_in(key, i))
        denoise, cond_i = stage.denoiser(params[i], None), {**conds[i], **given} or None
        if i + 1 == len(stages):
            terms.append(_whole(denoise, stage.path, x, k_stage, cond_i, levels, variances[i], ode))
            continue
        following = stages[i + 1].augmentation
        t = cut(stage.path, following, times[i]).t
        nats = truncated_bound(denoise, stage.path, x, k_stage, t, cond_i, num_times, variances[i])
        terms.append(nats / (dim * math.log(2)))
        given = following.noised(k_noise, x, times[i])
    return jnp.stack(terms)


def _whole(
    denoise: Any, path: Any, x: Array, key: Key, told: Cond, levels: int, variance: str, ode: dict[str, Any]
) -> Array:
    """-log p(x | z_s) of the last stage in bits per dimension, `[B]`."""
    if hasattr(path, "betas"):
        if not levels:
            raise ValueError("the last stage's path is Discrete, whose likelihood is of grey levels, and levels is 0; mend: "
                             "levels=256, or a stage on another path, such as edm or vp")
        return variational_bound(denoise, path, x, key, levels, variance, told).total
    nats = -log_likelihood(denoise, path, x, key, told, **ode)
    dim = math.prod(x.shape[1:])
    return bits_per_dim(-nats, dim, levels) if levels else nats / (dim * math.log(2))


def _times(stages: Sequence[Stage], s: float | Sequence[float]) -> list[float]:
    """s of each super-resolution stage."""
    times = [float(v) for v in s] if isinstance(s, Sequence) else [float(s)] * (len(stages) - 1)
    if not stages or len(times) != len(stages) - 1:
        raise ValueError(f"s has {len(times)} values for {len(stages)} stages; allowed: one for each stage but the first, "
                         "or one for all")
    for number, (stage, level) in enumerate(zip(stages[1:], times, strict=True), 2):
        most = stage.augmentation.s_max
        if not most:
            raise ValueError(f"stage {number} was trained without Gaussian augmentation, so that it is given a picture "
                             "itself, which takes infinitely many bits; allowed: stages of augmentation.kind=gaussian")
        if level == 0:
            raise ValueError(f"s is 0 for stage {number}, which is then given a picture itself, which takes infinitely many "
                             f"bits; allowed: above 0, up to {most:g}")
        stage.augmentation.check(level)
    return times


def likelihood(
    runs: Sequence[Run],
    num: int | None = None,
    seed: int = 0,
    s: float | Sequence[float] = 0.0,
    trace: str | None = None,
    probes: int = 1,
    num_times: int = 32,
) -> dict[str, Any]:
    """The bound of trained runs, base first, on `num` examples of the last one's test split (all by default).

    Pictures are those of the last run's own data, dequantised with one uniform draw unless its path is Discrete; the
    smaller ones are made from them as each run's task says. `trace` and `probes` are of the last stage's ODE, by default
    exact up to 16 dimensions.

    Returns `value` and `standard_error` in `unit` bits/dim, `n`, `kind`, and `terms`: of each stage its `shape`, `value`,
    `standard_error` and `kind`. Raises ValueError as `cascade_bound`, `check_linked` and `stage_of` do.
    """
    check_linked(runs)
    stages, last = [stage_of(run) for run in runs], runs[-1]
    times, known = _times(stages, s), last.facts
    for run in runs:
        if build.adversarial(run.config):
            raise ValueError(f"the run {run.config.name!r} is a few-step generator, which gives samples and no likelihood; "
                             "allowed: runs of denoisers")
    trace = trace or ("exact" if known.dim <= 16 else "hutchinson")
    chains = [hasattr(run.path, "betas") for run in runs]
    variances = ["learned" if run.config.parameterization.learned_variance else "small" for run in runs]
    ode = {} if chains[-1] else {"trace": trace, "num_probes": probes}
    pictures, given, num = _examples(runs, num, seed, dequantise=not chains[-1])
    size = min(last.config.evaluate.batch_size, num)

    @jax.jit
    def terms_of(key: Key, params: Any, pictures: Any, cond: Any) -> Array:
        return cascade_bound(key, stages, params, pictures, cond, times, known.levels, variances, num_times, **ode)

    found = []
    for i, start in enumerate(range(0, num, size)):
        rows = np.arange(start, start + size) % num  # the last batch is filled up, so that one program serves all
        part = [jnp.asarray(x[rows]) for x in pictures]
        conds = told(runs, {name: value[rows] for name, value in given.items()})
        key = jax.random.fold_in(jax.random.key(seed), i)
        found.append(np.asarray(terms_of(key, [run.params for run in runs], part, conds), np.float64))
    terms = np.concatenate(found, axis=1)[:, :num]
    whole = "variational bound" if chains[-1] else f"probability-flow ODE, {trace} trace"
    kinds = [f"variational bound down to s = {v:g}" for v in times] + [whole]
    parts = [{"shape": run.facts.shape, "kind": kind, **_mean(term)}
             for run, kind, term in zip(runs, kinds, terms, strict=True)]
    return {**_mean(terms.sum(0)), "unit": "bits/dim", "kind": "bound of a cascade", "n": num, "terms": parts}


def _mean(values: np.ndarray) -> dict[str, float]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"value": float(values.mean()), "standard_error": error}


def _examples(
    runs: Sequence[Run], num: int | None, seed: int, dequantise: bool
) -> tuple[list[np.ndarray], dict[str, np.ndarray], int]:
    """Test pictures at the size of every stage, smallest first, what every stage is told, and how many there are."""
    last = runs[-1]
    config, known = last.config.copy_and_resolve_references(), last.facts
    config.data.scale = "dequantise" if dequantise and known.levels else "exact"
    records = build.source(config, "test")
    num = len(records) if num is None else min(num, len(records))
    reads = any(run.facts.text for run in runs)
    batch = data.preview(records, num, preprocess=build.preprocess(config, known), seed=seed, task=build.task(config),
                         captions=reads)
    pictures = [batch["x"]]
    for run in reversed(runs[1:]):
        task = build.task(run.config)
        assert task is not None and task.operator is not None  # check_linked: every stage but the first has one
        pictures.insert(0, task.operator(pictures[0]))
    given = {"label": batch["label"]} if known.num_classes else {}
    return pictures, given | ({"prompt": batch["caption"]} if reads else {}), num
