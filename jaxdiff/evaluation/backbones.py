"""The convolutions of AlexNet and VGG16 in Flax, tapped where LPIPS reads them, and torchvision's weight files for them.

AlexNet is the one-column form (Krizhevsky 2014), VGG16 configuration D without batch normalisation (Simonyan and
Zisserman 2015). Only the convolutional part is built; a file's classifier layers are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array, Params


class Layer(NamedTuple):
    """A convolution with ReLU. `place` is its number in torchvision's `features`, `pool` the side of a max pool (stride 2)
    before it (0: none), and `tap` says whether its output is one of the five that are returned."""

    place: int
    width: int
    kernel: int = 3
    stride: int = 1
    pool: int = 0
    tap: bool = True

    @property
    def padding(self) -> int:
        """2 for AlexNet's 11x11 and 5x5, 1 for 3x3: never more, though 11x11 would need 5 to keep its size."""
        return min(2, self.kernel // 2)


ALEXNET = (
    Layer(0, 64, kernel=11, stride=4),
    Layer(3, 192, kernel=5, pool=3),
    Layer(6, 384, pool=3),
    Layer(8, 256),
    Layer(10, 256),
)
VGG16 = (
    Layer(0, 64, tap=False),
    Layer(2, 64),
    Layer(5, 128, pool=2, tap=False),
    Layer(7, 128),
    Layer(10, 256, pool=2, tap=False),
    Layer(12, 256, tap=False),
    Layer(14, 256),
    Layer(17, 512, pool=2, tap=False),
    Layer(19, 512, tap=False),
    Layer(21, 512),
    Layer(24, 512, pool=2, tap=False),
    Layer(26, 512, tap=False),
    Layer(28, 512),
)
NETS = {"alex": ALEXNET, "vgg": VGG16}


class Backbone(nn.Module):
    """RGB images `[B, H, W, 3]` -> the five tapped activations, each `[B, h, w, width]`, the finest first.

    AlexNet needs a side of 31 pixels, VGG16 of 16. Full float32, since TPU and GPU default to less.
    """

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        found = []
        for layer in self.layers:
            if layer.pool:
                x = nn.max_pool(x, (layer.pool, layer.pool), (2, 2))
            x = nn.Conv(
                layer.width,
                (layer.kernel, layer.kernel),
                layer.stride,
                padding=layer.padding,
                precision=jax.lax.Precision.HIGHEST,
                name=f"conv{layer.place}",
            )(x)
            x = nn.relu(x)
            if layer.tap:
                found.append(x)
        return tuple(found)


def widths(layers: tuple[Layer, ...]) -> tuple[int, ...]:
    """Channels of each tapped activation."""
    return tuple(layer.width for layer in layers if layer.tap)


def backbone_shapes(net: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's convolutions, in PyTorch's axis order: `features.0.weight` [O, I, h, w], ..."""
    if net not in NETS:
        raise ValueError(f"net is {net!r}; allowed: {', '.join(NETS)}")
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for layer in NETS[net]:
        shapes[f"features.{layer.place}.weight"] = (layer.width, before, layer.kernel, layer.kernel)
        shapes[f"features.{layer.place}.bias"] = (layer.width,)
        before = layer.width
    return shapes


def read_arrays(path: str | os.PathLike, what: str) -> dict[str, np.ndarray]:
    """Arrays by name from a PyTorch state dict (.pth, .pt) or from an .npz of the same names; `what` is for errors.

    Raises FileNotFoundError, ImportError (a PyTorch file, and no torch here) or ValueError (no such file inside).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; give a PyTorch state dict (.pth, .pt), or .npz of the same names")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except ImportError:
        raise ImportError(
            f"{path} needs torch to be read; pip install torch, or write its arrays by name to .npz elsewhere"
        ) from None
    except Exception as error:  # torch and zipfile raise a dozen kinds for a file that is not theirs
        reason = str(error).strip().partition("\n")[0][:100]
        raise ValueError(f"{path} is not a readable .pth, .pt or .npz file ({reason}); fetch it anew") from None


def check_arrays(
    state: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], part: str, path: object, mend: str
) -> None:
    """ValueError unless `state` has `wanted`'s names with those shapes, and no other name that starts with `part`."""
    missing = [name for name in wanted if name not in state]
    left = [name for name in state if name.startswith(part) and name not in wanted]
    if missing or left:
        found = [f"lacks {len(missing)} of {len(wanted)} arrays, first {missing[0]}"] if missing else []
        found += [f"has {len(left)} too many, first {left[0]}"] if left else []
        raise ValueError(f"{path} {' and '.join(found)}; {mend}")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {state[name].shape}, expected {shape}; {mend}")


def backbone_params(path: str | os.PathLike, net: str) -> Params:
    """Parameters of `Backbone(NETS[net])`, float32, from the file of torchvision's alexnet or vgg16 (ImageNet)."""
    wanted = backbone_shapes(net)
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    state = read_arrays(path, f"{name} weights")
    check_arrays(state, wanted, "features.", path, f"give torchvision's {name}, not another network's")
    return {
        f"conv{layer.place}": {
            "kernel": jnp.asarray(state[f"features.{layer.place}.weight"].transpose(2, 3, 1, 0), jnp.float32),
            "bias": jnp.asarray(state[f"features.{layer.place}.bias"], jnp.float32),
        }
        for layer in NETS[net]
    }
