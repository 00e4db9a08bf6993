"""Pictures a person can look at: float images in [-1, 1] to 8-bit grids, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 48  # pixels: a tile's longer side is enlarged to at least this
CELL = 64  # the same for the cells of `condition_picture`, where details are compared
MARGINS = (26, 4)  # pixels above and below the rows of `columns_picture`: room for the words of its columns
PAPER, INK = 224, 24  # grey levels of the ground and the words: light, yet white and black tiles both have an edge


def to_uint8(x: Any) -> np.ndarray:
    """Floats in [-1, 1] of any shape to 0..255, clipped, rounded to the nearest level; uint8 passes through."""
    x = np.asarray(x)
    if x.dtype == np.uint8:
        return x
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} pixels are NaN or inf; allowed: [-1, 1]")
    return np.rint((np.clip(x.astype(np.float64), -1, 1) + 1) * 127.5).astype(np.uint8)


def _captioned(grid: np.ndarray, row_tops: Sequence[int], row_height: int, rows: Sequence[str], title: str | None):
    """Widen `grid` `[H, W, C]` by a left margin with one label a row and a top margin with the title."""
    size = int(np.clip(row_height * 0.3, 12, 18))
    font = ImageFont.load_default(size)
    left = math.ceil(max((font.getlength(label) for label in rows), default=0)) + (size if rows else 0)
    top = 2 * size if title else 0
    width = max(grid.shape[1] + left, math.ceil(font.getlength(title or "")) + size)
    page = Image.new("RGB" if grid.shape[2] == 3 else "L", (width, grid.shape[0] + top), (PAPER,) * grid.shape[2])
    page.paste(Image.fromarray(grid if grid.shape[2] == 3 else grid[..., 0]), (left, top))
    pen = ImageDraw.Draw(page)
    ink = (INK,) * grid.shape[2]
    for label, y in zip(rows, row_tops, strict=True) if rows else ():
        pen.text((left - size // 2, top + y + row_height / 2), label, fill=ink, font=font, anchor="rm")
    if title:
        pen.text((width / 2, size), title, fill=ink, font=font, anchor="mm")
    return np.asarray(page).reshape(page.height, page.width, grid.shape[2])


def image_grid(
    images: Any,
    columns: int | None = None,
    pad: int = 1,
    scale: int | None = None,
    row_labels: Sequence[str] = (),
    title: str | None = None,
) -> np.ndarray:
    """Lay images out row by row on a light grey ground.

    Args:
      images: `[N, H, W, C]`, C 1 (grey) or 3, float in [-1, 1] or uint8.
      columns: tiles in a row; the square root of N, rounded up, when left out.
      pad: pixels of ground around every tile, counted before enlargement.
      scale: whole factor of enlargement by nearest neighbour, `pad` included. Left out: the smallest that makes a tile
        at least 48 pixels long, so that an 8x8 digit can be seen; larger images are not touched.
      row_labels: one short text for each row, drawn in a margin on the left.
      title: one line above the grid.

    Returns: uint8 `[H', W', C]`; without texts H' = (rows (H + pad) + pad) scale.
    """
    tiles = to_uint8(images)
    if tiles.ndim != 4 or tiles.shape[-1] not in (1, 3) or 0 in tiles.shape:
        raise ValueError(f"images have shape {tiles.shape}; allowed: [N, H, W, 1] or [N, H, W, 3], at least one")
    n, height, width, channels = tiles.shape
    columns = min(n, math.ceil(math.sqrt(n)) if columns is None else columns)
    scale = math.ceil(TILE / max(height, width)) if scale is None else scale
    if columns < 1 or scale < 1 or pad < 0:
        raise ValueError(f"columns={columns}, scale={scale}, pad={pad}; allowed: columns and scale from 1, pad from 0")
    rows = math.ceil(n / columns)
    if row_labels and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows; give one for each row")
    grid = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), PAPER, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        grid[y : y + height, x : x + width] = tile
    grid = grid.repeat(scale, 0).repeat(scale, 1)
    if not row_labels and not title:
        return grid
    tops = [(pad + row * (height + pad)) * scale for row in range(rows)]
    return _captioned(grid, tops, height * scale, row_labels, title)


def condition_picture(condition: Any, draws: Any, truth: Any = None, scale: int | None = None) -> np.ndarray:
    """One row for each condition, under words: condition | K draws | truth.

    Args:
      condition: `[N, H, W, C']`, float in [-1, 1] or uint8, C' 1 (grey) or 3; or smaller, by a whole factor.
      draws: `[K, N, H, W, C]`.
      truth: `[N, H, W, C]`; None where nobody knows it.
      scale: whole factor of enlargement by nearest neighbour; left out, the smallest that makes a cell's longer side 64.

    Returns: uint8 `[H', W', 1]`, or `[H', W', 3]` if anything is in colour.
    """
    parts = [to_uint8(condition), to_uint8(draws), to_uint8(draws[0] if truth is None else truth)]
    shapes = [part.shape for part in parts]
    y, x, z = (*shapes[0],), (*shapes[1][1:],), (*shapes[2],)
    larger = len(y) != 4 or max(y[1:3]) > max(x[1:3])
    if larger or x != z or x[0] != y[0] or 0 in (*shapes[1], *y) or {y[-1], z[-1]} - {1, 3}:
        raise ValueError(f"condition {shapes[0]}, draws {shapes[1]} and truth {shapes[2]} do not fit; "
                         "give [N, H, W, C'], [K, N, H, W, C] and [N, H, W, C], C and C' 1 or 3")  # fmt: skip
    known = {} if truth is None else {"truth": parts[2]}
    return columns_picture({"condition": parts[0], "draws": parts[1].swapaxes(0, 1), **known}, scale)


def columns_picture(columns: Mapping[str, Any], scale: int | None = None) -> np.ndarray:
    """One row for each of N examples, blocks of pictures side by side under their words.

    Args:
      columns: by their words, `[N, H, W, C]`, or `[N, K, H, W, C]` for K pictures a row; float in [-1, 1] or uint8, C 1
        (grey) or 3. Pictures smaller than the largest are enlarged to it, which must be by one whole factor.
      scale: whole factor of enlargement by nearest neighbour; left out, the smallest that makes the longer side 64.

    Returns: uint8 `[H', W', 1]`, or `[H', W', 3]` if anything is in colour.
    """
    parts = {word: x if x.ndim == 5 else x[:, None] for word, x in ((word, to_uint8(x)) for word, x in columns.items())}
    shapes = [x.shape for x in parts.values()]
    if not all(len(shape) == 5 and 0 not in shape and shape[-1] in (1, 3) for shape in shapes):
        raise ValueError(f"pictures have shapes {shapes}; allowed: [N, H, W, C] or [N, K, H, W, C], C 1 or 3")
    height, width, channels = (max(shape[axis] for shape in shapes) for axis in (2, 3, 4))
    if any(n != shapes[0][0] or height % h or width % w or height // h != width // w for n, _, h, w, _ in shapes):
        raise ValueError(f"pictures have shapes {shapes}; allowed: as many of each, of sizes that the largest is a whole "
                         "multiple of")
    scale = math.ceil(CELL / max(height, width)) if scale is None else scale
    font = ImageFont.load_default(13)
    blocks = []
    for word, x in parts.items():
        x = x.repeat(height // x.shape[2], 2).repeat(width // x.shape[3], 3)
        tiles = np.broadcast_to(x, (*x.shape[:-1], channels)).reshape(-1, height, width, channels)
        grid = image_grid(tiles, x.shape[1], pad=max(1, 4 // scale), scale=scale)
        spare = max(8, math.ceil(font.getlength(word)) + 8 - grid.shape[1])  # ground beside the grid: a gap between blocks
        sides = (spare // 2, spare - spare // 2)
        block = np.pad(grid, (MARGINS, sides, (0, 0)), constant_values=PAPER)
        page = Image.fromarray(block if channels == 3 else block[..., 0])
        ImageDraw.Draw(page).text((page.width / 2, 14), word, (INK,) * channels, font, anchor="mm")
        blocks.append(np.asarray(page).reshape(block.shape))
    return np.concatenate(blocks, 1)


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> Path:
    """Call `write(file)` on a temporary neighbour, then rename it: a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def save_png(path: str | os.PathLike, array: Any) -> Path:
    """Write `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, uint8 or float in [-1, 1], as PNG, whole or not at all."""
    pixels = to_uint8(array)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3) or 0 in pixels.shape:
        raise ValueError(
            f"a picture has shape {np.shape(array)}; allowed: [H, W], [H, W, 1], [H, W, 3]; see image_grid"
        )
    return write_whole(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))


def save_npz(path: str | os.PathLike, **arrays: Any) -> Path:
    """Write named arrays as an .npz with their own dtypes and ranges, whole or not at all."""
    held = {name: np.asarray(value) for name, value in arrays.items()}
    return write_whole(path, lambda file: np.savez(file, **held))  # type: ignore[arg-type]


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> Path:
    """Write nested figures as JSON, whole or not at all; a number that is not finite, which JSON lacks, becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): plain(one) for name, one in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(plain(values), indent=2) + "\n"
    return write_whole(path, lambda file: file.write(text.encode()))
