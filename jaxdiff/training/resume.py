"""Reading checkpoints back: the whole state to go on training, or one part of it to sample from.

The newest complete checkpoint wins. A broken one is named, passed over, and (by a run that goes on) set aside.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from jaxdiff.training.checkpoint import (
    FILES,
    TREES,
    directory_of,
    is_typed,
    items_of,
    open_orbax,
    read_meta,
    sizes_of,
    steps,
)
from jaxdiff.training.processes import agreed, everyones
from jaxdiff.training.state import TrainState
from jaxdiff.types import Tree

_log = logging.getLogger(__name__)
WHAT = ("all", "ema", "params")


class Restored(NamedTuple):
    """A checkpoint read back: `tree` is a TrainState, or the dict by network name that was asked for."""

    step: int
    tree: Any
    meta: dict[str, Any]


def restore(
    workdir: str | os.PathLike, step: int | None = None, what: str = "all", like: TrainState | None = None
) -> Restored:
    """Read the newest complete checkpoint, or the one of `step`.

    what: "all" fills a TrainState shaped, typed and sharded `like` the one given (its arrays may be abstract);
        "ema" gives {network: {name: tree}} and "params" {network: tree}, on this process's first device.

    "all" is read by all processes together: which checkpoints there are and whole is what process 0 sees, and one that any
    of them cannot read is passed over by all. The others are each process's own affair.
    A broken checkpoint is passed over with a warning for the one before it. Raises FileNotFoundError where none is left
    (or `step` is not there), and ValueError where a checkpoint holds other arrays than `like`.
    """
    if what not in WHAT:
        raise ValueError(f"restore got what='{what}'; allowed: {', '.join(WHAT)}")
    if what == "all" and like is None:
        raise ValueError("restore of 'all' needs like=, a TrainState of the same shapes; or ask for what='ema'")
    together = agreed if what == "all" else lambda value: value
    found = together(steps(workdir))
    if not found:
        raise FileNotFoundError(f"no checkpoint in {directory_of(workdir)}; train there first, or name another workdir")
    if step is not None and step not in found:
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory_of(workdir)}; it has {_list(found)}")
    reasons = []
    for n in reversed(found) if step is None else [step]:
        reason = together(broken(workdir, n))
        if reason is None:
            read: Restored | None = None
            try:
                read = _read(directory_of(workdir), n, what, like)
            except _Mismatch as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # whatever the storage layer makes of damaged bytes
                reason = f"unreadable ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
            failed = any(everyones(read is None)) if what == "all" else read is None
            if read is not None and not failed:
                return read
            reason = reason or "unreadable for another process"
        reasons.append(f"step {n} is {reason}")
        _log.warning("passing over the checkpoint of step %d in %s: it is %s", n, directory_of(workdir), reason)
    raise FileNotFoundError(
        f"no complete checkpoint in {directory_of(workdir)}: {'; '.join(reasons)}; "
        "copy the run again, or use another workdir"
    )


def broken(workdir: str | os.PathLike, step: int) -> str | None:
    """Why a checkpoint cannot be whole, in words; None where its files are there at their sizes."""
    directory = directory_of(workdir) / str(step)
    try:
        expected = json.loads((directory / FILES).read_text())
    except FileNotFoundError:  # killed between Orbax's commit and files.json: whole, but unproved
        expected = {"meta/metadata": None, "core/_METADATA": None, "params/_METADATA": None}
    except json.JSONDecodeError:
        return f"half-written ({FILES} is not JSON)"
    actual = sizes_of(directory)
    for name, size in expected.items():
        if name not in actual:
            return f"half-written ({name} is missing)"
        if size is not None and actual[name] != size:
            return f"half-written ({name} has {actual[name]} bytes of {size})"
    try:
        read_meta(workdir, step)
    except json.JSONDecodeError:
        return "half-written (meta/metadata is not JSON)"
    return None


def set_aside(workdir: str | os.PathLike, after: int) -> None:
    """Rename the broken checkpoints newer than step `after` to `<step>.broken`: training will save there again."""
    if jax.process_index() == 0:
        for n in [n for n in steps(workdir) if n > after]:
            path = directory_of(workdir) / str(n)
            count = len(list(path.parent.glob(f"{n}.broken*")))
            path.rename(path.with_name(f"{n}.broken{count or ''}"))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxdiff set_aside")


class _Mismatch(Exception):
    """The checkpoint is whole, but of another model."""


def _read(directory: Path, step: int, what: str, like: TrainState | None) -> Restored:
    manager = open_orbax(directory, create=False)
    try:
        saved = manager.item_metadata(step)
        if what == "all":
            assert like is not None
            wanted = jax.tree.map(_abstract, items_of(like))
            for name in TREES:
                _compare(directory, step, name, wanted.get(name), saved.get(name))
        else:
            if saved.get(what) is None:
                raise _Mismatch(f"the checkpoint of step {step} in {directory} holds no {what}; ask for what='params'")
            here = SingleDeviceSharding(jax.local_devices()[0])
            alone = lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here)
            wanted = {what: jax.tree.map(alone, saved[what].tree)}
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        items = manager.restore(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonRestore()))
    finally:
        manager.close()
    if what != "all":
        return Restored(step, items[what], items["meta"])
    assert like is not None
    key = items["core"]["key"]
    if is_typed(like.key):
        key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(like.key))
    parts = {name: items[name] if name in wanted else getattr(like, name) for name in ("params", "opt", "ema", "state")}
    return Restored(step, TrainState(step=items["core"]["step"], key=key, **parts), items["meta"])


def _compare(directory: Path, step: int, item: str, wanted: Tree, saved: Any) -> None:
    """Raise _Mismatch naming the first array that the checkpoint and the program see differently."""
    has = {} if saved is None else _leaves(saved.tree)
    asks = _leaves(wanted)
    for name in sorted(has.keys() | asks.keys()):
        if has.get(name) != asks.get(name):
            raise _Mismatch(
                f"the checkpoint of step {step} in {directory} has {item}/{name} as {has.get(name, 'absent')}, and "
                f"this program asks for {asks.get(name, 'absent')}; use the run's own config, or another workdir"
            )


def _leaves(tree: Tree) -> dict[str, str]:
    word = lambda k: str(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(map(word, path)): f"{jnp.dtype(x.dtype).name}{list(x.shape)}" for path, x in leaves}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _list(found: list[int]) -> str:
    return ", ".join(map(str, found[-8:]))
