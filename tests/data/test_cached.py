"""Columns as ArrayRecord parts: what was written is read, from memory or from files; damage is named; flips are foreseen."""

import numpy as np
import pytest

from jaxdiff import data

ROWS = np.random.default_rng(0)
COLUMNS = {"x": ROWS.standard_normal((10, 2, 3), np.float32), "label": ROWS.integers(0, 9, 10).astype(np.int32),
           "caption": [f"a »cat« {i}\n" if i % 3 else ["two", "of them"] for i in range(10)]}
LAYOUT = data.Layout((("x", "float32", (2, 3)), ("label", "int32", ())), ("caption",))


@pytest.fixture
def parts(tmp_path):
    paths = [tmp_path / f"part-{i}" for i in range(3)]
    for i, path in enumerate(paths):
        data.write_part(path, LAYOUT, {name: column[4 * i : 4 * i + 4] for name, column in COLUMNS.items()})
    return paths


@pytest.mark.parametrize("memory, kind", [(2**30, "Columns"), (10, "Parts")])
def test_what_was_written_is_read(parts, memory, kind):
    records = data.open_parts(parts, [4, 4, 2], LAYOUT, memory)
    assert type(records).__name__ == kind and len(records) == 10
    numbers = np.array([9, 0, 5, 5, 3])
    found = records.take(numbers)
    for name in ("x", "label"):
        assert found[name].dtype == COLUMNS[name].dtype
        np.testing.assert_array_equal(found[name], COLUMNS[name][numbers])
    assert list(found["caption"]) == [COLUMNS["caption"][n] for n in numbers]
    one = records[7]
    assert one["label"] == COLUMNS["label"][7] and one["caption"] == COLUMNS["caption"][7] and one["x"].shape == (2, 3)


def test_both_readings_give_the_same_batches(parts):
    whole, files = (data.Source("kept", "train", data.open_parts(parts, [4, 4, 2], LAYOUT, memory), (2, 3), 0, 9,
                                kind="points") for memory in (2**30, 10))
    for step in (0, 3):
        a, b = (data.pipeline(source, 4, seed=1).batch(step) for source in (whole, files))
        assert a.keys() == {"x", "index", "label"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_part_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyError):
        data.write_part(tmp_path / "part", LAYOUT, {"x": COLUMNS["x"], "label": COLUMNS["label"]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [2**30, 10])
def test_damage_is_named(parts, memory):
    with pytest.raises(ValueError, match=r"part-2 holds 2 records and should hold 4; mend: delete it"):
        data.open_parts(parts, [4, 4, 4], LAYOUT, memory)
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-1 is damaged .*; mend: delete it, and it is made again"):
        data.open_parts(parts, [4, 4, 2], LAYOUT, memory)


@pytest.mark.parametrize("size", [None, 6])
def test_in_order_is_what_evaluation_sees(size):
    source = data.open_source("digits", "test")
    how = data.Preprocess(None if size is None else (size, size, 1), crop="random", flip=True)
    whole = np.concatenate([batch["x"] for batch in data.pipeline(source, 50, preprocess=how).epoch()])
    label = np.array([record["label"] for record in (source.records[i] for i in range(20, 61))])
    batches = list(data.in_order(source, how, range(20, 61), 16))
    assert [len(batch["x"]) for batch in batches] == [16, 16, 9]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), whole[20:61])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), label)


def test_flips_are_those_of_the_pipeline():
    rows = np.random.default_rng(1).uniform(-1, 1, (30, 4, 4, 1)).astype(np.float32)
    source = data.Source("rows", "train", data.Columns({"image": rows}), (4, 4, 1))
    straight, flipped = (data.pipeline(source, 8, seed=5, preprocess=data.Preprocess(flip=flip)) for flip in (False, True))
    for step in (0, 1, 7):
        a, b = straight.batch(step)["x"], flipped.batch(step)["x"]
        turned = data.mirrored(5, 8 * step, 8)
        np.testing.assert_array_equal(b, np.where(turned[:, None, None, None], a[:, :, ::-1], a))
    assert 400 < data.mirrored(0, 0, 1000).sum() < 600
