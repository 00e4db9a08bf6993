"""Inverse problems: the forward operator that makes a condition picture y from a picture x, y = A(x).

The tasks and settings of CMDE (Batzolis et al. 2021, "Conditional image generation with score-based diffusion models",
section 4): super-resolution from a picture an eighth as wide, inpainting of a square that covers a quarter, edges to
picture; and pairs, where y was recorded with x. They act after preprocessing, so y is what the network sees:

    super_resolution   y = upsample_nearest(downsample(x))             channels as x
    inpainting         y = (1 - m) x,   m = 1 in a square, else 0      channels as x, and m [.., H, W, 1]
    edges              y = +1 on Canny's edges of the grey x, else -1  one channel
    given              y comes with the record                         channels as x
    low_resolution     y = downsample(x), of its own size              channels as x

Every y is float32 in [-1, 1] with x's height and width, the last task's apart, which is what a stage of a cascade is
given. Builders are cached: the same words give the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxdiff.data.preprocess import LUMA, resized

Shape = tuple[int, int, int]


class Task(NamedTuple):
    """One inverse problem on numpy batches; x is float32 [.., H, W, C] in [-1, 1], any leading axes in `operator`.

    `condition_shape((H, W, C))` is y's shape, and raises ValueError where the task does not fit pictures of that shape.
    `make(x [n, H, W, C], bits uint16 [n, >= 4])` is `{"image": y}`, for inpainting `{"image": y, "mask": m}`, with
    all randomness from `bits`; None where y comes with the record (`needs_given`). `operator(x, mask)` is y for that
    mask (None unless the task is `masked`): what a draw is put through to see whether it fits y; None for pairs.
    """

    name: str
    condition_shape: Callable[[Shape], Shape]
    make: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] | None
    operator: Callable[..., np.ndarray] | None
    needs_given: bool = False
    masked: bool = False


@cache
def super_resolution(factor: int = 4, kernel: str = "box") -> Task:
    """y: x made smaller by `factor` along both sides and blown up again by repeating pixels (METHODS: CMDE, factor 8).

    `kernel` "box" is the mean of each factor x factor block, "bicubic" Pillow's antialiased one, clipped to [-1, 1].

    Raises ValueError for a factor below 2 or another kernel, and for pictures that `factor` does not divide.
    """
    if factor < 2 or factor != int(factor) or kernel not in ("box", "bicubic"):
        raise ValueError(f"super_resolution got factor={factor}, kernel={kernel!r}; "
                         "allowed: a whole factor of 2 or more, and box or bicubic")

    def condition_shape(shape: Shape) -> Shape:
        height, width, _ = shape
        if height % factor or width % factor:
            raise ValueError(f"super_resolution by {factor} of pictures {height} x {width}; allowed: a factor of both sides")
        return shape

    def operator(x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        condition_shape(x.shape[-3:])
        return _smaller(x, factor, kernel).repeat(factor, -3).repeat(factor, -2)

    return Task("super_resolution", condition_shape, lambda x, bits: {"image": operator(x)}, operator)


def _smaller(x: np.ndarray, factor: int, kernel: str) -> np.ndarray:
    """x [.., H, W, C] made smaller by `factor` along both sides, which it divides."""
    *lead, height, width, channels = x.shape
    size = height // factor, width // factor
    if kernel == "box":
        return x.reshape(*lead, size[0], factor, size[1], factor, channels).mean((-4, -2), dtype=np.float32)
    flat = x.reshape(-1, height, width, channels).astype(np.float32)
    low = np.array([resized(one, size, "bicubic") for one in flat], np.float32)
    return np.clip(low, -1, 1).reshape(*lead, *size, channels)  # the kernel overshoots at an edge


@cache
def low_resolution(side: int, kernel: str = "box") -> Task:
    """y [.., h, w, C]: x made smaller until its shorter side is `side` pixels; `kernel` as in `super_resolution`.

    Raises ValueError for a side below 1 or another kernel, and for pictures whose shorter side is no multiple of it, 2
    or more, by which both sides can be divided.
    """
    if side < 1 or kernel not in ("box", "bicubic"):
        raise ValueError(f"low_resolution got side={side}, kernel={kernel!r}; allowed: 1 or more, and box or bicubic")

    def factor_of(height: int, width: int) -> int:
        factor = min(height, width) // side
        if factor < 2 or min(height, width) % side or max(height, width) % factor:
            raise ValueError(f"low_resolution of side {side} from pictures {height} x {width}; allowed: a side that is "
                             "contained in both of theirs a whole number of times, 2 or more")
        return factor

    def condition_shape(shape: Shape) -> Shape:
        factor = factor_of(*shape[:2])
        return shape[0] // factor, shape[1] // factor, shape[2]

    def operator(x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return _smaller(x, factor_of(*x.shape[-3:-1]), kernel)

    return Task("low_resolution", condition_shape, lambda x, bits: {"image": operator(x)}, operator)


@cache
def inpainting(share: float = 0.25, place: str = "random") -> Task:
    """y: x with a square of area `share` of the picture hidden (set to 0); mask m: 1 = hidden, 0 = known.

    The side is round(sqrt(share H W)); the square lies inside the picture, every place equally likely (`place`
    "random") or at the centre (METHODS: CMDE, a random square of 25 %).

    Raises ValueError for a share outside (0, 1) or another place, and for pictures in which such a square hides
    nothing, hides everything, or does not fit.
    """
    if not 0 < share < 1 or place not in ("random", "center"):
        raise ValueError(f"inpainting got share={share}, place={place!r}; allowed: 0 < share < 1, and random or center")

    def side_of(height: int, width: int) -> int:
        side = round((share * height * width) ** 0.5)
        if side < 1 or side > min(height, width) or side * side == height * width:
            fault = "nothing" if side < 1 else "everything" if height == width else "more than fits"
            raise ValueError(f"inpainting with share={share} hides {fault} of a picture {height} x {width}; "
                             f"allowed: a square side of 1 to {min(height, width) - (height == width)}, here it is {side}")
        return side

    def condition_shape(shape: Shape) -> Shape:
        side_of(*shape[:2])
        return shape

    def operator(x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if mask is None:
            raise ValueError("inpainting's operator needs the mask that made the condition; got none")
        return np.where(mask > 0, np.float32(0), x).astype(np.float32, copy=False)

    def make(x: np.ndarray, bits: np.ndarray) -> dict[str, np.ndarray]:
        height, width = x.shape[1:3]
        side = side_of(height, width)
        slack = np.array([height - side, width - side], np.int64)
        corner = (bits[:, :2].astype(np.int64) * (slack + 1)) >> 16 if place == "random" else slack[None] // 2
        rows, columns = np.arange(height) - corner[:, :1], np.arange(width) - corner[:, 1:]  # [n, H], [n, W]
        hidden = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        mask = np.broadcast_to(hidden, (len(x), height, width))[..., None].astype(np.float32)
        return {"image": operator(x, mask), "mask": mask}

    return Task("inpainting", condition_shape, make, operator, masked=True)


@cache
def edges(sigma: float = 1.0, low: float | None = None, high: float | None = None) -> Task:
    """y [.., H, W, 1]: +1 on the edges of the grey picture, -1 elsewhere, by Canny (1986) as scikit-image has it.

    `sigma` is the Gaussian blur's, in pixels; `low` and `high` are the hysteresis thresholds on the gradient of grey
    values in [0, 1] (scikit-image's .1 and .2 by default). Values beyond [-1, 1] are clipped first.

    Raises ValueError for a sigma of 0 or less and thresholds out of order, ImportError without scikit-image.
    """
    floor, ceiling = 0.1 if low is None else low, 0.2 if high is None else high
    if not (sigma > 0 and 0 <= floor <= ceiling <= 1):
        raise ValueError(f"edges got sigma={sigma}, low={floor}, high={ceiling}; allowed: sigma > 0, 0 <= low <= high <= 1")
    try:
        from skimage.feature import canny
    except ImportError:
        raise ImportError("edges needs scikit-image: pip install 'jaxdiff[demo]'") from None

    def operator(x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        grey = (np.clip(x, -1, 1) + 1) / 2
        grey = grey @ LUMA if x.shape[-1] == 3 else grey[..., 0]
        pictures = grey.reshape(-1, *grey.shape[-2:]).astype(np.float64)
        found = [canny(one, sigma, floor, ceiling) for one in pictures]
        return np.where(np.array(found, bool).reshape(*grey.shape, 1), np.float32(1), np.float32(-1))

    return Task("edges", lambda shape: (*shape[:2], 1), lambda x, bits: {"image": operator(x)}, operator)


@cache
def given() -> Task:
    """y is the picture that each record holds beside its own (`given`, as `pairs:FOLDER` has it); it has no operator."""
    return Task("given", lambda shape: shape, None, None, True)
