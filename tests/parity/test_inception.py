"""Inception-v3 against torch-fidelity's network with the same random weights, in one run."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from jaxdiff.evaluation import convert_weights, inception_outputs
from jaxdiff.evaluation.inception import state_dict_shapes

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def peer_module():
    """torch-fidelity's network file alone: its package imports torchvision, so an empty package stands in for it."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.importorskip("torch_fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    yield importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights under which activations keep their size through 48 layers, as a PyTorch file."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in state_dict_shapes().items():
        if name.endswith("conv.weight") or name == "fc.weight":
            value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(size=shape) * 0.2 + name.endswith("bn.weight")
        state[name] = torch.from_numpy(value.astype(np.float32))
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def images():
    """Two 8-bit images of 40x33, as uint8 NHWC: blocks of colour, and noise."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (5, 3, 3)).repeat(8, 0).repeat(11, 1)
    return np.stack([blocks, rng.integers(0, 256, (40, 33, 3))]).astype(np.uint8)


def test_equals_torch_fidelity_with_random_weights(peer_module, weights, images):
    layers = ["2048", "logits_unbiased", "logits"]
    peer = peer_module.FeatureExtractorInceptionV3("peer", layers, feature_extractor_weights_path=str(weights))
    with torch.no_grad():
        theirs = [out.numpy() for out in peer(torch.from_numpy(images.transpose(0, 3, 1, 2)))]
    npz = convert_weights(weights, weights.with_suffix(".npz"))  # so that both readers are on the way
    run = inception_outputs(npz)
    ours = run(images.astype(np.float32) / 127.5 - 1)
    outputs = (ours.pool3, ours.logits_unbiased, ours.logits)
    for mine, other, width in zip(outputs, theirs, (2048, 1008, 1008), strict=True):
        assert mine.shape == other.shape == (2, width)
        scale = np.abs(other).max()
        assert np.abs(other[0] - other[1]).max() > 0.05 * scale  # the weights tell these two images apart
        assert np.abs(np.asarray(mine) - other).max() < 1e-4 * scale

    grey = images[..., :1].astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(run(grey).pool3, run(grey.repeat(3, -1)).pool3)
