"""TFDS data sets as random-access ArrayRecord files: read without TensorFlow, which only `prepare_tfds` needs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.data.records import Source, Subset, choose_part, split_numbers


@dataclass(frozen=True, eq=False)
class TfdsRecords:
    """A TFDS data source whose records carry just `image`, and `label` where there are classes."""

    read: Sequence[Mapping[str, Any]]
    labelled: bool

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record = self.read[number]
        return {"image": record["image"], "label": record["label"]} if self.labelled else {"image": record["image"]}


def _builder(name: str, data_dir: str | None) -> Any:
    """TFDS's builder of `name` ("mnist", "downsampled_imagenet/64x64", "mnist:3.0.1"), from code or prepared files."""
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], tfds.list_builders(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "tfds.list_builders() lists what there is"
        where = data_dir or "TFDS's own data folder"
        raise ValueError(f"tfds:{name} is no TFDS data set, nor prepared in {where}; {hint}") from None
    except (ValueError, AssertionError) as error:  # a wrong config or version
        reason = str(error).strip().splitlines()
        raise ValueError(f"tfds:{name} cannot be opened: {reason[0] if reason else type(error).__name__}") from None


def tfds_source(name: str, split: str, *, data_dir: str | None = None, test: float = 0.1, validation: float = 0.0) -> Source:
    """The `image` (and `label`, if it is a class) of a prepared TFDS data set; `shape` is the first record's.

    Splits follow `choose_part`: the data set's own parts where it has them. Shares cut from train are drawn by a fixed
    seed and not stratified, for that would read every record.

    Raises FileNotFoundError if the data set is not prepared as ArrayRecord, ValueError for one without images.
    """
    builder = _builder(name, data_dir)
    missing = FileNotFoundError(
        f"tfds:{name} is not prepared as ArrayRecord in {builder.data_dir}: run `jaxdiff data prepare tfds:{name}`"
    )
    if not builder.is_prepared():
        raise missing
    features = builder.info.features
    if "image" not in features:
        raise ValueError(f"tfds:{name} has no feature `image`, only: {', '.join(sorted(features))}")
    plan = choose_part(f"tfds:{name}", set(builder.info.splits), split, test=test, validation=validation)
    label: Any = features.get("label")
    num_classes = int(getattr(label, "num_classes", None) or 0)
    keys = {"image": True, "label": True} if num_classes else {"image": True}
    try:
        read = builder.as_data_source(plan.part, decoders=tfds.decode.PartialDecoding(keys))
    except NotImplementedError:  # there, but as TFRecord
        raise missing from None
    records: Any = TfdsRecords(read, num_classes > 0)
    if plan.test or plan.validation or plan.piece != "train":
        strata = np.zeros(len(read), np.int32)
        records = Subset(
            records,
            split_numbers(strata, plan.piece, test=plan.test, validation=plan.validation, name=f"tfds:{name}"),
        )
    first = records[0]["image"]
    if first.dtype not in (np.uint8, np.float32):
        raise ValueError(f"tfds:{name} has images of {first.dtype}; allowed: uint8, or float32 in [-1, 1]")
    levels = 256 if first.dtype == np.uint8 else 0
    names = tuple(label.names) if num_classes and label.names else tuple(str(c) for c in range(num_classes))
    return Source(f"tfds:{name}", split, records, first.shape, levels, num_classes, names)


def prepare_tfds(name: str, data_dir: str | None = None) -> str:
    """Download `name` and write it as ArrayRecord under `data_dir` (TFDS's own folder by default); returns the path.

    Raises ImportError without TensorFlow (the extra `prepare`), ValueError for an unknown data set.
    """
    try:
        import tensorflow  # noqa: F401  TFDS writes through it
    except ImportError:
        raise ImportError(f"preparing tfds:{name} needs TensorFlow: pip install 'jaxdiff[prepare]'") from None
    builder = _builder(name, data_dir)
    builder.download_and_prepare(file_format="array_record")
    return str(builder.data_dir)
