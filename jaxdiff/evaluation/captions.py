"""Pictures with their captions, under them in a grid or before them in rows, that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdiff.evaluation.images import INK, MARGINS, PAPER, columns_picture, to_uint8

SIDE = 128  # pixels: a picture's longer side is enlarged to at least this, which holds some twenty letters
GAP = 10  # pixels of ground around every picture: captions of neighbours stay apart
LETTERS = 7  # a cell is at least this many letters' heights wide, for pictures that are tall and narrow


def _font(size: int) -> Any:
    """DejaVu Sans, which every matplotlib carries: Pillow's own font has no letters with accents ("Réunion")."""
    import matplotlib  # late: pictures without captions need it not

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _printable(text: str) -> str:
    """`text` on one line, without control characters and halves of surrogate pairs, which fonts cannot draw."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _beginning(text: str, width: float, font: Any, end: str = "") -> str:
    """The longest beginning of `text` that, with `end` behind it, is no wider than `width`; at least one character.

    It stops between words, or within the first word where that alone is wider.
    """
    length = next((n for n in range(len(text), 1, -1) if font.getlength(text[:n].rstrip() + end) <= width), 1)
    whole = text[:length].rstrip()
    if length < len(text) and text[length] != " " and " " in whole:
        whole = whole[: whole.rindex(" ")]
    return whole


def _wrapped(text: str, width: float, font: Any, lines: int) -> list[str]:
    """`text` in at most `lines` lines no wider than `width`; the last ends in an ellipsis where there was more."""
    found: list[str] = []
    rest = _printable(text)
    while rest and len(found) < lines:
        line = _beginning(rest, width, font)
        if len(found) == lines - 1 and line != rest:
            line = _beginning(rest, width, font, "…").rstrip(",:;") + "…"
        found.append(line)
        rest = rest[len(line) :].lstrip()
    return found


def captioned_grid(
    images: Any, captions: Sequence[str], columns: int | None = None, scale: int | None = None, lines: int = 3
) -> np.ndarray:
    """Lay images out row by row on a light grey ground, each with its caption centred under it.

    Args:
      images: `[N, H, W, C]`, C 1 (grey) or 3, float in [-1, 1] or uint8.
      captions: N texts; "" leaves the place empty. A caption is wrapped to its picture's width; a character that the font
        lacks is drawn as an empty box.
      columns: pictures in a row; the square root of N, rounded up, when left out.
      scale: whole factor of enlargement by nearest neighbour. Left out: the smallest that makes a picture's longer side at
        least 128 pixels, for words to fit; larger pictures are not touched.
      lines: lines that a caption has at most; one that needs more ends in an ellipsis.

    Returns: uint8 `[H', W', C]`. Every cell is as high as the longest caption needs.
    """
    tiles = to_uint8(images)
    if tiles.ndim != 4 or tiles.shape[-1] not in (1, 3) or 0 in tiles.shape:
        raise ValueError(f"images have shape {tiles.shape}; allowed: [N, H, W, 1] or [N, H, W, 3], at least one")
    n, _, _, channels = tiles.shape
    if isinstance(captions, str) or len(captions) != n:
        count = "one text" if isinstance(captions, str) else f"{len(captions)} captions"
        raise ValueError(f"{count} for {n} images; give a list with one for each, '' for none")
    columns = min(n, math.ceil(math.sqrt(n)) if columns is None else columns)
    scale = math.ceil(SIDE / max(tiles.shape[1:3])) if scale is None else scale
    if columns < 1 or scale < 1 or lines < 1:
        raise ValueError(f"columns={columns}, scale={scale}, lines={lines}; allowed: each from 1")
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    height, width = tiles.shape[1:3]
    size = int(np.clip(width * 0.09, 12, 18))
    font = _font(size)
    cell = max(width, LETTERS * size)  # the words' width
    texts = [_wrapped(str(caption), cell, font, lines) for caption in captions]
    step = round(size * 1.25)  # from line to line
    below = max(map(len, texts)) * step
    below += size // 3 if below else 0  # between picture and words
    rows = math.ceil(n / columns)
    ground = (PAPER,) * channels
    page = Image.new("RGB" if channels == 3 else "L", (columns * (cell + GAP) + GAP, rows * (height + below + GAP) + GAP),
                     ground)  # fmt: skip
    pen = ImageDraw.Draw(page)
    for i, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        y, x = GAP + i // columns * (height + below + GAP), GAP + i % columns * (cell + GAP)
        page.paste(Image.fromarray(tile if channels == 3 else tile[..., 0]), (x + (cell - width) // 2, y))
        for number, line in enumerate(text):
            pen.text((x + cell / 2, y + height + size // 3 + number * step), line, (INK,) * channels, font, anchor="ma")
    return np.asarray(page).reshape(page.height, page.width, channels)


def captioned_rows(columns: Mapping[str, Any], captions: Sequence[str], scale: int | None = None) -> np.ndarray:
    """`columns_picture` with the caption of each row before it, wrapped to as many lines as the row is high.

    Args:
      columns, scale: as `columns_picture` takes them, N rows.
      captions: N texts.

    Returns: uint8 `[H', W', C]`.
    """
    page = columns_picture(columns, scale)
    count = len(next(iter(columns.values())))
    if isinstance(captions, str) or len(captions) != count:
        given = "one text" if isinstance(captions, str) else f"{len(captions)} captions"
        raise ValueError(f"{given} for {count} rows; give a list with one for each")
    size, (above, below) = 13, MARGINS
    font, step, row = _font(size), round(size * 1.25), (page.shape[0] - above - below) / count
    width = 10 * size
    texts = [_wrapped(str(caption), width, font, max(1, int(row // step))) for caption in captions]
    beside = Image.new("L", (width + 2 * GAP, page.shape[0]), PAPER)
    pen = ImageDraw.Draw(beside)
    for i, lines in enumerate(texts):
        first = above + row * (i + 0.5) - step * (len(lines) - 1) / 2
        for number, line in enumerate(lines):
            pen.text((width + GAP, first + number * step), line, INK, font, anchor="rm")
    words = np.broadcast_to(np.asarray(beside)[..., None], (*beside.size[::-1], page.shape[-1]))
    return np.concatenate([words, page], 1)
