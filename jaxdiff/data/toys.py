"""The 25 Gaussians on a grid: 2-D data whose modes can be counted (DDGAN, Xiao et al. 2022; SIDDM, Xu et al. 2023).

    x = c_m + clip(e / 3, -1, 1),   c_m in {0, 5, 10, 15, 20}^2,   e ~ N(0, I),   m uniform

The clip is three standard deviations out, which the exact moments below take into account.
"""

from __future__ import annotations

import math

import numpy as np

from jaxdiff.data.records import Columns, Source, check_split

_STD = 1 / 3  # of a mode, before the clip
_CLIP = 1.0
_CENTRES = np.array([(5.0 * i, 5.0 * j) for i in range(5) for j in range(5)], np.float32)
_SEEDS = {"train": 0, "test": 1, "validation": 2}


def _clipped_variance(std: float, clip: float) -> float:
    """Variance of clip(std e, -clip, clip), e ~ N(0, 1): std^2 [P(|e| < a) - 2 a phi(a) + a^2 P(|e| > a)]."""
    a = clip / std
    inside = math.erf(a / math.sqrt(2))
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return std * std * (inside - 2 * a * density + a * a * (1 - inside))


MODE_STD = math.sqrt(_clipped_variance(_STD, _CLIP))
"""Standard deviation of one mode along an axis, in raw units, after the clip (.3326)."""

TOTAL_STD = math.sqrt(50.0 + MODE_STD**2)
"""Standard deviation of the whole along an axis, in raw units: the centres' variance is 50."""


def _affine(scale: str) -> tuple[float, float]:
    if scale == "raw":
        return 0.0, 1.0
    if scale == "unit2":
        return 10.0, 2.0 / TOTAL_STD
    raise ValueError(f"scale {scale!r} is not known; allowed: raw, unit2 (centred, standard deviation 2)")


def gaussians25_from_raw(x: np.ndarray, scale: str = "raw") -> np.ndarray:
    """Points [..., 2] in raw units -> points in the units of `scale`: "raw", or "unit2" (centred, std 2 an axis)."""
    shift, factor = _affine(scale)
    return ((np.asarray(x) - shift) * factor).astype(np.float32)


def gaussians25_to_raw(x: np.ndarray, scale: str = "raw") -> np.ndarray:
    """The inverse of `gaussians25_from_raw`."""
    shift, factor = _affine(scale)
    return (np.asarray(x) / factor + shift).astype(np.float32)


def gaussians25_centres(scale: str = "raw") -> np.ndarray:
    """Mode centres float32 [25, 2] in the units of `scale`; row m = 5 i + j is (5 i, 5 j) in raw units."""
    return gaussians25_from_raw(_CENTRES, scale)


def gaussians25_std(scale: str = "raw") -> float:
    """Standard deviation of one mode along an axis in the units of `scale`."""
    return MODE_STD * _affine(scale)[1]


def gaussians25(split: str, *, scale: str = "raw", num_points: int | None = None) -> Source:
    """Points `x` float32 [2]; `label` is the mode's number; 250,000 to train on, 25,000 for each other split.

    The modes take turns, so each has the same number of points; every split is an independent draw.
    """
    check_split(split)
    if num_points is None:
        num_points = 250_000 if split == "train" else 25_000
    if num_points < 1:
        raise ValueError(f"num_points={num_points}; allowed: 1 or more")
    label = (np.arange(num_points) % 25).astype(np.int32)
    noise = np.random.RandomState(_SEEDS[split]).randn(num_points, 2)
    raw = _CENTRES[label] + np.clip(_STD * noise, -_CLIP, _CLIP)
    x = gaussians25_from_raw(raw, scale)
    x.flags.writeable = label.flags.writeable = False
    names = tuple(f"({a:g}, {b:g})" for a, b in _CENTRES)
    return Source("gaussians25", split, Columns({"x": x, "label": label}), (2,), 0, 25, names, "points")
