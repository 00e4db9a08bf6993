"""Does a killed run come back bit for bit? Train once in peace and once under SIGKILL, and compare.

    python launch/kill_test.py --workdir=runs/kill
    python launch/kill_test.py --workdir=runs/kill2 --processes=2 --config=configs/digits.py:smoke --steps=600 --every=20

The same command is started again after every kill, on the same numbers of devices, processes and threads. Kills come at
random moments of four kinds: at the start (before anything is logged), during steps, during a save (its temporary
directory is there) and between (a checkpoint has just been committed). Of several processes one is killed, and
launch/local_processes.sh ends the others.

Checked, with exit code 1 where it does not hold: a restart goes on from the newest checkpoint that was committed; no kill
loses more than one save interval plus a save that was unfinished; in the end parameters, averages and optimizer states are
those of the run in peace, bit for bit, and so are the rows of metrics.jsonl, but for what tells the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdiff import training
from jaxdiff.training.checkpoint import TREES, open_orbax

ROOT = Path(__file__).parent.parent
KINDS = ("start", "steps", "save", "between")
TIMING = ("steps_per_s", "examples_per_s")


class Killed(NamedTuple):
    """One kill: its kind, the last step logged, the newest committed checkpoint, and the save that was unfinished."""

    kind: str
    reached: int
    committed: int
    unfinished: int | None

    @property
    def lost(self) -> int:
        """Steps to be done again, at least: rows come every few."""
        return self.reached - self.committed

    def __str__(self) -> str:
        unfinished = "" if self.unfinished is None else f", the save of {self.unfinished} unfinished"
        return f"{self.kind:7} at step {self.reached}, newest checkpoint {self.committed}{unfinished}: {self.lost} lost"


def command(args: argparse.Namespace, workdir: Path) -> list[str]:
    """`jaxdiff train`, as a user types it, in one process or several."""
    words = [sys.executable, "-m", "jaxdiff.cli", "train", f"--config={args.config}", f"--workdir={workdir}", "--quiet",
             "--no_evaluate", f"--config.train.steps={args.steps}", f"--config.train.checkpoint_every={args.every}",
             f"--config.train.log_every={args.log_every}", f"--config.train.eval_every={args.steps}",
             "--config.train.preview=0", "--config.train.steps_per_dispatch=1", *args.overrides]
    if args.processes == 1:
        return words
    launcher = [str(ROOT / "launch" / "local_processes.sh"), f"--num_processes={args.processes}", "--grace=1"]
    return [*launcher, f"--devices={args.devices}", "--", *words]


def start(args: argparse.Namespace, workdir: Path) -> subprocess.Popen:
    """The command under way, its words in `workdir`.log, its programs compiled once for all starts."""
    env = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if args.processes == 1:
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={args.devices}"}
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command(args, workdir), cwd=ROOT, env=os.environ | env, stdout=log, stderr=log)


def rows(workdir: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl that are whole."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def reached(workdir: Path) -> int:
    """The last step that was logged, 0 without one; reads the end of the file only."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        whole = [line for line in file.read().splitlines(keepends=True) if line.startswith(b"{") and line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def newest(workdir: Path) -> int:
    """The newest committed checkpoint, 0 without one."""
    return max(training.steps(workdir), default=0)


def unfinished(workdir: Path) -> int | None:
    """The step of a save under way, or left unfinished."""
    found = [re.match(r"(\d+)\.orbax-checkpoint-tmp", path.name) for path in (workdir / "checkpoints").glob("*tmp*")]
    return max((int(match[1]) for match in found if match), default=None)


def kill(args: argparse.Namespace, workdir: Path, kind: str, chance: random.Random) -> Killed | None:
    """Start, wait for a moment of that kind, kill, wait for the end; None where the run came to its end before."""
    curve = workdir / "metrics.jsonl"
    held, file = newest(workdir), curve.stat().st_ino if curve.exists() else None
    process = start(args, workdir)

    def steps() -> bool:
        """It trains: the rows behind the restored step were cut, which makes another file, and there are new ones."""
        return curve.exists() and curve.stat().st_ino != file and reached(workdir) > held

    moments: dict[str, tuple[Callable[[], bool], float]] = {
        "start": (lambda: True, 0.8 * args.startup),
        "steps": (steps, 2 * args.every * args.pace),
        "save": (lambda: steps() and unfinished(workdir) is not None, args.save),
        "between": (lambda: newest(workdir) > held, 0.1 * args.save),
    }
    moment, wait = moments[kind]
    while process.poll() is None and not moment():
        time.sleep(0.005)
    time.sleep(chance.uniform(0, wait))
    if process.poll() is not None:
        return None
    os.kill(victim(process, workdir, args.processes, chance), signal.SIGKILL)
    if (code := process.wait(timeout=120)) in (0, 2):
        raise SystemExit(f"the killed run ended with code {code}; see {workdir.with_suffix('.log')}")
    return Killed(kind, reached(workdir), newest(workdir), unfinished(workdir))


def in_peace(args: argparse.Namespace, workdir: Path) -> None:
    """The run that is not killed; notes in `args` how long a start, a step and a save take, in seconds."""
    begun, saving = time.monotonic(), 0.0
    process = start(args, workdir)
    while process.poll() is None and not reached(workdir):
        time.sleep(0.01)
    args.startup = time.monotonic() - begun
    while process.poll() is None:
        looked = time.monotonic()
        time.sleep(0.01)
        saving += time.monotonic() - looked if unfinished(workdir) is not None else 0.0
    if process.returncode != 0:
        raise SystemExit(f"the run in peace ended with code {process.returncode}; see {workdir.with_suffix('.log')}")
    args.pace = (time.monotonic() - begun - args.startup) / args.steps
    args.save = saving / (args.steps // args.every)


def victim(process: subprocess.Popen, workdir: Path, processes: int, chance: random.Random) -> int:
    """The process to kill: the only one, or one of those that the launcher named."""
    if processes == 1:
        return process.pid
    named = re.findall(r"^\[\d+\] process (\d+)$", workdir.with_suffix(".log").read_text(), re.MULTILINE)
    return int(chance.choice(named[-processes:]))


def same(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, in words; nothing where they are the same bit for bit."""
    faults = []
    if newest(one) != newest(other):
        return [f"the last checkpoints are {newest(one)} and {newest(other)}"]
    leaves = [last(run) for run in (one, other)]
    if leaves[0].keys() != leaves[1].keys():
        return ["the last checkpoints hold other arrays"]
    for name, value in leaves[0].items():
        if value.tobytes() != leaves[1][name].tobytes():
            faults.append(f"{name} differs by up to {np.abs(value - leaves[1][name]).max():.3g}")
    curves = [[{k: v for k, v in row.items() if k not in TIMING} for row in rows(run)] for run in (one, other)]
    if curves[0] != curves[1]:
        differ = [a["step"] for a, b in zip(*curves, strict=False) if a != b]
        faults.append(f"metrics.jsonl has {len(curves[0])} and {len(curves[1])} rows, which differ at steps {differ[:8]}")
    return faults


def last(run: Path) -> dict[str, np.ndarray]:
    """All arrays of a run's last checkpoint by their paths, read in this one process."""
    manager, step = open_orbax(run / "checkpoints", create=False), newest(run)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    alone = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    saved = {name: item.tree for name, item in manager.item_metadata(step).items() if name in TREES and item is not None}
    wanted = {name: ocp.args.StandardRestore(jax.tree.map(alone, tree)) for name, tree in saved.items()}
    found = manager.restore(step, args=ocp.args.Composite(**wanted))
    trees = {name: found[name] for name in wanted}
    manager.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]}


def main(argv: list[str] | None = None) -> int:
    """Run the test; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="a new directory, for both runs and their log")
    parser.add_argument("--kills", type=int, default=20, help="(default 20)")
    parser.add_argument("--processes", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--devices", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--config", default="configs/gaussians25.py:smoke", help="(default configs/gaussians25.py:smoke)")
    parser.add_argument("--steps", type=int, default=4000, help="of each run (default 4000)")
    parser.add_argument("--every", type=int, default=50, help="steps between two saves (default 50)")
    parser.add_argument("--log_every", type=int, default=5, help="steps between two rows (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args, args.overrides = parser.parse_known_args(argv)
    if wrong := [word for word in args.overrides if not word.startswith("--config.")]:
        parser.error(f"unknown argument {wrong[0]}")
    if args.workdir.exists() and any(args.workdir.iterdir()):
        parser.error(f"--workdir={args.workdir} is not empty")
    args.workdir.mkdir(parents=True, exist_ok=True)
    peace, war, chance = args.workdir.resolve() / "peace", args.workdir.resolve() / "war", random.Random(args.seed)

    in_peace(args, peace)
    print(f"in peace: {args.steps} steps, {args.startup:.1f} s to the first row, {1000 * args.pace:.2f} ms a step with its "
          f"saves, {args.save:.2f} s a save, {args.processes} process(es) of {args.devices} device(s)", flush=True)

    kinds = [KINDS[i % len(KINDS)] for i in range(args.kills)]
    chance.shuffle(kinds)
    faults: list[str] = []
    for number, kind in enumerate(kinds, 1):
        before = newest(war)
        died = kill(args, war, kind, chance)
        if died is None:
            faults.append(f"the run ended before kill {number}; give it more --steps")
            break
        print(f"kill {number:2}/{args.kills}: {died}", flush=True)
        if died.reached - max(died.committed, died.unfinished or 0) > args.every:
            faults.append(f"kill {number} lost more than a save interval of {args.every}")
        if died.committed < before:
            faults.append(f"kill {number} lost checkpoint {before}")
    else:
        if start(args, war).wait() != 0:
            raise SystemExit(f"the last start failed; see {war.with_suffix('.log')}")
    faults += same(peace, war)
    faults += [line for line in war.with_suffix(".log").read_text().splitlines() if "passing over the checkpoint" in line]
    print("\n".join(f"FAULT: {fault}" for fault in faults) or f"the same bit for bit after {args.kills} kills: "
          f"parameters, averages, optimizer states and {len(rows(war))} rows")
    if not faults:
        shutil.rmtree(args.workdir / "xla", ignore_errors=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
