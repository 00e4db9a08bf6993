"""The files at the top of a run directory: what was asked (`config.json`) and what ran it (`versions.json`).

workdir/
  config.json        the configuration, as JSON
  versions.json      versions of the packages, Python and the devices of the latest start
  checkpoints/       one directory a step (checkpoint.py)
  metrics.jsonl      a row a log step; tensorboard/ holds the same, and pictures
  samples/           a picture an evaluation
  .lock              held by the training that is under way (claim.py)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxdiff.version import __version__

_ABSENT = "absent"


def versions() -> dict[str, Any]:
    """Versions of jaxdiff, Python and the packages that decide a run's numbers; kind and number of devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
    found: dict[str, Any] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    hardware = {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    return {"jaxdiff": __version__, "python": platform.python_version(), **found, **hardware}


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as it reads back from JSON (tuples become lists). Raises ValueError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise ValueError(
            f"the config cannot be written as JSON ({error}); use numbers, strings, lists and dicts"
        ) from None


def check_config(
    workdir: str | os.PathLike, config: Mapping[str, Any], may_change: Sequence[str] = (), defaults: Mapping[str, Any] = {}
) -> None:
    """Refuse to resume a run under another configuration.

    `may_change` lists dotted keys that may differ; a key allows everything below it ("log" allows "log.every"). `defaults`
    is a configuration whose values stand for keys that the run, of an older version, does not hold.
    Raises ValueError naming the first key that differs, both values and the way out. Without `config.json` all is well.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        return
    try:
        held = {key: value for key, value in _flat(as_json(defaults)).items() if value != {}}  # an empty section has no keys
        was = held | _flat(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it, or train into another workdir") from None
    now = _flat(as_json(config))
    differ = [key for key in sorted(was.keys() | now.keys()) if was.get(key, _ABSENT) != now.get(key, _ABSENT)]
    differ = [key for key in differ if key in now or was[key] is not None]  # an older version's key that said nothing
    differ = [key for key in differ if not any(key == k or key.startswith(f"{k}.") for k in may_change)]
    if differ:
        key = differ[0]
        more = f" (also {', '.join(differ[1:])})" if differ[1:] else ""
        free = f"; only {', '.join(may_change)} may change" if may_change else ""
        raise ValueError(
            f"{os.fspath(workdir)} holds a run with {key}={was.get(key, _ABSENT)!r}, and this one asks for "
            f"{now.get(key, _ABSENT)!r}{more}; use another workdir, or set {key} back to resume{free}"
        )


def write_run_files(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write `config.json` and `versions.json`, each in one atomic move. Only process 0 writes."""
    if jax.process_index() == 0:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(Path(workdir) / "config.json", as_json(config))
        write_json(Path(workdir) / "versions.json", versions())


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place and move it there, so that a kill leaves the old file or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
