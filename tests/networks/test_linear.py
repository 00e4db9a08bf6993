"""Gradients of convolutions and products against XLA's own: every order and mode, in loops, in the form that is fast."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdiff.networks import linear
from jaxdiff.networks.layers import over_groups
from jaxdiff.networks.linear import DIMENSIONS, convolve, multiply
from tests.networks.table import normal

SHAPES = [  # kernel, stride, padding, side
    (3, 1, ((1, 1), (1, 1)), 9), (3, 2, ((1, 1), (1, 1)), 9), (3, 2, ((1, 1), (1, 1)), 8), (3, 2, ((0, 1), (0, 1)), 8),
    (4, 2, ((1, 1), (1, 1)), 8), (4, 1, ((1, 1), (1, 1)), 7), (1, 1, ((0, 0), (0, 0)), 5), (3, 1, ((0, 0), (2, 1)), 7),
]
DERIVATIVES = {
    "gradient": lambda f, x, k: jax.grad(f, (0, 1))(x, k),
    "forward": lambda f, x, k: jax.jvp(f, (x, k), (k.sum() * x, x.sum() * k)),
    "of x alone": lambda f, x, k: jax.jvp(lambda x: f(x, k), (x,), (x,)),
    "gradient of gradient": lambda f, x, k: jax.grad(lambda x, k: (jax.grad(f)(x, k) ** 2).sum(), (0, 1))(x, k),
    "forward of gradient": lambda f, x, k: jax.jvp(jax.grad(f, (0, 1)), (x, k), (x, k)),
    "of many": lambda f, x, k: jax.vmap(jax.grad(f, (0, 1)))(jnp.stack([x, 2 * x]), jnp.stack([k, -k])),
    "of many by one": lambda f, x, k: jax.vmap(jax.grad(f, (0, 1)), (0, None))(jnp.stack([x, 2 * x]), k),
    "recomputed": lambda f, x, k: jax.grad(jax.checkpoint(f), (0, 1))(x, k),
    "scanned": lambda f, x, k: lax.scan(lambda s, x: (s + jax.grad(f, 1)(x, k), None), 0 * k, jnp.stack([x, 2 * x]))[0],
}


def same(ours, theirs, x, kernel, derivative):
    """A derivative of the sum of sines of both, beside each other."""
    got, want = (jax.jit(lambda x, k, f=f: derivative(lambda x, k: jnp.sin(f(x, k)).sum(), x, k))(x, kernel)
                 for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def native(strides, padding):
    return lambda x, k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=DIMENSIONS)


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_gradients_of_convolutions(case, x64, monkeypatch):
    """Of every window, stride and padding in the house, the batch in two chunks."""
    size, stride, padding, side = case
    monkeypatch.setattr(linear, "CHUNK", 2**10)
    x, kernel = normal(0, 4, side, side, 5).astype(float), normal(1, size, size, 5, 6).astype(float)
    strides = (stride, stride)
    same(lambda x, k: convolve(x, k, strides, padding), native(strides, padding), x, kernel, DERIVATIVES["gradient"])


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_of_every_order_and_mode(name, x64, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 2**10)
    x, kernel = normal(0, 4, 6, 6, 3).astype(float), normal(1, 3, 3, 3, 4).astype(float)
    strides, padding = (1, 1), ((1, 1), (1, 1))
    same(lambda x, k: convolve(x, k, strides, padding), native(strides, padding), x, kernel, DERIVATIVES[name])
    flat, matrix = normal(2, 4, 5, 3).astype(float), normal(3, 3, 2).astype(float)
    same(lambda x, k: multiply(x, k, (((x.ndim - 1,), (0,)), ((), ()))), jnp.matmul, flat, matrix, DERIVATIVES[name])


def test_batches_are_cut_to_the_cache():
    """Equal parts, of a megabyte where the batch allows it and never more than sixteen."""
    mega = 2**20
    asked = [(16, mega), (16, mega + 1), (16, 4 * mega), (16, 3 * mega), (15, 4 * mega), (64, 640 * mega), (7, 2 * mega)]
    assert [linear._chunks(*given) for given in asked] == [1, 2, 4, 4, 5, 16, 7]


def test_loops_keep_the_fast_kernels():
    """In a loop, too, each gradient is a plain convolution of pixels by a window, the only kind that XLA:CPU is fast at."""
    x, kernel = jnp.zeros((2, 4, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))

    def loop(apply):
        grads = lambda x: jax.grad(lambda x, k: (apply(x, k) ** 2).sum(), (0, 1))(x, kernel)
        return jax.jit(lambda x: lax.scan(lambda s, x: (s + grads(x)[1], grads(x)[0]), 0 * kernel, x))

    def plain(apply):
        lines = loop(apply).lower(x).compile().as_text().splitlines()
        return [("b01f_01io->b01f" in line) for line in lines if " convolution(" in line]

    assert all(plain(lambda x, k: convolve(x, k, (1, 1), ((1, 1), (1, 1))))) and not all(plain(native((1, 1), "SAME")))


def test_accelerators_get_the_native_gradients():
    """Lowered for a TPU, the program of a gradient is that of XLA's own: no chunks, no turned kernels, no copies."""
    x, kernel = jnp.zeros((16, 32, 32, 64)), jnp.zeros((3, 3, 64, 64))
    ours = lambda x, k: (convolve(x, k, (1, 1), ((1, 1), (1, 1))) ** 2).sum()
    theirs = lambda x, k: (native((1, 1), ((1, 1), (1, 1)))(x, k) ** 2).sum()
    count = []
    for f in (ours, theirs):
        text = jax.export.export(jax.jit(jax.grad(f, (0, 1))), platforms=["tpu"])(x, kernel).mlir_module()
        count.append([text.count(f"stablehlo.{op}") for op in ("convolution", "transpose", "concatenate", "slice")])
    assert count[0] == count[1] and count[0][0] == 3


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_groups_are_averaged(platform):
    """The mean over neighbours, in each one's place, by the form of either platform."""
    x = np.asarray(normal(0, 3, 12))
    want = np.repeat(x.reshape(3, 4, 3).mean(-1), 3, axis=-1)
    traced = jax.make_jaxpr(lambda x: over_groups(x, 3))(x)
    (branches,) = [eqn.params["branches"] for eqn in traced.eqns if eqn.primitive.name == "cond"]
    assert len(branches) == 2
    for branch in branches:
        np.testing.assert_allclose(jax.core.eval_jaxpr(branch.jaxpr, branch.consts, x)[0], want, rtol=1e-6)


def test_other_layers_are_refused():
    x = jnp.zeros((1, 4, 4, 4))
    for module in (nn.Conv(4, (3, 3), feature_group_count=2, conv_general_dilated=convolve, padding=((1, 1), (1, 1))),
                   nn.Conv(4, (3, 3), kernel_dilation=2, conv_general_dilated=convolve, padding=((1, 1), (1, 1))),
                   nn.Dense(4, precision="highest", dot_general=multiply)):
        with pytest.raises(NotImplementedError, match="allowed"):
            jax.eval_shape(module.init, jax.random.key(0), x)
