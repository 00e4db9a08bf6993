"""The command line: `jaxdiff train | sample | evaluate | cascade | likelihood | data | plan | bench`.

Exit codes: 0 done; 1 the work failed (a loss that is not finite, a full disk); 2 the words were wrong (a flag, a config
key, a data set, a shape, a checkpoint), said in one line, with every file left as it was; 128 + n stopped by signal n,
after saving.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from jaxdiff.commands import COMMANDS, TAKE_CONFIG
from jaxdiff.grammar import parser

WRONG_WORDS = (ValueError, FileNotFoundError, NotADirectoryError, ImportError)


def _overrides(rest: Sequence[str], command: str) -> list[tuple[str, str]]:
    """`--config.key=value` words; any other leftover word is wrong."""
    found, words = [], list(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not (command in TAKE_CONFIG and name.startswith("--config.")):
            raise ValueError(f"unknown argument {word!r}; see jaxdiff {command} --help")
        if not equals:
            if not words:
                raise ValueError(f"{name} has no value; mend: {name}=VALUE")
            value = words.pop(0)
        found.append((name.removeprefix("--config."), value))
    return found


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Our own warnings as one line each; what the libraries below tell their developers stays untold.

    TF_CPP_MIN_LOG_LEVEL, PYTHONWARNINGS and python -W are left as the user set them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's C++ log; read when jax is imported
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jaxdiff: %(message)s"))
    handler.addFilter(_worth_a_line)
    root = logging.getLogger()
    root.addHandler(handler)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.removeHandler(handler)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """What jaxdiff and jax warn of, and others' errors; not those that Orbax logs at length and raises as well."""
    if record.name.partition(".")[0] in ("jaxdiff", "jax"):
        return True
    return record.levelno >= logging.ERROR and not (record.name == "absl" and record.exc_info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        args, rest = parser().parse_known_args(argv)
        overrides = _overrides(rest, args.command)
        with _calm():
            return COMMANDS[args.command](args, *((overrides,) if args.command in TAKE_CONFIG else ()))
    except WRONG_WORDS as error:
        print(f"jaxdiff: {' '.join(str(error).split())}", file=sys.stderr)
        return _failed(2)
    except (ArithmeticError, OSError, RuntimeError) as error:
        print(f"jaxdiff: {' '.join(str(error).split())[:2000]}", file=sys.stderr)
        return _failed(1)
    except KeyboardInterrupt:
        print("jaxdiff: interrupted", file=sys.stderr)
        return _failed(130)
    except Exception:  # a fault of ours, which Python tells at length
        _failed(1, traceback.format_exc())
        raise


def _failed(code: int, words: str = "") -> int:
    """The exit code; where other processes train with this one, its end, with these words."""
    if "jaxdiff.training" in sys.modules:
        from jaxdiff.training import leave_alone

        leave_alone(code, words)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
