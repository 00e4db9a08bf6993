"""The command line as a user meets it: files written, words printed, and one line for whatever is wrong."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli import main
from jaxdiff.commands import COMMANDS
from jaxdiff.grammar import parser
from jaxdiff.run import load_run
from jaxdiff.training import steps
from tests.conftest import less_optimized

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIGS = Path(__file__).parent.parent / "configs"
POINTS = f"--config={CONFIGS}/gaussians25.py:smoke"
DIGITS = f"--config={CONFIGS}/digits.py:method=ddpm,smoke"
# what the shared run was trained with
SAME = (POINTS, "--config.condition.label=True", "--config.train.checkpoint_every=2", "--no_evaluate", "--quiet")


@pytest.fixture
def workdir(points_run, tmp_path):
    """A copy of the shared run, to be changed."""
    return shutil.copytree(points_run, tmp_path / "run")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A DDPM on 8x8 digits, for what only pictures and Discrete paths have."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    with less_optimized(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.device_count", lambda: 1)
        assert main(["train", DIGITS, f"--workdir={workdir}", "--no_evaluate", "--quiet"]) == 0
    return workdir


def files(*folders):
    """Every file below, with its size and time of writing."""
    found = [p for folder in folders for p in Path(folder).rglob("*")]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else None for p in found}


def rows(workdir):
    """The logged steps; a last line without its end is still being written."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


# --- help ---------------------------------------------------------------------------------------------------------------


def commands(top, name="jaxdiff"):
    """Every parser of the grammar by what one types."""
    yield name, top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from commands(sub, f"{name} {word}")


def test_help_lists_every_flag(call):
    found = dict(commands(parser()))
    assert {name.split()[1] for name in found if " " in name} == set(COMMANDS)
    for name, one in found.items():
        code, out, err = call(*name.split()[1:], "--help")
        assert (code, err) == (0, ""), name
        for action in one._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{name} {action.dest} has no help"
            for flag in action.option_strings:
                assert flag in out, f"{name} --help does not tell of {flag}"
    assert call("--version")[1].startswith("jaxdiff ")


def test_help_answers_before_jax_is_there():
    program = "import sys, jaxdiff.cli, jaxdiff.grammar; jaxdiff.grammar.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "jaxdiff.cli" in loaded and not {"jax", "numpy", "flax", "orbax", "ml_collections"} & set(loaded)


# --- the walk -----------------------------------------------------------------------------------------------------------


def test_train_again_resumes(call, workdir):
    """The same command does no step more; more steps go on from the checkpoint."""
    before = files(workdir / "checkpoints") | files(workdir / "samples")
    assert rows(workdir) == [2, 4]
    code, out, err = call("train", *SAME, f"--workdir={workdir}")
    assert (code, err) == (0, "") and "trained to step 4" in out
    assert files(workdir / "checkpoints") | files(workdir / "samples") == before and rows(workdir) == [2, 4]
    code, out, _ = call("train", *SAME, f"--workdir={workdir}", "--config.train.steps=6")
    assert code == 0 and "trained to step 6" in out
    assert rows(workdir) == [2, 4, 6] and steps(workdir) == [2, 4, 6]
    after = files(workdir / "checkpoints")
    assert {name: after[name] for name in before if "checkpoints" in name}.items() <= before.items()
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6


def test_train_scores_what_it_trained(call, tmp_path):
    """The progress bar and nothing else on stderr; a table on stdout; scores as JSON without NaN."""
    code, out, err = call("train", POINTS, f"--workdir={tmp_path}", "--config.evaluate.num", "30")
    assert code == 0
    bars = err.strip().replace("\n", "\r").split("\r")
    assert all("| " in bar and "/4 [" in bar for bar in bars)  # tqdm's, and nothing else
    assert bars[-1].startswith("100%") and "loss" in bars[-1] and "steps/s" in bars[-1]
    table = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert table["step"] == "4" and table["n_fake"] == "30" and float(table["frechet"]) > 0
    strict = lambda word: pytest.fail(f"{word} in JSON")
    found = json.loads((tmp_path / "evaluation" / "step_000004.json").read_text(), parse_constant=strict)
    assert found["frechet"] == pytest.approx(float(table["frechet"]), abs=1e-4)
    assert Image.open(tmp_path / "evaluation" / "step_000004.png").size[0] > 500


