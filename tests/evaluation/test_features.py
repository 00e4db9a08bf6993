"""Feature functions over batches, statistics saved once, weight files that are wrong, and class agreement."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation import (
    accuracy,
    class_agreement,
    convert_weights,
    extract,
    extract_moments,
    inception_features,
    load_statistics,
    pixels,
    read_weights,
    save_npz,
    save_statistics,
    statistics_of,
    to_rgb,
)
from jaxdiff.evaluation.inception import resize_like_tf1, state_dict_shapes

IMAGES = np.random.default_rng(0).uniform(-1, 1, (11, 4, 4, 1)).astype(np.float32)


def test_extract_keeps_order_and_compiles_once():
    traces = []

    @jax.jit
    def feature_fn(x):
        traces.append(x.shape)
        return pixels(x) * 2

    np.testing.assert_array_equal(extract(feature_fn, IMAGES, batch_size=4), IMAGES.reshape(11, 16) * 2)
    assert traces == [(4, 4, 4, 1)]
    moments = extract_moments(feature_fn, [IMAGES[:4], IMAGES[4:8], IMAGES[8:]])
    np.testing.assert_allclose(moments.cov, np.cov(IMAGES.reshape(11, 16).T * 2), atol=1e-12)
    with pytest.raises(ValueError, match="no images"):
        extract(feature_fn, IMAGES[:0])


def test_grey_becomes_rgb():
    assert to_rgb(IMAGES).shape == (11, 4, 4, 3)
    assert (np.asarray(to_rgb(IMAGES)) == IMAGES).all()
    with pytest.raises(ValueError, match=r"\[B, H, W, 1\]"):
        to_rgb(np.zeros((2, 4, 4, 4)))


def test_resize_interpolates_from_the_corner():
    ramp = jnp.arange(4.0).reshape(1, 4, 1, 1)
    got = np.asarray(resize_like_tf1(ramp, 8))[0]
    np.testing.assert_allclose(got[:, 0, 0], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])  # i * 4 / 8, and the last row held
    assert got.shape == (8, 8, 1)


def test_statistics_round_trip_and_are_checked(tmp_path):
    path = tmp_path / "reference.npz"
    stats = statistics_of("pixels", extract(pixels, IMAGES))
    save_statistics(path, stats)
    found = load_statistics(path, "pixels", n=11)
    assert (found.feature, found.moments.n) == ("pixels", 11)
    for mine, theirs in ((found.moments.mean, stats.moments.mean), (found.moments.scatter, stats.moments.scatter)):
        assert mine.dtype == np.float64
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(found.features, stats.features)
    with pytest.raises(ValueError, match="of the feature 'pixels', 'inception' was asked for"):
        load_statistics(path, "inception")
    with pytest.raises(ValueError, match="of 11 examples, 50000 were asked for"):
        load_statistics(path, "pixels", n=50_000)
    save_statistics(path, stats._replace(features=None))
    assert load_statistics(path, "pixels").features is None
    with pytest.raises(ValueError, match="save those that the moments saw"):
        save_statistics(path, stats._replace(features=stats.features[:5]))
    with pytest.raises(FileNotFoundError, match="write them once"):
        load_statistics(tmp_path / "none.npz", "pixels")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="holds no reference statistics"):
        load_statistics(path, "pixels")
    save_npz(path, samples=IMAGES)
    with pytest.raises(ValueError, match="holds no reference statistics"):
        load_statistics(path, "pixels")


def one_line(error):
    return "\n" not in str(error.value)


def test_wrong_weight_files_get_one_line(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no Inception weights at") as error:
        inception_features(tmp_path / "none.pth")
    assert one_line(error)
    for name in ("broken.npz", "broken.pth"):
        (tmp_path / name).write_bytes(b"this is no archive")
    with pytest.raises(ValueError, match="is not a readable") as error:
        read_weights(tmp_path / "broken.npz")
    assert one_line(error)
    shapes = state_dict_shapes()
    assert (len(shapes), shapes["fc.weight"]) == (94 * 5 + 2, (1008, 2048))
    small = {name: np.zeros(()) for name in shapes}
    save_npz(tmp_path / "shape.npz", **small)
    with pytest.raises(ValueError, match=r"has shape \(\), expected \(32, 3, 3, 3\)") as error:
        read_weights(tmp_path / "shape.npz")
    assert one_line(error)
    small.pop("fc.bias")
    save_npz(tmp_path / "lacks.npz", **small)
    with pytest.raises(ValueError, match="lacks 1 of 472 arrays") as error:
        read_weights(tmp_path / "lacks.npz")
    assert one_line(error)
    with pytest.raises(ValueError, match="a name that ends in"):
        convert_weights(tmp_path / "broken.pth", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="allowed: pool3, logits, logits_unbiased"):
        inception_features(tmp_path / "none.pth", output="2048")
    monkeypatch.setitem(sys.modules, "torch", None)  # as on a machine without it
    with pytest.raises(ImportError, match="pip install torch") as error:
        read_weights(tmp_path / "broken.pth")
    assert one_line(error)


def test_a_file_that_torch_cannot_read(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "broken.pth").write_bytes(b"this is no archive")
    with pytest.raises(ValueError, match="is not a readable") as error:
        read_weights(tmp_path / "broken.pth")
    assert one_line(error)


def test_class_agreement_counts_by_class():
    seen = np.array([0, 0, 1, 2, 2, 2, 0])  # what the classifier says: each image holds its answer
    asked = np.array([0, 0, 0, 2, 2, 1, 1])
    images = np.broadcast_to(seen[:, None, None, None], (7, 2, 2, 1)).astype(np.float32)
    got = class_agreement(lambda x: 9.0 * jax.nn.one_hot(jnp.asarray(x[:, 0, 0, 0], int), 4), images, asked, 3)
    assert got["agreement"] == pytest.approx(4 / 7)
    assert got["per_class"] == {0: pytest.approx(2 / 3), 1: 0, 2: 1}
    assert got["n_per_class"] == {0: 3, 1: 2, 2: 2}
    assert got["n"] == 7


def test_accuracy_and_its_errors():
    logits = np.eye(3)
    assert accuracy(logits, np.array([0, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy(np.full((3, 3), np.nan), np.zeros(3, int)) == 0
    with pytest.raises(ValueError, match="labels are 0 to 3; allowed: at least one, each from 0 to 2"):
        accuracy(logits, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="integer"):
        accuracy(logits, np.array([0.0, 1, 2]))
