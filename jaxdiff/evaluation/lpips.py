"""LPIPS, the learned perceptual distance of two pictures (Zhang et al. 2018, eq. 1), over AlexNet or VGG16.

    d(a, b) = sum_l 1/(H_l W_l) sum_hw  w_l . (a_l - b_l)^2

a_l is layer l's activation divided by its length over channels at every pixel, and w_l >= 0 the weights fitted to people's
judgements ("v0.1" of the authors' package, whose linear heads are read from its folder where it is installed). The
backbone's ImageNet weights come from a file that the user names; nothing is fetched.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.evaluation.backbones import NETS, Backbone, backbone_params, check_arrays, read_arrays, widths
from jaxdiff.evaluation.features import to_rgb
from jaxdiff.types import Array

# ImageNet's mean and standard deviation, moved from [0, 1] to [-1, 1], rounded as the authors' package has them
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LEAST, ENLARGED = 32, 64  # a picture with a side below the first is enlarged to at least the second


def _heads_of_package(net: str) -> Path:
    """The package's own file, found without importing it: its import asks for torchvision."""
    spec = importlib.util.find_spec("lpips")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "weights" / "v0.1" / f"{net}.pth"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no LPIPS heads for {net}: the package lpips is not here; pip install --no-deps lpips, or name a file as heads"
    )


def _head_weights(path: Path, net: str) -> tuple[Array, ...]:
    state = read_arrays(path, "LPIPS heads")
    wanted = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths(NETS[net]))}
    check_arrays(state, wanted, "lin", path, f"give the heads of {net}, weights/v0.1/{net}.pth of the package lpips")
    return tuple(jnp.asarray(state[name].reshape(-1), jnp.float32) for name in wanted)


def enlarged(images: Array) -> Array:
    """Pictures `[B, H, W, C]` with a side below 32, enlarged bilinearly by the least whole factor that makes it 64.

    AlexNet has nothing left of less than 31 pixels, and the heads were fitted on patches of 64. So 28x28 is compared at
    84x84: right for ranking methods on one data set, not comparable with figures for pictures of another size.
    """
    batch, height, width, channels = images.shape
    side = min(height, width)
    if side >= LEAST:
        return images
    factor = -(-ENLARGED // side)
    return jax.image.resize(images, (batch, height * factor, width * factor, channels), "bilinear")


def unit_length(x: Array) -> Array:
    """`x` over its length along channels; the bound below the root keeps the gradient of an all-zero pixel finite."""
    return x / (jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-20)) + 1e-10)


def lpips_distance(
    backbone_file: str | os.PathLike, net: str = "alex", heads: str | os.PathLike | None = None
) -> Callable[[Any, Any], Array]:
    """LPIPS as a function of two batches of pictures, float32 [-1, 1] `[B, H, W, 1 or 3]` -> float32 `[B]`, from 0.

    Args:
      backbone_file: torchvision's state dict of `alexnet` or `vgg16` (.pth), or an .npz of the same names.
      net: "alex" (what the authors recommend for comparing) or "vgg" (for use as a loss).
      heads: a file of the linear heads; None takes that of the installed package `lpips`.

    The function is jitted, and may be called inside `jit` and `grad`. Grey is repeated to RGB; for small pictures see
    `enlarged`. Raises FileNotFoundError, ImportError (no torch to read a .pth) or ValueError (another network's file).
    """
    if net not in NETS:
        raise ValueError(f"net is {net!r}; allowed: {', '.join(NETS)}")
    params = backbone_params(backbone_file, net)
    weights = _head_weights(_heads_of_package(net) if heads is None else Path(heads), net)
    module = Backbone(NETS[net])

    @jax.jit
    def run(params: Any, weights: tuple[Array, ...], a: Array, b: Array) -> Array:
        both = enlarged(jnp.concatenate([a, b]).astype(jnp.float32))
        taps: Any = module.apply({"params": params}, (both - jnp.array(SHIFT)) / jnp.array(SCALE))
        total = jnp.zeros(len(a), jnp.float32)
        for tap, weight in zip(taps, weights, strict=True):
            of_a, of_b = jnp.split(unit_length(tap), 2)
            total += jnp.mean(jnp.sum(weight * (of_a - of_b) ** 2, -1), (1, 2))
        return total

    def distance(a: Any, b: Any) -> Array:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(f"pictures of shape {jnp.shape(a)} and {jnp.shape(b)}; give two batches of one shape")
        return run(params, weights, to_rgb(a), to_rgb(b))

    return distance
