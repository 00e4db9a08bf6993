"""One training a run directory: a second one is refused, and the claim ends with its process, however that ends.

The claim is a lock of the kernel's (flock) on `workdir/.lock`, which no kill leaves behind; the file stays and says who
held it last. On a network file system it is as good as the server's locking: NFS passes it on to all machines that mount
with the default `local_lock=none`, and keeps a dead machine's for a lease (about 90 s); on a bucket mounted as a folder
(FUSE) it holds between the processes of one machine only. Where there are no locks at all, a warning says so.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from jaxdiff.training.processes import agreed, check_joined

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)
LOCK = ".lock"
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold `workdir`, which is made if need be, for one training; process 0 holds it for all, and every process enters.

    Raises ValueError where another training holds it, OSError where it cannot be written: on every process the same.
    """
    check_joined()
    held: IO[str] | None = None
    error: OSError | ValueError | None = None
    if jax.process_index() == 0:
        try:
            held = _lock(Path(workdir))
        except (OSError, ValueError) as caught:
            error = caught
    kind, words = agreed([type(error).__name__, str(error)])
    if kind != "NoneType":
        raise (ValueError if kind == "ValueError" else OSError)(words)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def check_free(workdir: str | os.PathLike) -> None:
    """Raise ValueError where another training holds `workdir` now; writes nothing. Every process calls it."""
    check_joined()
    words = ""
    if fcntl is not None and jax.process_index() == 0 and os.access(Path(workdir) / LOCK, os.R_OK | os.W_OK):
        with (Path(workdir) / LOCK).open("r+", encoding="utf-8") as file:
            try:
                _take(file, workdir)
            except ValueError as error:
                words = str(error)
    if words := agreed(words):
        raise ValueError(words)


def _lock(workdir: Path) -> IO[str] | None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write in the workdir {str(workdir)!r} ({error.strerror}); mend: its permissions or its "
                      "disk, or another workdir") from None
    try:
        if fcntl is not None and _take(file, workdir):
            file.truncate(0)
            with contextlib.suppress(OSError):  # a full disk: the lock holds without words, and is needed to go on
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _take(file: IO[str], workdir: str | os.PathLike) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        raise ValueError(f"{who} is training in {os.fspath(workdir)!r}; mend: another workdir, or end it first") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s has no locks (%s): see that no second training runs in it", os.fspath(workdir), error.strerror)
        return False
    return True
