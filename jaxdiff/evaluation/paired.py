"""Samples of x given y beside the truth: closeness, perception, consistency with y, diversity and joint Frechet distance.

With K draws for each of N conditions every draw is scored by itself and the scores are averaged: never the mean picture
(PSNR would reward its blur), never one draw of the K. Pictures are clipped to [-1, 1] first, as files clip them.
PSNR and consistency are in dB, diversity in the pixels' own units. The protocol is that of Batzolis et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdiff.evaluation.closeness import PSNR_CAP, WINDOW, check_pictures, psnr, same_shape, ssim
from jaxdiff.evaluation.distances import FrechetDistance, frechet_distance, moments_of
from jaxdiff.evaluation.features import FeatureFn, extract
from jaxdiff.types import Array

METRICS = ("psnr", "ssim", "lpips", "feature_distance", "consistency", "diversity", "frechet", "joint_frechet")

Operator = Callable[..., Any]
"""The true forward operator, `x [B, H, W, C] -> y`, or `(x, mask [B, H, W, 1]) -> y` where there are masks."""


def _unit_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (f / (np.linalg.norm(f, axis=-1, keepdims=True) + 1e-10) for f in (a, b))
    square = ((a - b) ** 2).sum(-1)
    return square.mean(tuple(range(1, square.ndim)))


def feature_distance(features: FeatureFn, a: Any, b: Any, batch_size: int = 256) -> np.ndarray:
    """Squared distance of features of unit length, `[N]`, from 0 (one direction) to 4 (opposite): 2 - 2 cos.

    LPIPS's form (Zhang et al. 2018) on a network of one's own, for where LPIPS's weights are not at hand. Features
    `[B, ..., D]` get unit length along D; the mean is over positions. Compare values of one feature function only.
    """
    a, b = check_pictures(a, "a"), check_pictures(b, "b")
    same_shape(a, b, "a and b")
    return _unit_distance(extract(features, a, batch_size), extract(features, b, batch_size))


def _per_draw(score: Callable[..., Any], draws: np.ndarray, *paired: np.ndarray, batch_size: int) -> np.ndarray:
    """`[K, N]` of `score(draw, *paired)`: every draw of condition i beside entry i of each of `paired` `[N, ...]`."""
    k, n = draws.shape[:2]
    flat = draws.reshape(k * n, *draws.shape[2:])
    return extract(lambda i: score(flat[i], *(p[i % n] for p in paired)), np.arange(k * n), batch_size).reshape(k, n)


def _known(mask: Any, condition: np.ndarray) -> np.ndarray:
    """1 - mask, once the mask has been looked at."""
    held = np.asarray(mask, np.float32)
    if held.shape != (*condition.shape[:3], 1):
        raise ValueError(f"mask has shape {held.shape}; allowed: {(*condition.shape[:3], 1)}, one for each condition")
    if not np.isin(held, (0, 1)).all():
        raise ValueError(f"mask is from {held.min():.3g} to {held.max():.3g}; allowed: 0 (known) and 1 (hidden)")
    full = np.flatnonzero(held.min((1, 2, 3)))
    if full.size:
        raise ValueError(f"the mask of example {full[0]} hides everything; allowed: at least one known pixel (0)")
    return 1 - held


def consistency(operator: Operator, draws: Any, condition: Any, mask: Any = None, batch_size: int = 256) -> np.ndarray:
    """PSNR `[K, N]`, dB, of the true operator's answer to each draw against the condition y: does the draw explain y?

    Args:
      operator: called with `batch_size` pictures at a time, float32 NHWC, and with their masks where masks are given.
      draws: float32 [-1, 1] `[K, N, H, W, C]`.
      condition: float32 [-1, 1] `[N, H, W, C']`, what the operator made of the truth.
      mask: `[N, H, W, 1]`, 1 = hidden: each example's own, that y was made with. Hidden pixels are not counted, since
        both sides are 0 there: else a larger mask would look more consistent.

    A draw that explains y exactly gets 100 dB (see `psnr`).
    """
    x, y = check_pictures(draws, "draws", 5), check_pictures(condition, "condition")
    if x.shape[1:4] != y.shape[:3]:
        raise ValueError(f"draws have shape {x.shape}, condition {y.shape}; give [K, N, H, W, C] and [N, H, W, C']")
    known = np.ones((*y.shape[:3], 1), np.float32) if mask is None else _known(mask, y)

    def score(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> Array:
        found = np.asarray(operator(x) if mask is None else operator(x, 1 - known), np.float32)
        same_shape(found, y, "the operator's answer and the condition")
        return psnr(found, y, known)

    return _per_draw(score, x, y, known, batch_size=batch_size)


def diversity(draws: Any) -> np.ndarray:
    """Standard deviation over draws `[K, N, H, W, C]` at every pixel, mean over pixels (Batzolis et al. 2021): `[N]`.

    In units of [-1, 1]: halve it for a [0, 1] scale. K at least 2; the variance is the unbiased one, over K - 1.
    """
    x = check_pictures(draws, "draws", 5)
    if len(x) < 2:
        raise ValueError("diversity of K = 1 draw for a condition is undefined; allowed: K of at least 2")
    return x.std(0, ddof=1, dtype=np.float64).mean((1, 2, 3))


def _channels_of(y: np.ndarray, channels: int) -> np.ndarray:
    if y.shape[-1] == channels:
        return y
    if y.shape[-1] == 1:
        return y.repeat(channels, -1)
    if channels == 1:
        return y.mean(-1, keepdims=True)
    raise ValueError(f"condition has {y.shape[-1]} channels, the truth {channels}; allowed: equal, or one of them grey")


def _fit(truth: Any, draws: Any, condition: Any, rank: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three, looked at; a single sample for each condition (`rank` 4) becomes K = 1 draw."""
    x, y, drawn = (check_pictures(truth, "truth"), check_pictures(condition, "condition"),
                   check_pictures(draws, "draws" if rank == 5 else "samples", rank))  # fmt: skip
    drawn = drawn if rank == 5 else drawn[None]
    if drawn.shape[1:] != x.shape or y.shape[:3] != x.shape[:3]:
        raise ValueError(f"truth {x.shape}, draws {drawn.shape} and condition {y.shape} do not fit; "
                         "give [N, H, W, C], [K, N, H, W, C] and [N, H, W, C']")  # fmt: skip
    return x, drawn, y


