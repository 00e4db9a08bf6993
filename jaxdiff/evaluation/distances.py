"""Distances between two samples of features, in float64 on the host, each reported with the sizes it was measured at.

With moments (m_r, C_r) and (m_f, C_f), the Frechet distance of the two fitted Gaussians (Heusel et al. 2017, eq. 6) is

    |m_r - m_f|^2 + tr C_r + tr C_f - 2 tr (C_r^{1/2} C_f C_r^{1/2})^{1/2},

and with C_r = A A^T, C_f = B B^T the last trace is the sum of the singular values of A^T B. That form needs no matrix
square root, stays real, and is exact when a covariance has no full rank (fewer images than features).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean `[D]` and scatter `[D, D]` (sum of outer products about the mean) of `n` feature vectors, in float64."""

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def cov(self) -> np.ndarray:
        """The unbiased covariance, `scatter / (n - 1)`, as `numpy.cov` has it."""
        if self.n < 2:
            raise ValueError(f"a covariance of {self.n} sample is undefined; give at least 2")
        return self.scatter / (self.n - 1)


class FrechetDistance(NamedTuple):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in squared feature units; it shrinks as samples grow."""

    value: float
    n_real: int
    n_fake: int


class KernelDistance(NamedTuple):
    """KID: mean and standard deviation of the unbiased MMD^2 over random subsets. The mean may fall below zero."""

    mean: float
    std: float
    subsets: int
    subset_size: int
    n_real: int
    n_fake: int


class PrecisionRecall(NamedTuple):
    """Both in [0, 1], higher is better; `k` is the neighbour whose distance is a ball's radius."""

    precision: float
    recall: float
    k: int
    n_real: int
    n_fake: int


class InceptionScore(NamedTuple):
    """From 1 to the number of classes, higher is better: mean and standard deviation over the splits."""

    mean: float
    std: float
    splits: int
    n_fake: int


class EnergyDistance(NamedTuple):
    """2 E|x - y| - E|x - x'| - E|y - y'|, in the data's units; 0 only for equal distributions."""

    value: float
    n_real: int
    n_fake: int


def _features(values: np.ndarray, name: str, least: int) -> np.ndarray:
    out = np.asarray(values, np.float64)
    if out.ndim != 2 or out.shape[0] < least:
        raise ValueError(f"{name} features have shape {out.shape}; allowed: [N, D] with N at least {least}")
    if not np.isfinite(out).all():
        bad = int((~np.isfinite(out).all(1)).sum())
        raise ValueError(f"{bad} of {len(out)} {name} feature vectors hold NaN or inf; mend or drop those samples")
    return out


