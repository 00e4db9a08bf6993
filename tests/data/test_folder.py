"""A folder of pictures: formats, classes, splits, and files that cannot be read."""

import itertools
import logging

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.pictures import read_picture
from jaxdiff.data.preprocess import Preprocess


def picture(path, value, size=(6, 5), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    for number in range(10):
        picture(tmp_path / "b_dog" / f"{number}.png", (number, 0, 0))
        picture(tmp_path / "a_cat" / f"{number}.bmp", (100 + number, 0, 0))
    return tmp_path


def reds(source):
    return {int(source.records[n]["image"][0, 0, 0]): int(source.records[n]["label"]) for n in range(len(source))}


def test_a_class_per_subfolder_and_disjoint_stratified_splits(classes):
    train, test = (data.open_source(f"folder:{classes}", split, test=0.2) for split in ("train", "test"))
    assert train.class_names == ("a_cat", "b_dog") and train.shape == (5, 6, 3) and train.levels == 256
    assert sorted(reds(test).values()) == [0, 0, 1, 1] and len(train) == 16
    both = reds(train) | reds(test)
    assert len(both) == 20 and all(label == (value < 100) for value, label in both.items())
    batch = next(data.pipeline(train, 8).batches())
    assert batch["x"].shape == (8, 5, 6, 3)
    np.testing.assert_array_equal(batch["label"], data.to_levels(batch["x"])[:, 0, 0, 0] < 100)


def test_a_flat_folder_of_every_format_and_shape(tmp_path):
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        picture(tmp_path / f"{suffix}.{suffix}", (200, 200, 200), size=(7, 9))
    picture(tmp_path / "wide.png", (200, 200, 200), size=(20, 5))
    (tmp_path / "notes.txt").write_text("no picture")
    source = data.folder(str(tmp_path), "train", test=0.0)
    assert (len(source), source.num_classes) == (6, 0)
    with pytest.raises(ValueError, match=r"ask for a shape to fit all"):
        next(data.pipeline(source, 6).batches())
    x = next(data.pipeline(source, 6, preprocess=Preprocess((4, 4, 1))).batches())["x"]
    assert x.shape == (6, 4, 4, 1) and np.abs(data.to_levels(x).astype(int) - 200).max() <= 2
    assert data.preview(source, 6)["x"].shape[1:] == source.shape


def test_own_parts_are_used_and_share_train_s_class_numbers(tmp_path):
    for part, names in {"train": "abc", "val": "bc", "test": "c"}.items():
        for name in names:
            picture(tmp_path / part / name / "1.png", (ord(name), 0, 0))
    for split, want in {"train": [0, 1, 2], "validation": [1, 2], "test": [2]}.items():
        source = data.folder(str(tmp_path), split)
        assert source.num_classes == 3 and sorted(reds(source).values()) == want
    picture(tmp_path / "test" / "zebra" / "1.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"has classes .*zebra.* that train does not have"):
        data.folder(str(tmp_path), "test")


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_a_broken_file_is_named_and_refused_or_skipped_with_a_count(classes, caplog, damage):
    broken = classes / "a_cat" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:4000] if damage == "truncated" else b"hello")
    with pytest.raises(ValueError, match=r"1 of 21 pictures unreadable, first .*a_cat/3.png .*on_unreadable='skip'") as e:
        data.open_source(f"folder:{classes}", "train")
    assert "\n" not in str(e.value)
    with caplog.at_level(logging.WARNING):
        sources = [data.folder(str(classes), s, test=0.2, on_unreadable="skip") for s in ("train", "test")]
    assert len(reds(sources[0]) | reds(sources[1])) == 20
    assert "skipped 1 of 21 pictures unreadable" in caplog.text and str(broken) in caplog.text


def test_with_headers_only_a_truncated_file_stops_the_run_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "bad.png").read_bytes()[:4000])
    source = data.folder(str(tmp_path), "train", test=0.0, check="header")
    with pytest.raises(ValueError, match=r"bad.png: unreadable picture"):
        next(itertools.chain(data.pipeline(source, 1).batches()))


def test_grey_sixteen_bit_transparent_and_turned_pictures(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", 1)[0, 0, 0] == 128  # Pillow alone saturates to 255
    picture(tmp_path / "clear.png", (10, 20, 30, 0), mode="RGBA")
    assert (read_picture(tmp_path / "clear.png", 3) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    picture(tmp_path / "turned.jpg", (0, 0, 0), size=(6, 4), exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 3).shape == (6, 4, 3)
    turned = data.folder(str(tmp_path), "train", test=0.0)
    assert turned.shape[2] == 3
    picture(tmp_path / "grey" / "a" / "1.png", 7, mode="L")
    grey = data.folder(str(tmp_path / "grey"), "train", test=0.0)
    assert grey.shape == (5, 6, 1) and grey.records[0]["image"].shape == (5, 6, 1)


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder:.*nowhere: no such folder"):
        data.open_source(f"folder:{tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no pictures for train; looked for .png"):
        data.open_source(f"folder:{tmp_path}/empty")
    (tmp_path / "broken.png").write_text("x")
    with pytest.raises(ValueError, match="1 of 1 pictures unreadable"):
        data.folder(str(tmp_path), "train", on_unreadable="skip")
    picture(tmp_path / "dog" / "1.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"broken.png lies beside class folders"):
        data.folder(str(tmp_path), "train")
    with pytest.raises(ValueError, match="allowed: refuse or skip"):
        data.folder(str(tmp_path), "train", on_unreadable="ignore")
