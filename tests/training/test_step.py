"""The step's promises: shared key, order of updates, `every`, accumulation, devices, NaN, no retrace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import (
    Ema,
    Update,
    init_state,
    make_mesh,
    make_multi_step,
    make_train_step,
    replicate,
    shard_batch,
    update_names,
)
from jaxdiff.types import Aux
from tests.training import toy


@pytest.fixture(scope="module")
def plain():
    """Four steps on one device: the answer that every other way must give."""
    step, state, seen = jax.jit(toy.step()), toy.fresh(), []
    for n in range(4):
        state, metrics = step(state, toy.batch(n))
        seen.append(metrics)
    return state, seen


def close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


def test_step_by_hand(plain):
    """One step of plain gradient descent and its average, written out."""
    updates = [Update("net", toy.loss, optax.sgd(0.1))]
    state = init_state(toy.fresh().params, updates, toy.AVERAGES, jax.random.key(7))
    new, metrics = jax.jit(make_train_step(updates, toy.AVERAGES))(state, toy.batch(0))
    b, w = toy.batch(0), np.asarray(state.params["net"]["w"])
    key = jax.random.fold_in(jax.random.key(7), 0)
    noise = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in range(toy.B)])
    error = b["x"] @ w + noise - b["y"]
    grad_w, grad_b = 2 * b["x"].T @ error / toy.B, 2 * error.mean()
    np.testing.assert_allclose(new.params["net"]["w"], w - 0.1 * grad_w, rtol=1e-5)
    np.testing.assert_allclose(new.ema["net"]["slow"]["w"], w - 0.1 * 0.1 * grad_w, rtol=1e-5)
    np.testing.assert_allclose(metrics["net/loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["net/grad_norm"], np.sqrt((grad_w**2).sum() + grad_b**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["net/update_norm"], 0.1 * metrics["net/grad_norm"], rtol=1e-5)
    assert int(new.step) == 1 and float(metrics["finite"]) == 1.0


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_the_plain_step(plain, parts):
    step, state = jax.jit(toy.step(accumulate=parts)), toy.fresh()
    for n in range(4):
        state, metrics = step(state, toy.batch(n))
        close(metrics, plain[1][n])
    close((state.params, state.opt, state.ema), (plain[0].params, plain[0].opt, plain[0].ema))


def test_accumulation_keeps_mutable_state_moving():
    def loss(params, state, key, batch, step):
        return params["net"]["w"] ** 2, Aux({}, {"net": {"seen": state["net"]["seen"] + batch["x"].shape[0]}})

    updates = [Update("net", loss, optax.sgd(0.1))]
    state = init_state({"net": {"w": jnp.ones(())}}, updates, {}, jax.random.key(0), {"net": {"seen": jnp.zeros(())}})
    state, _ = jax.jit(make_train_step(updates, {}, accumulate=4))(state, toy.batch(0))
    assert float(state.state["net"]["seen"]) == toy.B


def test_sharded_jit_is_one_device(plain):
    mesh = make_mesh()
    assert mesh.devices.size == 4
    step, state = jax.jit(toy.step()), replicate(toy.fresh(), mesh)
    for n in range(4):
        state, metrics = step(state, shard_batch(toy.batch(n), mesh))
        close(metrics, plain[1][n])
    close((state.params, state.opt, state.ema), (plain[0].params, plain[0].opt, plain[0].ema))


def test_sharded_accumulation_is_one_device(plain):
    mesh = make_mesh()
    state = replicate(toy.fresh(), mesh)
    state, metrics = jax.jit(toy.step(accumulate=2))(state, shard_batch(toy.batch(0), mesh))
    close(metrics, plain[1][0])


def test_pmap_is_one_device(plain):
    step = jax.pmap(toy.step(axis_name="data"), axis_name="data", in_axes=(None, 0), out_axes=(None, None))
    state = toy.fresh()
    for n in range(4):
        split = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), toy.batch(n))
        state, metrics = step(state, split)
        close(metrics, plain[1][n])
    close((state.params, state.opt, state.ema), (plain[0].params, plain[0].opt, plain[0].ema))


def test_multi_step_is_the_steps_one_by_one(plain):
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *[toy.batch(n) for n in range(4)])
    state, metrics = jax.jit(make_multi_step(toy.step(), 4))(toy.fresh(), stacked)
    close((state.params, state.ema), (plain[0].params, plain[0].ema))
    close(metrics["net/loss"], np.array([m["net/loss"] for m in plain[1]]))
    with pytest.raises(ValueError, match="allowed: 3"):
        make_multi_step(toy.step(), 3)(toy.fresh(), stacked)


def two_networks(every=1, scale=1.0):
    """`gen` and `disc` read each other's parameter; both report the noise that their key draws."""

    def disc_loss(params, state, key, batch, step):
        return (params["disc"] - params["gen"]) ** 2, Aux({"draw": jax.random.normal(key), "gen": params["gen"]})

    def gen_loss(params, state, key, batch, step):
        return scale * (params["gen"] + params["disc"]) ** 2, Aux(
            {"draw": jax.random.normal(key), "disc": params["disc"]}
        )

    updates = [Update("disc", disc_loss, optax.sgd(0.25)), Update("gen", gen_loss, optax.sgd(0.25), every)]
    params = {"disc": jnp.array(4.0), "gen": jnp.array(2.0), "frozen": jnp.array(1.0)}
    averages = {"gen": {"half": Ema(decay=0.5)}}
    return make_train_step(updates, averages), init_state(params, updates, averages, jax.random.key(0))


