"""Checkpoints: everything that a run needs to go on, and each part readable alone.

One Orbax checkpoint a step under `workdir/checkpoints/<step>/`, with one item per part, so that sampling reads the
averages without building an optimizer:

    params ema opt state   the trees of TrainState (an empty one is left out)
    core                   step and key
    meta                   JSON: step, data_position (the same: batches restart there), config, versions, metrics
    files.json             the size of every file above, written once Orbax has committed them

Orbax writes into a temporary directory and renames it, so a killed save leaves nothing that looks like a checkpoint.
What a half-finished copy or a full disk leaves does look like one: `files.json` tells, and `resume.restore` passes it by.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxdiff.training.rundir import as_json, versions, write_json
from jaxdiff.training.state import TrainState
from jaxdiff.types import Tree

TREES = ("core", "params", "ema", "opt", "state")
FILES = "files.json"


class Checkpoints:
    """Writes the checkpoints of one run; use it as a context manager.

    keep: how many of the newest stay. With `best_metric`, the one where that metric was best (`best_mode`: "min" or
    "max") stays besides. Old checkpoints are deleted only after a newer one is complete.
    Raises ValueError for `keep` below 1 or an unknown `best_mode`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "min",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; allowed: 1 or more checkpoints")
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is '{best_mode}'; allowed: min, max")
        sign = 1.0 if best_mode == "max" else -1.0
        quality = lambda metrics: sign * metrics[best_metric] if best_metric in metrics else -math.inf
        rules = ocp.checkpoint_managers
        policies: list[Any] = [rules.LatestN(keep)]
        if best_metric is not None:
            policies.append(rules.BestN(get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False))
        self.directory = directory_of(workdir)
        self._config = as_json(config or {})
        self._unsealed: int | None = None
        self._orbax = open_orbax(
            self.directory,
            create=True,
            cleanup_tmp_directories=True,
            preservation_policy=rules.AnyPreservationPolicy(policies),
            best_fn=quality,
            best_mode="max",
        )

    def save(self, step: int, train: TrainState, metrics: Mapping[str, float] | None = None) -> bool:
        """Start saving and return once the arrays are copied to the host; the writing goes on behind.

        Waits for the save before it, and raises that one's error. False where `step` is already saved.
        """
        self.wait()
        if step in self._orbax.all_steps():
            return False
        scalars = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(v)}
        meta = {
            "step": step,
            "data_position": step,
            "config": self._config,
            "versions": versions(),
            "metrics": scalars,
        }
        items: dict[str, Any] = {k: ocp.args.StandardSave(v) for k, v in items_of(train).items()}
        self._orbax.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), metrics=scalars)
        self._unsealed = step
        return True

    def wait(self) -> None:
        """Block until the save under way is complete and on disk; raises its error if it failed."""
        step, self._unsealed = self._unsealed, None
        self._orbax.wait_until_finished()
        if step is not None and jax.process_index() == 0:
            write_json(self.directory / str(step) / FILES, sizes_of(self.directory / str(step)))

    def seal(self) -> None:
        """`wait`, but only where nothing is to be waited for: a save that is done, or has failed, is known as such."""
        if self._unsealed is not None and not self._orbax.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """`wait`, then give back Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A failed save raises again at every wait; behind another error it must not hide that one.
        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            self.close()


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps that have a checkpoint directory under `workdir`, ascending; broken ones included."""
    directory = directory_of(workdir)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.is_dir() and p.name.isdecimal())


def read_meta(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """A checkpoint's JSON: step, data_position, config, versions, metrics."""
    return json.loads((directory_of(workdir) / str(step) / "meta" / "metadata").read_text())


def items_of(train: TrainState) -> dict[str, Tree]:
    """The trees of a state by checkpoint item, without the empty ones, and the key as plain integers."""
    key = train.key
    if is_typed(key):
        data = jax.eval_shape if isinstance(key, jax.ShapeDtypeStruct) else lambda f, x: f(x)
        key = data(jax.random.key_data, key)
    trees = {"core": {"step": train.step, "key": key}, **{n: getattr(train, n) for n in TREES[1:]}}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def open_orbax(directory: Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager of a checkpoint directory, told what each item is."""
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in TREES}
    return ocp.CheckpointManager(
        directory,
        item_handlers={**handlers, "meta": ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(**options),
    )


def directory_of(workdir: str | os.PathLike) -> Path:
    """Where a run keeps its checkpoints. Raises ValueError for a URL, which a plain path would take for a folder."""
    if "://" in os.fspath(workdir):
        raise ValueError(f"workdir is '{workdir}'; allowed: a path of this machine or of a mounted file system")
    return Path(workdir).absolute() / "checkpoints"


def sizes_of(directory: Path) -> dict[str, int]:
    """The files below a checkpoint's directory and their bytes, without `files.json` itself."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != FILES)
    return {p.relative_to(directory).as_posix(): p.stat().st_size for p in files}


def is_typed(key: Any) -> bool:
    """Whether a key is of `jax.random.key`'s kind rather than a plain uint32 array."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
