"""How many floating-point operations a program asks for: those of its matrix products and convolutions.

A multiplication with its addition counts as two. Positions of a convolution's window that lie in the padding, or between
the places of a dilated input, cost nothing and are not counted, as XLA's own cost analysis does; element-wise work is left
out. Counted is the program as it was written, before any compiler: over all devices, whatever the backend calls, loops as
often as they run, and what `jax.checkpoint` computes a second time as often as it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def of(fn: Callable[..., Any], *args: Any) -> float:
    """FLOPs of `fn(*args)`; the arguments may be abstract (`jax.ShapeDtypeStruct`), and nothing is computed.

    >>> x = jax.ShapeDtypeStruct((8, 32), "float32")
    >>> of(lambda x: x @ x.T, x) == 2 * 8 * 32 * 8
    True
    """
    return of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> float:
    """FLOPs of a jaxpr. `scan` counts its body as often as it runs, `while`, whose turns nobody knows, once; of the
    branches of `cond` the dearest one counts."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "conv_general_dilated":
            total += _conv(eqn)
        else:
            inner = [of_jaxpr(part) for part in _inside(eqn.params)]
            times = eqn.params["length"] if name == "scan" else eqn.params["mesh"].size if name == "shard_map" else 1
            total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)


def _conv(eqn: Any) -> float:
    numbers, how = eqn.params["dimension_numbers"], eqn.params
    lhs, rhs, out = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    spatial = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    pairs = 1
    for i, (a, b, c) in enumerate(spatial):
        pairs *= positions(lhs[a], rhs[b], out[c], how["window_strides"][i], how["padding"][i][0], how["lhs_dilation"][i],
                           how["rhs_dilation"][i])
    return 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]] * pairs


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
