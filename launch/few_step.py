"""Few-step generators on the 25 Gaussians: every variant at every number of network calls, over seeds.

    python launch/few_step.py run configs/results/few_step25.jsonl --steps 2 4 8 16 --seeds 0 1 2 --config.train.preview=0
    python launch/few_step.py table configs/results/few_step25.jsonl
    python launch/few_step.py picture configs/results/few_step25.jsonl --out=few_step25.png --variants ddgan siddm

`run` trains each (variant, T, seed) in runs/few_step, scores it, and appends a row at once; what has a row is passed over,
so the same command goes on after a stop. All of the first seed come before the second, so that a table cut short is whole
for fewer seeds. A row is `measure.py`'s (overrides, seed, steps, processor seconds of the training with its compiling,
hardware, versions, commit, figures) with `variant` and `T`; a training that stopped being finite has the row
`"diverged": true` and no figures. 5,000 of the scored samples stay beside each run, in samples.npz, for `picture`.
`--config.key=value` holds for all runs; `--smoke` makes them tiny.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import measure, place, provenance, rows

from jaxdiff import data, evaluation, score, training
from jaxdiff.cli import WRONG_WORDS
from jaxdiff.run import load_run

CONFIG = "configs/gaussians25.py"
SAMPLES = 5000  # kept of each run


class Variant(NamedTuple):
    """A method's word, what of its loss is set otherwise, and its name in tables."""

    method: str
    overrides: dict[str, str]
    label: str


VARIANTS = {
    "ddgan": Variant("ddgan", {"loss.r1": "0"}, "DDGAN"),
    "ddgan_r1": Variant("ddgan", {}, "DDGAN + R1"),
    "ddgan_denoise": Variant("ddgan", {"loss.r1": "0", "loss.denoise": "0.3"}, "DDGAN + denoising"),
    "siddm": Variant("siddm", {"loss.form": "kl"}, "SIDDM"),
    "siddm_printed": Variant("siddm", {"loss.form": "printed"}, "SIDDM, as printed"),
    "siddm_no_c": Variant("siddm", {"loss.form": "kl", "loss.entropy": "False"}, "SIDDM without C"),
    "siddm_no_anchor": Variant("siddm", {"loss.form": "kl", "loss.anchor": "0"}, "SIDDM without anchor"),
    "siddm_no_afd": Variant("siddm", {"loss.form": "kl", "loss.weight": "0"}, "SIDDM without AFD"),
}

# Frechet distances of Xu et al. 2023, table 1
PUBLISHED = {
    "DDGAN": {2: 7.27, 4: 0.99, 8: 0.49, 16: 0.53}, "SIDDM": {2: 0.14, 4: 1.21, 8: 0.30, 16: 0.23},
    "SIDDM without AFD": {2: 21.19, 4: 53.22, 8: 7.04, 16: 14.37},
}


def asked(variant: str, steps: int, seed: int, held: Sequence[tuple[str, str]], smoke: bool) -> dict[str, Any]:
    """The part of a row that says what was measured: two rows that agree in it are one."""
    chosen = VARIANTS[variant]
    spec = f"{CONFIG}:method={chosen.method},steps={steps}" + (",smoke" if smoke else "")
    overrides = {"seed": str(seed), **chosen.overrides, **dict(held)}
    return {"variant": variant, "T": steps, "config": spec, "overrides": overrides, "seed": seed}


def measured(one: dict[str, Any], root: Path) -> dict[str, Any]:
    """Train and score one run and keep some of its samples, raw `[5000, 2]`: its row."""
    overrides = list(one["overrides"].items())
    try:
        row = measure(one["config"], overrides, root)
    except training.NonFiniteLoss as error:
        print(error)
        return {**one, "steps": error.step, "train_cpu_seconds": None, "diverged": True, **provenance(), "figures": {}}
    workdir = place(one["config"], overrides, root)
    run = load_run(workdir)
    part = run.config.evaluate
    kept = score.draw(run, min(SAMPLES, part.num), batch_size=part.batch_size).x
    scale = dict(run.config.data.options).get("scale") or "raw"
    evaluation.save_npz(workdir / "samples.npz", samples=data.gaussians25_to_raw(kept, scale))
    return {**one, **row}


