"""Where a config comes from: a file with `get_config(arg)`, words after a colon, and `--config.section.key=value`.

A config file is a short program: `def get_config(arg: str = "") -> ConfigDict`, usually `tables.base()` with the keys
that its method changes. `configs/digits.py:smoke,method=flow` calls get_config("smoke,method=flow").
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from jaxdiff import tables


def words(arg: str, **defaults: Any) -> Any:
    """Read a config's argument, `name=value` pairs and bare words (meaning True), separated by commas.

    >>> words("smoke,method=edm", smoke=False, method="ddpm", steps=4)
    namespace(smoke=True, method='edm', steps=4)
    """
    found = dict(defaults)
    for word in filter(None, (arg or "").split(",")):
        name, equals, value = word.partition("=")
        if name not in defaults:
            raise ValueError(f"the config's argument has {word!r}; allowed: {', '.join(defaults)}")
        text = isinstance(defaults[name], str)  # "none" is a word as any other here
        found[name] = (value if text else _like(defaults[name], value, name)) if equals else True
        if not equals and not isinstance(defaults[name], bool):
            raise ValueError(f"the config's argument {name!r} needs a value; allowed: {name}={defaults[name]}")
    return SimpleNamespace(**found)


def _literal(text: str) -> Any:
    """`text` as Python writes it (3, 1e-4, True, None, (1, 2)), or itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _like(default: Any, text: str, name: str, kind: type | None = None) -> Any:
    """`text` as a value of `default`'s type, or of `kind` where the default is None; None without a kind takes any.

    A list of words or numbers is written 1,2,2 or 1+2+2; one of them alone is a list of one.
    """
    value = _literal(text)
    kind = type(default) if default is not None else kind
    if value is None or kind in (None, type(None)):
        return value
    if kind is str:
        return text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (tuple, list):
        if isinstance(value, (tuple, list)):
            return tuple(value)
        return tuple(map(_literal, filter(None, text.replace("+", ",").split(","))))
    if type(value) is not kind:
        such = "" if default is None else f", such as {default!r}"
        raise ValueError(f"{name} is {text!r}; allowed: a value of type {kind.__name__}{such}")
    return value


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The config of `FILE.py[:arg]`, with `(dotted key, text)` overrides applied, locked."""
    file, _, arg = spec.partition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise FileNotFoundError(f"no config at {file!r}; allowed: a Python file with get_config, e.g. configs/digits.py")
    config = _get_config(path)(arg)
    for key, text in overrides:
        override(config, key, text)
    return config.lock()


def _get_config(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"jaxdiff_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # so that a config may import its neighbours, such as common.py
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config; mend: def get_config(arg: str = '') -> ConfigDict")
    return module.get_config


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set one dotted key from text, with the type of the value that stands there."""
    *parents, last = key.split(".")
    part: Any = config
    for name in parents:
        part = part.get(name) if isinstance(part, ConfigDict) else None
    free = isinstance(part, ConfigDict) and key.startswith("data.options.")
    if not isinstance(part, ConfigDict) or (last not in part and not free) or isinstance(part.get(last), ConfigDict):
        raise ValueError(f"config has no key {key!r}; {_nearest(config, key)}")
    # a kind is always a word, "none" too; elsewhere None leaves a value to its function
    value = text if last == "kind" else _like(part.get(last), text, key, part.get_type(last) if last in part else None)
    if value is None and key in tables.needed():
        raise ValueError(f"{key} is None; allowed: a value, such as {part[last]!r}")
    part.unlock()
    with part.ignore_type():
        part[last] = value


def _nearest(config: ConfigDict, key: str) -> str:
    keys = list(flat(config))
    close = difflib.get_close_matches(key, keys, 3, 0.5)
    return f"allowed: {', '.join(close)}" if close else f"allowed sections: {', '.join(config)}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping | ConfigDict) and len(value) else {key: value}
    return found


def from_run(workdir: Any) -> ConfigDict:
    """The config that a run directory holds; keys newer than the run take their defaults, older ones at None say nothing."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run at {str(workdir)!r} (no config.json); mend: the --workdir that you trained in")
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is not readable JSON; mend: restore it, it is written at the start of a run") from None
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds no config; mend: restore it, it is written at the start of a run")
    config = tables.base()
    known = flat(config)
    for key, value in flat(saved).items():
        *parents, last = key.split(".")
        if key not in known and not key.startswith("data.options."):
            if value is None:
                continue
            raise ValueError(f"{path} has the key {key!r}, which this version of jaxdiff does not know; mend: the version "
                             "that versions.json beside it names")
        part: Any = config
        for name in parents:
            part = part[name]
        with part.ignore_type():
            part[last] = tuple(value) if isinstance(value, list) else value
    return config.lock()
