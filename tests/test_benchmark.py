"""`jaxdiff bench`: exact FLOP counts, what it says of a tiny config, the peer that is the same network, wrong words."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, interop, networks
from jaxdiff.benchmark import peers, profiling, report, stopwatch
from jaxdiff.hardware import flops
from jaxdiff.hardware.chips import chip
from tests.conftest import ROOT, load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

POINTS = f"--config={ROOT}/configs/gaussians25.py:smoke"
DIGITS = f"--config={ROOT}/configs/digits.py:smoke"
TINY = (DIGITS, "--config.network.patch_size=1", "--config.network.channel_mult=1,2")  # 8x8, then 4x4 with attention
spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def test_products_by_hand():
    """2 x multiply-adds of a matrix product, a batched one, and one under jit, vmap and scan."""
    assert flops.count(jnp.matmul, spec(3, 4), spec(4, 5)) == 2 * 3 * 4 * 5
    assert flops.count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), spec(2, 3, 4), spec(2, 5, 4)) == 2 * 2 * 3 * 5 * 4
    assert flops.count(jax.vmap(jax.jit(jnp.matmul)), spec(7, 3, 4), spec(7, 4, 5)) == 7 * 120
    ten = lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=10)[0]
    assert flops.count(ten, spec(3, 4), spec(4, 4)) == 10 * 2 * 3 * 4 * 4
    either = lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)
    assert flops.count(either, spec(3, 4), spec(4, 4)) == 2 * 2 * 3 * 4 * 4
    assert flops.count(lambda x: jnp.exp(x) + jnp.sort(x), spec(100)) == 0
    chosen = lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)
    assert flops.count(chosen, spec(4, 4)) == 2 * 4**3


def test_a_loop_of_unknown_length_is_refused():
    loop = lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    with pytest.raises(ValueError, match="while loop with products"):
        flops.count(loop, spec(4, 4), spec(4, 4))
    assert flops.count(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x * 2, x), spec()) == 0


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_convolutions_by_hand(stride, groups):
    """Forward, and the gradients with respect to kernel and input: each as many multiply-adds as the forward pass."""
    x, kernel = spec(2, 8, 6, 4), spec(3, 3, 4 // groups, 12)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), feature_group_count=groups,
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * 2 * (8 // stride) * (6 // stride) * 12 * (4 // groups) * 3 * 3
    assert flops.count(conv, x, kernel) == forward
    loss = lambda x, kernel: conv(x, kernel).sum()
    for argnums, gradients in ((0, 1), (1, 1), ((0, 1), 2)):
        # the sum's gradient does not need the forward pass, but it is written down
        assert flops.count(jax.grad(loss, argnums), x, kernel) == (1 + gradients) * forward


def test_a_training_step_of_an_mlp():
    """Three times the forward pass in interior layers, twice in those that read the input or the time, for which no gradient
    is asked; Fourier features, which are no parameters, go forward only."""
    config = load("gaussians25", "smoke", condition__label=True)
    known = build.facts(config, build.source(config, "train"))
    size = config.data.batch_size
    net = build.network(config, known)
    shapes = jax.eval_shape(lambda: build.init_params(config, net, known, jax.random.key(0)))
    work = lambda *layers: sum(2 * size * leaf.size for tree in layers for leaf in jax.tree.leaves(tree) if leaf.ndim == 2)
    shapes.pop("class")  # a table: rows are looked up
    fourier = 2 * size * 2 * net.fourier_features // 2
    first = work(shapes["stem"], shapes["time"]["in"])
    assert report.model_flops(config, known) == 3 * work(shapes) - first + fourier


def test_recomputation_is_not_counted():
    """The count is of the model: the same with `remat` and without, and several micro-batches are the whole batch."""
    def of(**options):
        config = load("digits", "smoke", **options)
        known = build.facts(config, build.source(config, "train"))
        return report.model_flops(config, known)

    assert of() == of(network__remat=True) == of(train__accumulate=2)
    layer = lambda w, x: jnp.tanh(x @ w).sum()
    again = flops.count(jax.grad(jax.checkpoint(layer)), spec(4, 4), spec(3, 4))
    assert again == 1.5 * flops.count(jax.grad(layer), spec(4, 4), spec(3, 4))  # as written it does count


def test_utilisation():
    """Model FLOP/s over the peak: published for a chip, given for any other, unknown for a CPU."""
    v5e = chip("TPU v5 lite")
    assert flops.Use(2e9, 9850.0, v5e.peak("bfloat16")).utilisation == pytest.approx(0.1)
    use = flops.Use(3e9, 100.0, flops.peak("float32", 0.5, devices=2))
    assert use.utilisation == pytest.approx(0.3) and use.per_second == 3e11
    assert str(use) == "3 GFLOP an example, 300 GFLOP/s: 30.00 % of the peak, 1 TFLOP/s"
    unknown = flops.Use(3e9, 100.0, flops.peak("float32"))
    assert unknown.utilisation is None and unknown.figures()["peak_flops"] is None and "--peak_tflops=X" in str(unknown)


# --- timings ------------------------------------------------------------------------------------------------------------


def test_calls_take_turns():
    """a, b, a, b, ..., at least five of each after one unmeasured; a ratio is the median of neighbours' ratios."""
    made = []
    times = stopwatch.in_turn([lambda: made.append("a"), lambda: made.append("b")], 1e-9)
    assert made == ["a", "b"] * 6 and [len(row) for row in times] == [5, 5]
    found = stopwatch.Ratio(0.5, stopwatch.timing([1.0, 2.0, 3.0, 4.0, 5.0]), stopwatch.timing([2.0] * 5)).over(10)
    assert found.a == (0.3, 0.2, 0.4, 5)
    assert found.said("a", "b") == "0.500 x  a: 0.3 s (0.2 to 0.4); b: 0.2 s (0.2 to 0.2); 5 pairs"
    assert found.figures() == {"ratio": 0.5, "pairs": 5, "seconds": [0.3, 0.2], "quartiles": [[0.2, 0.4], [0.2, 0.2]]}


