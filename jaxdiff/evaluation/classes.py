"""Does a classifier read class-conditional samples as what was asked for? The classifier comes in as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff.evaluation.features import extract


def _checked(logits: np.ndarray, labels: Any) -> np.ndarray:
    asked = np.asarray(labels)
    if logits.ndim != 2 or asked.shape != (len(logits),) or not np.issubdtype(asked.dtype, np.integer):
        raise ValueError(f"logits {logits.shape} and labels {asked.dtype} {asked.shape}; allowed: [N, K], integer [N]")
    if asked.size == 0 or asked.min() < 0 or asked.max() >= logits.shape[1]:
        span = f"{asked.min()} to {asked.max()}" if asked.size else "none"
        raise ValueError(f"labels are {span}; allowed: at least one, each from 0 to {logits.shape[1] - 1}")
    return asked


def accuracy(logits: Any, labels: Any) -> float:
    """Share of `[N, K]` logits whose largest entry is the label, `[N]` integers; NaN logits count as wrong."""
    logits = np.asarray(logits)
    asked = _checked(logits, labels)
    return float(np.mean((logits.argmax(1) == asked) & np.isfinite(logits).all(1)))


def class_agreement(logits_fn: Callable[[Any], Any], images: Any, labels: Any, batch_size: int = 256) -> dict[str, Any]:
    """How often the classifier reads a sample as the class it was asked to be.

    Args:
      logits_fn: images float32 [-1, 1] `[B, H, W, C]` -> logits `[B, K]`, trained on real data only.
      images: `[N, H, W, C]`, in any order.
      labels: integers `[N]`, what each was conditioned on.

    Returns: `agreement` in [0, 1]; `per_class` and `n_per_class`, dicts by the classes that were asked for; `n`.
    Read it beside the classifier's own held-out accuracy, which bounds what it can tell.
    """
    logits = extract(logits_fn, images, batch_size)
    asked = _checked(logits, labels)
    classes = [int(c) for c in np.unique(asked)]
    return {
        "agreement": accuracy(logits, asked),
        "per_class": {c: accuracy(logits[asked == c], asked[asked == c]) for c in classes},
        "n_per_class": {c: int((asked == c).sum()) for c in classes},
        "n": len(asked),
    }
