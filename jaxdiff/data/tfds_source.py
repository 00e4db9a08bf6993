"""TFDS data sets as random-access ArrayRecord files: read without TensorFlow, which only `prepare_tfds` needs."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.data.captions import one_line
from jaxdiff.data.records import Source, Subset, choose_part, split_numbers

_VERSION = re.compile(r"\d+\.\d+\.\d+")  # an interrupted preparation lies in incomplete.*


@dataclass(frozen=True, eq=False)
class TfdsRecords:
    """A TFDS data source whose records carry just `image`, `label` where there are classes, and `caption` where the name
    of its feature is given; `texts` reads the same records without their pictures."""

    read: Sequence[Mapping[str, Any]]
    labelled: bool
    caption: str | None = None
    texts: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record = self.read[number]
        kept = {"image": record["image"]}
        if self.labelled:
            kept["label"] = record["label"]
        if self.caption is not None:
            kept["caption"] = _text(record[self.caption])
        return kept

    def take_captions(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        return [_text(self.texts[int(number)][str(self.caption)]) for number in numbers]


def _text(value: bytes) -> str:
    return one_line(value.decode("utf-8", errors="replace"))  # some data sets hold a few broken bytes


def _prepared_folder(name: str, data_dir: str | None) -> Path:
    """The newest prepared folder DATA_DIR/name[/config]/version of "name", "name/config" or either with ":version".

    Looked up here, because `tfds.builder` asks TensorFlow (and through it the network) where that is installed.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    dataset, _, version = name.partition(":")
    infos = itertools.chain(root.glob("*/*/dataset_info.json"), root.glob("*/*/*/dataset_info.json"))
    complete = [info.parent for info in infos if _VERSION.fullmatch(info.parent.name)]
    found = [f for f in complete if f.is_relative_to(root / dataset) and version in ("", f.name)]
    if not found:
        there = sorted({str(folder.parent.relative_to(root)) for folder in complete})
        raise FileNotFoundError(
            f"tfds:{name} is not prepared in {root} ({', '.join(there) or 'nothing'} is): "
            f"run `jaxdiff data prepare tfds:{name}`"
        )
    configs = sorted({str(folder.parent.relative_to(root)) for folder in found})
    if len(configs) > 1:
        raise ValueError(f"tfds:{name} is prepared in several forms; name one of: {', '.join(configs)}")
    return max(found, key=lambda folder: [int(part) for part in folder.name.split(".")])


def _check_caption(name: str, features: Mapping[str, Any], caption: str) -> None:
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if caption not in texts:
        found = type(features[caption]).__name__ if caption in features else "absent"
        allowed = f"its texts, {', '.join(texts)}" if texts else "none, for it holds no texts"
        raise ValueError(f"tfds:{name} has no text caption={caption!r}, which is {found}; allowed: {allowed}")


def tfds_source(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    test: float = 0.1,
    validation: float = 0.0,
    caption: str | None = None,
) -> Source:
    """The `image` (and `label`, if it is a class) of a prepared TFDS data set; `shape` is the first record's. `caption`
    names the text feature that holds the captions.

    Splits follow `choose_part`: the data set's own parts where it has them. Shares cut from train are drawn by a fixed
    seed and not stratified, for that would read every record.

    Raises FileNotFoundError if the data set is not prepared as ArrayRecord, ValueError for one without images or without
    such a text.
    """
    folder = _prepared_folder(name, data_dir)
    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features.items())
    if "image" not in features:
        raise ValueError(f"tfds:{name} has no feature `image`, only: {', '.join(sorted(features))}")
    if caption is not None:
        _check_caption(name, features, caption)
    plan = choose_part(f"tfds:{name}", set(builder.info.splits), split, test=test, validation=validation)
    label: Any = features.get("label")
    num_classes = int(getattr(label, "num_classes", None) or 0)
    wanted = ({"image", "label"} if num_classes else {"image"}) | {caption}
    skipped = {key: tfds.decode.SkipDecoding() for key in features if key not in wanted}
    bare = {**skipped, "image": tfds.decode.SkipDecoding()}
    try:
        read = builder.as_data_source(plan.part, decoders=skipped or None)
        texts = () if caption is None else builder.as_data_source(plan.part, decoders=bare)
    except NotImplementedError:  # there, but as TFRecord
        raise FileNotFoundError(
            f"tfds:{name} lies in {folder} as {builder.info.file_format.value}, not as ArrayRecord: "
            f"remove it, or give another data_dir, and run `jaxdiff data prepare tfds:{name}`"
        ) from None
    records: Any = TfdsRecords(read, num_classes > 0, caption, texts)
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
    return Source(f"tfds:{name}", split, records, first.shape, levels, num_classes, names, has_captions=caption is not None)


def describe_tfds(name: str) -> tuple[tuple[int | None, int | None, int | None], int] | None:
    """The pictures' shape (H, W, C), None where it is not the same in all, and the number of classes of a data set that need
    not be prepared, as TFDS declares them; nothing is downloaded. None where TFDS declares no `image`, or does not know it.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            features = tfds.builder(name, data_dir=nowhere, try_gcs=False).info.features
        except (tfds.core.DatasetNotFoundError, ValueError, AssertionError, ImportError):
            return None
    if "image" not in features:
        return None
    classes = getattr(features["label"], "num_classes", None) if "label" in features else None
    height, width, channels = features["image"].shape
    return (height, width, channels), int(classes or 0)


def prepare_tfds(name: str, data_dir: str | None = None) -> str:
    """Download `name` and write it as ArrayRecord under `data_dir` (TFDS's own folder by default); returns the path.

    Raises ImportError without TensorFlow (the extra `prepare`), ValueError for an unknown data set,
    OSError where downloading or writing fails.
    """
    try:
        import tensorflow  # noqa: F401  TFDS writes through it
    except ImportError:
        raise ImportError(f"preparing tfds:{name} needs TensorFlow: pip install 'jaxdiff[prepare]'") from None
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], tfds.list_builders(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "tfds.list_builders() lists what there is"
        raise ValueError(f"tfds:{name} is no TFDS data set; {hint}") from None
    except (ValueError, AssertionError) as error:  # a wrong config or version; TFDS goes on for many lines
        raise ValueError(f"tfds:{name} cannot be prepared: {str(error).strip().splitlines()[0]}") from None
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError as error:  # requests' errors among them
        raise OSError(f"tfds:{name} could not be downloaded and written: {str(error).splitlines()[0]}") from None
    return str(builder.data_dir)
