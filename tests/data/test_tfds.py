"""The TFDS road on a real builder: prepared with TensorFlow in one process, read without it in another."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import jaxdiff.data as data
from jaxdiff.data.tfds_source import prepare_tfds

BUILDER = """
    import sys
    import numpy as np
    import tensorflow_datasets as tfds

    class Stripes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, 8, 3)),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
                "note": tfds.features.Text(),
                "size": np.int64,
            }))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 60), "validation": self._generate_examples(200, 210)}

        def _generate_examples(self, start, end):
            for i in range(start, end):
                image = np.full((6 + 2 * (i % 2), 8, 3), i, np.uint8)
                yield i, {"image": image, "label": i % 2, "note": f"number\\n  {i} né ", "size": i}
"""
PREPARE = """
    import sys
    import stripes  # registers the builder
    import tensorflow_datasets as tfds
    tfds.disable_progress_bar()
    from jaxdiff.data import prepare
    stripes.Stripes(data_dir=sys.argv[2], file_format="tfrecord").download_and_prepare()
    try:
        prepare("tfds:strpies", sys.argv[1])
    except ValueError as error:
        assert str(error).startswith("tfds:strpies is no TFDS data set; did you mean stripes"), error
    else:
        raise AssertionError("a data set that does not exist was prepared")
    print(prepare("tfds:stripes", sys.argv[1]))
"""
READ = """
    import json, sys
    import numpy as np
    from jaxdiff.data import Preprocess, captions, open_source, pipeline, to_levels
    from jaxdiff.data.records import take
    out = {"sources": {}}
    for split in ("train", "validation", "test"):
        source = open_source("tfds:stripes", split, data_dir=sys.argv[1], validation=0.2)
        values = [(int(r["image"].min()), int(r["image"].max()), int(r["label"]))
                  for r in map(source.records.__getitem__, range(len(source)))]
        out["sources"][split] = [source.num_classes, source.class_names, source.levels, source.kind, values]
    source = open_source("tfds:stripes", "train", data_dir=sys.argv[1])
    stream = pipeline(source, 12, 3, preprocess=Preprocess((6, 6, 1)), num_epochs=1)
    out["shape"] = next(stream.batches())["x"].shape
    batches = list(stream.batches())
    out["epoch"] = [[int(to_levels(x)[0, 0, 0]), int(y)] for b in batches for x, y in zip(b["x"], b["label"])]
    out["resumed"] = bool(np.array_equal(next(stream.batches(2))["x"], batches[2]["x"]))
    told = open_source("tfds:stripes", "validation", data_dir=sys.argv[1], validation=0.2, caption="note")
    rows = [told.records[i] for i in range(len(told))]
    out["told"] = [captions(told), [[int(row["image"].min()), row["caption"]] for row in rows]]
    out["refused"] = []
    for word in ("size", "caption"):
        try:
            open_source("tfds:stripes", data_dir=sys.argv[1], caption=word)
        except ValueError as error:
            out["refused"].append(str(error))
    out["tensorflow"] = "tensorflow" in sys.modules
    print(json.dumps(out))
"""


def python(code, *arguments, path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("tensorflow")
    root = tmp_path_factory.mktemp("tfds")
    code = root / "code"
    code.mkdir()
    (code / "stripes.py").write_text(textwrap.dedent(BUILDER))
    said = python(PREPARE, root / "array_record", root / "tfrecord", path=code)
    assert said == f"tfds:stripes: prepared as ArrayRecord in {root}/array_record/stripes/1.0.0"
    return root


def test_prepared_data_is_read_in_another_process_without_tensorflow(prepared):
    got = json.loads(python(READ, prepared / "array_record", path=prepared))
    assert got["tensorflow"] is False
    for split, size in {"train": 48, "validation": 12, "test": 10}.items():
        num_classes, names, levels, kind, values = got["sources"][split]
        assert (num_classes, names, levels, kind, len(values)) == (2, ["even", "odd"], 256, "image", size)
        assert all(low == high and label == low % 2 for low, high, label in values)  # PNG: no loss
    seen = {split: {value[0] for value in got["sources"][split][4]} for split in got["sources"]}
    assert seen["test"] == set(range(200, 210))  # the data set's own held-out part
    assert seen["train"] | seen["validation"] == set(range(60)) and not seen["train"] & seen["validation"]
    assert got["shape"] == [12, 6, 6, 1] and got["resumed"]
    assert sorted(got["epoch"]) == [[i, i % 2] for i in range(60)] and got["epoch"] != sorted(got["epoch"])
    texts, rows = got["told"]
    assert len(rows) == 12 and texts == [text for _, text in rows] == [f"number {i} né" for i, _ in rows]
    for word, said in zip(("size", "caption"), got["refused"], strict=True):
        assert said.startswith(f"tfds:stripes has no text caption={word!r}, which is ")
        assert said.endswith("; allowed: its texts, note") and ("absent" in said) == (word == "caption")


def test_what_is_not_there_is_said_in_one_line(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stripes lies in .* as tfrecord, not as ArrayRecord") as caught:
        data.open_source("tfds:stripes", data_dir=str(prepared / "tfrecord"))
    assert "\n" not in str(caught.value)
    for name in ("stripes:2.0.0", "stripes/big", "mnist"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not prepared in .*\(stripes is\): run `jaxdiff data"):
            data.open_source(f"tfds:{name}", data_dir=str(prepared / "array_record"))
    with pytest.raises(FileNotFoundError, match=r"run `jaxdiff data prepare tfds:mnist`"):
        data.open_source("tfds:mnist", data_dir=str(tmp_path))


def test_preparing_without_tensorflow_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"^preparing tfds:mnist needs TensorFlow: pip install 'jaxdiff\[prepare\]'$"):
        prepare_tfds("mnist", str(tmp_path))
    assert not list(tmp_path.iterdir())
