"""Texts to token numbers: byte-level BPE trained on captions (Sennrich et al. 2016, on bytes as in Radford et al. 2019), or
the vocabulary of a public text encoder. The one home of the library tokenizers.

Bytes know no unknown characters: what no caption held is spelled byte by byte and decodes to itself. Everything here is
deterministic: the same captions give the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
CLIP_BEGIN, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SMALLEST = 256 + 3  # a token for each byte, and the three special ones
File = str | os.PathLike


class Tokens(NamedTuple):
    """What texts become: `ids` int32 [B, L], padded on the right; `mask` bool [B, L], False on padding; `truncated`, for
    each text that did not fit its number in the batch -> how many tokens it would need; and `unknown`, for each text with
    something that the vocabulary cannot spell its number -> those pieces of it, each once (both empty if all is well)."""

    ids: np.ndarray
    mask: np.ndarray
    truncated: Mapping[int, int]
    unknown: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary and its rules, around the library's object `inner`. `pad_id` fills a row's rest, where nobody reads.
    `unknown_id` stands for what the vocabulary cannot spell; None where it can spell all.

    Threads may share one: nothing changes it after it is made.
    """

    inner: tokenizers.Tokenizer
    pad_id: int
    unknown_id: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.inner.encode_special_tokens = True  # "<end>" in a text is text
        model = json.loads(self.inner.to_str())["model"]  # the object tells its name for the unknown for some models only
        named = model.get("unk_token")
        unknown_id = self.inner.token_to_id(named) if named is not None else model.get("unk_id")
        object.__setattr__(self, "unknown_id", unknown_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.inner, self.pad_id)  # through __init__, for a pickled `inner` forgets what was set

    @property
    def vocab_size(self) -> int:
        """The highest token number plus one: the `vocab_size` of an encoder that reads these tokens."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """`length` tokens a text: begin, the text's own, end, padding. ValueError where `length` leaves no room for a token.

        Too long a text loses its last tokens, never its end token, and `truncated` tells so: saying it is the caller's part.
        What the vocabulary cannot spell becomes its unknown token, and `unknown` tells that, of the part that was cut too.
        An empty text (or one of spaces alone) is "no text": all padding, all masked, which is what a caption dropped for
        classifier-free guidance is. A special token spelled in a text is text.
        """
        if isinstance(texts, str):
            raise ValueError("encode got one string; give a list of texts: encode([text], length)")
        frame = self.inner.num_special_tokens_to_add(False)
        if length <= frame:
            raise ValueError(f"encode got length={length}; it must be at least {frame + 1}: begin and end take {frame}")
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        mask = np.zeros((len(texts), length), bool)
        truncated, unknown = {}, {}
        for i, text in enumerate(texts):
            encoding = self.inner.encode(text, add_special_tokens=False)
            found = encoding.ids
            if self.unknown_id in found:
                spans = (span for token, span in zip(found, encoding.offsets, strict=True) if token == self.unknown_id)
                unknown[i] = tuple(dict.fromkeys(text[start:end] for start, end in spans))
            if len(encoding) > length - frame:
                truncated[i] = len(encoding) + frame
                encoding.truncate(length - frame)
            if len(encoding):
                row = self.inner.post_process(encoding).ids
                ids[i, : len(row)], mask[i, : len(row)] = row, True
        return Tokens(ids, mask, truncated, unknown)

    def decode(self, ids: np.ndarray) -> list[str]:
        """Token numbers [B, L] -> texts as the tokenizer reads them: its case, no special tokens, no outer spaces."""
        suffix = getattr(self.inner.model, "end_of_word_suffix", None)
        texts = self.inner.decode_batch(np.asarray(ids).tolist(), skip_special_tokens=True)
        return [(text.replace(suffix, " ") if suffix else text).strip(" ") for text in texts]

    def save(self, path: File) -> None:
        """One JSON file that `load_tokenizer` reads, as does the library."""
        whole = tokenizers.Tokenizer.from_str(self.inner.to_str())
        whole.enable_padding(pad_id=self.pad_id, pad_token=whole.id_to_token(self.pad_id))  # keeps pad_id in the file
        Path(path).write_text(whole.to_str(pretty=True) + "\n", encoding="utf-8")


def train_tokenizer(captions: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` tokens: three special ones, 256 bytes, and pairs met at least twice, the most
    frequent first. Few captions end below `vocab_size`: an encoder is built for the tokenizer's own `vocab_size`.

    Texts are put in Unicode's composed form (NFC), runs of spaces become one and, if `lowercase`, "Cat" is "cat". ValueError
    for a `vocab_size` below 259 or without captions.
    """
    if isinstance(captions, str):
        raise ValueError("train_tokenizer got one string; give the captions as a list of strings")
    if vocab_size < SMALLEST:
        raise ValueError(f"train_tokenizer got vocab_size={vocab_size}; allowed: {SMALLEST} (256 bytes and 3 more) or more")
    captions = list(captions)
    if not captions:
        raise ValueError("train_tokenizer got no captions; give the texts of the training split")
    inner = tokenizers.Tokenizer(models.BPE())
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a first word is the word it is elsewhere
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(captions, trainer)
    ends = [(token, inner.token_to_id(token)) for token in (BEGIN, END)]
    inner.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    return _ready(inner)