def test_updates_share_the_key_and_see_earlier_ones():
    step, state = two_networks()
    state, metrics = jax.jit(step)(state, {})
    assert float(metrics["disc/draw"]) == float(metrics["gen/draw"])
    assert float(metrics["disc/gen"]) == 2.0 and float(state.params["disc"]) == 3.0  # 4 - .25 * 2 (4 - 2)
    assert float(metrics["gen/disc"]) == 3.0 and float(state.params["gen"]) == -0.5  # 2 - .25 * 2 (2 + 3)
    assert float(state.params["frozen"]) == 1.0
    assert float(state.ema["gen"]["half"]) == 0.75


def test_what_losses_share_is_computed_once_and_pulled_back():
    """`forward` counts its calls; gradients are those of losses that do the shared work themselves, micro-batches too."""
    calls = []

    def forward(params, key, batch, step):
        calls.append(1)
        return jnp.sin(params["gen"]["w"] * batch["x"])

    def fake(params, key, batch, step):
        return batch["shared"] if "shared" in batch else forward(params, key, batch, step)

    def disc_loss(params, state, key, batch, step):
        made = fake(params, key, batch, step)
        return ((params["disc"]["w"] * made - batch["x"]) ** 2).mean(), Aux({})

    def gen_loss(params, state, key, batch, step):  # reads its parameters beside the shared part too
        made = fake(params, key, batch, step)
        return ((params["disc"]["w"] * made + params["gen"]["w"]) ** 2).mean(), Aux({})

    def train(shared, accumulate=1, every=1):
        updates = [Update("disc", disc_loss, optax.sgd(0.1)),
                   Update("gen", gen_loss, optax.sgd(0.1), every, forward if shared else None)]
        params = {"disc": {"w": jnp.array(0.7)}, "gen": {"w": jnp.array(0.4)}}
        step = jax.jit(make_train_step(updates, {}, accumulate=accumulate))
        state = init_state(params, updates, {}, jax.random.key(0))
        calls.clear()
        for n in range(3):
            state, metrics = step(state, {"x": jnp.linspace(0.1, 1.0, 4) + n})
        return state.params, metrics, len(calls)

    (alone, metrics, twice), (once, same, count) = train(False), train(True)
    assert twice == 2 * count  # in the program's text, however often it is traced
    assert abs(float(alone["gen"]["w"]) - 0.4) > 0.01
    close(once, alone)
    close(same, metrics)
    close(train(True, accumulate=2)[0], alone)
    close(train(True, every=2)[0], train(False, every=2)[0])
    with pytest.raises(ValueError, match="two Updates of a step have a forward"):
        make_train_step([Update("gen", gen_loss, optax.sgd(0.1), 1, forward)] * 2, {})


def test_every_skips_and_says_so():
    step, state = two_networks(every=3)
    step, moved, losses = jax.jit(step), [], []
    for _ in range(7):
        before = float(state.params["gen"])
        state, metrics = step(state, {})
        moved.append(float(state.params["gen"]) != before)
        losses.append(float(metrics["gen/loss"]))
        assert float(metrics["finite"]) == 1.0
    assert moved == [True, False, False, True, False, False, True]
    assert np.isnan(losses).tolist() == [not m for m in moved]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_bad_update_undoes_the_whole_step(scale):
    """The second update is bad, and the first one's new parameters must not stay either."""
    step, state = two_networks(scale=scale)
    new, metrics = jax.jit(step)(state, {})
    assert float(metrics["finite"]) == 0.0
    toy.same(new._replace(step=state.step), state)
    assert int(new.step) == 1


def test_a_bad_gradient_behind_a_good_loss_is_seen():
    loss = lambda params, state, key, batch, step: (jnp.sqrt(jnp.abs(params["net"])), Aux({}))
    updates = [Update("net", loss, optax.sgd(0.1))]
    state = init_state({"net": jnp.zeros(())}, updates, {}, jax.random.key(0))
    _, metrics = jax.jit(make_train_step(updates, {}))(state, {})
    assert float(metrics["net/loss"]) == 0.0 and float(metrics["finite"]) == 0.0


def test_no_retrace():
    traces = []

    def loss(*args):
        traces.append(1)
        return toy.loss(*args)

    step = jax.jit(make_train_step([Update("net", loss, optax.adam(1e-2))], toy.AVERAGES), donate_argnums=0)
    state = toy.fresh()
    for n in range(3):
        state, _ = step(state, toy.batch(n))
        if n == 0:
            first = len(traces)
    assert len(traces) == first == 1


def test_names_of_updates():
    loss, tx = toy.loss, optax.sgd(0.1)
    assert update_names([Update("d", loss, tx), Update("g", loss, tx), Update("d", loss, tx, 16)]) == ["d", "g", "d:2"]


def test_wrong_words():
    with pytest.raises(ValueError, match="no updates"):
        make_train_step([], {})
    with pytest.raises(ValueError, match="every=0"):
        make_train_step([Update("net", toy.loss, optax.sgd(0.1), 0)], {})
    with pytest.raises(ValueError, match="accumulate is 0"):
        toy.step(accumulate=0)
    with pytest.raises(ValueError, match="multiple of 3"):
        toy.step(accumulate=3)(toy.fresh(), toy.batch(0))
    with pytest.raises(ValueError, match="allowed: net"):
        init_state({"net": jnp.ones(())}, [Update("nte", toy.loss, optax.sgd(0.1))], {}, jax.random.key(0))
    with pytest.raises(ValueError, match="multiple of 4"):
        shard_batch({"x": np.zeros((6, 2))}, make_mesh())
