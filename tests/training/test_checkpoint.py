"""Checkpoints: bit-exact, readable in parts, and never fooled by a half-written one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import (
    Checkpoints,
    broken,
    check_config,
    init_state,
    make_mesh,
    read_meta,
    replicate,
    restore,
    steps,
)
from tests.training import toy


@pytest.fixture(scope="module")
def trained():
    step, state = jax.jit(toy.step()), toy.fresh()
    for n in range(3):
        state, _ = step(state, toy.batch(n))
    return state


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run with checkpoints 3 and 6, not to be changed."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, config={"lr": 0.1, "sizes": (1, 2)}) as saves:
        saves.save(3, trained, {"net/loss": 0.5, "bad": float("nan")})
        saves.save(6, trained._replace(step=trained.step + 3))
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_round_trip_is_bit_exact(run, trained):
    back = restore(run, step=3, like=toy.fresh())
    toy.same(back.tree, trained)
    assert back.tree.params["net"]["w"].dtype == trained.params["net"]["w"].dtype
    assert back.meta["config"] == {"lr": 0.1, "sizes": [1, 2]} and back.meta["metrics"] == {"net/loss": 0.5}
    assert back.meta["step"] == back.meta["data_position"] == 3 and back.meta["versions"]["jax"] == jax.__version__
    assert read_meta(run, 3) == back.meta
    assert restore(run, like=toy.fresh()).step == 6 and steps(run) == [3, 6]


def test_old_style_keys_bfloat16_and_mutable_state(tmp_path):
    params = {"net": {"w": jnp.arange(5, dtype=jnp.bfloat16), "b": jnp.zeros(())}}
    state = init_state(params, toy.updates(), toy.AVERAGES, jax.random.PRNGKey(3), {"net": {"mean": jnp.ones(2)}})
    with Checkpoints(tmp_path) as saves:
        saves.save(1, state)
    toy.same(restore(tmp_path, like=jax.eval_shape(lambda: state)).tree, state)


@pytest.mark.parametrize("what", ["ema", "params"])
def test_parts_need_no_optimizer(run, trained, what):
    back = restore(run, step=3, what=what)
    toy.same(back.tree, getattr(trained, what))


def test_restored_onto_a_mesh(run, trained):
    mesh = make_mesh()
    back = restore(run, step=3, like=replicate(toy.fresh(), mesh)).tree
    toy.same(back, trained)
    assert back.params["net"]["w"].sharding.device_set == set(mesh.devices.flat)


def test_donation_does_not_reach_into_a_save(tmp_path):
    """The arrays are given away right after `save` returns, while the writing goes on."""
    double = jax.jit(lambda s: s._replace(params=jax.tree.map(lambda x: 2 * x, s.params)), donate_argnums=0)
    params = {"net": {"w": jnp.ones((1200, 1200)), "b": jnp.zeros(())}}
    state = double(init_state(params, toy.updates(), toy.AVERAGES, jax.random.key(0)))
    with Checkpoints(tmp_path, keep=4) as saves:
        for n in (1, 2, 3):
            saves.save(n, state)
            for _ in range(4):
                state = double(state)
    for n in (1, 2, 3):
        assert np.unique(restore(tmp_path, step=n, what="params").tree["net"]["w"]) == [2.0 ** (4 * n - 3)]


@pytest.mark.parametrize("harm", ["truncate", "delete", "meta", "list"])
def test_half_written_is_passed_over(copy, trained, caplog, harm):
    directory = copy / "checkpoints" / "6"
    data = max((p for p in (directory / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if harm == "truncate":
        data.write_bytes(data.read_bytes()[:-7])
    elif harm == "delete":
        shutil.rmtree(directory / "opt")
    elif harm == "meta":
        (directory / "files.json").unlink()
        (directory / "meta" / "metadata").write_text('{"step": 6, "con')
    else:
        (directory / "files.json").write_text('{"params')
    back = restore(copy, like=toy.fresh())
    assert back.step == 3
    toy.same(back.tree, trained)
    assert "passing over the checkpoint of step 6" in caplog.text and "half-written" in caplog.text
    assert broken(copy, 6) and broken(copy, 3) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its reader threads die untidily
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_damage_that_keeps_the_size_is_passed_over(copy, caplog):
    """Bytes changed in place: the storage layer's own checksums see it."""
    path = copy / "checkpoints" / "6" / "params" / "manifest.ocdbt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    assert restore(copy, what="params").step == 3
    assert "unreadable" in caplog.text


