"""Many processes as one run: they find each other, leave together, and hand their checkpoint on to other numbers."""

import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff import fit
from jaxdiff.cli import main
from jaxdiff.feed import open_feed
from jaxdiff.training import agreed, everyones, initialize, processes, restore, steps
from jaxdiff.training import signals as leaving
from tests.conftest import load
from tests.training import toy, walker

ROOT = Path(__file__).parents[2]
WORDS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def launched(*words, processes=2, devices=1):
    """A program under launch/local_processes.sh."""
    launcher = [str(ROOT / "launch/local_processes.sh"), f"--num_processes={processes}", f"--devices={devices}", "--grace=1"]
    return subprocess.Popen([*launcher, "--", sys.executable, "-m", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def ended(process, seconds=400):
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


@pytest.fixture
def asked(monkeypatch):
    """What jax.distributed.initialize was called with, in an environment without words."""
    for word in (*WORDS, *processes._SLURM, *processes._OPEN_MPI, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(word, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **words: calls.append(words))
    return calls


def test_alone_nothing_happens(asked):
    assert agreed({"a": 1}) == {"a": 1} and everyones("b") == ["b"]
    initialize()
    initialize("localhost:1234", 1, 0)
    assert asked == []


def test_flags_come_before_the_environment(asked, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    initialize(timeout=7)
    initialize("10.0.0.9:5", 8, 5)
    words = {"cluster_detection_method": "deactivate"}
    assert asked == [
        words | {"coordinator_address": "10.0.0.1:1", "num_processes": 3, "process_id": 2, "initialization_timeout": 67},
        words | {"coordinator_address": "10.0.0.9:5", "num_processes": 8, "process_id": 5, "initialization_timeout": 360},
    ]


@pytest.mark.parametrize("env, several", [
    (dict.fromkeys(processes._SLURM, "2"), True),
    ({**dict.fromkeys(processes._SLURM, "2"), "SLURM_NTASKS": "1"}, False),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # sbatch without srun
    (dict.fromkeys(processes._OPEN_MPI, "4"), True),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
])
def test_clusters_are_known_by_their_words(asked, monkeypatch, env, several):
    for word, value in env.items():
        monkeypatch.setenv(word, value)
    initialize()
    assert asked == ([{"initialization_timeout": 360}] if several else [])
    initialize("auto")
    assert asked[-1] == {"initialization_timeout": 360}


@pytest.mark.parametrize("words, env, says", [
    ((None, 2, 0), {}, "--coordinator is missing"),
    (("h:1", None, 0), {}, "--num_processes is missing"),
    (("h:1", 2, None), {}, "--process_id is missing"),
    (("h:1", 2, 2), {}, "--process_id is 2 of --num_processes=2; allowed: 0..N - 1"),
    (("h", 2, 0), {}, "--coordinator is 'h'; allowed: HOST:PORT"),
    (("h:99999", 2, 0), {}, "--coordinator is 'h:99999'"),
    (("auto", 2, None), {}, "--coordinator=auto came with"),
    ((None, None, None), {"JAX_PROCESS_ID": "1"}, "--coordinator is missing"),
    ((None, None, None), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two' in the environment"),
])
def test_wrong_words_are_one_line(asked, monkeypatch, words, env, says):
    for word, value in env.items():
        monkeypatch.setenv(word, value)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        initialize(*words)
    assert "\n" not in str(caught.value) and asked == []


def test_who_cannot_be_reached_is_one_line(asked, monkeypatch):
    def lost(**words):
        raise RuntimeError("DEADLINE_EXCEEDED:\nno answer")

    monkeypatch.setattr(jax.distributed, "initialize", lost)
    with pytest.raises(RuntimeError, match=r"at h:1 as process 1 of 2 \(DEADLINE_EXCEEDED: no answer\)") as caught:
        initialize("h:1", 2, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="at a cluster"):
        initialize("auto")


def test_sigterm_is_not_left_to_jax(asked, monkeypatch):
    """jax's own service catches it beneath Python, and a run that does not yet train would not end on it."""
    ignored = lambda: bool(int(re.search(r"SigIgn:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16) >> 14 & 1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: ctypes.CDLL(None).signal(15, ctypes.c_void_p(1)))
    assert not ignored()
    jax.distributed.initialize()
    assert ignored()
    initialize("h:1", 2, 1)
    assert not ignored()


def test_the_command_line_joins_and_who_fails_does_not_wait_for_the_others(asked, monkeypatch, capsys):
    train = ["train", "--config=none.py", "--workdir=none"]
    assert main([*train, "--coordinator=h:1"]) == 2 and "--num_processes is missing" in capsys.readouterr().err
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    assert main([*train, "--coordinator=h:1", "--num_processes=2", "--process_id=1"]) == 2
    assert asked[0]["coordinator_address"] == "h:1" and "no config at 'none.py'" in capsys.readouterr().err and ends == []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert main(train) == 2 and ends == [2] and len(asked) == 1


def test_who_waits_in_vain_ends_with_one_line():
    words = "from jaxdiff.training import initialize; initialize('127.0.0.1:9', 2, 1, timeout=1)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "jaxdiff: could not join the other processes at 127.0.0.1:9 as process 1 of 2 (waited 1 s)" in done.stderr


def test_a_slice_that_was_not_joined_is_said(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="one of 4 processes, which have not joined; give --coordinator"):
        processes.check_joined()


@pytest.mark.parametrize("pace", [0.001, 0.3, 20.0])
def test_processes_ask_each_other_every_few_seconds(monkeypatch, pace):
    """Against a clock of ours: not at every fast step, at every slow one, and never 10 s without an answer."""
    now, questions = [0.0], []
    monkeypatch.setattr(leaving.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gather(mine):
        questions.append(now[0])
        return np.stack([mine, [signal.SIGTERM if now[0] > 60 else 0, 10**6]])  # the other's clock does not count

    monkeypatch.setattr(leaving.multihost_utils, "process_allgather", gather)
    leave, dispatches = leaving.Leave(), 0
    while (heard := leave.agreed(now=False)) is None:
        now[0] += pace
        dispatches += 1
    assert heard == signal.SIGTERM and np.diff(questions).max() <= max(10, pace) and now[0] < 60 + max(10, 2 * pace)
    assert len(questions) < dispatches / 5 or pace > 1


def test_four_leave_on_one_signal_then_one_then_two_go_on(tmp_path):
    """SIGTERM to one of four; the steps after it on one process, then on two with two devices each. The examples are those
    of a run in peace, and so are the parameters, to rounding."""
    workdir = tmp_path / "run"
    four = launched("tests.training.walker", workdir, 100_000, 0.02, processes=4)
    heard = []
    for line in four.stdout:
        heard.append(line)
        if len(heard) == 4:
            break
    victim = int(re.findall(r"^\[2\] process (\d+)", "".join(heard), re.MULTILINE)[0])
    deadline = time.time() + 300
    while not ((workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text().count("\n") > 2):
        assert four.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(victim, signal.SIGTERM)
    said = ended(four)
    assert four.returncode == 128 + signal.SIGTERM, said
    places = {int(place) for place in re.findall(r"left at (\d+)", said)}
    assert len(places) == 1 and said.count("left at") == 4, said
    (left,) = places
    assert steps(workdir)[-1] == left

    assert walker.walk(workdir, left + 4).step == left + 4
    two = launched("tests.training.walker", workdir, left + 9, devices=2)
    assert f"left at {left + 9}" in ended(two) and two.returncode == 0

    expected = {step: walker.numbers(walker.pipe().batch(step)["x"]) for step in range(left + 9)}
    seen = {}
    for count in (4, 1, 2):
        parts = [Path(f"{workdir}.seen.{count}.{i}").read_text().splitlines() for i in range(count)]
        for lines in zip(*parts, strict=True):
            (step,) = {int(line.split()[0]) for line in lines}
            assert step not in seen
            seen[step] = [int(number) for line in lines for number in line.split()[1:]]
    assert seen == expected

    step, state = jax.jit(toy.step()), toy.fresh()
    for batch in itertools.islice(walker.batches(0), left + 9):
        state, _ = step(state, batch)
    back = restore(workdir, like=toy.fresh()).tree
    for a, b in zip(jax.tree.leaves((back.params, back.ema)), jax.tree.leaves((state.params, state.ema)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_processes_of_two_devices_train_as_one_device(tmp_path, one_device, quick_compile):
    """20 steps of the command line's `train`: parameters within 1e-5, losses too; one speaks, and draws the same picture."""
    words = {"train__steps": 20, "train__log_every": 1, "train__eval_every": 20, "train__checkpoint_every": 20,
             "train__steps_per_dispatch": 1, "optimizer__eps": 1e-6}
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in words.items()]
    two = launched("jaxdiff.cli", "train", f"--config={ROOT}/configs/gaussians25.py:smoke", f"--workdir={tmp_path}/two",
                   *flags, devices=2)
    said = ended(two)
    assert two.returncode == 0, said
    assert said.count("trained to step 20") == 1 and "jaxdiff evaluate --workdir" in said
    fit.train(load("gaussians25", "smoke", **words), tmp_path / "one", progress=False)
    for what in ("params", "ema"):
        trees = [jax.tree.leaves(restore(tmp_path / run, what=what).tree) for run in ("one", "two")]
        for a, b in zip(*trees, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    curves = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
              for run in ("one", "two")]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    for a, b in zip(*curves, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"steps_per_s", "examples_per_s"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (a["step"], key)
    pictures = [np.asarray(Image.open(tmp_path / run / "samples" / "step_000020.png"), int) for run in ("one", "two")]
    assert np.mean(pictures[0] != pictures[1]) < 0.01  # a dot may round to the next pixel


def test_every_process_evaluates_on_all_of_a_split(tmp_path, monkeypatch):
    def epoch():
        feed = open_feed(load("digits", "smoke", data__options__validation=0.05), tmp_path)
        return list(feed.epoch("validation")())

    alone = epoch()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for a, b in zip(alone, epoch(), strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