def test_points_of_ones_own(call, tmp_path):
    """From a file, with a share kept for validation; nothing is known to score them by, and that is no failure."""
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    np.savez(tmp_path / "points.npz", x=x)
    own = (f"--config.data.source=npz:{tmp_path}/points.npz", "--config.data.options.scale=None",
           "--config.data.options.validation=0.2", "--config.train.best_metric=eval/loss", "--config.train.eval_every=2")
    code, out, _ = call("train", POINTS, f"--workdir={tmp_path}/run", "--quiet", *own)
    assert code == 0 and "trained to step 4" in out and "no scores: points of 'npz:" in out
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/loss"] for row in told if "eval/loss" in row}
    assert set(losses) == {2, 4} and all(0 < loss < 10 for loss in losses.values())
    assert min(losses, key=losses.get) in steps(tmp_path / "run")


def test_sample(call, points_run, tmp_path):
    """Arrays in the data's own units, or a picture; a seed is a sample."""
    draw = lambda name, *words: call("sample", f"--workdir={points_run}", f"--out={tmp_path}/{name}", "--num=7", *words)
    code, out, err = draw("a.npz", "--batch_size=5")
    assert (code, err) == (0, "") and f"7 samples: {tmp_path}/a.npz" in out
    held = dict(np.load(tmp_path / "a.npz"))
    assert set(held) == {"samples", "label"}
    assert held["samples"].shape == (7, 2) and held["samples"].dtype == np.float32
    assert held["label"].tolist() == [0, 1, 2, 3, 4, 5, 6] and held["label"].dtype == np.int32
    draw("b.npz", "--batch_size=5")
    draw("c.npz", "--batch_size=5", "--seed=1")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["samples"], held["samples"])
    assert not np.array_equal(np.load(tmp_path / "c.npz")["samples"], held["samples"])
    draw("d.npz", "--label=3, 24", "--sampler=ddim", "--steps=2", "--guidance=2", "--raw", "--step=2")
    assert np.load(tmp_path / "d.npz")["label"].tolist() == [3, 24, 3, 24, 3, 24, 3]
    assert draw("new/e.png")[0] == 0
    assert Image.open(tmp_path / "new" / "e.png").mode == "RGB"


def test_sample_pictures(call, digits_run, tmp_path):
    """A column a class; the network's own range in the arrays."""
    code, _, err = call("sample", f"--workdir={digits_run}", f"--out={tmp_path}/a.png", "--num=20", "--batch_size=20")
    assert (code, err) == (0, "")
    width, height = Image.open(tmp_path / "a.png").size
    assert width > 4 * height and width >= 480
    call("sample", f"--workdir={digits_run}", f"--out={tmp_path}/a.npz", "--num=20", "--batch_size=20", "--label=9")
    held = np.load(tmp_path / "a.npz")
    assert held["samples"].shape == (20, 8, 8, 1) and set(held["label"]) == {9}
    assert 0.1 < np.abs(held["samples"]).mean() < 10


def test_evaluate(call, workdir):
    code, out, err = call("evaluate", f"--workdir={workdir}", "--num=40", "--metrics=points", "--seed=3", "--step=2")
    assert (code, err) == (0, "")
    found = json.loads((workdir / "evaluation" / "step_000002.json").read_text())
    assert (found["step"], found["num"], found["seed"], found["n_fake"], found["modes_of"]) == (2, 40, 3, 40, 25)
    for name in ("frechet", "frechet_floor", "modes", "high_quality", "energy"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines())


def test_likelihood(call, points_run, digits_run):
    """By the ODE in nats; of a Discrete path a bound in bits."""
    code, out, err = call("likelihood", f"--workdir={points_run}", "--num=6")
    assert (code, err) == (0, "")
    value, words = out.split(maxsplit=1)
    assert 0 < float(value) < 20 and "nats (probability-flow ODE, exact trace, n = 6, test split)" in words
    code, out, err = call("likelihood", f"--workdir={digits_run}", "--num=6")
    assert (code, err) == (0, "")
    value, words = out.split(maxsplit=1)
    assert 0 < float(value) < 50 and "bits/dim (variational bound, n = 6, test split)" in words


def test_data(call, tmp_path):
    code, out, err = call("data", "list")
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names[:4] == ["digits", "mnist5k", "emoji", "gaussians25"] and "tfds:NAME" in out
    for name, words in (("digits", "shape (8, 8, 1), 10 classes"), ("gaussians25", "shape (2,), 25 classes")):
        code, out, err = call("data", "show", name, f"--out={tmp_path}/{name}.png", "--num=9", "--split=test")
        assert (code, err) == (0, "") and "9 of" in out and "(test)" in out and words in out
        assert min(Image.open(tmp_path / f"{name}.png").size) > 100
    assert call("data", "prepare", "digits")[:2] == (0, "digits: nothing to prepare\n")


