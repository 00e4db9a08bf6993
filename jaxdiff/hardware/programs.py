"""What one device does in a compiled program, read from its HLO: messages to others, products, and traffic with its memory.

Bytes of a message are those that one device gives: an all-reduce's or reduce-scatter's whole input, and for an all-gather
the whole output. Over n devices a ring sends, from each of them, at least

    all-reduce 2 (n-1)/n bytes,   all-gather, reduce-scatter, all-to-all (n-1)/n bytes,   permutation bytes

(Patarasuk & Yuan 2009), which is `Message.sent`. An asynchronous pair of start and done counts once.

Traffic is what instructions read from and write to the main memory: all operands and results of one that is not inside a
fusion, but for what stays on the chip, and of a slice, or an array that is updated in part, that part alone.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from jaxdiff.hardware import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
         "partition-id", "replica-id", "opt-barrier", "add-dependency", "async-start", "async-update")
_SLICES = ("slice", "dynamic-slice", "gather")
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


class Message(NamedTuple):
    """A kind of collective: how often it runs (`number`), the `bytes` of all and what a device sends for them at least."""

    number: float
    bytes: float
    sent: float


class Program(NamedTuple):
    """One device's share. `messages` by kind; `flops` of products by the operands' type ("bf16", "f32"); `traffic`, bytes
    from and to the main memory; `unknown`, loops of unknown length."""

    messages: dict[str, Message]
    flops: dict[str, float]
    traffic: float
    unknown: int


def read(text: str) -> Program:
    """The program of an optimised HLO module's text. Raises ValueError for another text."""
    module = hlo.parse(text)
    messages: dict[str, list[float]] = {}
    flops: dict[str, float] = {}
    traffic, unknown = 0.0, 0
    for line, lines, times, fused, endless in hlo.walk(module):
        unknown += endless
        traffic += 0.0 if fused else times * _traffic(line, lines, module)
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            total = messages.setdefault(kind, [0.0, 0.0, 0.0])
            for i, value in enumerate(_message(kind, line, lines, module.parts)):
                total[i] += times * value
        elif line.opcode in ("dot", "convolution"):
            count = _dot(line, lines) if line.opcode == "dot" else _convolution(line, lines)
            dtype = hlo.arrays(lines[line.operands[0]].shape)[0].dtype
            flops[dtype] = flops.get(dtype, 0.0) + times * count
    return Program({kind: Message(*values) for kind, values in sorted(messages.items())}, flops, traffic, unknown)


def _message(kind: str, line: hlo.Line, lines: hlo.Computation, parts: int) -> Message:
    size = sum(array.bytes for name in line.operands if name in lines for array in hlo.arrays(lines[name].shape))
    if kind == "collective-permute":
        return Message(1, size, size)
    group = _group(line.rest, parts)
    size *= group if kind == "all-gather" else 1
    return Message(1, size, size * (2 if kind == "all-reduce" else 1) * (group - 1) / group)


def _traffic(line: hlo.Line, lines: hlo.Computation, module: hlo.Module) -> float:
    """Bytes that an instruction outside of fusions reads and writes."""
    if line.opcode in _FREE or line.opcode.endswith("-done") or "AllocateBuffer" in line.rest:
        return 0.0
    given = [lines[name].shape for name in line.operands if name in lines]
    if line.opcode in ("copy-start", "slice-start"):  # (to, from, ...) or (from, to, ...), of which one is the smaller
        moved = [array for array in hlo.arrays(line.shape) if array.sizes]
        return min((array.bytes for array in moved), default=0.0) * sum(array.main for array in moved)
    if line.opcode in _SLICES:
        return 2 * _main(line.shape)
    if line.opcode == "dynamic-update-slice":
        return 2 * _main(given[1])
    if line.opcode != "fusion":
        return _main(line.shape) + sum(map(_main, given))
    inner = module.computations.get(hlo.attribute(line, "calls"), {})
    read = {int(one.operands[0]): _read(name, inner) for name, one in inner.items() if one.opcode == "parameter"}
    written = _written(line.shape, inner)
    return written + sum(min(_main(shape), read.get(i, math.inf)) for i, shape in enumerate(given))


def _main(shape: str) -> float:
    return sum(array.bytes for array in hlo.arrays(shape) if array.main)


def _read(name: str, inner: hlo.Computation) -> float:
    """Bytes of a fusion's parameter that it looks at: all (infinity), or those of its slices."""
    total = 0.0
    for user, line in inner.items():
        for place, operand in enumerate(line.operands):
            if operand != name or line.opcode in ("parameter", "constant"):
                continue
            if line.opcode == "bitcast":
                total += _read(user, inner)
            elif line.opcode in _SLICES and place == 0:
                total += sum(array.bytes for array in hlo.arrays(line.shape))
            elif not (line.opcode == "dynamic-update-slice" and place == 0):
                return math.inf
    return total


def _written(shape: str, inner: hlo.Computation) -> float:
    """Bytes that a fusion writes: its result, or where it updates an array in place the part that is new."""
    root = next(reversed(inner.values()), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        return min(_main(shape), sum(array.bytes for array in hlo.arrays(inner[root.operands[1]].shape)))
    return _main(shape)


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


def _dot(line: hlo.Line, lines: hlo.Computation) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    lhs = hlo.arrays(lines[line.operands[0]].shape)[0].sizes
    deep = math.prod(lhs[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
    return 2.0 * math.prod(hlo.arrays(line.shape)[0].sizes) * deep


def _convolution(line: hlo.Line, lines: hlo.Computation) -> float:
    lhs, rhs = (hlo.arrays(lines[name].shape)[0].sizes for name in line.operands[:2])
    out = hlo.arrays(line.shape)[0].sizes
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