def _pair(real: np.ndarray, fake: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    real, fake = _features(real, "real", least), _features(fake, "fake", least)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features, fake {fake.shape[1]}; use one feature function for both")
    return real, fake


def moments_of(features: np.ndarray) -> Moments:
    """Moments of one batch of features `[N, D]` of any float dtype, N at least 1."""
    x = _features(features, "given", 1)
    mean = x.mean(0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both samples together (Chan et al. 1979), exact in any order: merge batches, or processes."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.size} and of {b.mean.size} features do not merge; use one function")
    n, delta = a.n + b.n, b.mean - a.mean
    return Moments(n, a.mean + delta * (b.n / n), a.scatter + b.scatter + np.outer(delta, delta) * (a.n * b.n / n))


def streaming_moments(batches: Iterable[np.ndarray]) -> Moments:
    """Moments of many batches of features `[B, D]`, holding one batch at a time."""
    found = iter(batches)
    first = next(found, None)
    if first is None:
        raise ValueError("no batches came in; give at least one batch of features [B, D]")
    return reduce(lambda total, batch: merge_moments(total, moments_of(batch)), found, moments_of(first))


def _root(cov: np.ndarray) -> np.ndarray:
    """`A` with `A A^T = cov`, one column per eigenvalue above rounding, so that a zero does not become sqrt(1e-16)."""
    values, vectors = np.linalg.eigh(cov)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(real: Moments, fake: Moments) -> FrechetDistance:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these moments; FID when they are Inception's.

    Biased upwards by about 1/n, so compare only values at the same sizes (Chong and Forsyth 2020).
    """
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"real has {real.mean.size} features, fake {fake.mean.size}; use one function for both")
    c_r, c_f = real.cov, fake.cov
    cross = np.linalg.svd(_root(c_r).T @ _root(c_f), compute_uv=False).sum()
    value = np.sum((real.mean - fake.mean) ** 2) + np.trace(c_r) + np.trace(c_f) - 2 * cross
    return FrechetDistance(max(float(value), 0.0), real.n, fake.n)


def cubic_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 between `[N, D]` and `[M, D]` (Binkowski et al. 2018, eq. 4)."""
    x, y = _pair(x, y, 2)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def within(a: np.ndarray) -> float:  # the diagonal is left out: a point paired with itself biases the mean
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Kernel Inception Distance (Binkowski et al. 2018): `cubic_mmd2` over random subsets without replacement.

    `subset_size` is 1,000, or half of the smaller sample where that is less, so that the subsets differ and `std` says
    something. Unlike the Frechet distance its mean does not depend on the sample sizes.
    """
    real, fake = _pair(real, fake, 4)
    most = min(len(real), len(fake))
    size = min(1000, most // 2) if subset_size is None else subset_size
    if not 2 <= size <= most or subsets < 1:
        raise ValueError(f"KID of {subsets} subsets of {size}; allowed: at least 1 subset, of 2 to {most} samples each")
    rng = np.random.default_rng(seed)
    draws = [
        cubic_mmd2(real[rng.choice(len(real), size, False)], fake[rng.choice(len(fake), size, False)])
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(draws)), float(np.std(draws)), subsets, size, len(real), len(fake))


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
    return np.maximum(square, 0.0)


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3, block: int = 512) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-3), `block` rows of distances at a time.

    A sample's support is the union of balls around its points, each reaching to that point's k-th nearest neighbour.
    Precision is the share of fakes inside the real support, recall the share of reals inside the fakes' support.
    """
    real, fake = _pair(real, fake, k + 1)
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more neighbours (the paper uses 3)")
    centre = real.mean(0)  # distances do not change, and less is lost in |a|^2 + |b|^2 - 2 a.b
    real, fake = real - centre, fake - centre
    # A copy of a point must fall into that point's ball even where duplicates leave it no radius: allow for rounding.
    slack = 1e-12 * max((real * real).sum(1).max(), (fake * fake).sum(1).max())

    def covered(points: np.ndarray, support: np.ndarray) -> float:
        inside = np.zeros(len(points), bool)
        for start in range(0, len(support), block):
            balls = support[start : start + block]
            # Index k, since the nearest "neighbour" of a point among its own sample is itself.
            radius = np.partition(_square_distances(balls, support), k, axis=1)[:, k]
            inside |= (_square_distances(balls, points) <= radius[:, None] + slack).any(0)
        return float(inside.mean())

    return PrecisionRecall(covered(fake, real), covered(real, fake), k, len(real), len(fake))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0) -> InceptionScore:
    """exp(E KL(p(y|x) || p(y))) of classifier logits `[N, K]` (Salimans et al. 2016), between 1 and K.

    Mean and standard deviation over `splits` parts of the shuffled samples; samples that came sorted by class would
    otherwise give every part few classes.
    """
    logits = _features(logits, "logit", 1)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits of {len(logits)} samples; allowed: 1 to the number of samples")
    log_p = logits - logits.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_p[np.random.default_rng(seed).permutation(len(log_p))], splits):
        p = np.exp(part)
        marginal = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))  # p log p -> 0, never 0 * -inf
        scores.append(np.exp((p * (part - marginal)).sum(1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits, len(logits))


def energy_distance(real: np.ndarray, fake: np.ndarray, block: int = 1024) -> EnergyDistance:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs (Szekely and Rizzo 2013), in the data's own unit.

    Zero only for equal distributions, and it sees every mode, which two moments do not. All pairs includes a point with
    itself: never negative, but above zero for two finite samples of one distribution. Report that floor beside it.
    """
    real, fake = _pair(real, fake, 1)
    centre = real.mean(0)
    real, fake = real - centre, fake - centre

    def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
        parts = (np.sqrt(_square_distances(a[i : i + block], b)).sum() for i in range(0, len(a), block))
        return sum(parts) / (len(a) * len(b))

    value = 2 * mean_distance(real, fake) - mean_distance(real, real) - mean_distance(fake, fake)
    return EnergyDistance(max(float(value), 0.0), len(real), len(fake))
