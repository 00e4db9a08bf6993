"""What conditioning augmentation is worth: a cascade with and without it against no cascade, seed by seed.

    python launch/cascades.py run configs/results/cascade_mnist5k.jsonl
    python launch/cascades.py table configs/results/cascade_mnist5k.jsonl
    python launch/cascades.py plot configs/results/cascade_mnist5k.jsonl --out=cascade.png

`run` trains, per seed, the stages of configs/cascade.py (base; sr1 with Gaussian augmentation, with blur, with none) and the
same network without a cascade, for as many steps as both stages have together, in runs/cascade, and scores the last stage's
pictures: of each variant given the base's pictures and given real ones, and of Gaussian augmentation at every s as well,
where the base's pictures are noised, or the base truncated.
A row is appended as soon as it is measured, and one that is there is passed over, so the same command goes on after a stop.
Overrides are given as `--config.key=value` and hold for every stage. A row: what was measured, commit, versions, figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import place, provenance, rows

from jaxdiff import cascading, configfile, evaluation, fit, score, sweeping, training
from jaxdiff.cli import WRONG_WORDS
from jaxdiff.run import load_run

CONFIG = "configs/cascade.py"
AUGMENTATIONS = ("none", "blur", "gaussian")
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)
FIGURES = ("frechet", "frechet_floor", "precision", "recall", "agreement", "n_fake")
# what is swept over s: its words in the table and the plot
CURVES = {"noised": "generated low-res, noised to s", "truncated": "base truncated at s",
          "real": "real low-res, noised to s"}
METRICS = ("frechet", "precision_recall", "agreement")


class Lab:
    """Where things are trained, and with what: one seed's runs, made when they are asked for."""

    def __init__(self, args: argparse.Namespace, seed: int, held: Sequence[tuple[str, str]]) -> None:
        self.args, self.seed, self.held = args, seed, held
        self.sides = "+".join(map(str, args.sides))

    def run(self, words: str, steps: int, judged: bool = True) -> Path:
        """The directory of a config's run, trained to its end; `judged` by the classifier that was named."""
        spec = f"{CONFIG}:data={self.args.data},{words}" + (",smoke" if self.args.smoke else "")
        length = [] if self.args.smoke else [("train.steps", str(steps)), ("train.eval_every", str(steps))]
        overrides = [("seed", str(self.seed)), ("train.preview", "0"), *length, *self.held]
        workdir = place(spec, overrides, self.args.root / words.replace("=", "").replace(",", "_"))
        judge = [("evaluate.classifier", str(self.args.classifier))] if judged and self.args.classifier else []
        config = configfile.load(spec, [*overrides, *judge])
        if max(training.steps(workdir), default=0) < config.train.steps:
            outcome = fit.train(config, workdir)
            if outcome.signal is not None:
                raise SystemExit(128 + outcome.signal)
        return workdir

    def base(self) -> Path:
        return self.run(f"stage=base,sides={self.sides}", self.args.base_steps, judged=False)

    def refiner(self, augmentation: str) -> Path:
        bound = f",s_max={self.args.s_max:g}" if augmentation == "gaussian" else ""
        return self.run(f"stage=sr1,sides={self.sides},augmentation={augmentation}{bound}", self.args.sr_steps)

    def how(self) -> dict[str, Any]:
        return {"sampler": self.args.sampler, "num_steps": self.args.steps}

    def whole(self) -> dict[str, Any]:
        """No cascade."""
        workdir = self.run(f"stage=base,sides={self.args.sides[-1]}", self.args.base_steps + self.args.sr_steps)
        return score.score(load_run(workdir), workdir, self.args.num, METRICS, **self.how())[0]

    def given_real(self, augmentation: str, s: float) -> dict[str, Any]:
        """The stage alone, given real low-resolution pictures of the test split."""
        workdir = self.refiner(augmentation)
        return score.score(load_run(workdir), workdir, self.args.num, METRICS, s=s, **self.how())[0]

    def swept(self, augmentation: str, s: float, truncated: bool) -> dict[str, Any]:
        """The whole cascade at one s; all of them are drawn when the first is asked for, by one program."""
        workdirs = [self.base(), self.refiner(augmentation)]
        cascade = cascading.open_cascade([str(workdir) for workdir in workdirs], [self.how()] * 2)
        asked = cascading.order(cascade, (), truncated, self.args.num, None, self.seed, 250)
        folder = self.args.root / f"samples_{augmentation}{'_truncated' if truncated else ''}_{self.seed}"
        levels = [0.0] if augmentation != "gaussian" else [v for v in self.args.s if v or not truncated]
        found = sweeping.sweep(cascade, asked, levels, folder, METRICS, quiet=True)
        return next(row for row in found if row["s"] == s)["figures"]["stage_1"]


def plan(levels: Sequence[float]) -> list[dict[str, Any]]:
    """Everything that is measured of a seed."""
    variants: list[dict[str, Any]] = [{"variant": augmentation, "given": given, "s": 0.0}
                                      for augmentation in AUGMENTATIONS for given in ("noised", "real")]
    variants += [{"variant": "gaussian", "given": given, "s": s} for given in CURVES for s in levels if s]
    return [*variants, {"variant": "no cascade"}]


