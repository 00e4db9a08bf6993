"""Samples in parts on disk: whole files, one part in memory, and going on where it stopped as if nothing had happened."""

import tracemalloc

import numpy as np
import pytest

from jaxdiff import evaluation, stream

WORDS = {"num": 10, "batch_size": 4, "seed": 0, "stage_0": {"step": 3}, "s": (0.5,)}


def batch(i, rows=4, side=2):
    """Numbers that tell the part and the row."""
    x = np.random.default_rng(i).integers(0, 256, (rows, side, side, 1), np.uint8)
    return {"x": x, "label": np.arange(rows) + rows * i}


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_parts_are_cut_and_come_in_order(tmp_path, capsys):
    stream.fill(tmp_path / "a", WORDS, batch)
    found = list(stream.parts(tmp_path / "a"))
    assert np.concatenate([part["label"] for part in found]).tolist() == list(range(10))
    np.testing.assert_array_equal(found[2]["x"], batch(2)["x"][:2])
    assert [list(part) for part in stream.parts(tmp_path / "a", ("label", "none"))] == [["label"]] * 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["4 of 10", "8 of 10", "10 of 10"]


def test_a_stopped_stream_goes_on_with_the_same_bytes(tmp_path, capsys, monkeypatch):
    """Stopped while drawing, stopped while writing, and with a part lost in the middle."""
    stream.fill(tmp_path / "whole", WORDS, batch, quiet=True)
    drawn = []

    def stopping(i):
        drawn.append(i)
        if drawn == [0, 1]:
            raise KeyboardInterrupt
        return batch(i)

    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        stream.fill(folder, WORDS, stopping, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez", lambda file, **held: (file.write(b"half"), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            stream.fill(folder, WORDS, stopping, quiet=True)
    assert sorted(bytes_of(folder)) == ["cascade.json", "part_00000.npz"]
    with pytest.raises(FileNotFoundError, match="part_00001"):
        list(stream.parts(folder))
    stream.fill(folder, WORDS, stopping, quiet=True)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole") and drawn == [0, 1, 1, 1, 2]
    stream.part_file(folder, 1).unlink()
    stream.fill(folder, WORDS, stopping, quiet=True)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole") and drawn[5:] == [1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("other, told", [
    ({"seed": 1}, "seed=0, and this asks for 1"), ({"s": (0.1,)}, r"s=\[0.5\]"), ({"num": 11, "seed": 2}, "and 1 more"),
    ({"stage_0": {"step": 4}}, "stage_0.step=3"), ({"stage_1": {"step": 4}}, "stage_1.step=None"),
])
def test_other_words_are_refused(tmp_path, other, told):
    stream.fill(tmp_path / "a", WORDS, batch, quiet=True)
    before = bytes_of(tmp_path / "a")
    with pytest.raises(ValueError, match=told):
        stream.fill(tmp_path / "a", {**WORDS, **other}, lambda i: 1 / 0, quiet=True)
    assert bytes_of(tmp_path / "a") == before


def test_other_places_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        stream.fill(tmp_path / "file", WORDS, batch)
    with pytest.raises(ValueError, match="holds other files"):
        stream.fill(tmp_path, WORDS, batch)
    with pytest.raises(FileNotFoundError, match="jaxdiff cascade wrote"):
        list(stream.parts(tmp_path))
    stream.fill(tmp_path / "a", WORDS, batch, quiet=True)
    for damage in (b"", b"no zip", stream.part_file(tmp_path / "a", 0).read_bytes()[:200]):
        stream.part_file(tmp_path / "a", 0).write_bytes(damage)
        with pytest.raises(ValueError, match=r"part_00000\.npz is damaged"):
            next(stream.parts(tmp_path / "a"))
    (tmp_path / "a" / "cascade.json").write_text("{")
    with pytest.raises(ValueError, match=r"cascade\.json is damaged"):
        stream.fill(tmp_path / "a", WORDS, batch, quiet=True)


def test_one_part_is_in_memory(tmp_path):
    """Thirty parts of 4 MB: writing and reading them peaks below five."""
    words, size = {"num": 30 * 4, "batch_size": 4}, 4 * 1024**2
    draw = lambda i: {"x": np.full((4, 1024, 1024, 1), i, np.uint8)}
    tracemalloc.start()
    stream.fill(tmp_path / "a", words, draw, quiet=True)
    total = sum(int(part["x"][0, 0, 0, 0]) for part in stream.parts(tmp_path / "a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == sum(range(30)) and size < peak < 5 * size


def test_levels_survive_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    floats = stream.to_float(levels)
    assert floats.dtype == np.float32 and (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(evaluation.to_uint8(floats), levels)
