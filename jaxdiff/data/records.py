"""What a source of data is: random-access records, a few facts about them, and how they are split.

A record is a dict of numpy values: `image` uint8 [H, W, C] (grey level k in 0..levels-1; float32 in [-1, 1] where
`levels` is 0) or `x` float32 [D], and `label` int where there are classes. `name` (a path, or a short name), `caption` (a
text that says what is seen) and `given`, a picture that conditions `image` and has its shape, are there where a source
has them. Random access is what lets a run restart at any step, on any number of processes, without replaying anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

SPLITS = ("train", "validation", "test")
SPLIT_SEED = 20240229  # fixed for ever: another number is another test set


class Records(Protocol):
    """Random access. Where there are such methods, `take(numbers)` gathers columns at once, and `take_captions(numbers)`
    reads captions without pictures."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    `num_classes` is 0 without labels; `levels` is the number of grey levels (256, digits' 17, 0 for continuous data);
    `shape` is (H, W, C), or (D,) where `kind` is "points"; `has_given` says that every record holds `given`, and
    `has_captions` that every record holds `caption`.
    """

    name: str
    split: str
    records: Records
    shape: tuple[int, ...]
    levels: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    kind: Literal["image", "points"] = "image"
    has_given: bool = False
    has_captions: bool = False

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, eq=False)
class Columns:
    """Records that lie in memory as arrays with one leading axis, so that a batch is one gather per column."""

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {name: column[number] for name, column in self.columns.items()}

    def take(self, numbers: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[numbers] for name, column in self.columns.items()}

    def take_captions(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        return self.columns["caption"][numbers].tolist()


@dataclass(frozen=True, eq=False)
class Subset:
    """The records whose numbers are listed, in that order."""

    records: Records
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.records[int(self.numbers[number])]

    def take(self, numbers: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return take(self.records, self.numbers[numbers])

    def take_captions(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        return take_captions(self.records, self.numbers[numbers])


def take(records: Records, numbers: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """The named records as columns: arrays from memory, lists (images may differ in shape) from anywhere else."""
    gather = getattr(records, "take", None)
    if gather is not None:
        return gather(numbers)
    rows = [records[int(number)] for number in numbers]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def take_captions(records: Records, numbers: Sequence[int] | np.ndarray) -> list[str]:
    """The captions of the named records, of a source that has them."""
    gather = getattr(records, "take_captions", None)
    return [records[int(number)]["caption"] for number in numbers] if gather is None else gather(numbers)


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is train, validation or test."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; allowed: {', '.join(SPLITS)}")


class Part(NamedTuple):
    """What to read for a split: a part of the data set, and which piece of it once these shares are cut out."""

    part: str
    piece: str = "train"  # of a part that nothing is cut from, "train" is the whole
    test: float = 0.0
    validation: float = 0.0


def choose_part(name: str, parts: Collection[str], split: str, *, test: float, validation: float) -> Part:
    """Map a split onto the parts that a data set has; `test` and `validation` are the shares to cut where it has none.

    Test is the data set's own test part, else its validation part, else cut from train. Validation is its own only
    where test is another part: otherwise it is cut from train, so that what is tuned on is never what is reported.

    >>> choose_part("d", {"train", "validation"}, "test", test=0.1, validation=0.2).part
    'validation'
    >>> choose_part("d", {"train", "validation"}, "validation", test=0.1, validation=0.2)
    Part(part='train', piece='validation', test=0.0, validation=0.2)
    """
    check_split(split)
    held_out = next((part for part in ("test", "validation") if part in parts), None)
    own_validation = held_out == "test" and "validation" in parts
    if split == "test" and held_out is not None:
        return Part(held_out)
    if split == "validation" and own_validation:
        return Part("validation")
    if "train" not in parts:
        raise ValueError(f"{name} has no train part, only: {', '.join(sorted(parts))}")
    return Part("train", split, 0.0 if held_out else test, 0.0 if own_validation else validation)


def split_numbers(
    strata: np.ndarray,
    split: str,
    *,
    test: float,
    validation: float,
    name: str,
    seed: int = SPLIT_SEED,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Record numbers of one split, ascending; within every stratum the same shares, drawn by a fixed seed.

    With `order` [N] the records with the smallest values are test, the next validation: no draw, so that records which
    are added later do not move the others.

    `strata` int [N] is the label of every record (zeros without labels). The test records do not depend on
    `validation`, so a run with and a run without a validation split report on the same records.

    Raises ValueError for an unknown or empty split, and for shares outside [0, 1).
    """
    check_split(split)
    if not (0 <= test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ValueError(f"shares test={test}, validation={validation} are not in [0, 1) with a sum below 1")
    chosen = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        # RandomState's streams are frozen by numpy's policy, Generator's are not: a split must outlive an upgrade.
        drawn = np.random.RandomState([seed, int(stratum) & 0xFFFFFFFF]).permutation(len(members))
        members = members[drawn if order is None else np.argsort(order[members], kind="stable")]
        num_test = round(test * len(members))
        num_validation = round(validation * len(members))
        ends = {"test": (0, num_test), "validation": (num_test, num_test + num_validation)}
        begin, end = ends.get(split, (num_test + num_validation, len(members)))
        chosen.append(members[begin:end])
    numbers = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
    if len(numbers) == 0:
        raise ValueError(
            f"{name} has no {split} split: {len(strata)} records, test={test}, validation={validation}; "
            f"give a larger share, e.g. {'validation' if split == 'validation' else 'test'}=0.1"
        )
    return numbers
