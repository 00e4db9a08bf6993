"""Several processes as one run: how they find each other, and how they come to know the same thing.

    words of the program      --coordinator=HOST:PORT --num_processes=N --process_id=I
    words of the environment  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
    a cluster                 Slurm, Open MPI, TPU pods of Compute Engine and of GKE: jax.distributed reads what it says

The first that is there counts, word by word. Without any a program is alone, and nothing happens.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)
AUTO = "auto"
MEND = "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I, or --coordinator=auto in a cluster, or none"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, timeout: int = 300
) -> None:
    """Join the other processes of this run, if there are any. Call it before anything asks jax for a device.

    coordinator: HOST:PORT where process 0 listens, or "auto": what a cluster says, which must then be there.
    num_processes, process_id: how many there are, and which this is, from 0. timeout: seconds to wait for the others, after
        which the process ends with a line to stderr and code 1.

    Raises ValueError for words that are missing or do not fit, RuntimeError for what else jax says of them.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise ValueError(f"--coordinator=auto came with --num_processes or --process_id; {MEND}")
        return _join({}, timeout)
    env = os.environ
    found: dict[str, Any] = {
        "coordinator_address": coordinator or env.get("JAX_COORDINATOR_ADDRESS") or None,
        "num_processes": _count("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        "process_id": _count("JAX_PROCESS_ID") if process_id is None else process_id,
    }
    if found["num_processes"] is None and found["process_id"] is None and coordinator is None and in_cluster():
        return _join({}, timeout)
    if all(value is None for value in found.values()):
        return _perhaps_a_pod(timeout)
    missing = [flag for flag, value in zip(("coordinator", "num_processes", "process_id"), found.values(), strict=True)
               if value is None]
    if missing:
        raise ValueError(f"of the words that join several processes --{missing[0]} is missing; {MEND}")
    address, count, number = found.values()
    if count < 1 or not 0 <= number < count:
        raise ValueError(f"--process_id is {number} of --num_processes={count}; allowed: 0..N - 1 of N processes")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator is {address!r}; allowed: HOST:PORT, such as 10.0.0.1:1234, or auto")
    if count > 1:
        _join({**found, "cluster_detection_method": "deactivate"}, timeout)


def in_cluster() -> bool:
    """Whether the environment is that of one task of several: of Slurm, of Open MPI, or of a TPU slice on GKE."""
    env = os.environ
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    slurm, mpi = all(word in env for word in _SLURM), all(word in env for word in _OPEN_MPI)
    return (slurm and env["SLURM_NTASKS"] != "1") or (mpi and env["OMPI_COMM_WORLD_SIZE"] != "1") or "," in hosts


def check_joined() -> None:
    """Raise ValueError where jax sees other processes' devices, as on a TPU slice, and nobody joined them."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(f"this is one of {jax.process_count()} processes, which have not joined; {MEND}")


def everyones(value: Any) -> list[Any]:
    """The `value` of each process, in their order, on every one; what JSON holds. All must call it, at the same place.

    >>> everyones([3, "no"])
    [[3, 'no']]
    """
    if jax.process_count() == 1:
        return [value]
    words = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(words))))
    said = multihost_utils.process_allgather(np.pad(words, (0, int(lengths.max()) - len(words))))
    return [json.loads(bytes(row[:n].astype(np.uint8))) for row, n in zip(np.asarray(said), lengths, strict=True)]


def agreed(value: Any) -> Any:
    """Process 0's `value` on every process, as `everyones`."""
    return everyones(value)[0]


def leave_alone(code: int, words: str = "") -> None:
    """End this process at once, with `words` to stderr, if it is one of several: they may be waiting for it in a step, and
    it would wait for them at its end. They see it die, and end too. Alone it does nothing."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        print(words, end="", file=sys.stderr, flush=True)
        os._exit(code)


def _join(words: dict[str, Any], timeout: int) -> None:
    """`jax.distributed.initialize`, whose errors become one line, and which keeps its hands off SIGTERM."""
    where = "a cluster"
    if words:
        where = f"{words['coordinator_address']} as process {words['process_id']} of {words['num_processes']}"

    def lost(reason: str) -> str:
        return (f"could not join the other processes at {where} ({reason}); see that all of them run, reach that address "
                f"and were told the same; {MEND}")

    def give_up() -> None:
        print(f"jaxdiff: {lost(f'waited {timeout} s')}", file=sys.stderr, flush=True)
        os._exit(1)

    watch = threading.Timer(timeout, give_up)  # jax itself would end the process from C++, with a stack trace
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**words, initialization_timeout=timeout + 60)
    except Exception as error:
        raise RuntimeError(lost(" ".join(str(error).split())[:200])) from error
    finally:
        watch.cancel()
    if threading.current_thread() is threading.main_thread():
        # jax has caught SIGTERM for a service of its own, and until the loop catches it (signals.py) it would do nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _perhaps_a_pod(timeout: int) -> None:
    """On a TPU machine of Compute Engine, which may be one of several of a slice: only its metadata server tells."""
    env = os.environ  # jax set or left these when it was imported
    if env.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in env:
        try:
            _join({}, timeout)
        except RuntimeError as error:
            _log.warning("going on as one process: %s", error)


def _count(word: str) -> int | None:
    text = os.environ.get(word)
    if text and not text.isdecimal():
        raise ValueError(f"{word} is {text!r} in the environment; allowed: a whole number; {MEND}")
    return int(text) if text else None
