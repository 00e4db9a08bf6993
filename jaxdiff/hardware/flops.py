"""Floating-point operations (FLOPs) that a model asks for, counted from its jaxpr, and how much of a chip they use.

    model FLOPs = 2 x the multiply-adds of its matrix products and convolutions, forward and backward

Counted as written: everything else (norms, activations, optimizers, random numbers) is left out, as is what a compiler adds
or takes away. A convolution counts its padding, and where its input is dilated only the elements that are there, so that the
gradient with respect to the input costs what the forward pass does. `lax.scan` counts its body once a turn, `lax.cond` its
largest branch, `lax.platform_dependent` its default. What a compiler merges, such as equal forward passes of two losses,
counts as often as it is written; so does what `remat` computes again, which is not the model's: count a network without it.

    utilisation (MFU) = model FLOPs/s / peak FLOP/s      Chowdhery et al. 2022 ("PaLM"), appendix B

XLA's own count (`cost_analysis`) is of the compiled program: it holds the elementwise work and the recomputation, and no
more what became a custom call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxdiff.hardware.chips import chip


def count(fn: Callable[..., Any], *args: Any) -> int:
    """Model FLOPs of `fn(*args)`, whose arguments may be abstract. Nothing is computed.

    Raises ValueError for products inside a `lax.while_loop`, whose turns nobody knows beforehand.

    >>> import jax.numpy as jnp
    >>> count(jnp.matmul, jnp.zeros((3, 4)), jnp.zeros((4, 5)))
    120
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    inner = [_of_jaxpr(jaxpr) for value in eqn.params.values() for jaxpr in _jaxprs(value)]
    if name == "scan":
        return eqn.params["length"] * sum(inner)
    if name == "cond":
        return inner[-1] if eqn.params.get("branches_platforms") else max(inner, default=0)
    if name == "while" and any(inner):
        raise ValueError("FLOPs of a while loop with products in it; allowed: lax.scan, whose number of turns is known")
    return sum(inner)


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """The programs in a parameter of an equation."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)


def _dot(eqn: Any) -> int:
    """Each element of the result sums as many products as the contracted dimensions hold."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)


def _convolution(eqn: Any) -> int:
    """Each element of the result sums window x input channels; a dilated input's own elements each meet the window once."""
    numbers = eqn.params["dimension_numbers"]
    left, right = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval.shape
    places = math.prod(
        left[i] if dilation > 1 else out[o]
        for i, o, dilation in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], eqn.params["lhs_dilation"], strict=True)
    )
    window = math.prod(right[dim] for dim in numbers.rhs_spec[2:])
    batch, features = (out[dim] for dim in numbers.out_spec[:2])
    return 2 * batch * features * places * window * right[numbers.rhs_spec[1]]


def scaled(value: float, unit: str = "") -> str:
    """Four digits, the letter of a power of a thousand and the unit.

    >>> scaled(3.5e12, "FLOP/s"), scaled(120, "FLOP"), scaled(65536.0), scaled(120)
    ('3.5 TFLOP/s', '120 FLOP', '65.54 k', '120')
    """
    power = min(5, max(0, int(math.log10(max(value, 1.0)) // 3)))
    return f"{value / 1000**power:.4g} {' kMGTP'[power].strip()}{unit}".rstrip()


class Use(NamedTuple):
    """Model FLOPs of one example, examples done in a second by all devices, and the devices' `peak` FLOP/s, None where it
    is not known."""

    per_example: float
    examples_per_second: float
    peak: float | None = None

    @property
    def per_second(self) -> float:
        """Model FLOP/s."""
        return self.per_example * self.examples_per_second

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation: of the peak, the share done."""
        return self.per_second / self.peak if self.peak else None

    def __str__(self) -> str:
        said = f"{scaled(self.per_example, 'FLOP')} an example, {scaled(self.per_second, 'FLOP/s')}"
        if self.peak is None:
            return f"{said}; utilisation unknown: no peak is known of this device, --peak_tflops=X gives it"
        return f"{said}: {100 * self.per_second / self.peak:.2f} % of the peak, {scaled(self.peak, 'FLOP/s')}"

    def figures(self) -> dict[str, Any]:
        """For machines."""
        return {"flops_per_example": self.per_example, "flops_per_second": self.per_second, "peak_flops": self.peak,
                "utilisation": self.utilisation}


def peak(dtype: str, tflops: float | None = None, devices: int = 1) -> float | None:
    """FLOP/s that `devices` of this machine's can do in `dtype` ("float32", "bfloat16"): `tflops` for each, else what is
    published of the chip, None for one that chips.py does not know."""
    if tflops is not None:
        return devices * tflops * 1e12
    found = chip(jax.devices()[0].device_kind)
    return None if found is None else devices * found.peak(dtype)
