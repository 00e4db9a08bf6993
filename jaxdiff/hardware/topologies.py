"""Machines to compile for by name: TPU pods that are not there, through libtpu, and so many virtual devices of this CPU.

    v5e:16x16    256 chips of TPU v5e       v5p:4x4x4    64 of v5p       cpu:8    8 devices of this machine

libtpu compiles for a topology without a TPU: its devices are abstract, and nothing can be put on them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from jaxdiff.hardware.chips import Chip, chip

EXAMPLES = "v4:4x4x4, v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:8x8, or cpu:8 for devices of this machine"
GENERATIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # and how many sides a topology of each has
# what libtpu would otherwise ask the machine and the network for, and complain about; and its lock on TPUs, which none needs
_QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
          "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


class Topology(NamedTuple):
    """Devices to compile for: their `name` as it was asked for, and what each of them is at best, None for a CPU."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None

    @property
    def described(self) -> str:
        """Count and kind: "16 x TPU v5e"."""
        return f"{len(self.devices)} x {self.chip.name if self.chip else self.devices[0].device_kind}"


def open_topology(name: str) -> Topology:
    """The topology of a name as in the module's head.

    Raises ValueError for any other name, a size that the generation has not, or more CPU devices than a backend that has
    been started holds, and ImportError for a TPU without libtpu. Call it before jax has started a backend: this sets how
    many devices the CPU has.
    """
    kind, _, size = name.partition(":")
    if kind == "cpu" and size.isdecimal() and int(size):
        return Topology(name, _cpus(int(size)), None)
    sides = size.split("x")
    fits = kind in GENERATIONS and len(sides) == GENERATIONS[kind] and all(re.fullmatch(r"[1-9]\d*", side) for side in sides)
    if not fits:
        raise ValueError(f"--topology is {name!r}; allowed: a name such as {EXAMPLES}")
    devices = _tpus(name, math.prod(map(int, sides)))
    return Topology(name, devices, chip(devices[0].device_kind))


def _cpus(count: int) -> tuple[Any, ...]:
    with contextlib.suppress(RuntimeError):  # where the backend runs, what it has decides
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise ValueError(f"--topology is 'cpu:{count}' and jax runs with {len(found)} CPU devices; allowed: up to "
                         f"{len(found)}, or a process of its own")
    return tuple(found[:count])


def _tpus(name: str, count: int) -> tuple[Any, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(f"--topology is {name!r}, and compiling for a TPU needs libtpu: pip install 'jaxdiff[plan]'")
    from jax.experimental import topologies

    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # a v4 chip's two cores are one device for its users, who run it so ("megacore"), and for the later kinds anyway
    how = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        devices = tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(f"--topology is {name!r}, which libtpu does not know ({str(error).splitlines()[0]}); allowed: a "
                         f"name such as {EXAMPLES}") from None
    if len(devices) != count:
        raise ValueError(f"--topology is {name!r}, which libtpu takes for {len(devices)} devices; allowed: a name such as "
                         f"{EXAMPLES}")
    return devices