def load_tokenizer(path: File) -> Tokenizer:
    """A tokenizer from a file, or from the folder it lies in, told by its form:

    - `tokenizer.json`: the whole of one, saved by `Tokenizer.save` or published with a model;
    - `vocab.txt`: BERT's WordPiece, a token a line; lower-casing if the vocabulary holds no capital letter;
    - `vocab.json` with `merges.txt` beside it: CLIP's BPE (Radford et al. 2021).

    FileNotFoundError or ValueError in one line for anything else.
    """
    path = Path(path)
    if path.is_dir():
        kinds = ("tokenizer.json", "vocab.txt", "vocab.json")
        inside = next((path / name for name in kinds if (path / name).is_file()), None)
        if inside is None:
            raise FileNotFoundError(f"the folder {path} holds no tokenizer; it must hold one of {', '.join(kinds)}")
        path = inside
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer file {path}; name a tokenizer.json, a vocab.txt or a vocab.json")
    if path.suffix == ".txt":
        return _ready(_wordpiece(path))
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(whole, dict) and "model" in whole and isinstance(whole["model"], dict):
            return _ready(tokenizers.Tokenizer.from_str(json.dumps(whole)))
    except Exception as error:  # the library raises Exception itself
        why = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a tokenizer ({why}); name a tokenizer.json, vocab.txt or vocab.json") from None
    return _ready(_clip(path, whole))


def _wordpiece(path: Path) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))}
    lost = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in vocab]
    if lost:
        raise ValueError(f"{path} lacks {', '.join(lost)}; name the vocab.txt of a BERT, one token a line")
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    cased = any(token.isalpha() and token.lower() != token for token in vocab)
    inner.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    inner.add_special_tokens([AddedToken(token, special=True) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")])
    return inner


def _clip(path: Path, vocab: object) -> tokenizers.Tokenizer:
    merges = path.parent / "merges.txt"
    if not isinstance(vocab, dict) or CLIP_BEGIN not in vocab or CLIP_END not in vocab:
        raise ValueError(f"{path} is neither a tokenizer.json nor CLIP's vocab.json with {CLIP_BEGIN} and {CLIP_END} in it")
    if not merges.is_file():
        raise FileNotFoundError(f"there is no {merges}; CLIP's vocab.json needs its merges.txt beside it")
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [(a, b) for a, _, b in (line.partition(" ") for line in lines if line and not line.startswith("#version"))]
    bpe = models.BPE(vocab, pairs, unk_token=CLIP_END, continuing_subword_prefix="", end_of_word_suffix="</w>")
    inner = tokenizers.Tokenizer(bpe)
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    ends = (CLIP_END, vocab[CLIP_END]), (CLIP_BEGIN, vocab[CLIP_BEGIN])
    inner.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    inner.add_special_tokens([AddedToken(token, special=True) for token in (CLIP_BEGIN, CLIP_END)])
    return inner


def _ready(inner: tokenizers.Tokenizer) -> Tokenizer:
    """Padding and truncation are `encode`'s own. The pad token is the one that the file names, or of a usual name."""
    known = [inner.token_to_id(token) for token in (PAD, "[PAD]", CLIP_END)]
    named = inner.padding["pad_id"] if inner.padding else None
    pad_id = next((i for i in (named, *known) if i is not None), 0)
    inner.no_padding()
    inner.no_truncation()
    return Tokenizer(inner, pad_id)
