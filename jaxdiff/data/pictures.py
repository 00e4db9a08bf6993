"""A folder of pictures: a class per subfolder, or none; parts train/, test/, validation/ where the folder has them; and a
caption for each where that is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxdiff.data.captions import check_form, picture_captions
from jaxdiff.data.records import Source, choose_part, split_numbers

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_PARTS = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
Header = tuple[tuple[int, int], bool]  # (height, width), is it grey


@dataclass(frozen=True, eq=False)
class Pictures:
    """Files read on access: uint8 [H, W, channels], with `label` and `caption` where there are such and `name`, the path."""

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    channels: int
    captions: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path = self.paths[number]
        record: dict[str, Any] = {"image": read_picture(path, self.channels), "name": str(path)}
        if self.labels is not None:
            record["label"] = self.labels[number]
        if self.captions is not None:
            record["caption"] = self.captions[number]
        return record

    def take_captions(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        return [(self.captions or ())[int(number)] for number in numbers]


def read_picture(path: Path, channels: int) -> np.ndarray:
    """One picture, uint8 [H, W, channels] (1 or 3): upright, first frame, transparency over white.

    Raises ValueError that names the file if it cannot be read to its end.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion to 8 saturates instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: unreadable picture ({_one_line(error)})") from None
    return pixels[..., None] if channels == 1 else pixels


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _header(path: Path, decode: bool) -> Header | str:
    """((height, width), is it grey), or what is wrong with the file; `decode` reads every pixel."""
    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L")
            width, height = image.size
            if decode:
                image.load()
            # asked only where there is one: on a PNG without it, getexif() reads all pixels
            swapped = "exif" in image.info and image.getexif().get(0x0112, 1) >= 5  # stored on its side
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return _one_line(error)
    return ((width, height) if swapped else (height, width)), grey


def _parts(root: Path) -> dict[str, Path]:
    """The folder's own splits: where there is a train/ and every subfolder is the name of a part."""
    children = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    parts = {_PARTS[child.name.lower()]: child for child in children if child.name.lower() in _PARTS}
    return parts if "train" in parts and len(parts) == len(children) else {}


def _listing(root: Path, name: str) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """Picture paths in a fixed order, their labels, and the class names; hidden files and folders are no data."""

    def pictures(paths: Any) -> list[Path]:
        return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())

    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    by_class = {child.name: pictures(child.rglob("*")) for child in folders}
    by_class = {name: paths for name, paths in by_class.items() if paths}
    if not by_class:
        return pictures(root.iterdir()), None, ()
    loose = pictures(root.iterdir())
    if loose:
        raise ValueError(f"{name}: {loose[0].name} lies beside class folders; put it into a class, or flatten all")
    labels = [number for number, paths in enumerate(by_class.values()) for _ in paths]
    return [path for paths in by_class.values() for path in paths], labels, tuple(by_class)


def _readable(
    name: str, paths: list[Path], skip: bool, decode: bool, num_threads: int, fault: Callable[[Header], str]
) -> dict[int, Header]:
    """The header of every usable file, by its number; a broken file raises, or is skipped and named in a warning."""
    with ThreadPoolExecutor(num_threads) as pool:
        headers = list(pool.map(lambda path: _header(path, decode), paths))
    headers = [header if isinstance(header, str) else fault(header) or header for header in headers]
    broken = [number for number, header in enumerate(headers) if isinstance(header, str)]
    if broken:
        count = f"{len(broken)} of {len(paths)} pictures unreadable"
        if not skip or len(broken) == len(paths):
            raise ValueError(
                f"{name}: {count}, first {paths[broken[0]]} ({headers[broken[0]]}); "
                "mend them, or leave them out with on_unreadable='skip'"
            )
        named = ", ".join(str(paths[number]) for number in broken)
        logging.getLogger(__name__).warning("%s: skipped %s: %s", name, count, named)
    return {number: header for number, header in enumerate(headers) if not isinstance(header, str)}


def folder(
    path: str,
    split: str,
    *,
    test: float = 0.1,
    validation: float = 0.0,
    on_unreadable: str = "refuse",
    check: str = "decode",
    channels: int | None = None,
    captions: bool | str = False,
    num_threads: int = 8,
) -> Source:
    """Pictures (png, jpg, webp, bmp, gif) under `path`; `shape` is the first picture's.

    `channels` 1 or 3 is asked for, or 1 if every picture is grey and else 3.

    Every file is decoded once here (`check="decode"`), so that a broken one is found now and not in hour nine;
    `check="header"` reads headers only, for millions of files, and a broken one then stops the run, by name. Broken
    files are refused, or with `on_unreadable="skip"` left out, counted and named in a warning.

    `captions=True` takes the text of `NAME.txt` beside each `NAME.png`; `captions="metadata.jsonl"` (or another name) a
    file of JSON lines, `{"file_name": PATH, "text": CAPTION}`, in the part's folder or in the whole one, whose paths start
    where it lies. They are read once, here.

    Raises FileNotFoundError without such a folder or file; ValueError for no pictures, broken ones, pictures without a
    caption, or wrong words.
    """
    cut = {"test": test, "validation": validation}
    return read_folder(f"folder:{path}", path, split, cut, on_unreadable, check, channels, num_threads, captions=captions)


def read_folder(
    name: str,
    path: str,
    split: str,
    cut: Mapping[str, float],
    on_unreadable: str,
    check: str,
    channels: int | None,
    num_threads: int,
    fault: Callable[[Header], str] = lambda header: "",
    captions: bool | str = False,
) -> Source:
    """What `folder` does, for a source of another `name`; `cut` is the shares of test and validation.

    `fault` says what is wrong with a readable picture of that header ("" for nothing), which then counts as broken.
    """
    if on_unreadable not in ("refuse", "skip") or check not in ("decode", "header"):
        raise ValueError(f"on_unreadable={on_unreadable!r}, check={check!r}; allowed: refuse or skip, and decode or header")
    if channels not in (None, 1, 3):
        raise ValueError(f"{name}: channels={channels}; allowed: 1 or 3")
    check_form(name, captions)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no such folder")
    parts = _parts(root)
    plan = choose_part(name, parts or ("train",), split, test=cut["test"], validation=cut["validation"])
    part = parts.get(plan.part, root)
    paths, labels, class_names = _listing(part, name)
    if not paths:
        raise ValueError(f"{name} holds no pictures for {split}; looked for {', '.join(SUFFIXES)}")
    if labels is not None and parts and plan.part != "train":
        trained = _listing(parts["train"], name)[2]
        if not set(class_names) <= set(trained):
            raise ValueError(f"{name}: {plan.part} has classes {class_names} that train does not have: {trained}")
        labels = [trained.index(class_names[label]) for label in labels]
        class_names = trained
    headers = _readable(name, paths, on_unreadable == "skip", check == "decode", num_threads, fault)
    good = np.array(sorted(headers))
    if channels is None:
        channels = 1 if all(grey for _, grey in headers.values()) else 3
    every = None if labels is None else np.array(labels, np.int32)
    strata = np.zeros(len(good), np.int32) if every is None else every[good]
    picked = split_numbers(strata, plan.piece, test=plan.test, validation=plan.validation, name=name)
    numbers = good[picked]
    texts = None
    if captions:
        told = picture_captions(name, [paths[n] for n in good], captions, (part, root), num_threads)
        texts = tuple(told[n] for n in picked)
    records = Pictures(tuple(paths[n] for n in numbers), None if every is None else every[numbers], channels, texts)
    size, _ = headers[int(good[0])]
    shape = (*size, channels)
    return Source(name, split, records, shape, 256, len(class_names), class_names, has_captions=texts is not None)
