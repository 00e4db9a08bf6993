"""Convolutions and matrix products, whose gradients keep a CPU busy too.

XLA's own gradients are slow on CPUs: inside a loop (`lax.scan`: several steps a dispatch, accumulation, a sampler with a
gradient in it) those of a convolution leave its fast kernels, which are for plain convolutions alone; a convolution's kernel
is slow wherever the gradient g that it reads is larger than a core's cache; and a matrix product transposes g, with all that
g is made of. So here, on CPUs, the gradients are written out,

    kernel    x with channels as batch, convolved by g with pixels as window and examples as channels; summed over chunks of
              the batch whose g fits in the cache
    input     g, convolved by the kernel turned by half a circle with its channels exchanged (at stride 1)
    matrix    the product of x, transposed, and g

Accelerators get XLA's own gradients; results are the same to rounding, and derivatives of any order and mode are defined.
Figures: `launch/parts.py` and `jaxdiff bench --compare=torch`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from jaxdiff.types import Array

PRODUCT = "product"  # what a `jax.checkpoint` policy may call the results by
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
CHUNK = 2**20  # bytes of g: half of a core's second cache, or less
MOST_CHUNKS = 16  # each is a convolution to compile

Pads = tuple[tuple[int, int], ...]
Bilinear = Callable[[Array, Array], Array]


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **others: Any) -> Array:
    """x [B, H, W, C] by kernel [h, w, C, D] -> [B, H', W', D].

    In the place of `lax.conv_general_dilated` in `flax.linen.Conv`, whose padding is (low, high) of both sides. Raises
    NotImplementedError for dilation, groups and precision.
    """
    known = {"feature_group_count": 1, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "precision": None}
    for name, value in known.items():
        if others.get(name, value) not in (None, value):
            raise NotImplementedError(f"convolve got {name}={others[name]}; allowed: {value}")
    found = _convolution(kernel.shape[:2], tuple(strides), tuple((low, high) for low, high in padding))
    return checkpoint_name(found(x, kernel), PRODUCT)


def multiply(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """x [..., C] by kernel [C, D] -> [..., D].

    In the place of `lax.dot_general` in `flax.linen.Dense`. Raises NotImplementedError for another product, and precision.
    """
    if precision is not None or dimensions != (((x.ndim - 1,), (0,)), ((), ())):
        raise NotImplementedError(f"multiply got dimensions={dimensions}, precision={precision}; allowed: of x by a kernel, "
                                  "None")
    return checkpoint_name(_product(x, kernel), PRODUCT)


def _bilinear(plain: Bilinear, of_x: Bilinear | None, of_kernel: Bilinear) -> Bilinear:
    """`plain(x, kernel)`, whose gradients on CPUs are `of_x(kernel, g)`, XLA's where it is None, and `of_kernel(x, g)`."""

    @jax.custom_jvp
    def call(x: Array, kernel: Array) -> Array:
        return plain(x, kernel)

    def tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        y, found = call(x, kernel), []
        if not isinstance(dx, SymbolicZero):
            found.append(_by_platform(of_x, lambda kernel, dx: plain(dx, kernel), kernel, dx, y))
        if not isinstance(dkernel, SymbolicZero):
            found.append(_by_platform(of_kernel, plain, x, dkernel, y))
        return y, sum(found[1:], start=found[0])

    call.defjvp(tangent, symbolic_zeros=True)
    return call


def _by_platform(gradient: Bilinear | None, native: Bilinear, held: Array, tangent: Array, y: Array) -> Array:
    """`native(held, tangent)`, and on CPUs the transpose of `gradient(held, g)`, which is the same.

    The backward pass transposes it once more, and so runs the gradient. Under `checkpoint`, so that it is given `held` as
    it is, and not what the gradient makes of it.
    """
    if gradient is None:
        return native(held, tangent)
    transposed = lambda held, tangent: jax.linear_transpose(functools.partial(gradient, held), y)(tangent)[0]
    choose = functools.partial(lax.platform_dependent, cpu=transposed, default=native)
    return jax.checkpoint(choose, prevent_cse=False)(held, tangent)


def _matrix_gradient(x: Array, g: Array) -> Array:
    """[..., C] and [..., D] -> [C, D], the sum over all but the last."""
    return jnp.matmul(x.reshape(-1, x.shape[-1]).T, g.reshape(-1, g.shape[-1]))


_product = _bilinear(jnp.matmul, None, _matrix_gradient)


@functools.cache
def _convolution(window: tuple[int, ...], strides: tuple[int, ...], padding: Pads) -> Bilinear:
    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)

    def of_x(kernel: Array, g: Array) -> Array:
        ends = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(window, padding, strict=True)]
        turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        return lax.conv_general_dilated(g, turned, (1, 1), ends, dimension_numbers=DIMENSIONS)

    def of_kernel(x: Array, g: Array) -> Array:
        ends = [(low, size - 1 - n - low + (m - 1) * stride + 1)
                for size, n, m, stride, (low, _) in zip(window, x.shape[1:3], g.shape[1:3], strides, padding, strict=True)]

        def of_chunk(x: Array, g: Array) -> Array:  # [b, H, W, C] and [b, H', W', D] -> [C, h, w, D] -> [h, w, C, D]
            found = lax.conv_general_dilated(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), ends,
                                             rhs_dilation=strides, dimension_numbers=DIMENSIONS)
            return found.transpose(1, 2, 0, 3)

        chunks = _chunks(len(x), g.size * g.dtype.itemsize)
        every = lambda v: v.reshape(-1, chunks, *v.shape[1:])  # every so many examples: a split of the batch stays as it is
        found = [of_chunk(every(x)[:, i], every(g)[:, i]) for i in range(chunks)]
        return sum(found[1:], start=found[0])

    return _bilinear(plain, of_x if set(strides) == {1} else None, of_kernel)


def _chunks(batch: int, size: int) -> int:
    """How many equal parts of a batch of `size` bytes are CHUNK or less, or the most that are made."""
    fitting = [n for n in range(1, min(batch, MOST_CHUNKS) + 1) if batch % n == 0]
    return next((n for n in fitting if math.ceil(size / n) <= CHUNK), fitting[-1])
