"""Score one trained run over the values of one sampling option, a row of each, and draw the curves.

    python launch/sweep.py run configs/results/guidance_digits.jsonl --workdir=runs/digits --guidance 0 0.5 1 1.5 2 3 4
    python launch/sweep.py run steps.jsonl --workdir=runs/digits --steps 4 8 16 32 --sampler=unipc
    python launch/sweep.py plot configs/results/guidance_digits.jsonl --out=guidance.png

The options are those of `jaxdiff evaluate`; the one with several values is swept, the others hold for every row. All rows
start from the same noise. A row is appended at once and a value that has one is passed over, so the same command goes on
after a stop. A row: config (the name that the run's config carries), overrides (the options that hold for all), option,
value, n, seed and steps of the training, sampler, hardware, commit, versions and figures: those of `jaxdiff evaluate` and,
for class-conditional runs, `class_diversity`, the standard deviation within a class, mean over pixels and classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import provenance, rows
from scipy.stats import spearmanr

from jaxdiff import evaluation, grammar, score
from jaxdiff.cli import WRONG_WORDS
from jaxdiff.run import Run, load_run

# the command line's word for a sampling option, and the parameter of `run.sampler` that it is
OPTIONS = {
    "guidance": "guidance", "steps": "num_steps", "sampler": "sampler", "threshold": "threshold", "y_draws": "y_draws",
    "s": "s",
}

# what is drawn, in this order, where a row has it; and beside it what real data gets, under what words
SHOWN = {
    "agreement": "class agreement", "class_diversity": "standard deviation within a class", "recall": "recall",
    "precision": "precision", "psnr": "PSNR (dB)", "feature_distance": "feature distance", "consistency": "consistency (dB)",
    "diversity": "diversity", "modes": "modes", "kl": "KL of the mode shares", "frechet": "Frechet distance",
    "joint_frechet": "joint Frechet distance",
}
REAL = {"agreement": "classifier_accuracy", "class_diversity": "class_diversity_real", "frechet": "frechet_floor"}


def class_diversity(x: Any, label: Any) -> float:
    """Standard deviation within a class of `[N, ...]` samples, mean over pixels and over the classes of `label` `[N]`.

    In the data's own units, pictures clipped to [-1, 1] as files clip them; the variance is the unbiased one, so that
    every class needs two samples.
    """
    x, label = np.asarray(x, np.float64), np.asarray(label)
    x = np.clip(x, -1, 1) if x.ndim == 4 else x
    return float(np.mean([x[label == one].std(0, ddof=1).mean() for one in np.unique(label)]))


def spec(run: Run, held: dict[str, Any], option: str, value: Any, num: int) -> dict[str, Any]:
    """The part of a row that says what was measured: two rows that agree in it are one."""
    return {"config": run.config.name, "overrides": held, "option": option, "value": value, "n": num,
            "seed": run.config.seed, "steps": run.step}


def evaluated(run: Run, workdir: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Draw and score at one value: the whole row of what `asked`, from `spec`, asks for."""
    how = {**asked["overrides"], asked["option"]: asked["value"]}
    words = {OPTIONS[name]: value for name, value in how.items()}
    figures, samples = score.score(run, workdir, asked["n"], **words)
    if "label" in samples.cond and not run.facts.condition:
        held = score.real_examples(run, "train")
        for name, x, label in (("", samples.x, samples.cond["label"]), ("_real", held["x"], held["label"])):
            figures |= {f"class_diversity{name}": class_diversity(x, label), f"class_diversity{name}_n": len(x)}
    part = run.config.sampler
    return {
        **asked, "sampler": f"{words.get('sampler', part.kind)}, {words.get('num_steps', part.num_steps)} steps",
        **provenance(),
        "figures": {key: value for key, value in figures.items() if not isinstance(value, dict)},
    }


def swept(args: argparse.Namespace) -> tuple[str, list[Any], dict[str, Any]]:
    """The option that is swept, its values, and the options that hold for all; each read as `jaxdiff evaluate` reads it."""
    flags = grammar.parser()
    read = lambda name, text: getattr(flags.parse_args(["evaluate", "--workdir=.", f"--{name}={text}"]), name)
    given = {name: [read(name, text) for text in getattr(args, name)] for name in OPTIONS if getattr(args, name)}
    many = [name for name, values in given.items() if len(values) > 1]
    if len(many) != 1:
        raise ValueError(f"{len(many)} options have several values; allowed: one of --{', --'.join(OPTIONS)}")
    return many[0], given.pop(many[0]), {name: values[0] for name, values in given.items()}