def test_training_alone_with_a_trace(call, tmp_path):
    """Rates, FLOPs, utilisation of the peak that is given, memory; a trace and its table; one JSON object on stdout."""
    words = (POINTS, "--batch_size=4", "--seconds=0.01", "--what=train", "--peak_tflops=0.5", "--json")
    code, out, err = call("bench", *words, f"--profile={tmp_path}/trace")
    assert code == 0, err
    found = json.loads(out)
    assert set(found) >= {"config", "device", "train", "flops", "memory", "profile"}
    assert not {"data", "pipeline", "sampler", "peer"} & set(found) and found["devices"] == jax.device_count()
    train, use = found["train"], found["flops"]
    assert train["repeats"] >= 5 and train["quartiles"][0] <= train["seconds"] <= train["quartiles"][1]
    assert train["examples_per_second"] == pytest.approx(4 / train["seconds"]) and train["compile_seconds"] > 0
    assert use["flops_per_second"] == pytest.approx(use["flops_per_example"] * train["examples_per_second"])
    assert use["utilisation"] == pytest.approx(use["flops_per_second"] / use["peak_flops"])
    assert found["memory"]["temporaries"] > 0 and found["memory"]["peak_process"] > 1e7
    assert (tmp_path / "trace").is_dir() and list(tmp_path.rglob("perfetto_trace.json.gz"))
    parts = found["profile"]["seconds_per_step"]
    assert sum(parts.values()) > 0 and "matrix products" in parts and "matrix products, backward" in parts
    assert "matrix products" in err and "examples/s at batch 4" in err


def test_training_on_all_devices(call, monkeypatch):
    """As training lies on them, here by pmap, two steps a dispatch: rates of the global batch, the peak of all devices."""
    monkeypatch.setattr(jax, "device_count", lambda: len(jax.devices()))
    words = ("--config.parallel.kind=pmap", "--config.train.steps_per_dispatch=2", "--peak_tflops=1")
    code, out, err = call("bench", POINTS, *words, "--batch_size=8", "--what=train", "--seconds=0.01", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["devices"] == 4 and found["flops"]["peak_flops"] == 4e12
    assert found["train"]["examples_per_second"] == pytest.approx(8 / found["train"]["seconds"])
    assert int(err.split(" steps;")[0].split()[-1]) % 2 == 0


def test_data_alone(call):
    code, out, err = call("bench", POINTS, "--seconds=0.01", "--what=data")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["data"] and "from the pipeline alone" in out


def test_parts_of_a_program():
    """Convolutions are told apart by what they are for, in a program compiled here."""

    def loss(kernels, x):
        conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (conv(jnp.tanh(conv(x, kernels[0])), kernels[1]) ** 2).sum()

    kernels = (spec(3, 3, 2, 4), spec(3, 3, 4, 5))
    program = jax.jit(jax.grad(loss)).lower(kernels, spec(2, 8, 8, 2)).compile().as_text()
    kinds = [kind for kind in profiling.parts_of(program).values() if kind.startswith("convolutions")]
    assert sorted(kinds) == ["convolutions"] * 2 + ["convolutions, input gradient"] + ["convolutions, weight gradient"] * 2


# --- the peer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [{"resample_in_block": True, "scale_shift": True, "num_classes": 3, "head_channels": 8},
                                   {"resample_in_block": False, "scale_shift": False, "head_channels": 0}])
