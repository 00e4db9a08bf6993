"""Captions: the texts that say what a picture shows, as they lie beside pictures and as a batch holds them.

A folder of pictures keeps them in one of the two usual forms: `NAME.txt` beside `NAME.png`, or a file of JSON lines, one
picture a line, `{"file_name": "cats/1.png", "text": "a cat"}`. Runs of white space in them count as one space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from jaxdiff.data.records import Source, take_captions
from jaxdiff.data.tokenizer import Tokens

Tokenize = Callable[[Sequence[str]], Tokens]
"""Texts -> their `Tokens`, a row each and all rows of one length, none for no texts. A row depends on its text alone, and
threads may call it at once: `functools.partial(tokenizer.encode, length=L)` is one."""


def check_captions(source: Source) -> None:
    """Raise ValueError unless every record of the source holds `caption`."""
    if not source.has_captions:
        raise ValueError(f"{source.name} has no captions; sources that have them: emoji, folder:PATH with captions=True, "
                         "tfds:NAME with caption=FEATURE, and npz:FILE or arrays with an array `caption`")


def captions_of(source: Source, numbers: Sequence[int] | np.ndarray) -> list[str]:
    """The captions of the records that are numbered; the source must have them."""
    return take_captions(source.records, numbers)


def captions(source: Source) -> list[str]:
    """All captions of a split, in the records' order; no picture is read. ValueError for a source without captions."""
    check_captions(source)
    return captions_of(source, np.arange(len(source)))


def text_batch(tokenize: Tokenize | None, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What captions put into a batch: `tokens` int32 [b, L] and `text_mask` bool [b, L]; nothing without `tokenize`."""
    if tokenize is None:
        return {}
    found = tokenize([str(text) for text in texts])
    return {"tokens": found.ids, "text_mask": found.mask}


def one_line(text: str) -> str:
    """The text with every run of white space as one space, and none around it."""
    return " ".join(text.split())


def check_form(name: str, form: bool | str) -> None:
    """Raise ValueError unless `form` is False, True (a .txt beside each picture) or the name of a file of JSON lines."""
    if not isinstance(form, bool) and not (isinstance(form, str) and form.endswith(".jsonl")):
        raise ValueError(f"{name}: captions={form!r}; allowed: False, True (NAME.txt beside NAME.png), or a file of JSON "
                         "lines as 'metadata.jsonl'")


def picture_captions(
    name: str, paths: Sequence[Path], form: bool | str, folders: Sequence[Path], num_threads: int
) -> list[str]:
    """The caption of each picture in the form that `check_form` allows; the JSON lines are in the first of `folders` that
    holds such a file. A caption may be empty, which is "no text".

    Raises FileNotFoundError without the file of JSON lines, and ValueError for pictures without a caption, told by the
    first and their number, and for what cannot be read. `name` is the source's.
    """
    if form is True:
        with ThreadPoolExecutor(num_threads) as pool:
            found = list(pool.map(_text_beside, paths))
        looked = "a .txt of the same name beside it"
    else:
        file = next((folder / str(form) for folder in folders if (folder / str(form)).is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{name}: there is no {form} in {' or '.join(dict.fromkeys(map(str, folders)))}")
        rows = _json_lines(file)
        found = [rows.get(PurePosixPath(path.relative_to(file.parent).as_posix())) for path in paths]
        looked = f"its line in {file}"
    missing = [path for path, text in zip(paths, found, strict=True) if text is None]
    if missing:
        raise ValueError(f"{name}: {len(missing)} of {len(paths)} pictures have no caption, first {missing[0]}; "
                         f"needed: {looked}")
    return [one_line(text) for text in found if text is not None]


def _text_beside(picture: Path) -> str | None:
    path = picture.with_suffix(".txt")
    return _read(path) if path.is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: unreadable captions ({one_line(str(error))}); needed: text in UTF-8") from None


def _json_lines(path: Path) -> dict[PurePosixPath, str]:
    rows: dict[PurePosixPath, str] = {}
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}, line {number}: needed: {{"file_name": a path from here, "text": the caption}}')
        file_name = PurePosixPath(row["file_name"])
        if file_name in rows:
            raise ValueError(f"{path}, line {number}: {file_name} has a caption above already; allowed: one a picture")
        rows[file_name] = row["text"]
    return rows
