"""The loop: resuming equals never having stopped; signals, NaN and full disks lose nothing; it says what it does."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdiff.training import (
    Checkpoints,
    Layout,
    NonFiniteLoss,
    Update,
    init_state,
    make_mesh,
    make_train_step,
    optimizer,
    restore,
    steps,
    train,
)
from jaxdiff.types import Aux
from tests.training import toy

ROOT = Path(__file__).parents[2]


def run(workdir, n, **options):
    options = {"log_every": 2, "eval_every": 100, "checkpoint_every": 5, "progress": False} | options
    return train(toy.step(), toy.fresh(), toy.batches, workdir, n, **options)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten steps without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, 10, config={"lr": 0.01})


def test_resumed_is_uninterrupted(whole, tmp_path):
    first = run(tmp_path, 5)
    assert first.step == 5 and first.signal is None and steps(tmp_path) == [5]
    second = run(tmp_path, 10)
    toy.same(second.state, whole[1].state)
    toy.same(restore(tmp_path, like=toy.fresh()).tree, restore(whole[0], like=toy.fresh()).tree)
    assert [r["step"] for r in rows(tmp_path)] == [2, 4, 5, 6, 8, 10]
    assert [r["net/loss"] for r in rows(tmp_path)] == [r["net/loss"] for r in rows(whole[0])]
    again = run(tmp_path, 10)  # all done: nothing happens
    assert again.step == 10 and len(rows(tmp_path)) == 6
    toy.same(again.state, whole[1].state)


def test_a_mesh_and_several_steps_a_dispatch(whole, tmp_path):
    meshed = run(tmp_path / "mesh", 10, layout=Layout(make_mesh()))
    folded = run(tmp_path / "fold", 10, steps_per_dispatch=5, log_every=5)
    for other in (meshed, folded):
        for a, b in zip(jax.tree.leaves(other.state.ema), jax.tree.leaves(whole[1].state.ema), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    from_mesh = run(tmp_path / "mesh", 12)  # saved on four devices, resumed on one
    assert from_mesh.step == 12 and len(from_mesh.state.step.sharding.device_set) == 1


def test_rows_are_means_over_the_steps_between(whole):
    step, state, losses = jax.jit(toy.step()), toy.fresh(), []
    for n in range(10):
        state, metrics = step(state, toy.batch(n))
        losses.append(float(metrics["net/loss"]))
    got = [r["net/loss"] for r in rows(whole[0])]
    ends = [0, 2, 4, 5, 6, 8, 10]  # every two steps, and at the save of step 5
    np.testing.assert_allclose(got, [np.mean(losses[a:b]) for a, b in itertools.pairwise(ends)], rtol=1e-6)
    assert all(r["steps_per_s"] > 0 for r in rows(whole[0]))
    assert json.loads((whole[0] / "config.json").read_text()) == {"lr": 0.01}
    assert json.loads((whole[0] / "versions.json").read_text())["jax"] == jax.__version__


def test_rows_beyond_the_restored_step_go(tmp_path):
    run(tmp_path, 5)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "net/loss": -1}\n{"step": 7, "net/lo')
    run(tmp_path, 7)
    assert [r["step"] for r in rows(tmp_path)] == [2, 4, 5, 6, 7] and all(r["net/loss"] >= 0 for r in rows(tmp_path))


def test_evaluation_pictures_and_best(tmp_path):
    scores = iter([3.0, 1.0, 2.0, 5.0])
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    outcome = run(
        tmp_path,
        8,
        eval_every=2,
        checkpoint_every=100,
        keep=1,
        best_metric="eval/fid",
        evaluate=lambda state, step: {"fid": next(scores)},
        preview=lambda state, step: [("grid", picture), ("mask", picture[..., :1])],
        examples_per_step=toy.B,
        schedules={"lr": optimizer("adam", 0.1, warmup_steps=4).schedule},
    )
    assert steps(tmp_path) == [4, 8] and outcome.metrics["eval/fid"] == 5.0
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[:2] == ["step_000002.png", "step_000002_mask.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / "step_000008.png")), picture)
    table = rows(tmp_path)
    assert [r["eval/fid"] for r in table if "eval/fid" in r] == [3.0, 1.0, 2.0, 5.0]
    assert [r["schedule/lr"] for r in table if "schedule/lr" in r] == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert outcome.metrics["examples_per_s"] == pytest.approx(toy.B * outcome.metrics["steps_per_s"])
    assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(ValueError, match="preview 'grid' is float64"):
        run(tmp_path, 9, preview=lambda state, step: [("grid", np.zeros((2, 2, 3)))])


def test_progress_line(tmp_path, capsys):
    run(tmp_path, 4, progress=True, examples_per_step=toy.B)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "4/4" in line and "loss" in line and "steps/s" in line and "examples/s" in line


def test_no_retrace_over_a_run(tmp_path):
    traces = []

    def counted(*args):
        traces.append(1)
        return toy.loss(*args)

    step = make_train_step([Update("net", counted, optax.adam(1e-2))], toy.AVERAGES)
    train(step, toy.fresh(), toy.batches, tmp_path / "one", 6, progress=False)
    assert len(traces) == 1
    train(step, toy.fresh(), toy.batches, tmp_path / "mesh", 6, layout=Layout(make_mesh()), progress=False)
    assert len(traces) == 2


def nan_at(bad):
    def loss(params, state, key, batch, step):
        return jnp.where(step + 1 == bad, jnp.nan, 1.0) * params["net"] ** 2, Aux({})

    updates = [Update("net", loss, optax.sgd(0.1))]
    return make_train_step(updates, {}), init_state({"net": jnp.ones(())}, updates, {}, jax.random.key(0))


@pytest.mark.parametrize("options", [{}, {"steps_per_dispatch": 4, "log_every": 4}])
def test_nan_stops_at_its_step_and_keeps_the_last_good(tmp_path, options):
    options = {"log_every": 3, "eval_every": 100, "checkpoint_every": 4, "progress": False} | options
    step, state = nan_at(7)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 7 .* last good checkpoint is step 4") as caught:
        train(step, state, toy.batches, tmp_path, 20, **options)
    assert caught.value.step == 7 and "\n" not in str(caught.value)
    assert steps(tmp_path) == [4]
    np.testing.assert_allclose(restore(tmp_path, what="params").tree["net"], 0.8**4, rtol=1e-6)
    step, state = nan_at(-1)  # mended, the run goes on from there
    assert train(step, state, toy.batches, tmp_path, 8, **options).step == 8


def test_a_broken_checkpoint_is_set_aside_and_saved_anew(whole, tmp_path):
    run(tmp_path, 10)
    (tmp_path / "checkpoints" / "10" / "files.json").write_text("{")
    again = run(tmp_path, 10)
    toy.same(again.state, whole[1].state)
    assert steps(tmp_path) == [5, 10] and (tmp_path / "checkpoints" / "10.broken").is_dir()
    assert restore(tmp_path, like=toy.fresh()).step == 10


def test_another_config_changes_nothing(whole):
    before = {p: p.read_bytes() for p in whole[0].rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"lr=0.01, and this one asks for 0.1"):
        run(whole[0], 20, config={"lr": 0.1})
    assert before == {p: p.read_bytes() for p in whole[0].rglob("*") if p.is_file()}


def test_wrong_words(tmp_path):
    with pytest.raises(ValueError, match="log is 3; allowed: a multiple of steps_per_dispatch=2"):
        run(tmp_path, 4, steps_per_dispatch=2, log_every=3, eval_every=2, checkpoint_every=2)
    with pytest.raises(ValueError, match="eval is 0"):
        run(tmp_path, 4, eval_every=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="data ended after 3 steps"):
        train(
            toy.step(), toy.fresh(), lambda start: iter([toy.batch(n) for n in range(3)]), tmp_path, 5, progress=False
        )


def test_a_failed_last_save_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    run(tmp_path, 5)

    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(RuntimeError, match=r"could not save step 7 .*No space.*untouched \(5\)"):
        run(tmp_path, 7)
    monkeypatch.undo()
    assert run(tmp_path, 7).step == 7


def test_ctrl_c_in_process(whole, tmp_path):
    """SIGINT between steps 3 and 4: the step under way ends, is saved, and the handlers are put back."""

    def interrupted(start):
        for n, batch in enumerate(toy.batches(start)):
            if n == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    before = signal.getsignal(signal.SIGINT)
    options = {"log_every": 100, "checkpoint_every": 100, "progress": False}
    outcome = train(toy.step(), toy.fresh(), interrupted, tmp_path, 10, **options)
    assert outcome.signal == signal.SIGINT and outcome.step == 4 and steps(tmp_path) == [4]
    assert signal.getsignal(signal.SIGINT) is before
    toy.same(run(tmp_path, 10).state, whole[1].state)


def child(workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.child", str(workdir), "1000000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < end, "the child never came that far"
        time.sleep(0.02)


def uninterrupted(n):
    step, state = jax.jit(toy.step()), toy.fresh()
    for k in range(n):
        state, _ = step(state, toy.batch(k))
    return state


def test_sigterm_saves_and_a_rerun_resumes(tmp_path):
    process = child(tmp_path)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and rows(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    left = int(said.split()[-1])
    assert steps(tmp_path)[-1] == left
    toy.same(run(tmp_path, left + 3, config={"seed": 0}).state, uninterrupted(left + 3))


def test_kill_9_loses_at_most_the_steps_since_the_last_save(tmp_path):
    process = child(tmp_path)
    wait_for(lambda: len(steps(tmp_path)) >= 2, process)
    with pytest.raises(ValueError, match=f"process {process.pid} on .* is training in"):
        run(tmp_path, 5, config={"seed": 0})
    process.kill()
    process.communicate(timeout=60)
    left = steps(tmp_path)[-1]
    outcome = run(tmp_path, left + 23, config={"seed": 0})
    toy.same(outcome.state, uninterrupted(left + 23))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name] == []


def test_two_processes_are_one(tmp_path):
    """Two tasks of Slurm's with two devices each, saving and resuming together, equal one process without a mesh."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": port}
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"} | slurm
    task = lambda i: env | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    words = [sys.executable, "-m", "tests.training.peer", str(tmp_path)]
    peers = [subprocess.Popen(words, cwd=ROOT, env=task(i), stdout=subprocess.PIPE, text=True) for i in range(2)]
    try:
        said = [peer.communicate(timeout=300)[0] for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
    assert [peer.returncode for peer in peers] == [0, 0]
    for words in said:
        got = [float(word) for word in words.splitlines()[-1].split()]
        np.testing.assert_allclose(got, uninterrupted(6).params["net"]["w"], rtol=1e-5)
    assert [r["step"] for r in rows(tmp_path)] == [2, 3, 4, 6]
    assert steps(tmp_path) == [3, 6]
