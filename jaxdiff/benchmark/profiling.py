"""A trace of a few training steps, for TensorBoard and Perfetto, and where the steps' time goes on a CPU, as a short table.

The table sums the times of the compiled program's operations, each at its fastest of the calls, so that a busy machine shows
less. A fused operation counts as the product in it, else as its last operation; a convolution of the backward pass is a
weight gradient where its window is larger than its result (XLA slides one feature map over the other), which holds for maps
larger than the kernel. Operations that ran at the same time on several threads count each; operations that hold others
(loops, branches) are left out. On GPU and TPU there is no table: the trace tells more.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdiff.benchmark.stopwatch import Line

CALLS = 5
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|(\S+)) ([\w-]+)\(")
_HOLD_OTHERS = ("while", "conditional", "call")
_COLLECTIVES = ("all-", "reduce-scatter", "collective-")
# the first pattern found in an operation's path through the model names its part
_PARTS = (
    ("random numbers", r"random|threefry|[Dd]ropout"),
    ("attention, products apart", r"/(attention|cross)/"),
    ("group norm", r"norm"),
    ("joining and resampling", r"concatenate|broadcast_in_dim|reshape|reduce_window|resize"),
    ("embeddings", r"/(time|class|text|latent|emb)/"),
)


def check(directory: str) -> None:
    """Make the directory; ValueError where nothing can be written there."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        probe = Path(directory) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--profile is {directory!r}, where nothing can be written ({error.strerror}); allowed: a "
                         "directory, or a new name") from None


def trace(step: Callable[[], Any], compiled: Any, directory: str, each: int = 1) -> Line:
    """Trace a few calls of `step`, which runs the program `compiled` once, of `each` training steps; where the files are,
    and on a CPU the table."""
    before = set(Path(directory).rglob("*.xplane.pb"))
    with jax.profiler.trace(directory, create_perfetto_trace=True):
        for call in range(CALLS):
            with jax.profiler.StepTraceAnnotation("train", step_num=call * each):
                jax.block_until_ready(step())
    (planes,) = set(Path(directory).rglob("*.xplane.pb")) - before
    perfetto = planes.parent / "perfetto_trace.json.gz"
    steps = CALLS * each
    text = f"{steps} steps in {directory}, for TensorBoard; {perfetto}, for ui.perfetto.dev"
    found: dict[str, Any] = {"steps": steps, "directory": str(directory), "perfetto": str(perfetto)}
    if jax.default_backend() == "cpu":
        parts = shares(planes, compiled.as_text())
        found["seconds_per_step"] = {name: time / each for name, time in parts.items()}
        whole = sum(parts.values()) or 1.0
        for name, time in parts.items():
            text += f"\n  {name:36}{time / each:8.4f} s a step {100 * time / whole:6.1f} %"
    return Line("profile", text, found)


def shares(planes: Path, program: str) -> dict[str, float]:
    """Seconds of one call by part, the largest first: of a compiled program's operations (its HLO text) in a trace."""
    module = program.split(maxsplit=2)[1].rstrip(",")
    times: dict[str, Counter[Any]] = defaultdict(Counter)  # of an operation, by the call in which it ran
    for plane in jax.profiler.ProfileData.from_file(str(planes)).planes:
        for line in plane.lines:
            for event in line.events:
                told = dict(event.stats)
                if told.get("hlo_module") == module:
                    times[str(told.get("hlo_op"))][told.get("run_id")] += event.duration_ns / 1e9
    names, sums = parts_of(program), defaultdict[str, float](float)
    for operation, calls in times.items():
        if part := names.get(operation, "other"):
            sums[part] += min(calls.values())
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def parts_of(program: str) -> dict[str, str]:
    """The part of each instruction of an HLO text, a fusion's that of the product in it; "" for those that hold others."""
    found: dict[str, str] = {}
    products: dict[str, str] = {}  # of the computations that have one, which stand before those that call them
    computation = ""
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%")
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, shape, opcode = match.groups()
        found[name] = "" if opcode in _HOLD_OTHERS else _part(opcode, shape or "", line)
        if opcode in ("convolution", "dot"):
            products.setdefault(computation, found[name])
        elif opcode == "fusion" and (called := re.findall(r"calls=%?([\w.-]+)", line)):
            found[name] = products.get(called[0], found[name])
    return found


def _part(opcode: str, shape: str, line: str) -> str:
    path = next(iter(re.findall(r'op_name="([^"]*)"', line)), "")
    backward = "transpose(" in path or not path  # what XLA turned round for the backward pass has lost its path
    if opcode.startswith(_COLLECTIVES):
        return "collectives, waiting included"
    if opcode == "convolution":
        return _convolution(shape, line, backward)
    if opcode == "dot":
        return "matrix products, backward" if backward else "matrix products"
    kind = next((name for name, pattern in _PARTS if re.search(pattern, path)), "other")
    return f"{kind}, backward" if backward and path else kind


def _convolution(shape: str, line: str, backward: bool) -> str:
    if not backward:
        return "convolutions"
    window = math.prod(map(int, re.findall(r"size=([\dx]+)", line)[0].split("x")))
    sizes = [int(n) for n in re.findall(r"\[([\d,]*)\]", shape)[0].split(",")]
    order = re.findall(r"->(\w+)", line)[0]
    places = math.prod(size for size, letter in zip(sizes, order, strict=True) if letter.isdigit())
    return "convolutions, weight gradient" if window > places else "convolutions, input gradient"
