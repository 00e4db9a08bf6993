"""Pairs side by side: which half is which, one geometry for both, splits, and files that are no pair."""

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.preprocess import Preprocess
from jaxdiff.data.tasks import given, super_resolution


def write(path, left, right):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([left, right], 1)).save(path)


@pytest.fixture(scope="module")
def negatives(tmp_path_factory):
    """Twelve pairs A | B with B = 255 - A, 10 x 14 in colour."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(12):
        a = rng.integers(0, 256, (10, 14, 3), np.uint8)
        a[0, 0] = number
        write(root / f"{number:02}.png", a, 255 - a)
    return root


def test_the_right_half_is_the_target_unless_asked_otherwise(negatives):
    right = data.open_source(f"pairs:{negatives}", "train", test=0.0)
    left = data.pairs(str(negatives), "train", test=0.0, target="left")
    assert right.has_given and right.shape == left.shape == (10, 14, 3) and (len(right), right.levels) == (12, 256)
    for number in range(12):
        record, other = right.records[number], left.records[number]
        whole = np.asarray(Image.open(record["name"]))
        np.testing.assert_array_equal(record["given"], whole[:, :14])
        np.testing.assert_array_equal(record["image"], whole[:, 14:])
        np.testing.assert_array_equal(other["image"], record["given"])
        np.testing.assert_array_equal(other["given"], record["image"])


def test_both_halves_get_the_same_resize_crop_and_flip(negatives):
    source = data.pairs(str(negatives), "train", test=0.0)
    how = Preprocess((8, 8, 3), resize=9, crop="random", flip=True, resample="bilinear")
    pipe = data.pipeline(source, 24, 3, preprocess=how, task=given())
    batch = pipe.batch(0)
    assert batch["image"].shape == (24, 8, 8, 3) and batch["image"].dtype == np.float32 and "mask" not in batch
    # B = 255 - A survives every linear map that both halves share, but for the rounding of 8-bit levels
    assert np.abs(batch["x"] + batch["image"]).max() <= 2 * 2 / 255
    assert batch["x"].std() > 0.3
    first, second = data.pipeline(source, 12, 3, preprocess=how).batch(0), data.pipeline(source, 12, 3).batch(0)
    np.testing.assert_array_equal(first["x"], batch["x"][:12])  # the condition takes no draws from x
    assert second.keys() == {"x", "index"}
    # the crop and the flip are there: the same record comes out differently in its second epoch
    records = [batch["x"][epoch][np.argsort(numbers)] for epoch, numbers in orders(pipe)]
    assert (records[0] != records[1]).any((1, 2, 3)).sum() >= 8


def orders(pipe):
    """The slots of the first and of the second epoch in a batch of two epochs, and which record stands in each."""
    plain = data.pipeline(pipe.source, 24, pipe.seed).batch(0)["x"]
    number = np.rint((1 - plain[:, 0, 0, 0]) * 127.5).astype(int)
    return [(slice(0, 12), number[:12]), (slice(12, 24), number[12:])]


def test_two_processes_an_epoch_and_a_preview(negatives):
    source = data.pairs(str(negatives), "train", test=0.0)
    how = Preprocess((8, 8, 1), crop="random", flip=True)
    whole = data.pipeline(source, 6, preprocess=how, task=given()).batch(3)
    halves = [
        data.pipeline(source, 6, preprocess=how, task=given(), process_index=i, process_count=2).batch(3) for i in (0, 1)
    ]
    for key in whole:
        np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), whole[key])
    epoch = list(data.pipeline(source, 5, task=given()).epoch())
    image = np.concatenate([b["image"] for b in epoch])
    np.testing.assert_array_equal(data.to_levels(image)[:, 0, 0, 0], np.arange(12))
    shown = data.preview(source, 12, task=given())
    np.testing.assert_array_equal(shown["image"], image)
    low = data.preview(source, 12, task=super_resolution(2))  # other tasks take the target alone
    np.testing.assert_array_equal(low["image"], super_resolution(2).operator(low["x"]))
    *_, last = data.pipeline(source, 10, task=given(), process_index=1, process_count=2).epoch()
    assert last["image"].shape == (0, 10, 14, 3)


def test_dequantisation_noise_of_the_target_is_not_told_by_the_condition(tmp_path):
    same = np.full((16, 16, 3), 100, np.uint8)
    write(tmp_path / "a.png", same, same)
    source = data.pairs(str(tmp_path), "train", test=0.0)
    batch = data.pipeline(source, 1, preprocess=Preprocess(scale="dequantise"), task=given()).batch(0)
    assert batch["x"].std() > 0
    np.testing.assert_array_equal(batch["image"], data.scale_exact(same, 256)[None])


def test_own_parts_classes_and_grey(tmp_path):
    for part, names in {"train": "abc", "val": "bc"}.items():
        for name in names:
            left = np.full((4, 6), ord(name), np.uint8)
            write(tmp_path / part / f"{name}.jpg", left, left)
    train, test = (data.pairs(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes, train.shape) == (3, 2, 0, (4, 6, 1))
    assert train.records[0]["given"].shape == (4, 6, 1)
    assert data.pairs(str(tmp_path), "train", channels=3).records[0]["given"].shape == (4, 6, 3)
    folder = data.folder(str(tmp_path), "train")
    assert not folder.has_given and folder.shape == (4, 12, 1)


def test_files_that_are_no_pair_get_one_line(negatives, tmp_path, caplog):
    picture = np.zeros((4, 5, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "odd.png")
    write(tmp_path / "good.png", picture, picture)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"pairs:.*: 2 of 3 pictures unreadable, first .*odd.png \(its width 5 is odd") as e:
        data.open_source(f"pairs:{tmp_path}", "train")
    assert "\n" not in str(e.value)
    kept = data.pairs(str(tmp_path), "train", test=0.0, on_unreadable="skip")
    assert len(kept) == 1 and "skipped 2 of 3" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"pairs:.*nowhere: no such folder"):
        data.open_source(f"pairs:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match="target='top'; allowed: right or left"):
        data.pairs(str(negatives), "train", target="top")
