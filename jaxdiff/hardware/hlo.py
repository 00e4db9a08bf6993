"""The optimised HLO text of a compiled program as instructions, each with how often it runs.

The text is what `compiled.as_text()` gives for one device of a partitioned program. Every computation is followed from the
entry, bodies of loops as often as they turn: XLA's `known_trip_count`, or, where a compiler does not write it (libtpu), the
constant that the counter is compared with, as `lax.scan` and `fori_loop` make it. Where neither is there a loop counts as
one turn, and `walk` says so. All branches of a conditional count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Line(NamedTuple):
    """An instruction: its `shape` as text, `opcode`, names of its `operands` (of a constant its value, of a parameter its
    number), and the `rest` of the line."""

    shape: str
    opcode: str
    operands: list[str]
    rest: str


Computation = dict[str, Line]  # by name, in order, the root last


class Module(NamedTuple):
    """The `computations` of a program by name, the one that is its `entry`, and over how many devices (`parts`) it lies."""

    computations: dict[str, Computation]
    entry: str
    parts: int


class Array(NamedTuple):
    """A type such as "bf16", `sizes`, and whether it lies in the device's main memory (on a TPU HBM, not VMEM)."""

    dtype: str
    sizes: list[int]
    main: bool

    @property
    def bytes(self) -> float:
        """Without the padding of its layout."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.findall(r"\d+", self.dtype)[0])  # s8, u32, f8e4m3fn
        return math.prod(self.sizes) * bits / 8


class Step(NamedTuple):
    """An instruction that runs, `times` as often as the program; its `computation`, and whether that is a fusion's.
    `unknown` marks a loop of which nobody knows how often it turns."""

    line: Line
    computation: Computation
    times: float
    fused: bool
    unknown: bool = False


def parse(text: str) -> Module:
    """The module of a text. Raises ValueError for one without an entry computation."""
    found: dict[str, Computation] = {}
    entry, here = None, None
    for raw in text.splitlines():
        head = _HEAD.match(raw)
        if head:
            here = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif here is not None and (start := _LINE.match(raw)):
            here[start[1]] = _line(raw[start.end() :])
    if entry is None:
        raise ValueError("the text is no HLO module: no ENTRY computation in it; allowed: what compiled.as_text() gives")
    head_line = text[: text.index("\n")]
    return Module(found, entry, max(map(int, re.findall(r"(?:num_partitions|replica_count)=(\d+)", head_line)), default=1))


def _line(text: str) -> Line:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, text = text.partition("(")
    end = _closing("(" + text) - 1
    given = text[: end - 1]
    return Line(shape, opcode, [given] if opcode in ("constant", "parameter") else _NAME.findall(given), text[end:])


def _closing(text: str) -> int:
    """Where the bracket that opens the text is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    return len(text)


def walk(module: Module) -> Iterator[Step]:
    """Every instruction that runs, those inside of fusions too."""
    yield from _walk(module.computations, module.entry, 1.0, False)


def _walk(computations: dict[str, Computation], name: str, times: float, fused: bool) -> Iterator[Step]:
    lines = computations.get(name, {})
    for line in lines.values():
        turns = _turns(line, computations) if line.opcode == "while" else 1
        yield Step(line, lines, times, fused, turns is None)
        if line.opcode == "while":
            yield from _walk(computations, attribute(line, "body"), times * (1 if turns is None else turns), fused)
        elif line.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
            for branch in _NAME.findall(branches[1]) if branches else re.findall(r"\w+_computation=%([\w.\-]+)", line.rest):
                yield from _walk(computations, branch, times, fused)
        elif line.opcode in ("fusion", "call", "async-start", "custom-call"):
            inner = attribute(line, "calls") or attribute(line, "to_apply")
            yield from _walk(computations, inner, times, fused or line.opcode == "fusion")


def attribute(line: Line, name: str) -> str:
    """The word that an attribute names, "" without one."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", line.rest)
    return found[1] if found else ""


def _turns(line: Line, computations: dict[str, Computation]) -> int | None:
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line.rest)
    if known:
        return int(known[1])
    lines = computations.get(attribute(line, "condition"), {})
    for test in lines.values():
        if test.opcode == "compare" and "direction=LT" in test.rest:
            limit = lines.get(test.operands[-1])
            if limit is not None and limit.opcode == "constant" and limit.operands[0].isdecimal():
                return int(limit.operands[0])
    return None


def arrays(shape: str) -> list[Array]:
    """`f32[2,3]{1,0}`, or a tuple of such.

    >>> arrays("(f32[2,3]{1,0:T(8,128)S(1)}, pred[])")
    [Array(dtype='f32', sizes=[2, 3], main=False), Array(dtype='pred', sizes=[], main=True)]
    """
    return [Array(dtype, [int(n) for n in re.findall(r"\d+", sizes)], not re.search(r"S\([1-9]", layout))
            for dtype, sizes, layout in _ARRAY.findall(shape)]