def sweep(args: argparse.Namespace) -> None:
    """Measure every value that has no row yet."""
    option, values, held = swept(args)
    run = load_run(args.workdir)
    num = args.num or run.config.evaluate.num
    if num < 2 * run.facts.num_classes:
        raise ValueError(f"--num is {num}; allowed: two samples of each of {run.facts.num_classes} classes, or more")
    for value in values:
        asked = spec(run, held, option, value, num)
        if any(asked.items() <= row.items() for row in rows(args.file)):
            print(f"{option} {value}: already measured")
            continue
        row = evaluated(run, args.workdir, asked)
        args.file.parent.mkdir(parents=True, exist_ok=True)
        with args.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        seen = {name: row["figures"][name] for name in SHOWN if name in row["figures"]}
        print(f"{option} {value}: " + ", ".join(f"{name} {number:.4g}" for name, number in seen.items()), flush=True)


def lines(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each curve, by its name, in the order of their values where these are numbers."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        held = ", ".join(f"{name} {value}" for name, value in row["overrides"].items())
        curves.setdefault(f"{row['config']}, {held or row['sampler']}, n = {row['n']}", []).append(row)
    number = all(isinstance(row["value"], int | float) for row in found)
    return {name: sorted(part, key=lambda row: row["value"]) if number else part for name, part in curves.items()}


def standard_error(row: dict[str, Any], figure: str) -> float:
    """The standard error of a figure, as far as the row tells: 0 where it does not."""
    held = row["figures"]
    if figure == "agreement":
        return float(np.sqrt(held[figure] * (1 - held[figure]) / held["agreement_n"]))
    return held.get(f"{figure}_se") or 0.0


def trend(curve: Sequence[dict[str, Any]]) -> str:
    """Spearman's correlation of value and class agreement: over all values, and up to where agreement saturates.

    It saturates at the first value whose agreement is the judge's own accuracy on held-out real pictures, or more: beyond,
    the judge cannot tell better from worse.
    """
    values, agreement = ([row["value"] for row in curve], [row["figures"]["agreement"] for row in curve])
    full = [i for i, row in enumerate(curve) if row["figures"]["agreement"] >= row["figures"]["classifier_accuracy"]]
    most = full[0] + 1 if full else len(curve)
    rank = lambda k: f"{spearmanr(values[:k], agreement[:k]).statistic:.3f} over {k} values"
    return f"Spearman of {curve[0]['option']} and agreement: {rank(len(curve))}, {rank(most)} up to saturation"


def plot(file: Path, out: Path) -> None:
    """Every figure that the rows have against the option's value, a panel each, on one page."""
    found = rows(file)
    options = {row.get("option") for row in found}
    if len(options) != 1 or None in options:
        raise ValueError(f"{file} has {len(found)} rows; allowed: rows of one option, from `sweep.py run`")
    panels: dict[str, dict[str, Any]] = {}
    real = {}
    for name, title in SHOWN.items():
        for label, curve in lines(found).items():
            points = [(row["value"], row["figures"][name], standard_error(row, name)) for row in curve
                      if name in row["figures"]]
            if points:
                panels.setdefault(title, {})[label] = tuple(zip(*points, strict=True))
        held = [row["figures"][REAL[name]] for row in found if REAL.get(name) in row["figures"]]
        if held:
            real[title] = held[0]
    evaluation.save_png(out, evaluation.curves_picture(panels, found[0]["option"], real))
    print(out)
    for name, curve in lines(found).items():
        numbers = all(isinstance(row["value"], int | float) for row in curve)
        if numbers and len(curve) > 2 and all("agreement" in row["figures"] for row in curve):
            print(f"{name}: {trend(curve)}")


def main(argv: Sequence[str] | None = None) -> None:
    """`run FILE --workdir=DIR --OPTION VALUE ...` or `plot FILE --out=PNG`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run", help="measure")
    one.add_argument("file", type=Path, help="where the rows go, NAME.jsonl")
    one.add_argument("--workdir", type=Path, required=True, help="a trained run")
    one.add_argument("--num", type=int, help="samples of each value (default: the config's evaluate.num)")
    for name in OPTIONS:
        one.add_argument(f"--{name}", nargs="+", metavar="VALUE", help=f"as in `jaxdiff evaluate --{name}=VALUE`")
    one = verbs.add_parser("plot", help="draw the curves")
    one.add_argument("file", type=Path, help="rows of `run`")
    one.add_argument("--out", type=Path, required=True, help="FILE.png")
    args = parser.parse_args(argv)
    try:
        sweep(args) if args.verb == "run" else plot(args.file, args.out)
    except WRONG_WORDS as error:
        raise SystemExit(f"sweep.py: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
