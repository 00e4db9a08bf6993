"""Inception-v3 as FID uses it: the graph of 2015-12-05 (Szegedy et al. 2016, Heusel et al. 2017) in Flax.

Three things set it apart from the classifier that libraries ship. Images are resized to 299 as TensorFlow 1 did (the
corner of pixel 0 is the corner of the result, no half-pixel shift), average pools leave the padding out of their mean,
and the last block pools by maximum. Batch normalisation is folded into the convolutions when weights are read:
w' = w gamma / sqrt(var + .001), b' = beta - mean gamma / sqrt(var + .001).
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.types import Array, Params

SIDE, BN_EPS = 299, 0.001
BN_PARTS = ("weight", "bias", "running_mean", "running_var")


def resize_like_tf1(x: Array, side: int = SIDE) -> Array:
    """Bilinear `[B, H, W, C]` -> `[B, side, side, C]`; output i reads input i * H / side, without antialiasing."""
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(side, dtype=np.float32) * np.float32(n / side)
        low = at.astype(np.int32)
        share = jnp.asarray((at - low).reshape([-1 if a == axis else 1 for a in range(4)]), x.dtype)
        below = jnp.take(x, low, axis)
        x = below + (jnp.take(x, np.minimum(low + 1, n - 1), axis) - below) * share
    return x


class Conv(nn.Module):
    """Convolution with folded batch normalisation, then ReLU. Full float32, since TPU and GPU default to less."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        precision = jax.lax.Precision.HIGHEST
        strides = (self.stride, self.stride)
        return nn.relu(
            nn.Conv(self.features, self.kernel, strides, padding=self.padding, precision=precision, name="conv")(x)
        )


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, double 3x3, pooled."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = Conv(64, (1, 1), name="branch1x1")(x)
        five = Conv(48, (1, 1), name="branch5x5_1")(x)
        five = Conv(64, (5, 5), name="branch5x5_2")(five)
        three = Conv(64, (1, 1), name="branch3x3dbl_1")(x)
        three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
        three = Conv(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = Conv(self.pool_features, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        two = Conv(64, (1, 1), name="branch3x3dbl_1")(x)
        two = Conv(96, (3, 3), name="branch3x3dbl_2")(two)
        two = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(two)
        return jnp.concatenate([one, two, _halve(x)], -1)


class BlockC(nn.Module):
    """17x17: 7x7 convolutions as 1x7 after 7x1."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = self.width
        one = Conv(192, (1, 1), name="branch1x1")(x)
        seven = Conv(w, (1, 1), name="branch7x7_1")(x)
        seven = Conv(w, (1, 7), name="branch7x7_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7_3")(seven)
        twice = Conv(w, (1, 1), name="branch7x7dbl_1")(x)
        twice = Conv(w, (7, 1), name="branch7x7dbl_2")(twice)
        twice = Conv(w, (1, 7), name="branch7x7dbl_3")(twice)
        twice = Conv(w, (7, 1), name="branch7x7dbl_4")(twice)
        twice = Conv(192, (1, 7), name="branch7x7dbl_5")(twice)
        pool = Conv(192, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, seven, twice, pool], -1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = Conv(192, (1, 1), name="branch3x3_1")(x)
        three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = Conv(192, (1, 1), name="branch7x7x3_1")(x)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _halve(x)], -1)


class BlockE(nn.Module):
    """8x8: branches that fork into 1x3 and 3x1. The last block of the graph pools by maximum."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = Conv(320, (1, 1), name="branch1x1")(x)
        three = Conv(384, (1, 1), name="branch3x3_1")(x)
        three_a = Conv(384, (1, 3), name="branch3x3_2a")(three)
        three_b = Conv(384, (3, 1), name="branch3x3_2b")(three)
        twice = Conv(448, (1, 1), name="branch3x3dbl_1")(x)
        twice = Conv(384, (3, 3), name="branch3x3dbl_2")(twice)
        twice_a = Conv(384, (1, 3), name="branch3x3dbl_3a")(twice)
        twice_b = Conv(384, (3, 1), name="branch3x3dbl_3b")(twice)
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.max_pool else _average(x)
        pool = Conv(192, (1, 1), name="branch_pool")(pooled)
        return jnp.concatenate([one, three_a, three_b, twice_a, twice_b, pool], -1)


class InceptionV3(nn.Module):
    """RGB images `[B, H, W, 3]`, float32 in 0..255 -> pool3 features `[B, 2048]` and logits `[B, 1008]`."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = (resize_like_tf1(x) - 128.0) / 128.0
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))  # [B, 73, 73, 64]
        x = Conv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _halve(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))  # [B, 35, 35, 192]
        for letter, width in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(width, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(width, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = BlockE(False, name="Mixed_7b")(x)
        x = BlockE(True, name="Mixed_7c")(x)
        pool3 = x.mean((1, 2))
        return pool3, nn.Dense(1008, precision=jax.lax.Precision.HIGHEST, name="fc")(pool3)


def _parameter_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    return {name: leaf.shape for name, leaf in flatten_dict(tree["params"]).items()}


def state_dict_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the PyTorch file of these weights (`pt_inception-2015-12-05`), in PyTorch's axis order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for (*path, part), shape in _parameter_shapes().items():
        if path == ["fc"]:
            shapes["fc.weight" if part == "kernel" else "fc.bias"] = shape[::-1]
        elif part == "kernel":
            block = ".".join(path[:-1])
            shapes[f"{block}.conv.weight"] = (shape[3], shape[2], shape[0], shape[1])
            shapes.update({f"{block}.bn.{name}": (shape[3],) for name in BN_PARTS})
    return shapes


def params_from_state_dict(state: Mapping[str, np.ndarray]) -> Params:
    """PyTorch's arrays by name -> this network's parameters, float32. Names and shapes as in `state_dict_shapes`."""
    flat: dict[tuple[str, ...], np.ndarray] = {
        ("fc", "kernel"): np.asarray(state["fc.weight"]).T,
        ("fc", "bias"): np.asarray(state["fc.bias"]),
    }
    for name in state_dict_shapes():
        if not name.endswith(".conv.weight"):
            continue
        block = name.removesuffix(".conv.weight")
        gamma, beta, mean, var = (np.asarray(state[f"{block}.bn.{part}"], np.float64) for part in BN_PARTS)
        gain = gamma / np.sqrt(var + BN_EPS)
        path = (*block.split("."), "conv")
        flat[(*path, "kernel")] = np.transpose(np.asarray(state[name], np.float64), (2, 3, 1, 0)) * gain
        flat[(*path, "bias")] = beta - mean * gain
    return unflatten_dict({path: jnp.asarray(value, jnp.float32) for path, value in flat.items()})
