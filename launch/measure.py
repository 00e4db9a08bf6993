"""Measure configs one after another and keep a row of each; README's tables are made from the rows.

    python launch/measure.py run configs/results/digits.jsonl configs/digits.py:method={ddpm,edm,flow}
    python launch/measure.py table configs/results/digits.jsonl

`run` trains each config in runs/measure/NAME, scores it, and appends a row to the file at once; a config that has a row
is passed over, so the same command goes on after a stop. A row: config, overrides, seed, steps, hardware, versions,
commit, processor seconds of the training (compiling included) and figures. Overrides are given as `--config.key=value`
after the configs and hold for all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from jaxdiff import configfile, fit, score, training
from jaxdiff.run import load_run


def hardware() -> str:
    """The device, or the processor and how many cores this process may use."""
    found = training.versions()
    if found["platform"] != "cpu":
        return f"{found['devices']} x {found['device']}"
    return f"CPU, {len(os.sched_getaffinity(0))} cores ({platform.machine()})"


def provenance() -> dict:
    """What a row says of where it was measured: hardware, commit, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {key: value for key, value in training.versions().items() if key in ("jaxdiff", "jax", "python")}
    return {"hardware": hardware(), "commit": commit, "versions": versions}


def place(spec: str, overrides: list[tuple[str, str]], root: Path) -> Path:
    """The run directory of a config and its overrides."""
    name = configfile.load(spec, overrides).name
    return root / "_".join([name, *(f"{key}={value}" for key, value in overrides)]).replace("/", "-")


def measure(spec: str, overrides: list[tuple[str, str]], root: Path) -> dict:
    """Train and score one config: its row."""
    config, workdir = configfile.load(spec, overrides), place(spec, overrides, root)
    start = time.process_time()
    before = max(training.steps(workdir), default=0)
    outcome = fit.train(config, workdir)
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)
    seconds = time.process_time() - start if before == 0 else None  # a resumed run has no one number
    figures, _ = score.score(load_run(workdir), workdir)
    return {
        "config": spec, "overrides": dict(overrides), "seed": config.seed, "steps": outcome.step,
        "train_cpu_seconds": seconds,
        "sampler": f"{config.sampler.kind}, {config.sampler.num_steps} steps" if config.path.kind != "none" else "-",
        **provenance(),
        "figures": {key: value for key, value in figures.items() if not isinstance(value, dict)},
    }


def rows(file: Path) -> list[dict]:
    """The rows of a results file; none if it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


HEADS = (
    ["agreement", "frechet", "frechet_floor", "precision", "recall"],
    ["psnr", "ssim", "feature_distance", "consistency", "diversity", "frechet", "joint_frechet"],
    ["modes", "high_quality", "kl", "std_ratio", "energy"],
)


def table(found: list[dict]) -> str:
    """The rows as a Markdown table."""
    heads = next((heads for heads in HEADS if any(heads[0] in row["figures"] for row in found)), HEADS[0])
    lines = ["| config | sampler | " + " | ".join(heads) + " | n | training | hardware |", "|---" * (len(heads) + 5) + "|"]
    for row in found:
        values = [row["figures"].get(head, "") for head in heads]
        shown = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
        spent = "-" if row["train_cpu_seconds"] is None else f"{row['train_cpu_seconds']:.0f} CPU s"
        figures = row["figures"]
        n = f"{figures['n']} x {figures['k']}" if "k" in figures else str(figures["n_fake"])
        cells = [f"`{row['config']}`", row["sampler"], *shown, n,
                 f"{row['steps']} steps, {spent}", row["hardware"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """`run FILE CONFIG ...` or `table FILE`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("file", type=Path, help="configs/results/NAME.jsonl")
    parser.add_argument("configs", nargs="*", help="FILE.py[:arg] ...")
    parser.add_argument("--root", type=Path, default=Path("runs/measure"), help="where the runs go")
    args, rest = parser.parse_known_args()
    overrides = [tuple(word.removeprefix("--config.").split("=", 1)) for word in rest]
    if args.verb == "table":
        print(table(rows(args.file)))
        return
    for spec in args.configs:
        if any(row["config"] == spec and row["overrides"] == dict(overrides) for row in rows(args.file)):
            print(f"{spec}: already measured")
            continue
        row = measure(spec, overrides, args.root)
        args.file.parent.mkdir(parents=True, exist_ok=True)
        with args.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(table([row]), flush=True)


if __name__ == "__main__":
    main()