# --- wrong words --------------------------------------------------------------------------------------------------------

TRAIN = ("train", POINTS, "--workdir={new}")
SAMPLE = ("sample", "--workdir={run}", "--out={new}.png")
WRONG = {
    "no command": ((), ("COMMAND",)),
    "unknown command": (("trian",), ("'trian'", "train")),
    "unknown flag": ((*TRAIN, "--stepz=3"), ("--stepz=3", "jaxdiff train --help")),
    "unknown flag of sample": ((*SAMPLE, "--labels=3"), ("--labels=3", "jaxdiff sample --help")),
    "a flag cut short": ((*SAMPLE, "--guid=3"), ("--guid=3",)),
    "config key where none is taken": ((*SAMPLE, "--config.seed=3"), ("--config.seed=3",)),
    "config key without a value": ((*TRAIN, "--config.seed"), ("--config.seed has no value",)),
    "no workdir": (("sample", "--out=a.png"), ("--workdir",)),
    "no config file": (("train", "--config={new}.py", "--workdir={new}"), ("no config at", "configs/digits.py")),
    "config word": (("train", POINTS + ",methud=ddpm", "--workdir={new}"), ("methud=ddpm", "method, steps, smoke")),
    "method": (("train", POINTS + ",method=dppm", "--workdir={new}"), ("method is 'dppm'", "ddpm, iddpm")),
    "config key": ((*TRAIN, "--config.train.setps=3"), ("no key 'train.setps'", "train.steps")),
    "config type": ((*TRAIN, "--config.train.steps=many"), ("train.steps is 'many'", "int")),
    "option type": ((*TRAIN, "--config.network.dropout=much"), ("network.dropout is 'much'", "a number")),
    "optimizer type": ((*TRAIN, "--config.optimizer.b1=much"), ("optimizer.b1 is 'much'", "a number")),
    "path option": ((*TRAIN, "--config.path.beta_max=3"), ("path.beta_max", "'edm'", "sigma_max", "path.beta_max=None")),
    "path kind": ((*TRAIN, "--config.path.kind=vq"), ("path.kind is 'vq'", "vp, subvp, ve")),
    "sampler kind": ((*TRAIN, "--config.sampler.kind=huen"), ("sampler.kind is 'huen'", "heun")),
    "loss of another path": ((*TRAIN, "--config.loss.kind=hybrid"), ("'hybrid'", "path.kind=discrete")),
    "sampler of another path": ((*TRAIN, "--config.sampler.kind=ancestral", "--config.sampler.variance=learned"),
                                ("variance='learned'", "learned_variance")),
    "times of another path": ((*TRAIN, "--config.times.kind=discrete"), ("times.discrete()", "EDM")),
    "data set": ((*TRAIN, "--config.data.source=digitz"), ("data source 'digitz'", "digits, mnist5k")),
    "data option": ((*TRAIN, "--config.data.options.scall=raw"), ("scall", "scale")),
    "data folder": (("train", DIGITS, "--workdir={new}", "--config.data.source=folder:{new}"), ("no such folder",)),
    "batch size 0": ((*TRAIN, "--config.data.batch_size=0"), ("data.batch_size is 0", "multiple of")),
    "batch size for four devices": ((*TRAIN, "--config.data.batch_size=6"), ("data.batch_size is 6", "multiple of 4")),
    "steps 0": ((*TRAIN, "--config.train.steps=0"), ("steps is 0",)),
    "keep 0": ((*TRAIN, "--config.train.keep=0"), ("train.keep is 0",)),
    "metric of no name": ((*TRAIN, "--config.evaluate.metrics=fidd"), ("'fidd'", "frechet")),
    "best metric of no split": ((*TRAIN, "--config.train.best_metric=eval/loss"), ("eval/loss", "validation=0.1")),
    "best metric of no name": (("train", DIGITS, "--workdir={new}", "--config.train.best_metric=loss",
                                "--config.data.options.validation=0.2"), ("'loss'", "eval/loss")),
    "workdir is a file": (("train", POINTS, "--workdir={file}"), ("a file",)),
    "workdir of another config": (("train", *SAME, "--workdir={run}", "--config.network.width=8"),
                                  ("network.width=16", "asks for 8", "another workdir")),
    "workdir without a run": (("sample", "--workdir={new}", "--out={new}.png"), ("no run at",)),
    "checkpoint of no step": ((*SAMPLE, "--step=3"), ("no checkpoint of step 3", "2, 4")),
    "sampler": ((*SAMPLE, "--sampler=huen"), ("'huen'", "heun")),
    "sampler steps": ((*SAMPLE, "--steps=x"), ("--steps", "'x'")),
    "sampler steps 0": ((*SAMPLE, "--steps=0"), ("--steps", "'0'", "from 1")),
    "num 0": ((*SAMPLE, "--num=0"), ("--num", "'0'")),
    "batch 0": ((*SAMPLE, "--batch_size=0"), ("--batch_size",)),
    "seed below 0": ((*SAMPLE, "--seed=-1"), ("--seed", "'-1'")),
    "guidance is no number": ((*SAMPLE, "--guidance=strong"), ("--guidance", "'strong'")),
    "guidance not finite": ((*SAMPLE, "--guidance=nan"), ("guidance scale is nan",)),
    "label out of range": ((*SAMPLE, "--label=25"), ("label '25'", "0 to 24")),
    "label far out of range": ((*SAMPLE, "--label=99999999999999999999"), ("0 to 24",)),
    "label below 0": ((*SAMPLE, "--label=-1"), ("label '-1'", "0 to 24")),
    "label is no number": ((*SAMPLE, "--label=3,cat"), ("label 'cat'", "0 to 24")),
    "suffix of out": (("sample", "--workdir={run}", "--out={new}.jpg"), (".jpg", ".png or .npz")),
    "metric": (("evaluate", "--workdir={run}", "--metrics=frechet"), ("metric is 'frechet'", "points")),
    "inception file": (("evaluate", "--workdir={run}", "--inception={new}"), ("evaluate.inception", "nothing is")),
    "classifier run": (("evaluate", "--workdir={run}", "--classifier={new}"), ("evaluate.classifier", "nothing is")),
    "trace": (("likelihood", "--workdir={run}", "--trace=some"), ("--trace", "exact", "hutchinson")),
    "likelihood of nothing": (("likelihood", "--workdir={new}"), ("no run at",)),
    "shown data set": (("data", "show", "digitz", "--out={new}.png"), ("data source 'digitz'",)),
    "shown split": (("data", "show", "digits", "--split=trian", "--out={new}.png"), ("'trian'", "train, validation, test")),
    "shown suffix": (("data", "show", "digits", "--out={new}.jpg"), (".jpg",)),
    "prepared data set": (("data", "prepare", "digitz"), ("data source 'digitz'",)),
    "benched config": (("bench", "--config={new}.py"), ("no config at",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(name, call, points_run, tmp_path, monkeypatch):
    """Exit code 2, one line on stderr that says what came and what is allowed, nothing on stdout, no file touched."""
    words, parts = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a directory")
    places = {"new": tmp_path / "new", "run": points_run, "file": tmp_path / "file"}
    before = files(tmp_path, points_run)
    code, out, err = call(*(word.format(**places) for word in words))
    assert code == 2, err
    assert out == "" and err.startswith("jaxdiff") and len(err.splitlines()) == 1, err
    for part in parts:
        assert part in err, err
    assert files(tmp_path, points_run) == before


@pytest.fixture
def folder(tmp_path):
    """Twelve grey pictures of two classes."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_unreadable_pictures_are_named(damage, call, folder, tmp_path):
    bad = folder / "dog" / "1.png"
    whole = bad.read_bytes()
    bad.write_bytes({"empty": b"", "text": b"no picture", "cut": whole[: len(whole) // 2]}[damage])
    words = ("train", DIGITS, f"--workdir={tmp_path}/new", f"--config.data.source=folder:{folder}")
    code, out, err = call(*words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert str(bad) in err and "1 of 12 pictures unreadable" in err and "on_unreadable='skip'" in err
    assert not (tmp_path / "new").exists()


def test_pictures_of_a_wrong_shape(call, folder, tmp_path):
    """A side that the network cannot halve is refused before anything is written."""
    words = (f"--config={CONFIGS}/cifar10.py:smoke", f"--config.data.source=folder:{folder}", "--config.data.size=9")
    code, out, err = call("train", *words, f"--workdir={tmp_path}/new")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "multiples of 2" in err
    assert not (tmp_path / "new").exists()


def test_labels_by_name(call, folder, digits_run, tmp_path):
    """A class may be named where the data names its classes."""
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    facts = json.loads((workdir / "data.json").read_text())
    facts["class_names"] = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    (workdir / "data.json").write_text(json.dumps(facts))
    draw = lambda label: call("sample", f"--workdir={workdir}", f"--out={tmp_path}/a.npz", "--num=20", "--batch_size=20",
                              f"--label={label}")
    assert draw("dog,0")[0] == 0
    assert np.load(tmp_path / "a.npz")["label"].tolist() == [3, 0] * 10
    code, _, err = draw("cow")
    assert code == 2 and "label 'cow'" in err and "0 to 9, or a name: ant, bee" in err


def test_a_classifier_is_not_sampled(call, points_run, tmp_path, monkeypatch):
    """Nor is its likelihood asked for, nor are its samples scored."""
    run = load_run(points_run)
    with run.config.unlocked():
        run.config.loss.kind = "classification"
    monkeypatch.setattr("jaxdiff.run.load_run", lambda *args, **options: run._replace(path=None))
    for words in (("sample", f"--out={tmp_path}/a.png"), ("likelihood",), ("evaluate",)):
        code, out, err = call(*words, f"--workdir={points_run}")
        assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "is a classifier" in err, words


# --- damage and accidents -----------------------------------------------------------------------------------------------


def test_half_written_checkpoints(call, workdir, tmp_path):
    """The newest whole one is used, and what was passed over is said in one line; with none left, that is said."""
    draw = lambda name: call("sample", f"--workdir={workdir}", f"--out={tmp_path}/{name}.npz", "--num=4")
    next((workdir / "checkpoints" / "4" / "ema").rglob("_METADATA")).unlink()
    code, _, err = draw("a")
    assert code == 0 and len(err.splitlines()) == 1 and "step 4" in err and "half-written" in err
    assert call("sample", f"--workdir={workdir}", f"--out={tmp_path}/b.npz", "--num=4", "--step=2")[2] == ""
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["samples"], np.load(tmp_path / "b.npz")["samples"])
    code, _, err = call("train", *SAME, f"--workdir={workdir}")
    assert code == 0 and "half-written" in err and steps(workdir) == [2, 4]  # trained again from step 2
    assert draw("c")[2] == ""
    for n in (2, 4):
        shutil.rmtree(workdir / "checkpoints" / str(n) / "ema")
    code, _, err = draw("d")
    assert code == 2 and err.splitlines()[-1].startswith("jaxdiff: no complete checkpoint")
    assert not (tmp_path / "d.npz").exists()


def test_a_loss_that_is_not_finite(call, workdir, tmp_path):
    """Exit code 1, one line that names the step; the last good checkpoint stays, samples, and can go on more slowly."""
    more = ("train", *SAME, f"--workdir={workdir}", "--config.train.steps=8")
    before = files(workdir / "checkpoints")
    code, out, err = call(*more, "--config.optimizer.learning_rate=1e30")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "not finite at step 5" in err and "last good checkpoint is step 4" in err and "learning rate" in err
    assert before.items() <= files(workdir / "checkpoints").items() and steps(workdir) == [2, 4]
    assert call("sample", f"--workdir={workdir}", f"--out={tmp_path}/a.npz", "--num=4")[0] == 0
    code, out, _ = call(*more, "--config.optimizer.learning_rate=1e-5")  # what the line advises
    assert code == 0 and "trained to step 8" in out and rows(workdir) == [2, 4, 6, 8]


def started(workdir, step):
    """`jaxdiff train` without end in a process of its own, once it has logged `step` (it logs every second one)."""
    words = (*SAME, f"--workdir={workdir}", "--config.train.steps=100000000", "--config.train.checkpoint_every=20")
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "jaxdiff.cli", "train", *words], env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 240
    while not ((workdir / "metrics.jsonl").exists() and rows(workdir)[-1:] >= [step]):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.1)
    return child


def test_killed_then_terminated(call, tmp_path):
    """kill -9 loses the steps since the last checkpoint and nothing else; the same command goes on; SIGTERM saves where it
    stands and leaves with 128 + 15."""
    workdir = tmp_path / "run"
    child = started(workdir, 40)
    child.kill()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL and steps(workdir)
    child = started(workdir, rows(workdir)[-1] + 40)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM == 143, err
    saved = steps(workdir)[-1]
    assert f"stopped at step {saved} and saved" in out
    assert [line for line in err.splitlines() if line] == ["SIGTERM: saving, then leaving; again to leave now"]
    assert rows(workdir) == sorted({*range(2, saved + 1, 2), saved})  # every row once, over both lives
    assert call("sample", f"--workdir={workdir}", f"--out={tmp_path}/a.npz", "--num=4")[0] == 0


def test_bench(call):
    """Ratios of this machine's own; last, because it empties the caches."""
    code, out, err = call("bench", POINTS, "--seconds=0.01", "--batch_size=4")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["data", "pipeline", "train", "flops", "memory", "sampler", "sample",
                                                       "compile"]
    assert "gaussians25_edm on 4 x" in lines[0] and "parameters" in lines[0]
    assert all(float(line.split()[1]) >= 0 for line in lines[1:])