def test_the_twin_is_the_same_network(style):
    """Narrow levels, whose groups and heads are not the peer's defaults, with attention on one of two: ADM's and DDPM's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    net = networks.UNet(channels=8, channel_mult=(1, 3), num_blocks=1, attention_resolutions=(4,), out_channels=2, **style)
    peer = peers.twin(net, (8, 8, 1))
    rng = np.random.default_rng(0)
    x, t, label = rng.standard_normal((3, 8, 8, 1)).astype(np.float32), np.array([0.5, 3.0, 900.0], np.float32), [0, 2, 3]
    cond = {"label": jnp.asarray(label)} if net.num_classes else None
    got = jax.jit(net.apply)({"params": interop.unet_params(peer)}, x, t, cond)
    with torch.no_grad():
        want = peer(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t),
                    class_labels=torch.tensor(label) if cond else None).sample
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_beside_torch(call, monkeypatch):
    """Equal answers, equal losses over a step of Adam, ours split over four devices, and the ratios of both."""
    monkeypatch.setattr(jax, "device_count", lambda: len(jax.devices()))
    monkeypatch.setenv("NPROC", "1")
    pytest.importorskip("diffusers")
    code, out, err = call("bench", *TINY, "--compare=torch", "--seconds=0.01", "--json")
    assert code == 0, err
    found = json.loads(out)
    peer = found["peer"]
    assert peer["largest_difference"] < 1e-4 < peer["largest_answer"] and peer["threads"] == peers.threads()
    assert peer["devices"] == 4
    ours, theirs = peer["losses"]
    assert ours == pytest.approx(theirs, abs=1e-4) and abs(ours[0] - ours[1]) > 1e-3
    for name in ("forward", "step"):
        assert found[name]["ratio"] > 0 and found[name]["pairs"] >= 5 and found[name]["flops"] > 0
    assert found["step"]["flops"] > 2 * found["forward"]["flops"] and "train" not in found
    assert "diffusers 0." in err and "step " in err


WRONG = {
    "what": ((POINTS, "--what=trian"), ("--what is 'trian'", "train, sample, data")),
    "nothing": ((POINTS, "--what="), ("--what is ''",)),
    "seconds": ((POINTS, "--seconds=0"), ("--seconds is 0", "above 0")),
    "seconds that are no number": ((POINTS, "--seconds=nan"), ("--seconds is nan",)),
    "peak": ((POINTS, "--peak_tflops=-1"), ("--peak_tflops is -1", "above 0")),
    "profile of data": ((POINTS, "--what=data", "--profile={tmp}/trace"), ("--what=data", "mend: --what=train")),
    "profile in a file": ((POINTS, "--profile={tmp}/file"), ("--profile is", "nothing can be written")),
    "compare": ((POINTS, "--compare=tensorflow"), ("--compare is 'tensorflow'", "torch")),
    "network": ((POINTS, "--compare=torch"), ("network.kind 'mlp'", "unet")),
    "peer by pmap": ((*TINY, "--compare=torch", "--config.parallel.kind=pmap"), ("'pmap'", "allowed: mesh")),
    "patches": ((DIGITS, "--compare=torch"), ("patch_size=2", "allowed: 1")),
    "dtype": ((*TINY, "--compare=torch", "--config.network.dtype=bfloat16"), ("dtype=bfloat16", "allowed: float32")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(name, call, tmp_path):
    """One line, exit code 2, nothing measured."""
    words, parts = WRONG[name]
    (tmp_path / "file").touch()
    code, out, err = call("bench", *(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_blocks_that_differ_by_level_have_no_twin():
    net = networks.UNet(num_blocks=(1, 2, 1))
    with pytest.raises(ValueError, match=r"num_blocks=\(1, 2, 1\); allowed: one number"):
        peers.check(load("digits", "smoke"), net)


def test_without_torch(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = call("bench", *TINY, "--compare=torch")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "needs torch" in err and "pip install" in err


# --- launch/parts.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    """The script, imported."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    return importlib.import_module("parts")


def test_parts_of_a_step_beside_torch(parts, capsys, monkeypatch):
    """A row for each part of a level, which the script has compared before it times it."""
    monkeypatch.setenv("NPROC", "1")  # torch's threads wait for each other by spinning, beside a second worker for long
    parts.main(["--channels", "8", "--sides", "4", "--batch", "2", "--head_channels", "4", "--seconds", "0.001"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[3:]]
    names = [row[0].strip() for row in rows]
    assert names[:3] == ["convolution", "convolution, input gradient", "convolution, weight gradient"]
    assert names[-1] == "attention, 2 heads, both ways" and len(set(names)) == 11
    assert all(row[1].strip() == "8 at 4" and all(float(cell) >= 0 for cell in row[2:]) for row in rows)


def test_parts_that_differ_are_not_timed(parts):
    x = np.ones((1, 2, 2, 1), np.float32)
    part = parts.Part("wrong", lambda: x, lambda: parts.torch.tensor(1.01 * x), (0, 1, 2, 3))
    with pytest.raises(RuntimeError, match=r"wrong: the results differ by 0\.01"):
        parts.compare(part, 0.001)
