"""Columns of numbers and texts as ArrayRecord parts: written whole or not at all, read at random, and what goes into them.

A record is its numbers, little-endian and side by side in the layout's order, and after them a JSON list of its texts. So
a batch of records is one numpy structured array, and a file can be read without this package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jaxdiff.data.preprocess import Preprocess, examples
from jaxdiff.data.records import Columns, Source, take


@dataclass(frozen=True)
class Layout:
    """What a record holds: `arrays` (name, numpy's word for a dtype, shape of one record) and the names of its `texts`."""

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]
    texts: tuple[str, ...] = ()

    @property
    def row(self) -> np.dtype:
        """The numbers of one record as a structured dtype."""
        return np.dtype([(name, np.dtype(kind).newbyteorder("<"), shape) for name, kind, shape in self.arrays])

    def columns(self, read: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Records as columns `[n, ...]`, the texts as arrays of objects. Raises ValueError for bytes too few."""
        row = self.row
        rows = np.frombuffer(b"".join(one[: row.itemsize] for one in read), row, len(read))
        found = {name: np.ascontiguousarray(rows[name]) for name, *_ in self.arrays}
        told = [json.loads(one[row.itemsize :]) for one in read] if self.texts else []
        for i, name in enumerate(self.texts):
            found[name] = np.empty(len(read), object)
            found[name][:] = [texts[i] for texts in told]
        return found


@dataclass(frozen=True, eq=False)
class Parts:
    """Records that lie in ArrayRecord parts, read when they are asked for."""

    read: Any
    layout: Layout

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {name: column[0] for name, column in self.take([number]).items()}

    def take(self, numbers: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The numbered records as columns `[n, ...]`."""
        return self.layout.columns(self.read.__getitems__([int(number) for number in numbers]))


def write_part(path: str | os.PathLike, layout: Layout, columns: Mapping[str, Any]) -> None:
    """Write columns `[n, ...]` as one ArrayRecord file, under another name until it is whole.

    Groups of one record, not compressed: records are read singly, and noise-like floats hardly become smaller.
    """
    from array_record.python.array_record_module import ArrayRecordWriter  # there is none for Windows

    path = Path(path)
    count = len(columns[layout.arrays[0][0]])
    rows = np.empty(count, layout.row)
    for name, *_ in layout.arrays:
        rows[name] = columns[name]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        for i in range(count):
            texts = json.dumps([columns[name][i] for name in layout.texts]).encode() if layout.texts else b""
            writer.write(rows[i].tobytes() + texts)
        writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def open_parts(paths: Sequence[str | os.PathLike], counts: Sequence[int], layout: Layout, memory: int = 2**30) -> Any:
    """The records of all parts, in order: `Columns` where their numbers need up to `memory` bytes, else `Parts`.

    Raises ValueError that names the first part that is damaged or does not hold its count of records.
    """
    held, inside = [], sum(counts) * layout.row.itemsize <= memory
    for path, count in zip(paths, counts, strict=True):
        try:
            with grain.sources.ArrayRecordDataSource([str(path)]) as part:
                found = len(part)
                if found == count and inside:
                    held.append(layout.columns(part.__getitems__(range(count))))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:120]}); mend: delete it, and it is made "
                             "again") from None
        if found != count:
            raise ValueError(f"{path} holds {found} records and should hold {count}; mend: delete it, and it is made again")
    if not inside:
        return Parts(grain.sources.ArrayRecordDataSource([str(path) for path in paths]), layout)
    columns = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
    for column in columns.values():
        column.flags.writeable = False
    return Columns(columns)


def in_order(
    source: Source, how: Preprocess, numbers: range, batch_size: int, texts: Sequence[str] = (), num_threads: int = 4
) -> Iterator[dict[str, Any]]:
    """Records `numbers` of a source of pictures as evaluation sees them, `batch_size` at a time, read ahead by threads.

    A batch is `x` float32 [n, H, W, C], `label` int32 [n] where there are classes, and lists of the `texts` asked for.
    """
    still = how.without_augmentation()

    def batch(first: int) -> dict[str, Any]:
        chosen = np.arange(first, min(first + batch_size, numbers.stop))
        columns = take(source.records, chosen)
        names = columns.get("name", [f"record {number} of {source.name} ({source.split})" for number in chosen])
        found: dict[str, Any] = {"x": examples(columns["image"], still, source.levels, 0, 0, names)}
        if source.num_classes:
            found["label"] = np.asarray(columns["label"], np.int32)
        return found | {name: list(columns[name]) for name in texts}

    firsts = grain.MapDataset.range(numbers.start, numbers.stop, batch_size)
    return iter(firsts.map(batch).to_iter_dataset(grain.ReadOptions(num_threads, 2 * num_threads)))


def mirrored(seed: int, start: int, count: int) -> np.ndarray:
    """Which of the examples at positions `start`... of a run `Preprocess(flip=True)` mirrors, bool [count]."""
    asked = np.tile(np.array([0, 1], np.float32)[None, None, :, None], (count, 1, 1, 1))  # a picture that shows its side
    return examples(asked, Preprocess(flip=True), 0, seed, start, [])[:, 0, 0, 0] > 0
