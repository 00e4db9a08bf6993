"""Twenty steps on four devices are the twenty steps of one; what lies where, and what goes between; the words refused."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import build, fit, objective, tables, training
from jaxdiff.facts import Facts
from jaxdiff.training import AXIS, Layout, Update, compiled_step, init_state, make_layout, make_mesh, make_train_step
from jaxdiff.types import Aux
from tests.conftest import load
from tests.training import toy

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS, B = 20, 8
SMALL = 64  # elements from which an array is split here: the U-Net has little more
GRID, SPLIT, PMAP = (Layout(make_mesh()), Layout(make_mesh(fsdp=2), min_size=SMALL), make_layout("pmap"))
WAYS = {"accumulate 4": (None, 4), "mesh 4 x 1": (GRID, 1), "mesh 2 x 2": (SPLIT, 1), "pmap 4": (PMAP, 1)}


class Unet:
    """A class-conditional U-Net of 8x8 pictures with attention, as configs/digits.py makes it, and its step and data."""

    def __init__(self, dtype="float32", remat=False):
        self.config = load("digits", "smoke", network__dropout=0.0, network__dtype=dtype, network__remat=remat,
                           optimizer__eps=1e-6, optimizer__learning_rate=1e-3)
        self.known = known = Facts((8, 8, 1), 10, 17, "image")
        self.net = build.network(self.config, known)
        self.loss = objective.loss(self.config, self.net, known).losses["denoiser"]
        transform = tables.call(training.optimizer, self.config.optimizer, "optimizer", total_steps=STEPS).transform
        self.updates = [Update("denoiser", self.loss, transform)]
        self.ema = {"denoiser": {"ema": training.Ema(decay=0.9)}}
        # no zeros, so that every parameter has a gradient at once
        shapes = jax.eval_shape(lambda key: build.init_params(self.config, self.net, known, key), jax.random.key(0))
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)

    def fresh(self):
        return init_state({"denoiser": self.params}, self.updates, self.ema, jax.random.key(2))

    def step(self, layout, accumulate=1):
        axis_name = None if layout is None else layout.axis_name
        return make_train_step(training.gathered(self.updates, layout), self.ema, axis_name, accumulate)

    @staticmethod
    def batch(n):
        rng = np.random.default_rng(n)
        x = rng.uniform(-1, 1, (B, 8, 8, 1)).astype(np.float32)
        return {"x": x, "label": rng.integers(0, 10, B, np.int32), "index": np.arange(B, dtype=np.int32)}


@pytest.fixture(scope="module")
def unet():
    return Unet()


def trained(program, state, layout):
    """`(state, losses)` after STEPS steps."""
    losses = []
    for n in range(STEPS):
        state, metrics = program(state, Unet.batch(n) if layout is None else training.place_batch(Unet.batch(n), layout))
        losses.append(float(metrics["denoiser/loss"]))
    return state, losses


@pytest.fixture(scope="module")
def alone(unet):
    """One device: what every other way must give."""
    return trained(jax.jit(unet.step(None), donate_argnums=0), unet.fresh(), None)


@pytest.fixture(scope="module")
def spread(unet):
    """`way -> (program or None, state, losses)`, each trained once."""
    held = {}

    def of(way):
        if way not in held:
            layout, accumulate = WAYS[way]
            state = unet.fresh() if layout is None else training.place_state(unet.fresh(), layout)
            program = compiled_step(unet.step(layout, accumulate), state, layout)
            if way.startswith("mesh"):  # a program once compiled takes only what lies as it was told: its own state again
                program = program.lower(state, training.place_batch(Unet.batch(0), layout)).compile()
            held[way] = (program, *trained(program, state, layout))
        return held[way]

    return of


def close(a, b, tolerance=1e-5):
    plain = lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(plain(x), plain(y), rtol=0, atol=tolerance), a, b)


@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps_are_those_of_one_device(way, unet, alone, spread):
    _, state, losses = spread(way)
    assert int(state.step) == STEPS
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (alone[0].params["denoiser"], unet.params)),
                                                          strict=True)) > 5e-3  # it has gone somewhere
    close(state.params, alone[0].params)
    close(state.ema, alone[0].ema)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5, atol=1e-5)
    assert {x.dtype for x in jax.tree.leaves((state.params, state.ema))} == {np.dtype("float32")}


def bytes_on(device, tree):
    return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)


@pytest.mark.parametrize("part", ["params", "opt", "ema"])
def test_fsdp_halves_what_a_device_holds(part, spread):
    """All but the arrays below `min_size`, on every device alike; without fsdp each holds everything."""
    split, whole = (getattr(spread(way)[1], part) for way in ("mesh 2 x 2", "mesh 4 x 1"))
    total = sum(x.nbytes for x in jax.tree.leaves(whole))
    small = sum(x.nbytes for x in jax.tree.leaves(whole) if x.size < SMALL or x.size % 2)
    for device in jax.devices():
        assert bytes_on(device, whole) == total
        assert bytes_on(device, split) == small + (total - small) // 2 < 0.56 * total


def collectives(text):
    """`[(kind, elements)]` of a compiled program."""
    found = []
    for line in text.splitlines():
        seen = re.search(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", line)
        if seen:
            shapes = [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\w+\[([\d,]*)\]", seen[1])]
            found.append((seen[2], sum(map(math.prod, shapes))))
    return found


def test_between_data_parallel_devices_go_gradients_and_metrics_alone(unet, spread):
    count = sum(x.size for x in jax.tree.leaves(unet.params))
    found = collectives(spread("mesh 4 x 1")[0].as_text())
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert count <= sum(size for _, size in found) <= count + 8


def test_with_fsdp_parameters_are_gathered_once_and_no_feature_map_is_sent(unet, spread):
    """What is gathered are the split parameters, each once; the rest of the messages are sums."""
    program, state, _ = spread("mesh 2 x 2")
    split = sum(x.size for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated)
    found = collectives(program.as_text())
    assert sum(size for kind, size in found if kind == "all-gather") == split > 0
    assert {kind for kind, _ in found} - {"all-gather"} <= {"all-reduce", "reduce-scatter"}


@pytest.mark.parametrize("layout", [SPLIT, PMAP], ids=["mesh", "pmap"])
def test_accumulation_and_several_steps_a_dispatch(layout):
    """Twenty steps of the toy: two micro-batches each, five steps a dispatch, where a device holds one example of each."""
    layout = layout._replace(min_size=0)
    state = training.place_state(toy.fresh(), layout)
    program = compiled_step(toy.step(axis_name=AXIS if layout.kind == "pmap" else None, accumulate=2), state, layout, 5)
    want, plain, losses = toy.fresh(), jax.jit(toy.step()), []
    for n in range(0, STEPS, 5):
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *(toy.batch(n + i) for i in range(5)))
        state, metrics = program(state, training.place_batch(stacked, layout, axis=1))
        for i in range(5):
            want, one = plain(want, toy.batch(n + i))
            losses.append((float(metrics["net/loss"][i]), float(one["net/loss"])))
    close(state, want)
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)


def test_remat_and_bfloat16_keep_a_float32_state():
    half = Unet(dtype="bfloat16", remat=True)
    state = training.place_state(half.fresh(), SPLIT)
    lowered = compiled_step(half.step(SPLIT), state, SPLIT).lower(state, training.place_batch(Unet.batch(0), SPLIT))
    text = lowered.as_text()
    assert re.search(r"convolution.*bf16>", text) and "optimization_barrier" in text
    new = lowered.out_info[0]
    assert {x.dtype.name for x in jax.tree.leaves((new.params, new.ema))} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(new.opt)} == {"float32", "int32"}  # int32: the optimizer's count


@pytest.mark.parametrize("into", [None, GRID, PMAP, Layout(make_mesh(fsdp=4), min_size=0)],
                         ids=["one device", "mesh 4 x 1", "pmap", "mesh 1 x 4"])
def test_a_checkpoint_fits_any_layout(into, tmp_path):
    """Saved by a grid of 2 x 2 after 4 steps: the same arrays come back, and the same batches follow."""
    options = {"log_every": 2, "checkpoint_every": 4, "progress": False}
    layout = Layout(make_mesh(fsdp=2), min_size=0)
    first = training.train(toy.step(), toy.fresh(), toy.batches, tmp_path, 4, layout=layout, **options)
    like = toy.fresh(seed=1) if into is None else training.place_state(toy.fresh(seed=1), into)
    toy.same(training.restore(tmp_path, like=like).tree, first.state)
    starts = []

    def batches(start):
        starts.append(start)
        return toy.batches(start)

    step = toy.step(axis_name=AXIS if into is PMAP else None)
    last = training.train(step, toy.fresh(seed=1), batches, tmp_path, 8, layout=into, **options).state
    assert starts == [4]
    whole, plain = toy.fresh(), jax.jit(toy.step())
    for n in range(8):
        whole, _ = plain(whole, toy.batch(n))
    close(last, whole)


def points(workdir, words="", **overrides):
    """The last state of a small run of configs/gaussians25.py."""
    given = {"optimizer__eps": 1e-6, "optimizer__decay": "constant", "train__preview": 0} | overrides
    return fit.train(load("gaussians25", f"smoke{words}", **given), workdir, progress=False).state


def test_a_run_changes_its_layout_as_it_goes(tmp_path):
    """Through the configs: pmap, then a grid with fsdp, then a grid by rules, beside a run that never changed."""
    want = points(tmp_path / "one", train__steps=6, parallel__data=4)
    for steps, how in ((2, {"parallel__kind": "pmap", "train__preview": 6, "train__steps_per_dispatch": 2}),
                       (4, {"parallel__fsdp": 2, "parallel__min_size": 0}),
                       (6, {"parallel__fsdp": 4, "parallel__rules": r"params/.*(in|out)_\d/kernel:-1,.:none"})):
        got = points(tmp_path / "two", train__steps=steps, **how)
    close(got, want)
    split = {f"{name}/{part}" for name, layer in got.params["denoiser"].items() for part, x in layer.items()
             if isinstance(x, jax.Array) and x.sharding.shard_shape(x.shape) != x.shape}
    assert split == {f"{way}_{i}/kernel" for way in ("in", "out") for i in range(2)}
    assert got.params["denoiser"]["in_0"]["kernel"].sharding.shard_shape((16, 16)) == (16, 4)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((got.ema, got.opt)))
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "denoiser/loss" in row] == [2, 4, 6]
    assert [p.name for p in (tmp_path / "two" / "samples").iterdir()] != []


def adversaries(axis_name=None):
    """A toy GAN with statistics: two updates, the second at every other step, that share `forward`; step and first state."""

    def forward(params, key, batch, step):
        return jnp.sin(batch["x"] @ params["gen"]["w"])

    def judged(params, batch, sign):
        made = batch["shared"] if "shared" in batch else forward(params, None, batch, None)
        return sign * jnp.mean((params["disc"]["w"] * made - batch["y"]) ** 2)

    def gen_loss(params, state, key, batch, step):
        old = state["gen"]
        new = {"mean": 0.5 * old["mean"] + batch["x"].mean(0), "pool": batch["x"][:2], "seen": old["seen"] + 1}
        return judged(params, batch, 1), Aux({}, {"gen": new})

    updates = [Update("disc", lambda params, state, key, batch, step: (judged(params, batch, -1), Aux({})), optax.sgd(0.1)),
               Update("gen", gen_loss, optax.adam(1e-2, eps=1e-6), 2, forward)]
    params = {"disc": {"w": jnp.array(0.7)}, "gen": {"w": jnp.array([0.4, -0.2, 0.3])}}
    state = {"gen": {"mean": jnp.zeros(3), "pool": jnp.zeros((2, 3)), "seen": jnp.zeros((), jnp.int32)}}
    step = make_train_step(updates, {}, axis_name, drawn=("pool",))
    return step, init_state(params, updates, {}, jax.random.key(0), state)


@pytest.mark.parametrize("layout", [SPLIT, PMAP], ids=["mesh", "pmap"])
def test_two_networks_and_mutable_state(layout):
    """Statistics are averaged over devices; examples are one device's: a mean of them would be none."""
    plain, one = adversaries()
    step, state = adversaries(AXIS if layout.kind == "pmap" else None)
    state, plain = training.place_state(state, layout._replace(min_size=0)), jax.jit(plain)
    program = compiled_step(step, state, layout._replace(min_size=0))
    for n in range(5):
        batch = {"x": toy.batch(n)["x"], "y": toy.batch(n)["y"]}
        state, metrics = program(state, training.place_batch(batch, layout))
        one, expected = plain(one, batch)
        close(metrics, expected)
    close(state, one)  # the pool is the first two examples of the batch, which the first device has
    assert int(state.state["gen"]["seen"]) == 3 and float(jnp.abs(state.params["gen"]["w"] - 0.4).max()) > 0.02


