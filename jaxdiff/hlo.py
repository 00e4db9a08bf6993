"""What a compiled program does, read from its optimised HLO text: messages between devices, and matrix products.

The text is what `compiled.as_text()` gives for one device of a partitioned program. Every computation is followed from the
entry, bodies of loops as often as they turn: XLA's `known_trip_count`, or, where a compiler does not write it (libtpu), the
constant that the counter is compared with, as `lax.scan` and `fori_loop` make it. Where neither is there a loop counts once
and is counted in `Program.unknown`. All branches of a conditional count.

Bytes of a message are those that one device gives: an all-reduce's or reduce-scatter's whole input, and for an all-gather
the whole output. Over n devices a ring sends, from each of them, at least

    all-reduce 2 (n-1)/n bytes,   all-gather, reduce-scatter, all-to-all (n-1)/n bytes,   permutation bytes

(Patarasuk & Yuan 2009), which is `Message.sent`. An asynchronous pair of start and done counts once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


class Message(NamedTuple):
    """A kind of collective: how often it runs (`number`), the `bytes` of all and what a device sends for them at least."""

    number: float
    bytes: float
    sent: float


class Program(NamedTuple):
    """One device's share. `messages` by kind; `flops` of products by the operands' type ("bf16", "f32"); `once`, the same
    over all types with every loop counted once; `unknown`, loops of unknown length."""

    messages: dict[str, Message]
    flops: dict[str, float]
    once: float
    unknown: int


class Line(NamedTuple):
    """An instruction: its `shape` as text, `opcode`, names of `operands` (a constant's value), the `rest` of the line."""

    shape: str
    opcode: str
    operands: list[str]
    rest: str


def read(text: str) -> Program:
    """The program of an optimised HLO module's text. Raises ValueError for a text without an entry computation."""
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("the text is no HLO module: no ENTRY computation in it; allowed: what compiled.as_text() gives")
    parts = max([int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[:4000])], default=1)
    messages: dict[str, list[float]] = {}
    flops: dict[str, float] = {}
    once, unknown = 0.0, 0
    for lines, line, times in _walk(computations, entry):
        if times is None:  # a loop whose length is not known
            unknown += 1
            continue
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            size = sum(_bytes(lines[name].shape) for name in line.operands if name in lines)
            group = _group(line.rest, parts) if kind != "collective-permute" else 2
            size *= group if kind == "all-gather" else 1
            share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
            total = messages.setdefault(kind, [0.0, 0.0, 0.0])
            for i, value in enumerate((1.0, size, size * share)):
                total[i] += times * value
        elif line.opcode in ("dot", "convolution"):
            count = _dot(line, lines) if line.opcode == "dot" else _convolution(line, lines)
            dtype = _arrays(lines[line.operands[0]].shape)[0][0]
            flops[dtype] = flops.get(dtype, 0.0) + times * count
            once += count
    return Program({kind: Message(*values) for kind, values in sorted(messages.items())}, flops, once, unknown)


def _computations(text: str) -> tuple[dict[str, dict[str, Line]], str | None]:
    found: dict[str, dict[str, Line]] = {}
    entry, here = None, None
    for raw in text.splitlines():
        head = _HEAD.match(raw)
        if head:
            here = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif here is not None and (start := _LINE.match(raw)):
            here[start[1]] = _line(raw[start.end() :])
    return found, entry


def _line(text: str) -> Line:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, text = text.partition("(")
    end = _closing("(" + text) - 1
    given = text[: end - 1]
    return Line(shape, opcode, [given] if opcode == "constant" else _NAME.findall(given), text[end:])


