"""LPIPS against the authors' package with the same random backbones, in one run; and what a wrong file is told."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation import lpips_distance
from jaxdiff.evaluation.backbones import NETS, backbone_shapes

torch = pytest.importorskip("torch")
if importlib.util.find_spec("lpips") is None:
    pytest.importorskip("lpips")


def alexnet():
    """AlexNet's convolutional part as PyTorch modules, numbered as torchvision numbers them."""
    conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, lambda: torch.nn.MaxPool2d(3, 2)
    return torch.nn.Sequential(
        conv(3, 64, 11, 4, 2), relu(), pool(),
        conv(64, 192, 5, 1, 2), relu(), pool(),
        conv(192, 384, 3, 1, 1), relu(),
        conv(384, 256, 3, 1, 1), relu(),
        conv(256, 256, 3, 1, 1), relu(), pool(),
    )  # fmt: skip


def vgg16():
    """VGG16's convolutional part, likewise."""
    layers, before = [], 3
    for width in (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"):
        if width == "pool":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(before, width, 3, 1, 1), torch.nn.ReLU()]
            before = width
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Backbones with random weights that keep activations' size, and their files under torchvision's names."""
    folder, found = tmp_path_factory.mktemp("backbones"), {}
    generator = torch.Generator().manual_seed(0)
    for name, features in (("alex", alexnet()), ("vgg", vgg16())):
        for layer in features:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, generator=generator)
                torch.nn.init.normal_(layer.bias, std=0.2, generator=generator)
        state = {f"features.{key}": value for key, value in features.state_dict().items()}
        state["classifier.1.weight"] = torch.zeros(2, 2)  # torchvision's files hold a classifier too
        torch.save(state, folder / f"{name}.pth")
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in state.items()})
        found[name] = features, folder / f"{name}.pth"
    return found


@pytest.fixture(scope="module")
def peer_module(backbones):
    """The package lpips on a stand-in for torchvision, whose constructors return the backbones above."""
    models = types.ModuleType("torchvision.models")
    models.alexnet = lambda pretrained: types.SimpleNamespace(features=backbones["alex"][0])
    models.vgg16 = lambda pretrained: types.SimpleNamespace(features=backbones["vgg"][0])
    package = types.ModuleType("torchvision")
    package.models = models
    before = set(sys.modules)
    sys.modules |= {"torchvision": package, "torchvision.models": models}
    yield importlib.import_module("lpips")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("torchvision", "lpips"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def distances(backbones):
    return {name: lpips_distance(path, name) for name, (_, path) in backbones.items()}


def pictures(height, width, channels=3):
    """Three pairs in [-1, 1]: two of noise, and blocks of colour against the same with a little noise."""
    rng = np.random.default_rng(height)
    a, b = rng.uniform(-1, 1, (2, 3, height, width, channels)).astype(np.float32)
    a[2] = np.sign(a[2, :4, :4]).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]
    b[2] = np.clip(a[2] + 0.5 * b[2], -1, 1)
    return a, b


def theirs(peer, a, b):
    with torch.no_grad():
        values = peer(*(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for x in (a, b)))
    return values.numpy().reshape(-1)


@pytest.mark.parametrize(("net", "sizes"), [("alex", [(64, 64), (35, 50)]), ("vgg", [(32, 32), (48, 37)])])
def test_equals_the_authors_package(peer_module, distances, net, sizes):
    peer = peer_module.LPIPS(net=net, verbose=False)
    for size in sizes:
        a, b = pictures(*size)
        expected = theirs(peer, a, b)
        assert expected.min() > 1e-3
        assert np.ptp(expected) > 0.05  # these weights and heads tell the pairs apart
        ours = distances[net](a, b)
        assert ours.shape == (3,)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_small_pictures_are_compared_enlarged(peer_module, distances):
    a, b = pictures(28, 28)
    grown = [
        torch.nn.functional.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2)), scale_factor=3, mode="bilinear")
        .numpy()
        .transpose(0, 2, 3, 1)
        for x in (a, b)
    ]
    expected = theirs(peer_module.LPIPS(net="alex", verbose=False), *grown)
    np.testing.assert_allclose(distances["alex"](a, b), expected, rtol=1e-5, atol=1e-6)


def test_npz_grey_symmetry_and_gradient(backbones, distances):
    a, b = pictures(32, 32, channels=1)
    from_npz = lpips_distance(backbones["alex"][1].with_suffix(".npz"), "alex")
    ours = distances["alex"](a, b)
    np.testing.assert_array_equal(from_npz(a, b), ours)
    np.testing.assert_array_equal(distances["alex"](a.repeat(3, -1), b.repeat(3, -1)), ours)
    np.testing.assert_allclose(distances["alex"](b, a), ours, rtol=1e-5)
    np.testing.assert_allclose(distances["alex"](a, a), 0, atol=1e-10)
    slope = jax.grad(lambda x: distances["alex"](x, b).sum())(jnp.asarray(a))
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 1e-5


def test_dead_features_have_a_finite_gradient(tmp_path):
    """Where no channel is active the unit vector is 0 / 0: as a loss that must not give NaN."""
    state = {name: np.zeros(shape, np.float32) for name, shape in backbone_shapes("alex").items()}
    np.savez(tmp_path / "dead.npz", **state)
    a, b = pictures(32, 32)
    value, slope = jax.value_and_grad(lambda x: lpips_distance(tmp_path / "dead.npz")(x, b).sum())(jnp.asarray(a))
    assert value == 0
    np.testing.assert_array_equal(slope, np.zeros_like(a))


def test_wrong_files_are_named(backbones, tmp_path, monkeypatch):
    alex, vgg = backbones["alex"][1], backbones["vgg"][1]
    with pytest.raises(ValueError, match=r"lacks 6 of 10 arrays, first features.3.weight and has 22 too many.*alexnet"):
        lpips_distance(vgg, "alex")
    with pytest.raises(ValueError, match=r"lacks 22 of 26 .*give torchvision's vgg16"):
        lpips_distance(alex, "vgg")
    with np.load(alex.with_suffix(".npz")) as held:
        arrays = dict(held)
    np.savez(tmp_path / "narrow.npz", **{**arrays, "features.3.weight": np.zeros((192, 64, 3, 3))})
    with pytest.raises(ValueError, match=r"features.3.weight has shape \(192, 64, 3, 3\), expected \(192, 64, 5, 5\)"):
        lpips_distance(tmp_path / "narrow.npz")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.pth is not a readable"):
        lpips_distance(tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match="no alexnet weights at"):
        lpips_distance(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="net is 'squeeze'; allowed: alex, vgg"):
        lpips_distance(alex, "squeeze")
    np.savez(tmp_path / "heads.npz", **{f"lin{i}.model.1.weight": np.ones((1, 64, 1, 1)) for i in range(5)})
    with pytest.raises(ValueError, match=r"lin1.* expected \(1, 192, 1, 1\); give the heads of alex"):
        lpips_distance(alex, heads=tmp_path / "heads.npz")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="the package lpips is not here; pip install --no-deps lpips"):
        lpips_distance(alex)


def test_shapes_that_do_not_fit(distances):
    with pytest.raises(ValueError, match=r"shape \(2, 32, 32, 3\) and \(3, 32, 32, 3\)"):
        distances["alex"](np.zeros((2, 32, 32, 3)), np.zeros((3, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 32, 32, 4\); allowed"):
        distances["alex"](np.zeros((2, 32, 32, 4)), np.zeros((2, 32, 32, 4)))


def test_torchvision_names():
    assert list(NETS) == ["alex", "vgg"]
    assert {k: tuple(v.shape) for k, v in vgg16().state_dict().items()} == {
        name.removeprefix("features."): shape for name, shape in backbone_shapes("vgg").items()
    }