def test_a_codebooks_pool_is_drawn():
    config = load("autoencoder", "data=digits,kind=vq,smoke")
    known = Facts((8, 8, 1), 10, 17, "image")
    made = objective.loss(config, build.network(config, known), known)
    assert made.drawn == ("pool",) and set(made.state["autoencoder"]) == {"counts", "pool"}


@pytest.mark.parametrize("how, words", [
    ({"kind": "shard"}, "parallel.kind is 'shard'; allowed: mesh, pmap"),
    ({"fsdp": 3}, "parallel.fsdp is 3 and there are 4 devices; allowed: a divisor of 4"),
    ({"fsdp": 0}, "parallel.fsdp is 0"),
    ({"data": 2}, "allowed: data x fsdp = 4, or data=None"),
    ({"data": 8}, "parallel.data is 8 and there are 4 devices"),
    ({"kind": "pmap", "fsdp": 2}, "mend: parallel.kind=mesh"),
    ({"rules": ("kernel",)}, "parallel.rules has 'kernel'; allowed: REGEX:DIM"),
    ({"rules": ("kernel:x",)}, "allowed: REGEX:DIM"),
    ({"rules": ("ker(nel:1",)}, "a regular expression of Python before the colon"),
    ({"min_size": -1}, "parallel.min_size is -1; allowed: 0 or more elements"),
    ({"fsdp": "two"}, "parallel.fsdp is 'two'; allowed: a whole number"),
])
def test_words(how, words):
    with pytest.raises(ValueError) as error:
        tables.call(make_layout, how, "parallel")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("rule, words", [
    ("nothing:0", "the rule 'nothing:0' of parallel.rules decides of no array"),
    ("net/w:1", "the rule 'net/w:1' splits params/net/w of shape [3] along 1"),
    ("net/w:0", "that parallel.fsdp=2 divides"),
])
def test_rules_that_do_not_fit(rule, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        training.state_shardings(toy.fresh(), make_mesh(fsdp=2), (rule,))


def test_refused_before_a_file_is_written(tmp_path):
    for how in ({"parallel__fsdp": 3}, {"parallel__fsdp": 2, "parallel__rules": "nothing:0"}, {"data__batch_size": 6}):
        with pytest.raises(ValueError):
            points(tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_pmap_is_of_one_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=re.escape("parallel.kind is 'pmap' with 2 processes")):
        make_layout("pmap")