def run(args: argparse.Namespace, held: Sequence[tuple[str, str]]) -> None:
    """Measure every run that has no row yet, seed by seed."""
    for seed in args.seeds:
        for steps in args.steps:
            for variant in args.variants:
                one = asked(variant, steps, seed, held, args.smoke)
                if any(one.items() <= row.items() for row in rows(args.file)):
                    print(f"{variant}, T = {steps}, seed {seed}: already measured")
                    continue
                row = measured(one, args.root)
                args.file.parent.mkdir(parents=True, exist_ok=True)
                with args.file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                spent = row["train_cpu_seconds"]
                told = cell([row]) + ("" if spent is None else f", {spent:.0f} CPU s of training")
                print(f"{variant}, T = {steps}, seed {seed}: {told}", flush=True)


def extras(row: dict[str, Any]) -> dict[str, str]:
    """What a run was told beside its variant and its seed."""
    own = {"seed": str(row["seed"]), **VARIANTS[row["variant"]].overrides}
    given = {name: value for name, value in row["overrides"].items() if own.get(name) != value}
    return given | ({"smoke": "True"} if row["config"].endswith(",smoke") else {})


def shared(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What all runs were told alike."""
    return {name: value for name, value in extras(found[0]).items() if all(extras(row).get(name) == value for row in found)}


def lines(found: Sequence[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The rows by T, and these by variant: its name, and what sets its runs apart from others of that name."""
    made: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in sorted(found, key=lambda row: list(VARIANTS).index(row["variant"])):
        words = [f"{name}={value}" for name, value in extras(row).items() if name not in shared(found)]
        name = ", ".join([VARIANTS[row["variant"]].label, *words])
        made.setdefault(name, {}).setdefault(row["T"], []).append(row)
    return made


def median(found: Sequence[dict[str, Any]], figure: str, form: str = ".3g") -> str:
    """Over the rows of some runs."""
    return format(float(np.median([row["figures"][figure] for row in found])), form)


SHOWN = {"frechet": ".3g", "modes": "g", "high_quality": ".3f", "kl": ".3f", "std_ratio": ".2f"}


def cell(found: Sequence[dict[str, Any]], shown: dict[str, str] = SHOWN) -> str:
    """Medians over the runs that ended, and how many diverged."""
    ended = [row for row in found if row["figures"]]
    words = [" / ".join(median(ended, *one) for one in shown.items())] if ended else []
    return ", ".join([*words, *([f"{len(found) - len(ended)} diverged"] if len(ended) < len(found) else [])]) or "-"


def span(values: Sequence[Any], form: str = "g") -> str:
    """Least to most, or one number where they are one."""
    ends = dict.fromkeys(format(end, form) for end in (min(values), max(values))) if values else ["-"]
    return "-".join(ends)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables: FD / modes / HQ / KL / std, with published FD; and the energy distance."""
    ended = [row for row in found if row["figures"]]
    if not ended:
        raise ValueError(f"{len(found)} rows, none with figures; allowed: rows of `few_step.py run`")
    steps = sorted({row["T"] for row in found})
    heads, none = [f"T = {t}" for t in steps], [""] * 3
    first = [["FD / modes / HQ / KL / std", *heads, "seeds", "training steps", "CPU s"]]
    second = [["energy distance", *heads]]
    for name, runs in lines(found).items():
        parts, every = [runs.get(t, []) for t in steps], [row for part in runs.values() for row in part]
        spent = [row["train_cpu_seconds"] for row in every if row["train_cpu_seconds"] is not None]
        first.append([name, *map(cell, parts), span([len(part) for part in parts]), span([row["steps"] for row in every]),
                      span(spent, ".0f")])
        second.append([name, *(cell(part, {"energy": ".3g"}) for part in parts)])
    for part, figure in ((first, "frechet"), (second, "energy")):
        floor = [median(ended, f"{figure}_floor", ".2g")] * len(steps)
        part.append(["real against real", *floor, *(none if part is first else [])])
    first += [[f"{name}, published FD", *(format(fd[t], "g") if t in fd else "-" for t in steps), *none]
              for name, fd in PUBLISHED.items()]
    drawn = ["\n".join("| " + " | ".join(line) + " |" for line in (part[0], ["---"] * len(part[0]), *part[1:]))
             for part in (first, second)]
    size = {name: span([row["figures"][name] for row in ended]) for name in ("n_fake", "n_real", "n_energy")}
    held = [*sorted({row["hardware"] for row in ended}), *(f"{name}={value}" for name, value in shared(found).items())]
    return "\n\n".join([*drawn, f"Medians over seeds; {size['n_fake']} samples and {size['n_real']} real points, "
                        f"{size['n_energy']} for energy; {'; '.join(held)}. Published: Xu et al. 2023, table 1."])


def picture(args: argparse.Namespace) -> None:
    """The kept samples of one seed, variants down and T across."""
    chosen = [row for row in rows(args.file) if row["seed"] == args.seed and row["variant"] in args.variants]
    panels: dict[str, dict[str, evaluation.Panel]] = {}
    for name, by_step in lines(chosen).items():
        for t, (*_, row) in by_step.items():
            kept = place(row["config"], list(row["overrides"].items()), args.root) / "samples.npz"
            if kept.exists():
                note = f"FD {row['figures']['frechet']:.3g}, {row['figures']['modes']} of {row['figures']['modes_of']} modes"
                panels.setdefault(name, {})[f"T = {t}"] = evaluation.Panel(np.load(kept)["samples"], note)
    if not panels:
        raise ValueError(f"{len(chosen)} rows of seed {args.seed} in {args.file} and no samples of theirs in {args.root}; "
                         "mend: --seed, --variants, or --root, where they were trained")
    real = data.preview(data.open_source("gaussians25", "test"), SAMPLES)["x"]
    columns = [f"T = {t}" for t in sorted({row["T"] for row in chosen})]
    drawn = evaluation.scatter_table(real, panels, columns, data.gaussians25_centres(), f"25 Gaussians, seed {args.seed}",
                                     f"FD {median([row for row in chosen if row['figures']], 'frechet_floor', '.2g')}")
    evaluation.save_png(args.out, drawn)
    print(args.out)


def main(argv: Sequence[str] | None = None) -> None:
    """`run FILE ...`, `table FILE` or `picture FILE --out=PNG`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, say in (("run", "measure"), ("table", "rows as Markdown"), ("picture", "draw the samples")):
        one = verbs.add_parser(verb, help=say)
        one.add_argument("file", type=Path, help="configs/results/NAME.jsonl")
        if verb != "table":
            one.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
            one.add_argument("--root", type=Path, default=Path("runs/few_step"), help="where the runs go")
        if verb == "run":
            one.add_argument("--steps", nargs="+", type=int, default=[2, 4, 8, 16], help="T, network calls of a sample")
            one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            one.add_argument("--smoke", action="store_true", help="tiny runs, to try the command")
        if verb == "picture":
            one.add_argument("--out", type=Path, required=True, help="FILE.png")
            one.add_argument("--seed", type=int, default=0)
    args, rest = parser.parse_known_args(argv)
    for word in rest:
        if args.verb != "run" or not word.startswith("--config.") or "=" not in word:
            parser.error(f"{word} is not known; allowed: --config.key=value, of `run`")
    try:
        if args.verb == "run":
            run(args, [tuple(word.removeprefix("--config.").split("=", 1)) for word in rest])
        elif args.verb == "table":
            print(table(rows(args.file)))
        else:
            picture(args)
    except WRONG_WORDS as error:
        raise SystemExit(f"few_step.py: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
