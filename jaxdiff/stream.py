"""Samples in parts on disk: many more than memory holds, and whoever was stopped goes on at the first missing part.

    DIR/cascade.json      what is drawn, in words; another order for the same directory is refused
    DIR/part_00000.npz    arrays of one batch, the last part cut to what is left
    ...

Part i is a function of the words and of i alone, and every file is whole or not there, so that it does not matter how often
the work was interrupted. Pictures are kept as 8-bit levels, which is what files, and published Frechet distances, are of:
a feature network that rounds its input sees no difference, any other at most 1/255 of the range [-1, 1] a pixel.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import configfile, evaluation

WORDS = "cascade.json"


def claim(folder: Any, words: Mapping[str, Any]) -> Path:
    """Say in `folder` what it is for, or see that it says so already; `words` are what JSON can hold.

    Raises ValueError for a folder that was started with other words, or that holds anything else, NotADirectoryError for a
    file of that name.
    """
    folder = Path(folder)
    asked: dict[str, Any] = json.loads(json.dumps(words))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; allowed: a directory, or a new name")
    if not (folder / WORDS).exists():
        if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise ValueError(f"{str(folder)!r} holds other files and no {WORDS}; allowed: a new directory, or one that this "
                             "command started")
        evaluation.write_whole(folder / WORDS, lambda file: file.write((json.dumps(asked, indent=2) + "\n").encode()))
        return folder
    held, now = configfile.flat(words_of(folder)), configfile.flat(asked)
    other = [key for key in {**held, **now} if held.get(key) != now.get(key)]
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise ValueError(f"{str(folder)!r} was started with {key}={held.get(key)}, and this asks for {now.get(key)}{more}; "
                         "mend: another directory, or the words it was started with")
    return folder


def words_of(folder: Any) -> dict[str, Any]:
    """What `claim` wrote. Raises FileNotFoundError without it, ValueError where it cannot be read."""
    path = Path(folder) / WORDS
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; allowed: a directory that jaxdiff cascade wrote") from None
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged; mend: another directory, or restore it")
    return found


def part_file(folder: Any, i: int) -> Path:
    """Where part i lies."""
    return Path(folder) / f"part_{i:05d}.npz"


def fill(
    folder: Any, words: Mapping[str, Any], draw: Callable[[int], Mapping[str, np.ndarray]], quiet: bool = False
) -> None:
    """Draw every part that is not there: `draw(i)` gives arrays of `words["batch_size"]` rows; `words["num"]` in all stay.

    One part is in memory at a time. Prints a line a part unless `quiet`. Raises as `claim` does.
    """
    claim(folder, words)
    num, size = words["num"], words["batch_size"]
    for i in range(-(-num // size)):
        if part_file(folder, i).exists():
            continue
        start, keep = time.perf_counter(), min(size, num - i * size)
        evaluation.save_npz(part_file(folder, i), **{name: value[:keep] for name, value in draw(i).items()})
        if not quiet:
            rate = size / (time.perf_counter() - start)
            said = f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}"
            print(f"{folder}: {i * size + keep} of {num}, {said} samples/s", flush=True)


def read(folder: Any, i: int, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of part i, or those of `names` that it has. Raises FileNotFoundError, or ValueError for a damaged file."""
    path = part_file(folder, i)
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files if not names or name in names}
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; mend: the command that started {str(folder)!r}, which goes on") from None
    except (zipfile.BadZipFile, EOFError, ValueError):
        raise ValueError(f"{path} is damaged; mend: remove it, and the command that wrote it draws it again") from None


def parts(folder: Any, names: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
    """The parts of a whole folder in their order, each read when it is asked for; `names` picks arrays.

    Raises FileNotFoundError at a part that was not drawn yet.
    """
    words = words_of(folder)
    for i in range(-(-words["num"] // words["batch_size"])):
        yield read(folder, i, names)


def to_float(levels: np.ndarray) -> np.ndarray:
    """8-bit levels as float32 in [-1, 1]: the inverse of `evaluation.to_uint8`."""
    return (levels.astype(np.float32) / np.float32(127.5)) - 1