def joint_frechet(features: FeatureFn, condition: Any, samples: Any, truth: Any, batch_size: int = 256) -> FrechetDistance:
    """Frechet distance of [f(y), f(x)] `[N, 2 D]` between the pairs (y, sample) and (y, truth) (Batzolis et al. 2021).

    A sampler that ignores y may have the right x's, never the right pairs. `samples` are `[N, H, W, C]`, or draws
    `[K, N, H, W, C]`, of which all K N pairs count. y is given x's channels (grey repeated, colour averaged), so that
    one f `[B, D]` serves both.
    """
    x, drawn, y = _fit(truth, samples, condition, 4 if np.ndim(samples) == 4 else 5)
    of_y = extract(features, _channels_of(y, x.shape[-1]), batch_size)
    return _joint(of_y, extract(features, drawn.reshape(-1, *x.shape[1:]), batch_size), extract(features, x, batch_size))


def _joint(of_y: np.ndarray, of_drawn: np.ndarray, of_truth: np.ndarray) -> FrechetDistance:
    repeated = np.tile(of_y, (len(of_drawn) // len(of_y), 1))
    real, fake = np.concatenate([of_y, of_truth], -1), np.concatenate([repeated, of_drawn], -1)
    return frechet_distance(moments_of(real), moments_of(fake))


def _wanted(metrics: Sequence[str], lacks: dict[str, str]) -> tuple[str, ...]:
    """The metrics asked for, or all that suit; `lacks` says what the others would need."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metric is {name!r}; allowed: {', '.join(METRICS)}")
        if name in lacks:
            raise ValueError(f"the metric {name} needs {lacks[name]}; give it, or leave {name} out")
    return tuple(metrics) or tuple(name for name in METRICS if name not in lacks)


def _summary(name: str, scores: np.ndarray) -> dict[str, Any]:
    """Mean of `[K, N]` or `[N]` scores, and its standard error over conditions: draws of one are not independent."""
    of_condition = np.atleast_2d(scores).astype(np.float64).mean(0)
    n = len(of_condition)
    error = float(of_condition.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return {name: float(of_condition.mean()), f"{name}_se": error}


def paired_report(
    truth: Any,
    draws: Any,
    condition: Any,
    *,
    operator: Operator | None = None,
    mask: Any = None,
    features: FeatureFn | None = None,
    lpips: Callable[[Any, Any], Any] | None = None,
    metrics: Sequence[str] = (),
    batch_size: int = 128,
) -> dict[str, Any]:
    """K draws for each of N conditions, scored beside the truth; all numbers are means over all K N draws.

    Args:
      truth: float32 [-1, 1] `[N, H, W, C]`.
      draws: float32 [-1, 1] `[K, N, H, W, C]`.
      condition: float32 [-1, 1] `[N, H, W, C']`, y.
      operator, mask: see `consistency`.
      features: `[B, H, W, C] -> [B, D]`, for feature_distance, frechet and joint_frechet.
      lpips: what `lpips_distance` returns.
      metrics: of METRICS; () is all that suit the pictures' size, K, N and what was given.
      batch_size: pictures at a time, for operator, features and lpips.

    Returns: `n` and `k`; psnr, ssim, lpips, feature_distance, consistency and diversity, each with `_se`, its standard
      error over the n conditions (NaN at n = 1); `psnr_capped` and `consistency_capped`, how many of the k n scores were
      at the cap of 100 dB; frechet and joint_frechet with `frechet_n_real` = n and `frechet_n_fake` = k n.

    Raises ValueError, one line, for shapes that do not fit, values far outside [-1, 1], and a metric that does not suit.
    """
    x, drawn, y = _fit(truth, draws, condition)
    k, n = drawn.shape[:2]
    lacks = {} if min(x.shape[1:3]) >= WINDOW else {"ssim": f"pictures with sides of at least {WINDOW} pixels"}
    lacks |= {} if lpips else {"lpips": "lpips, as lpips_distance makes it"}
    lacks |= {} if operator else {"consistency": "operator, the true one"}
    lacks |= {} if k > 1 else {"diversity": "K of at least 2 draws for a condition"}
    lacks |= {} if n > 1 else dict.fromkeys(("frechet", "joint_frechet"), "N of at least 2 conditions")
    lacks |= {} if features else dict.fromkeys(("feature_distance", "frechet", "joint_frechet"), "features")
    wanted = _wanted(metrics, lacks)

    scores: dict[str, np.ndarray] = {}
    for name, score in (("psnr", psnr), ("ssim", ssim), ("lpips", lpips)):
        if name in wanted:
            assert score is not None
            scores[name] = _per_draw(score, drawn, x, batch_size=batch_size)
    if features and {"feature_distance", "frechet", "joint_frechet"} & set(wanted):
        of_x = extract(features, x, batch_size)
        of_drawn = extract(features, drawn.reshape(-1, *x.shape[1:]), batch_size)
    if "feature_distance" in wanted:
        scores["feature_distance"] = np.stack([_unit_distance(part, of_x) for part in np.split(of_drawn, k)])
    if operator and "consistency" in wanted:
        scores["consistency"] = consistency(operator, drawn, y, mask, batch_size)
    if "diversity" in wanted:
        scores["diversity"] = diversity(drawn)

    found: dict[str, Any] = {"n": n, "k": k}
    for name, values in scores.items():
        found |= _summary(name, values)
        if name in ("psnr", "consistency"):
            found[f"{name}_capped"] = int((values >= PSNR_CAP).sum())
    if "frechet" in wanted:
        found["frechet"] = frechet_distance(moments_of(of_x), moments_of(of_drawn)).value
    if features and "joint_frechet" in wanted:
        found["joint_frechet"] = _joint(extract(features, _channels_of(y, x.shape[-1]), batch_size), of_drawn, of_x).value
    if {"frechet", "joint_frechet"} & set(wanted):
        found |= {"frechet_n_real": n, "frechet_n_fake": k * n}
    return found