def _closing(text: str) -> int:
    """Where the bracket that opens the text is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _walk(
    computations: dict[str, dict[str, Line]], entry: str, times: float = 1.0
) -> Iterator[tuple[dict[str, Line], Line, float | None]]:
    """Every instruction that runs, with its computation, as often as it runs."""
    lines = computations.get(entry, {})
    for line in lines.values():
        yield lines, line, times
        if line.opcode == "while":
            turns = _turns(line, computations)
            if turns is None:
                yield lines, line, None
            yield from _walk(computations, _attribute(line, "body"), times * (turns if turns is not None else 1))
        elif line.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
            for name in _NAME.findall(branches[1]) if branches else re.findall(r"\w+_computation=%([\w.\-]+)", line.rest):
                yield from _walk(computations, name, times)
        elif line.opcode in ("fusion", "call", "async-start", "custom-call"):
            yield from _walk(computations, _attribute(line, "calls") or _attribute(line, "to_apply"), times)


def _attribute(line: Line, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", line.rest)
    return found[1] if found else ""


def _turns(line: Line, computations: dict[str, dict[str, Line]]) -> int | None:
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line.rest)
    if known:
        return int(known[1])
    lines = computations.get(_attribute(line, "condition"), {})
    for test in lines.values():
        if test.opcode == "compare" and "direction=LT" in test.rest:
            limit = lines.get(test.operands[-1])
            if limit is not None and limit.opcode == "constant" and limit.operands[0].isdecimal():
                return int(limit.operands[0])
    return None


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    """`f32[2,3]{1,0}`, or a tuple of such, as types and sizes."""
    found = _ARRAY.findall(shape)
    return [(dtype, [int(n) for n in re.findall(r"\d+", sizes)]) for dtype, sizes in found]


def _bytes(shape: str) -> float:
    return sum(math.prod(sizes) * _width(dtype) / 8 for dtype, sizes in _arrays(shape))


def _width(dtype: str) -> int:
    """Bits of a type: s8, u32, f8e4m3fn, ..."""
    return _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])


def _group(rest: str, parts: int) -> int:
    """How many devices a collective joins."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d, ]+)\}", rest)
    return len(listed[1].split(",")) if listed else parts


def _dot(line: Line, lines: dict[str, Line]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    lhs = _arrays(lines[line.operands[0]].shape)[0][1]
    deep = math.prod(lhs[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
    return 2.0 * math.prod(_arrays(line.shape)[0][1]) * deep


def _convolution(line: Line, lines: dict[str, Line]) -> float:
    lhs, rhs = (_arrays(lines[name].shape)[0][1] for name in line.operands[:2])
    out = _arrays(line.shape)[0][1]
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", line.rest)
    assert labels is not None, line
    a, b, c = labels.groups()
    found = re.search(r"window=\{([^}]*)\}", line.rest)
    window = dict(_WINDOW.findall(found[1])) if found else {}
    pairs = 1
    for i in range(sum(letter.isdigit() for letter in a)):
        of = lambda name, default, i=i: window[name].split("x")[i] if name in window else default
        pairs *= positions(lhs[a.index(str(i))], rhs[b.index(str(i))], out[c.index(str(i))], int(of("stride", 1)),
                           int(of("pad", "0_0").split("_")[0]), int(of("lhs_dilate", 1)), int(of("rhs_dilate", 1)))
    return 2.0 * out[c.index("b")] * out[c.index("f")] * rhs[b.index("i")] * pairs


def positions(size: int, window: int, out: int, stride: int, low: int, dilation: int, window_dilation: int) -> int:
    """How many pairs of a place of the output and a place of the window meet a number of the input, in one dimension.

    size, window, out: lengths of the input, the window and the output. low: padding before the input, `dilation` apart.

    >>> positions(4, 3, 4, 1, 1, 1, 1)  # of 12 pairs two lie in the padding
    10
    """
    last, count = (size - 1) * dilation, 0
    for tap in range(window):
        start = tap * window_dilation - low
        if dilation == 1:  # start + stride * place in 0..last
            first = max(0, -(start // stride))
            count += max(0, min(out - 1, (last - start) // stride) - first + 1)
        else:
            count += sum(0 <= start + stride * place <= last and (start + stride * place) % dilation == 0
                         for place in range(out))
    return count