def test_an_unfinished_save_is_no_checkpoint(copy):
    shutil.copytree(copy / "checkpoints" / "6", copy / "checkpoints" / "9.orbax-checkpoint-tmp-1")
    assert steps(copy) == [3, 6] and restore(copy, what="ema").step == 6


def test_none_left_is_one_line(copy, tmp_path):
    for n in (3, 6):
        (copy / "checkpoints" / str(n) / "files.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint in .*step 6 is half-written") as caught:
        restore(copy, what="ema")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*train there first"):
        restore(tmp_path / "empty", what="ema")
    assert not (tmp_path / "empty").exists()


def test_wrong_words(run):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4 .*it has 3, 6"):
        restore(run, step=4, what="ema")
    with pytest.raises(ValueError, match="allowed: all, ema, params"):
        restore(run, what="emas")
    with pytest.raises(ValueError, match="needs like="):
        restore(run)
    with pytest.raises(ValueError, match="allowed: a path"):
        restore("gs://bucket/run", what="ema")
    with pytest.raises(ValueError, match="best_mode is 'least'"):
        Checkpoints(run, best_mode="least")
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(run, keep=0)


def test_another_model_is_named_not_skipped(run):
    wide = init_state({"net": {"w": jnp.ones(5), "b": jnp.zeros(())}}, toy.updates(), toy.AVERAGES, jax.random.key(0))
    with pytest.raises(ValueError, match=r"params/net/w as float32\[3\], and this program asks for float32\[5\]") as e:
        restore(run, like=wide)
    assert "\n" not in str(e.value)
    fewer = toy.fresh()._replace(ema={})
    with pytest.raises(ValueError, match="asks for absent"):
        restore(run, like=fewer)


@pytest.mark.parametrize(("mode", "kept"), [("min", [2, 5, 6]), ("max", [3, 5, 6])])
def test_keep_newest_and_best(tmp_path, mode, kept):
    state = toy.fresh()
    scores = {1: 3.0, 2: 1.0, 3: 9.0, 4: float("nan"), 5: 4.0}
    with Checkpoints(tmp_path, keep=2, best_metric="fid", best_mode=mode) as saves:
        for n in (1, 2, 3):
            saves.save(n, state, {"fid": scores[n]})
    with Checkpoints(tmp_path, keep=2, best_metric="fid", best_mode=mode) as saves:  # a resumed run remembers
        for n in (4, 5):
            saves.save(n, state, {"fid": scores[n]})
        saves.save(6, state, {"other": 0.0})
        assert not saves.save(6, state)
    assert steps(tmp_path) == kept


def test_a_failed_save_leaves_the_older_ones(copy, trained, monkeypatch):
    saves = Checkpoints(copy, keep=1)
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", full)
    with pytest.raises(OSError, match="No space"):
        saves.save(9, trained)
        saves.wait()
    monkeypatch.undo()
    assert steps(copy) == [3, 6]
    assert restore(copy, like=toy.fresh()).step == 6


def test_config_check(tmp_path):
    was = {"net": {"width": 64, "mult": [1, 2]}, "train": {"steps": 10, "log": {"every": 5}}}
    check_config(tmp_path, was)
    (tmp_path / "config.json").write_text(json.dumps(was))
    check_config(tmp_path, {**was, "net": {"width": 64, "mult": (1, 2)}})
    longer = {**was, "train": {"steps": 20, "log": {"every": 1}}}
    check_config(tmp_path, longer, may_change=("train.steps", "train.log"))
    with pytest.raises(ValueError, match=r"train\.log\.every=5, and this one asks for 1; use another workdir"):
        check_config(tmp_path, longer, may_change=("train.steps",))
    with pytest.raises(ValueError, match=r"net\.width=64, and this one asks for 32") as caught:
        check_config(tmp_path, {**was, "net": {"width": 32, "mult": [1, 2]}})
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**was, "old": None}))
    check_config(tmp_path, was)
    newer = {**was, "net": {**was["net"], "depth": 5}}  # the run was begun before this key was there
    check_config(tmp_path, newer, defaults={"net": {"depth": 5, "width": 1}, "train": {"log": {}}})
    for defaults in ({}, {"net": {"depth": 7}}):
        with pytest.raises(ValueError, match=r"net\.depth=.*, and this one asks for 5"):
            check_config(tmp_path, newer, defaults=defaults)
    with pytest.raises(ValueError, match="asks for 'absent'"):
        check_config(tmp_path, {"net": was["net"]})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        check_config(tmp_path, {"net": object()})
