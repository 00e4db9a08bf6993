"""What a run survives: a second training beside it, a full disk, a kill at any moment. test_loop.py has the rest."""

import importlib
import json
import resource
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdiff import cli
from jaxdiff.training import Log, Update, check_free, claim, init_state, make_train_step, restore, steps, train
from jaxdiff.types import Aux
from tests.training import toy

ROOT = Path(__file__).parents[2]


def run(workdir, n, **options):
    options = {"log_every": 2, "eval_every": 100, "checkpoint_every": 5, "progress": False} | options
    return train(toy.step(), toy.fresh(), toy.batches, workdir, n, **options)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_second_training_is_refused_and_the_first_goes_on(tmp_path):
    def beside(start):
        for n, batch in enumerate(toy.batches(start)):
            if n == 2:
                before = sorted(tmp_path.rglob("*"))
                for second in (lambda: run(tmp_path, 9), lambda: check_free(tmp_path)):
                    with pytest.raises(ValueError, match=r"process \d+ on .* is training in .*another workdir") as caught:
                        second()
                    assert "\n" not in str(caught.value)
                assert sorted(tmp_path.rglob("*")) == before
            yield batch

    assert train(toy.step(), toy.fresh(), beside, tmp_path, 4, progress=False).step == 4
    check_free(tmp_path)
    assert run(tmp_path, 9).step == 9  # and the next one is welcome
    check_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_claim_ends_with_its_block_whatever_happens_in_it(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), claim(tmp_path):
            raise KeyError
    with claim(tmp_path), claim(tmp_path / "inner"):
        pass


def test_where_there_are_no_locks_training_goes_on(tmp_path, monkeypatch, caplog):
    import fcntl

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with claim(tmp_path), claim(tmp_path):
        assert "has no locks (Operation not supported)" in caplog.text


@pytest.mark.parametrize("place", ["/proc/no/such", "file/below"])
def test_an_unwritable_workdir_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write in the workdir '.*mend: its permissions") as caught:
        run(place, 4)
    assert "\n" not in str(caught.value)


def big():
    """Parameters of 800 kB, so that a limit on the size of files hits them and not the rows."""
    def loss(params, state, key, batch, step):
        return jnp.mean((params["net"] - 1.0) ** 2), Aux({})

    updates = [Update("net", loss, optax.sgd(1.0))]
    w = jax.random.normal(jax.random.key(0), (200_000,))
    return make_train_step(updates, {}), init_state({"net": w}, updates, {}, jax.random.key(0))


@contextmanager
def small_files(limit=100_000):
    """The kernel refuses to write files beyond `limit` bytes, much as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(tmp_path, capsys):
    options = {"log_every": 1, "eval_every": 100, "checkpoint_every": 4, "progress": False}
    step, state = big()
    train(step, state, toy.batches, tmp_path, 4, **options)
    whole = restore(tmp_path, what="params").tree["net"]
    step, state = big()
    says = r"could not save .*File too large.*untouched \(4\); free some space"
    with pytest.raises(RuntimeError, match=says) as caught, cli._calm(), small_files():
        train(step, state, toy.batches, tmp_path, 400, **options)
    assert "\n" not in str(caught.value) and capsys.readouterr().err == ""
    assert steps(tmp_path) == [4]
    np.testing.assert_array_equal(restore(tmp_path, what="params").tree["net"], whole)
    step, state = big()
    assert train(step, state, toy.batches, tmp_path, 8, **options).step == 8  # space was found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_failed_behind_is_heard_of_at_the_next_row(tmp_path, monkeypatch):
    """Not a whole interval later, when the next save would wait for it."""
    reached = []

    def slowly(start):
        for n, batch in enumerate(toy.batches(start), start):
            reached.append(n)
            yield batch

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", full)
    options = {"log_every": 5, "eval_every": 10**4, "checkpoint_every": 10**3, "progress": False}
    with pytest.raises(RuntimeError, match=r"could not save a checkpoint .*No space left"):
        train(toy.step(), toy.fresh(), slowly, tmp_path, 10**4, **options)
    assert 1000 < reached[-1] < 1999


def test_a_row_that_cannot_be_written_is_one_line(tmp_path):
    says = r"could not write the row of step 3 to .*metrics.jsonl \(No space left"
    with open("/dev/full", "w") as full, pytest.raises(OSError, match=says) as caught, Log(tmp_path) as log:
        log.scalars(2, {"loss": 1.0})
        log._rows = full
        log.scalars(3, {"loss": 1.0})
    assert "\n" not in str(caught.value)
    assert [row["step"] for row in rows(tmp_path)] == [2]


def test_rows_of_a_stopped_run_are_those_of_one_in_peace(tmp_path):
    """Saves every 5 steps and rows every 4: each save has its row, so that the next one's mean begins there."""
    def curve(workdir):
        return [{k: v for k, v in row.items() if not k.endswith("_per_s")} for row in rows(workdir)]

    options = {"log_every": 4, "schedules": {"lr": lambda n: 0.1 * n}}
    run(tmp_path / "peace", 12, **options)
    run(tmp_path / "war", 12, **options)
    for path in (tmp_path / "war" / "checkpoints").iterdir():  # killed at 12, before that one was saved
        if path.name == "12":
            path.rename(path.with_name("12.orbax-checkpoint-tmp"))
    run(tmp_path / "war", 12, **options)
    assert [row["step"] for row in curve(tmp_path / "war")] == [4, 5, 8, 10, 12]
    assert curve(tmp_path / "war") == curve(tmp_path / "peace")


def events(folder):
    """The events of the newest file of TensorBoard's, read as the format says: length, checksum, bytes, checksum."""
    path = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        (size,) = struct.unpack_from("<Q", raw, at)
        yield Event.FromString(raw[at + 12 : at + 12 + size])
        at += size + 16


def test_tensorboard_is_told_where_a_run_goes_on(tmp_path):
    run(tmp_path, 5)
    first = set((tmp_path / "tensorboard").iterdir())
    for path in first:
        path.rename(path.with_name(f"{path.name}.first"))  # names go by the second
    run(tmp_path, 7)
    (start,) = [event for event in events(tmp_path / "tensorboard") if event.session_log.status]
    assert (start.step, start.session_log.status) == (6, SessionLog.START)


def test_killed_runs_come_back_bit_for_bit(tmp_path, monkeypatch, capsys):
    """`launch/kill_test.py` on the toy, which starts sooner, with a kill during a save and one behind it."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    kill_test = importlib.import_module("kill_test")
    monkeypatch.setattr(kill_test, "KINDS", ("save", "between"))
    toys = lambda args, workdir: [sys.executable, "-m", "tests.training.walker", str(workdir), str(args.steps), "0.002"]
    monkeypatch.setattr(kill_test, "command", toys)
    code = kill_test.main([f"--workdir={tmp_path}/kill", "--kills=2", "--steps=300", "--every=10"])
    said = capsys.readouterr().out
    assert code == 0 and "the same bit for bit after 2 kills" in said, said