def run(args: argparse.Namespace, held: Sequence[tuple[str, str]]) -> None:
    """Measure everything that has no row yet, seed by seed."""
    for seed in args.seeds:
        lab = Lab(args, seed, held)
        for one in plan(args.s):
            asked = {**one, "seed": seed, "data": args.data, "sides": list(args.sides), "sampler": args.sampler,
                     "num_steps": args.steps, "n": args.num, "s_max": args.s_max,
                     "train_steps": [args.base_steps, args.sr_steps], "overrides": dict(held), "smoke": args.smoke}
            if any(asked.items() <= row.items() for row in rows(args.file)):
                continue
            if one["variant"] == "no cascade":
                found = lab.whole()
            elif one["given"] == "real":
                found = lab.given_real(one["variant"], one["s"])
            else:
                found = lab.swept(one["variant"], one["s"], one["given"] == "truncated")
            row = {**asked, **provenance(), "figures": {name: found[name] for name in FIGURES if name in found}}
            args.file.parent.mkdir(parents=True, exist_ok=True)
            with args.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = ", ".join(f"{name} {value}" for name, value in one.items())
            print(f"seed {seed}, {said}: Frechet {found['frechet']:.4f}", flush=True)


def frechet(found: Sequence[dict[str, Any]], **asked: Any) -> list[float]:
    """The Frechet distances of the rows that were asked this, a seed each."""
    return [row["figures"]["frechet"] for row in found if asked.items() <= row.items()]


def best(found: Sequence[dict[str, Any]], given: str) -> float:
    """The s above 0 whose median over seeds is least: one value for all seeds."""
    levels = {row["s"] for row in found if row.get("given") == given and row["variant"] == "gaussian" and row["s"] > 0}
    return min(sorted(levels), key=lambda s: float(np.median(frechet(found, variant="gaussian", given=given, s=s))))


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables: the variants; and every s. Medians over seeds, and their range."""
    if not found:
        raise ValueError("no rows; allowed: those of `cascades.py run`")
    lines = ["| last stage | Frechet distance, median (range) of the seeds |", "|---|---|"]
    named = {"no cascade": {"variant": "no cascade"},
             **{f"cascade, trained with {name}, s = 0": {"variant": name, "given": "noised", "s": 0.0}
                for name in AUGMENTATIONS},
             **{f"its last stage alone, trained with {name}, real low-res": {"variant": name, "given": "real", "s": 0.0}
                for name in AUGMENTATIONS},
             **{f"cascade, gaussian, {CURVES[given]} = {best(found, given):g} (the best)":
                {"variant": "gaussian", "given": given, "s": best(found, given)} for given in ("noised", "truncated")}}
    lines += [f"| {name} | {spread(frechet(found, **asked))} |" for name, asked in named.items()]
    floor = [row["figures"]["frechet_floor"] for row in found]
    lines += [f"| real test pictures | {np.median(floor):.3f} |", "", f"| s | {' | '.join(CURVES.values())} |",
              "|---" * (len(CURVES) + 1) + "|"]
    for s in sorted({row["s"] for row in found if "s" in row}):
        cells = [spread(frechet(found, variant="gaussian", given=given, s=s)) for given in CURVES]
        lines.append(f"| {s:g} | {' | '.join(cells)} |")
    one = found[0]
    return "\n".join([*lines, "", f"{one['n']} samples, {one['sampler']}, {one['num_steps']} steps; trained for "
                      f"{' + '.join(map(str, one['train_steps']))} steps, s up to {one['s_max']:g}; seeds "
                      f"{', '.join(str(seed) for seed in sorted({row['seed'] for row in found}))}; {one['hardware']}."])


def plot(file: Path, out: Path) -> None:
    """Frechet distance against s: medians over seeds, and the other variants as lines."""
    found = rows(file)
    curves = {}
    for given, name in CURVES.items():
        levels = sorted({row["s"] for row in found if row.get("given") == given and row["variant"] == "gaussian"})
        curves[name] = (levels, [float(np.median(frechet(found, variant="gaussian", given=given, s=s))) for s in levels])
    ends = [0.0, max(row["s"] for row in found if "s" in row)]
    for name, asked in {"no cascade": {"variant": "no cascade"},
                        "trained without augmentation": {"variant": "none", "given": "noised"},
                        "trained with blur": {"variant": "blur", "given": "noised"}}.items():
        curves[name] = (ends, [float(np.median(frechet(found, **asked)))] * 2)
    floor = float(np.median([row["figures"]["frechet_floor"] for row in found]))
    evaluation.save_png(out, evaluation.curves_picture({"Frechet distance": curves}, "s", {"Frechet distance": floor}))
    print(out)


def main(argv: Sequence[str] | None = None) -> None:
    """`run FILE ...`, `table FILE` or `plot FILE --out=PNG`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, say in (("run", "measure"), ("table", "rows as Markdown"), ("plot", "draw the curves")):
        one = verbs.add_parser(verb, help=say)
        one.add_argument("file", type=Path, help="configs/results/NAME.jsonl")
        if verb == "run":
            one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            one.add_argument("--data", default="mnist5k", help="as in configs/cascade.py")
            one.add_argument("--sides", nargs=2, type=int, default=[7, 28], help="of the base and of the last stage")
            one.add_argument("--s", nargs="+", type=float, default=list(LEVELS), help="values of the sweep")
            one.add_argument("--s_max", type=float, default=0.2, help="the last s that Gaussian augmentation is trained on")
            one.add_argument("--base_steps", type=int, default=1000, help="training steps of the base")
            one.add_argument("--sr_steps", type=int, default=3000, help="training steps of the last stage")
            one.add_argument("--num", type=int, default=1000, help="samples of each row")
            one.add_argument("--sampler", default="dpm_solver")
            one.add_argument("--steps", type=int, default=12, help="of the sampler")
            one.add_argument("--classifier", type=Path, help="run of a classifier of the last stage's pictures, to judge by")
            one.add_argument("--root", type=Path, default=Path("runs/cascade"), help="where the runs go")
            one.add_argument("--smoke", action="store_true", help="tiny runs, to try the command")
        if verb == "plot":
            one.add_argument("--out", type=Path, required=True, help="FILE.png")
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
            plot(args.file, args.out)
    except WRONG_WORDS as error:
        raise SystemExit(f"cascades.py: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    main()
