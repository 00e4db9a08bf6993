"""Per-step host work by the number of devices: does a training step cost the host more on 8 devices than on 1?

    python launch/scaling.py --devices=1,2,4,8
    python launch/scaling.py --steps_per_dispatch=10 --out=configs/results/scaling.jsonl
    python launch/scaling.py --config=configs/digits.py --kind=pmap

Each count is a process of its own on that many virtual CPU devices, with the same global batch. Milliseconds of processor
time a step, the least of the blocks of 20 dispatches, since a processor that others use too only ever adds:

    data       a batch read, preprocessed and laid on the devices, by all threads of the process, while nothing else runs
    dispatch   the thread that calls the compiled step, until the call returns
    logging    metrics gathered, fetched and averaged over the block, and a row written

`step` is the wall clock of a whole step: virtual devices share the processor's cores, so it says nothing of real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COLUMNS = ("data", "dispatch", "logging", "step")
BLOCK = 20


def measure(spec: str, kind: str, batch_size: int, blocks: int, per_dispatch: int = 1) -> dict[str, float]:
    """One row, in this process, on the devices that it has."""
    import jax

    from jaxdiff import build, configfile, objective, training
    from jaxdiff.feed import open_feed
    from jaxdiff.training.loop import dispatches
    from jaxdiff.training.meter import Meter

    words = [("data.batch_size", str(batch_size)), ("parallel.kind", kind)]
    config = configfile.load(spec, words)
    layout = training.make_layout(**config.parallel)
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    with tempfile.TemporaryDirectory() as workdir, training.Log(workdir, 0) as log:
        feed = open_feed(config, workdir)
        net = build.network(config, feed.known)
        parts = objective.train_step(config, net, feed.known, layout)
        state = parts.state if layout is None else training.place_state(parts.state, layout)
        step = training.compiled_step(parts.step, state, layout, per_dispatch)
        placed = layout is None and per_dispatch == 1
        source = dispatches(feed.batches(progress=False, placed=placed)(0), per_dispatch, layout, 0)
        for _ in range(3):  # compiles
            state, metrics = step(state, next(source))
        for block in range(blocks):
            jax.block_until_ready((state, metrics))
            start = time.process_time()
            batches = [next(source) for _ in range(BLOCK)]
            jax.block_until_ready(batches)
            found["data"].append(time.process_time() - start)

            kept, called, start = [], 0.0, time.perf_counter()
            for one in batches:
                before = time.thread_time()
                state, metrics = step(state, one)
                called += time.thread_time() - before
                kept.append(metrics)
                jax.block_until_ready(metrics)
            found["dispatch"].append(called)
            found["step"].append(time.perf_counter() - start)

            start = time.process_time()
            meter = Meter(batch_size, per_dispatch)
            for n, metrics in enumerate(kept, block * BLOCK + 1):
                meter.add(n * per_dispatch, metrics)
            meter.first_bad()
            log.scalars(n * per_dispatch, meter.read())
            found["logging"].append(time.process_time() - start)
    return {name: 1e3 * min(values) / (BLOCK * per_dispatch) for name, values in found.items()}


def child(count: int, args: argparse.Namespace) -> dict[str, float]:
    """The row of `count` devices, measured in a process that has them."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={count}")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    words = [f"--{name}={getattr(args, name)}" for name in ("config", "kind", "batch_size", "blocks", "steps_per_dispatch")]
    done = subprocess.run([sys.executable, __file__, "--here", *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/gaussians25.py", help="FILE.py[:words]")
    parser.add_argument("--devices", default="1,2,4,8", help="counts, with commas")
    parser.add_argument("--kind", default="mesh", choices=("mesh", "pmap"))
    parser.add_argument("--batch_size", type=int, default=128, help="of all devices together")
    parser.add_argument("--blocks", type=int, default=15, help=f"of {BLOCK} dispatches each")
    parser.add_argument("--steps_per_dispatch", type=int, default=1, help="steps that one call of the devices runs")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        print(json.dumps(measure(args.config, args.kind, args.batch_size, args.blocks, args.steps_per_dispatch)))
        return
    print("devices  " + "  ".join(f"{name:>8}" for name in COLUMNS) + "   ms a step")
    for count in map(int, args.devices.split(",")):
        row = child(count, args)
        print(f"{count:>7}  " + "  ".join(f"{row[name]:>8.3f}" for name in COLUMNS), flush=True)
        if args.out is not None:
            from measure import provenance

            with args.out.open("a") as file:
                file.write(json.dumps({"config": args.config, "kind": args.kind, "devices": count,
                                       "batch_size": args.batch_size, "steps_per_dispatch": args.steps_per_dispatch,
                                       "ms": row, **provenance()}) + "\n")


if __name__ == "__main__":
    main()
