"""Compiling ahead of time: a program's memory, traffic and messages on devices that need not be there, kept once found.

A big network takes minutes to compile on one core, and JAX's own cache cannot give back a program for a TPU that is not
there. So what is asked of a compiled program, its optimised HLO among it, is kept in the folder `plans` of
`jax_compilation_cache_dir`, or in ~/.cache/jaxdiff/plans, under the SHA-256 of the lowered program, the topology and the
versions of jax and libtpu.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

# of a device's memory, as XLA reports it
STATS = ("argument", "output", "alias", "temp", "generated_code")
# libtpu's two ways of saying that memory does not do: by all that the program takes, and by its temporaries alone
_REFUSED = {"all": re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
            "temporaries": re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM")}


class Compiled(NamedTuple):
    """What a program takes on each device.

    memory: bytes by the words of STATS; {} where the compiler refused it. flops, accessed: operations and bytes by XLA's
    cost analysis, which counts a loop's body once. refused: bytes that a program that does not fit wants, as the compiler
    says: of "all" or of "temporaries" alone; {} of one that was compiled. seconds: of compiling. text: optimised HLO, ""
    of a refused one.
    """

    memory: dict[str, int]
    flops: float
    accessed: float
    refused: dict[str, float]
    seconds: float
    text: str


def compiled(lowered: Any, topology: str, progress: bool = True) -> Compiled:
    """Compile a lowered program for the topology that its arguments lie on, or take what is kept of it.

    With `progress` a line goes to stderr every half minute. Raises what XLA raises, but for want of memory.
    """
    file = _file(lowered, topology)
    found = _read(file)
    if found is not None:
        _say(progress, f"found in {file}, where it was kept after {found.seconds:.0f} s of compiling")
        return found
    start = time.monotonic()
    with _patience(progress), _uncached(not topology.startswith("cpu")):
        try:
            found = _analysed(lowered.compile())
        except jax.errors.JaxRuntimeError as error:
            refused = {what: _size(*said.groups()) for what, way in _REFUSED.items() if (said := way.search(str(error)))}
            if not refused:
                raise
            found = Compiled({}, 0.0, 0.0, refused, 0.0, "")
    found = found._replace(seconds=time.monotonic() - start)
    kept = _write(file, found)
    _say(progress, f"compiled in {found.seconds:.0f} s" + (f"; what it takes is kept in {file}" if kept else ""))
    return found


def _analysed(program: Any) -> Compiled:
    stats, cost = program.memory_analysis(), program.cost_analysis() or {}
    memory = {name: int(getattr(stats, f"{name}_size_in_bytes")) for name in STATS}
    return Compiled(memory, cost.get("flops", 0.0), cost.get("bytes accessed", 0.0), {}, 0.0, program.as_text())


def _size(number: str, unit: str) -> float:
    return float(number) * 1024.0 ** (" KMGT".index(unit))


def folder() -> Path:
    """Where what was found is kept."""
    found = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Path(found) / "plans" if found else Path("~/.cache/jaxdiff/plans").expanduser()


def _file(lowered: Any, topology: str) -> Path:
    text = lowered.compiler_ir("stablehlo").operation.get_asm(large_elements_limit=16)
    try:
        libtpu = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        libtpu = ""
    words = "\n".join((topology, jax.__version__, libtpu, text))
    return folder() / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json.gz"


def _read(file: Path) -> Compiled | None:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            return Compiled(**json.load(opened))
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # not there, or not whole
        return None


def _write(file: Path, found: Compiled) -> bool:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        with gzip.open(part, "wt", encoding="utf-8", compresslevel=1) as opened:
            json.dump(found._asdict(), opened)
        part.replace(file)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _patience(progress: bool, every: float = 30.0) -> Iterator[None]:
    """A line on stderr every so many seconds, until what is done inside is done."""
    start, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(every):
            _say(progress, f"compiling: {time.monotonic() - start:.0f} s so far; a big network takes many minutes")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _uncached(off: bool) -> Iterator[None]:
    """JAX's cache of programs out of the way, which takes a TPU's that is not there in and cannot give it back."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if off and before:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
    try:
        yield
    finally:
        if off and before:
            jax.config.update("jax_enable_compilation_cache", True)
            compilation_cache.reset_cache()


def _say(progress: bool, text: str) -> None:
    if progress:
        print(f"jaxdiff plan: {text}", file=sys.stderr, flush=True)
