"""Records -> examples: fit a picture to a shape, flip it, and map its grey levels k = 0..levels-1 onto [-1, 1].

Two maps, and it matters which (bits per dimension are counted under one of them):

    exact        x = 2 k / (levels - 1) - 1      both ends reached; the bins of DDPM's L_0 (k / 127.5 - 1)
    dequantise   x = 2 (k + u) / levels - 1      u ~ U[0, 1): a density exists ((k + u) / 128 - 1)

Randomness comes from the global position of an example in the run: block `position` of one counter-based stream
(Philox, Salmon et al. 2011) a seed and purpose. So it does not matter which process draws it, or in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as Pillow's "L"
_GEOMETRY, _DEQUANTISE, TASK = 1, 2, 3  # purposes: each has its own stream


@dataclass(frozen=True)
class Preprocess:
    """What is done to every picture. `shape` (H, W, C) is asked for, or None to take pictures as they are.

    A picture of another shape is resized, antialiased by `resample`, until its shorter side is `resize` (by default
    until it just covers H x W), and cropped at its centre or at random; grey and RGB become each other. `flip` mirrors
    half of the examples. `scale` names the map to [-1, 1].
    """

    shape: tuple[int, int, int] | None = None
    resize: int | None = None
    crop: str = "center"
    resample: str = "bicubic"
    flip: bool = False
    scale: str = "exact"

    def __post_init__(self) -> None:
        allowed = {"crop": ("center", "random"), "scale": ("exact", "dequantise"), "resample": tuple(_RESAMPLE)}
        for field, words in allowed.items():
            if getattr(self, field) not in words:
                raise ValueError(f"{field}={getattr(self, field)!r} is not known; allowed: {', '.join(words)}")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))  # a config's list compares unequal to a shape
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1 or self.shape[2] not in (1, 3)):
            raise ValueError(f"shape={self.shape}; allowed: (H, W, 1) or (H, W, 3)")
        if self.resize is not None and (self.shape is None or self.resize < max(self.shape[:2])):
            raise ValueError(f"resize={self.resize} needs a shape that fits into it, got shape={self.shape}")

    def without_augmentation(self) -> Preprocess:
        """The same, with the centre crop and no flips: what evaluation sees."""
        return replace(self, crop="center", flip=False)


def uniform_bits(seed: int, purpose: int, start: int, count: int, each: int) -> np.ndarray:
    """uint16 [count, each], uniform: the draws of examples start..start+count-1, the same however they are grouped."""
    blocks = -(-each // 16)  # a Philox block is 4 x 64 bits; an example owns whole blocks
    stream = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=start * blocks)
    return stream.random_raw(count * blocks * 4).view(np.uint16).reshape(count, blocks * 16)[:, :each]


def scale_exact(k: Any, levels: int) -> np.ndarray:
    """Grey levels k -> float32 2 k / (levels - 1) - 1 in [-1, 1], correctly rounded (by table)."""
    table = 2 * np.arange(levels) / (levels - 1) - 1
    return table.astype(np.float32)[np.asarray(k)]


def scale_dequantised(k: Any, u: Any, levels: int) -> np.ndarray:
    """Grey levels k and u in [0, 1) -> float32 2 (k + u) / levels - 1 in [-1, 1)."""
    x = np.asarray(k, np.float32) + np.asarray(u, np.float32)
    x *= np.float32(2 / levels)
    x -= np.float32(1)
    return x


def to_levels(x: Any, levels: int = 256, scale: str = "exact") -> np.ndarray:
    """Any x -> uint8 grey levels: the inverse of the map named by `scale`, values beyond [-1, 1] clipped.

    With `levels=256, scale="exact"` this is what a picture file wants, whatever the data's own levels.
    """
    x = np.asarray(x, np.float64)
    if scale == "exact":
        k = np.rint((x + 1) * ((levels - 1) / 2))
    elif scale == "dequantise":
        k = np.floor((x + 1) * (levels / 2))
    else:
        raise ValueError(f"scale={scale!r} is not known; allowed: exact, dequantise")
    return np.clip(k, 0, levels - 1).astype(np.uint8)


def fit(image: np.ndarray, how: Preprocess, bits: np.ndarray, levels: int, name: str) -> np.ndarray:
    """One picture [H, W, C] or [H, W] as `how.shape`, dtype kept; `bits` uint16 [>= 2] place a random crop.

    Raises ValueError that names the picture if it cannot have that shape.
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if how.shape is None or (image.shape == how.shape and how.resize is None):
        return image
    height, width, channels = how.shape
    if image.ndim != 3 or min(image.shape) < 1 or image.shape[2] not in (1, 3):
        raise ValueError(f"{name} has shape {image.shape} and cannot become {how.shape}; allowed: (H, W, 1 or 3)")
    if image.shape[2] > channels:
        grey = (image @ LUMA)[..., None]
        image = np.rint(grey).astype(image.dtype) if levels else grey.astype(image.dtype)
    ratio = how.resize / min(image.shape[:2]) if how.resize else max(height / image.shape[0], width / image.shape[1])
    size = max(height, round(image.shape[0] * ratio)), max(width, round(image.shape[1] * ratio))
    if image.shape[:2] != size:
        image = resized(image, size, how.resample)
        # bicubic and lanczos overshoot: 8 bits stop them at 255, but 17 levels end at 16
        image = np.clip(image, 0, levels - 1) if levels else np.clip(image, -1, 1)
    slack = np.array([size[0] - height, size[1] - width], np.int64)
    top, left = ((bits[:2].astype(np.int64) * (slack + 1)) >> 16) if how.crop == "random" else slack // 2
    image = image[top : top + height, left : left + width]
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def resized(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """Pillow's antialiased resize: 8-bit pictures as they are, float32 ones (mode "F") a channel at a time."""
    how, size_xy = _RESAMPLE[resample], (size[1], size[0])
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size_xy, how))
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize(size_xy, how)) for plane in planes], axis=-1)


def examples(
    images: np.ndarray | Sequence[np.ndarray], how: Preprocess, levels: int, seed: int, start: int, names: Sequence[str]
) -> np.ndarray:
    """Pictures (one array, or a list of any shapes) -> float32 [n, H, W, C] in [-1, 1].

    The pictures stand at positions start..start+n-1 of the run; `names` say which is which in errors.
    """
    bits = uniform_bits(seed, _GEOMETRY, start, len(images), 16)
    as_is = isinstance(images, np.ndarray) and how.resize is None and how.shape in (None, images.shape[1:])
    if not as_is:
        images = [fit(image, how, b, levels, name) for image, b, name in zip(images, bits, names, strict=True)]
        shape = how.shape or images[0].shape
        odd = next((i for i, image in enumerate(images) if image.shape != shape), None)
        if odd is not None:
            raise ValueError(f"{names[odd]} has shape {images[odd].shape}, others {shape}; ask for a shape to fit all")
    x = np.asarray(images if as_is else np.stack(list(images)))
    if how.flip:
        x = np.where((bits[:, 2] >> 15).astype(bool)[:, None, None, None], x[:, :, ::-1], x)
    if not levels:
        return x.astype(np.float32)
    if how.scale == "exact":
        return scale_exact(x, levels)
    # u on 2^15 midpoints: k + u is exact in float32 and floor() gives k back, which u near 1 in 24 bits would not
    bits = uniform_bits(seed, _DEQUANTISE, start, len(x), x[0].size).reshape(x.shape)
    return scale_dequantised(x, ((bits >> 1) + np.float32(0.5)) * np.float32(2**-15), levels)
