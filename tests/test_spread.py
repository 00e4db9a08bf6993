"""Samples and scores on four devices are those of one; how they come about there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import score, training
from jaxdiff.spread import Spread, by_example, here, shared
from jaxdiff.training import make_mesh
from tests.training.test_parallel import Unet, collectives

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def run(points_run):
    return jd.load_run(points_run)


@pytest.fixture
def alone(monkeypatch):
    """`alone()`: from there on there is one device."""
    return lambda: monkeypatch.setattr(jax, "device_count", lambda: 1)


# ancestral draws noise at each step; the corrector's step is an average over the batch
@pytest.mark.parametrize("sampler", ["ancestral", "predictor_corrector"])
def test_samples_are_those_of_one_device(sampler, run, alone):
    """Ten in batches of six, which four devices do not divide."""
    draw = lambda: score.draw(run, 10, seed=1, batch_size=6, sampler=sampler, num_steps=3).x
    four = draw()
    alone()
    one = draw()
    assert four.shape == (10, 2) and one.std() > 0.1
    np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())


def test_likelihood_is_that_of_one_device(run, alone):
    four = score.likelihood(run, 8)
    alone()
    assert four["value"] == pytest.approx(score.likelihood(run, 8)["value"], rel=1e-4)


@pytest.mark.parametrize(("guidance", "maps"), [(1.0, 2), (3.0, 4)], ids=["plain", "guided"])
def test_each_device_runs_the_network_on_its_share(guidance, maps):
    """A U-Net with attention: the samples are gathered at the end, and nothing else goes from device to device. A guided
    one reads an example with and without its class on the device that has the example."""
    unet = Unet()
    run = jd.run.Run(unet.config, None, jd.sde.EDM(), unet.known, unet.net, 0)
    spread = Spread(run.sampler(num_steps=2, guidance=guidance))
    whole = training.replicate((unet.params, KEY), make_mesh())
    text = spread._program.lower(*whole, shared({"label": np.arange(8)}, make_mesh()), 8).compile().as_text()
    assert collectives(text) == [("all-gather", 8 * 8 * 8)]
    assert f"f32[{maps},4,4,8]" in text and f"f32[{4 * maps},4,4,8]" not in text  # its feature maps, of two examples


def test_parameters_may_lie_on_a_grid(run):
    """As in training: split along fsdp, and left there."""
    mesh = make_mesh(fsdp=2)
    state = training.TrainState(jnp.int32(0), KEY, {"net": run.params}, {}, {}, {})
    params = training.place_state(state, training.Layout(mesh, min_size=16)).params["net"]
    cond = {"label": np.arange(8, dtype=np.int32)}
    draw = run.sampler(num_steps=2)
    split = Spread(draw, mesh)
    got = split(params, KEY, cond, 8)
    assert split._held[1] is not None and not all(x.is_fully_replicated for x in jax.tree.leaves(split._held[1]))
    np.testing.assert_allclose(got, jax.jit(draw, static_argnums=3)(run.params, KEY, cond, 8), rtol=1e-4, atol=1e-4)


def test_functions_of_examples():
    seen = []

    def fn(x):
        seen.append(x.shape)
        return x.sum((1, 2)), x * 2

    x = np.arange(7 * 2 * 3, dtype=np.float32).reshape(7, 2, 3)
    total, twice = by_example(fn)(x)
    assert isinstance(total, np.ndarray) and seen == [(7, 2, 3)]
    np.testing.assert_array_equal(total, x.sum((1, 2)))
    np.testing.assert_array_equal(twice, x * 2)


def test_a_batch_that_does_not_divide_is_on_every_device():
    even, odd = (shared({"x": np.ones((n, 2))}, make_mesh())["x"] for n in (8, 6))
    assert [even.sharding.shard_shape(even.shape), odd.sharding.shard_shape(odd.shape)] == [(2, 2), (6, 2)]


def test_nothing_is_split_where_noise_would_change(monkeypatch):
    assert here().devices.size == 4
    with jax.threefry_partitionable(False):
        assert here() is None
        assert shared({"x": np.ones((8, 2))}, make_mesh())["x"].is_fully_replicated
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert here() is None
