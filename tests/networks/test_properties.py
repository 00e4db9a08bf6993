"""One table of properties over every network (see table.py)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.networks.encoder import Block
from tests.networks.table import LABELS, TIMES, TOKENS, joined, normal, quick, random_params, rows

ROWS = rows()


def call_of(net):
    return quick(lambda p, x, t, cond: joined(net.apply({"params": p}, x, t, cond)))


class Ready:
    """A row with random parameters, none of them at its zero initialisation, and jitted calls that the tests share."""

    def __init__(self, row):
        self.net, self.x, self.cond, self.other, self.out = row
        self.params = random_params(self.net, self.x, TIMES, self.cond)
        self.call = call_of(self.net)
        self.y = self.call(self.params, self.x, TIMES, self.cond)
        target = normal(20, *self.out)

        def loss(p, key):
            y = joined(self.net.apply({"params": p}, self.x, TIMES, self.cond, train=True, rngs={"dropout": key}))
            return jnp.mean((y - target) ** 2), y

        self.learn = quick(jax.grad(loss, has_aux=True))


@cache
def ready_row(name):
    return Ready(ROWS[name])


@pytest.fixture(scope="module", params=list(ROWS))
def ready(request):
    return ready_row(request.param)


def test_shapes_and_dtypes(ready):
    assert ready.y.shape == ready.out and ready.y.dtype == jnp.float32
    assert {v.dtype for v in jax.tree.leaves(ready.params)} == {jnp.dtype("float32")}
    assert float(jnp.std(ready.y)) > 1e-3


def test_bfloat16_compute(ready):
    """Same parameters, bfloat16 arithmetic: float32 out, within a few of bfloat16's 3 digits."""
    half = call_of(ready.net.clone(dtype=jnp.bfloat16))(ready.params, ready.x, TIMES, ready.cond)
    assert half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - ready.y) ** 2) / jnp.mean(ready.y**2)))
    assert 1e-6 < error < 0.05, error


def test_gradients_and_dropout(ready):
    """Training mode: finite gradients reach every parameter, and only the key changes what dropout does."""
    (grads, a), (_, again), (_, b) = (ready.learn(ready.params, jax.random.key(i, impl="rbg")) for i in (0, 0, 1))
    for name, g in flatten_dict(grads, sep="/").items():
        assert bool(jnp.isfinite(g).all()), name
        assert float(jnp.abs(g).max()) > 1e-6, name
    np.testing.assert_array_equal(a, again)
    assert bool((a == b).all()) == (getattr(ready.net, "dropout", 0.0) == 0.0)
    np.testing.assert_array_equal(ready.y, ready.call(ready.params, ready.x, TIMES, ready.cond))


def test_examples_are_independent(ready):
    """A permuted batch gives the permuted answer: no example sees another."""
    order = jnp.array([2, 0, 3, 1])
    x, t, cond = jax.tree.map(lambda v: v[order], (ready.x, TIMES, ready.cond))
    close(ready.call(ready.params, x, t, cond), ready.y[order])
    close(ready.call(ready.params, x.at[0].set(9.0), t, cond)[1:], ready.y[order][1:])


def test_time_and_every_slot_are_read(ready):
    """Changing the noise level, or any one entry of cond, changes every example that the entry speaks to."""

    def moved(t, cond):
        gap = jnp.abs(ready.call(ready.params, ready.x, t, cond) - ready.y)
        return np.asarray(gap.reshape(len(gap), -1).max(axis=1) > 1e-4 * jnp.abs(ready.y).max())

    assert moved(TIMES + 0.5, ready.cond).all()
    assert set(ready.other) == set(ready.cond) == ready.net.cond_keys
    for key, value in ready.other.items():
        speaks = np.asarray(TOKENS.any(axis=1)) if key == "text" else np.ones(len(TIMES), bool)
        np.testing.assert_array_equal(moved(TIMES, {**ready.cond, key: value}), speaks, err_msg=key)


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.fixture(scope="module", params=["adm_class", "mlp"])
def labelled(request):
    return ready_row(request.param)


def test_jit_is_eager():
    """On the perceptron, and on the block that a U-Net repeats (a whole U-Net dispatched op by op takes long)."""
    mlp = ready_row("mlp")
    close(mlp.y, mlp.net.apply({"params": mlp.params}, mlp.x, TIMES, mlp.cond))
    block = Block(8, True, False, 4, 0.0, True, jnp.float32, jnp.float32)
    args = (normal(0, 2, 4, 4, 4), normal(1, 2, 6), None, None)
    call = lambda p, *a: block.apply({"params": p}, *a, train=False)
    params = random_params(block, *args, False)
    close(quick(call)(params, *args), call(params, *args))


def test_vmap_is_batch():
    mlp = ready_row("mlp")
    one = lambda x, t, cond: mlp.call(mlp.params, x[None], t[None], jax.tree.map(lambda v: v[None], cond))[0]
    close(jax.vmap(one)(mlp.x, TIMES, mlp.cond), mlp.y)


def test_sharded_batch(labelled):
    """The batch split over four devices gives what one device gives, and stays split."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    args = jax.device_put((labelled.x, TIMES, labelled.cond), split)
    y = labelled.call(jax.device_put(labelled.params, NamedSharding(mesh, PartitionSpec())), *args)
    assert y.sharding.is_equivalent_to(split, y.ndim)
    close(y, labelled.y)


def test_null_label(labelled):
    """No label is label K, and differs from every class."""
    run = lambda cond: labelled.call(labelled.params, labelled.x, TIMES, cond)
    absent = run({k: v for k, v in labelled.cond.items() if k != "label"})
    np.testing.assert_array_equal(absent, run({**labelled.cond, "label": jnp.full_like(LABELS, 5)}))
    gap = np.abs(absent - labelled.y).reshape(len(absent), -1).max(axis=1)
    assert (gap > 1e-3 * np.abs(labelled.y).max()).all()
