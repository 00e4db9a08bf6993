"""A folder of pairs: each file shows two pictures side by side, A | B, as pix2pix's data sets ship (Isola et al. 2017).

In edges2shoes and edges2handbags A, on the left, is the condition (edges) and B the target (a photograph); facades and
maps are read the other way round with target="left".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxdiff.data.pictures import Header, read_folder
from jaxdiff.data.records import Records, Source


@dataclass(frozen=True, eq=False)
class Pairs:
    """Records of side-by-side pictures, cut in two: `image`, the target half, and `given`, the other one."""

    records: Records
    target: str  # "right" or "left"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        record = self.records[number]
        picture: np.ndarray = record["image"]
        middle = picture.shape[1] // 2
        halves = picture[:, :middle], picture[:, middle:]
        image, given = halves[::-1] if self.target == "right" else halves
        return {**record, "image": image, "given": given}


def _fault(header: Header) -> str:
    (_, width), _ = header
    return f"its width {width} is odd: not two pictures side by side" if width % 2 else ""


def pairs(
    path: str,
    split: str,
    *,
    target: str = "right",
    test: float = 0.1,
    validation: float = 0.0,
    on_unreadable: str = "refuse",
    check: str = "decode",
    channels: int | None = None,
    num_threads: int = 8,
) -> Source:
    """Pairs under `path`, whose `target` half ("right" or "left") is what is generated and the other its condition.

    `shape` is one half of the first picture. Parts (train/, val/, test/), classes, `channels` and broken files are
    as for `folder`; a picture of odd width is a broken one. Both halves get the same resize, crop and flip.

    Raises FileNotFoundError without such a folder; ValueError for no pictures, broken ones, or wrong words.
    """
    if target not in ("right", "left"):
        raise ValueError(f"pairs:{path}: target={target!r}; allowed: right or left")
    cut = {"test": test, "validation": validation}
    whole = read_folder(f"pairs:{path}", path, split, cut, on_unreadable, check, channels, num_threads, _fault)
    height, width, depth = whole.shape
    return replace(whole, records=Pairs(whole.records, target), shape=(height, width // 2, depth), has_given=True)
