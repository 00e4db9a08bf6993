"""Samples of 2-D mixtures in numbers: which modes are there, how clean they are, how far the whole is from real points.

The Frechet distance of raw 2-D points sees a mean and a covariance only: a uniform box over a grid of Gaussians scores
as well as real data. So it never stands alone here. A point's mode is its nearest centre, and it is of *high quality*
within 4 standard deviations of that centre (real Gaussian points: all but exp(-8), .03 %).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxdiff.evaluation.distances import energy_distance, frechet_distance, moments_of

RADIUS = 4.0  # of high quality, in standard deviations
COVERED = 0.1  # of a mode's fair share, n / K


class Modes(NamedTuple):
    """What `mode_report` found; `counts` `[K]` are the high-quality points of each mode, in the centres' order."""

    covered: int
    modes: int
    high_quality: float
    kl: float
    std_ratio: float
    counts: np.ndarray
    n_fake: int


def checked_points(values: Any, name: str) -> np.ndarray:
    """`values` `[N, 2]` as float64; raises ValueError, with `name` in it, for another shape or fewer than 2 points."""
    out = np.asarray(values, np.float64)
    if out.ndim != 2 or out.shape[1] != 2 or len(out) < 2:
        raise ValueError(f"{name} have shape {out.shape}; allowed: [N, 2] with N at least 2")
    return out


def mode_report(samples: Any, centres: Any, std: float) -> Modes:
    """Modes of samples `[N, 2]` against a mixture of equal Gaussians at `centres` `[K, 2]` with deviation `std`.

    - `covered`: modes that hold, in points of high quality, at least a tenth of their fair share N / K.
    - `high_quality`: share of all samples within 4 `std` of a centre. NaN points are in no mode.
    - `kl`: KL(histogram of high-quality points over modes || uniform) in nats: 0 is even, log K one mode (or none).
    - `std_ratio`: spread of high-quality points about their own mode's mean, per axis, over `std`. 1 is right, 0 is
      points instead of modes, 2 is a mode smeared over its whole disc. NaN where no mode holds two points.
    """
    samples, centres = checked_points(samples, "samples"), checked_points(centres, "centres")
    if not std > 0:
        raise ValueError(f"std is {std}; allowed: above 0, the deviation of one mode")
    square = ((samples[:, None, :] - centres[None]) ** 2).sum(-1)  # [N, K]
    square = np.where(np.isfinite(square), square, np.inf)
    mode = square.argmin(1)
    good = square[np.arange(len(samples)), mode] <= (RADIUS * std) ** 2
    kept, mode = samples[good], mode[good]
    k = len(centres)
    counts = np.bincount(mode, minlength=k)
    share = counts / max(counts.sum(), 1)
    kl = float(np.sum(share[counts > 0] * np.log(share[counts > 0] * k))) if len(kept) else float(np.log(k))
    means = np.stack([np.bincount(mode, kept[:, axis], k) for axis in (0, 1)], 1) / np.maximum(counts, 1)[:, None]
    freedom = 2 * (len(kept) - np.count_nonzero(counts))  # a mean was fitted in every mode, on both axes
    spread = np.sqrt(np.sum((kept - means[mode]) ** 2) / freedom) if freedom > 0 else np.nan
    covered = int((counts >= COVERED * len(samples) / k).sum())
    return Modes(covered, k, float(good.mean()), kl, float(spread / std), counts, len(samples))


def point_report(
    real: Any, fake: Any, centres: Any, std: float, energy_points: int = 5000, seed: int = 0
) -> dict[str, Any]:
    """Everything said about 2-D samples, as a flat dict of numbers with their sample sizes.

    `real` `[N, 2]` and `fake` `[M, 2]` are in the mixture's own units. `real` is split at random in two halves, one to
    compare with and one whose own scores are the floors: `frechet_floor` and `energy_floor` are what fresh real data
    of the same size as the fakes gets (as far as N allows). The energy distance is over `energy_points` at most.
    """
    real, fake = checked_points(real, "real points"), checked_points(fake, "fake points")
    if len(real) < 4:
        raise ValueError(f"{len(real)} real points; give at least 4, since half of them measure the floor")
    rng = np.random.default_rng(seed)
    real, fake = rng.permutation(real), rng.permutation(fake)  # rows; samples may come sorted by class
    half = len(real) // 2
    reference, fresh = real[:half], real[half:][: len(fake)]
    n = min(energy_points, half, len(fake))
    modes = mode_report(fake, centres, std)
    return {
        "frechet": frechet_distance(moments_of(reference), moments_of(fake)).value,
        "frechet_floor": frechet_distance(moments_of(reference), moments_of(fresh)).value,
        "modes": modes.covered,
        "modes_of": modes.modes,
        "high_quality": modes.high_quality,
        "kl": modes.kl,
        "std_ratio": modes.std_ratio,
        "energy": energy_distance(reference[:n], fake[:n]).value,
        "energy_floor": energy_distance(reference[:n], fresh[:n]).value,
        "n_real": half,
        "n_fake": len(fake),
        "n_energy": n,
    }
