"""The command line: `jaxdiff train | sample | evaluate | likelihood | data | bench`.

Exit codes: 0 done; 1 the work failed (a loss that is not finite, a full disk); 2 the words were wrong (a flag, a config
key, a data set, a shape, a checkpoint), said in one line, with every file left as it was; 128 + n stopped by signal n,
after saving.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdiff.version import __version__

WRONG_WORDS = (ValueError, FileNotFoundError, NotADirectoryError, ImportError)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The whole grammar; one sub-command a row of COMMANDS."""
    top = _Parser("jaxdiff", description="Diffusion models in JAX: train, sample, evaluate.")
    top.add_argument("--version", action="version", version=f"jaxdiff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    config_help = "a config file, e.g. configs/digits.py or configs/digits.py:method=flow,smoke"
    override_help = "any key of the config may be set: --config.train.steps=500 --config.network.channels=64"

    one = command("train", "Train what a config describes; the same command again resumes.", override_help)
    one.add_argument("--config", required=True, help=config_help)
    one.add_argument("--workdir", required=True, help="run directory: checkpoints, logs and pictures go here")
    one.add_argument("--no_evaluate", action="store_true", help="skip the scores at the end")
    one.add_argument("--quiet", action="store_true", help="no progress bar")

    one = command("sample", "Draw samples from a run as a picture (.png) or as arrays (.npz).")
    _run_flags(one)
    _draw_flags(one)
    one.add_argument("--num", type=int, default=64, help="how many (default 64)")
    one.add_argument("--label", help="a class number or name, or several with commas (default: all in turn)")
    one.add_argument("--out", required=True, help="FILE.png or FILE.npz (samples in the data's own range, and labels)")

    one = command("evaluate", "Score samples against real data; prints a table and writes it to WORKDIR/evaluation.")
    _run_flags(one)
    _draw_flags(one)
    one.add_argument("--num", type=int, help="samples to score (default: the config's evaluate.num)")
    one.add_argument("--metrics", help="comma-separated; default: all that suit the data")
    one.add_argument("--inception", help="file of FID Inception-v3 weights (.pth or .npz) for the image features")
    one.add_argument("--classifier", help="run of a classifier to judge with (default: train one beside the run)")

    one = command("likelihood", "Bits per dimension of the test split (nats for points).")
    _run_flags(one)
    one.add_argument("--num", type=int, help="examples (default: the whole split)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--trace", choices=("exact", "hutchinson"), help="divergence of the ODE (default: exact up to 16 dims)")
    one.add_argument("--probes", type=int, default=1, help="Rademacher probes of the Hutchinson trace")

    one = command("data", "List the data sources, prepare one, or show examples of one.")
    verbs = one.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="every source, and what it needs")
    verb = verbs.add_parser("prepare", help="download and convert a tfds:NAME data set (extra: prepare)")
    verb.add_argument("name")
    verb.add_argument("--data_dir", help="where TFDS keeps its data sets (default: its own)")
    verb = verbs.add_parser("show", help="a picture of examples")
    verb.add_argument("name")
    verb.add_argument("--num", type=int, default=64)
    verb.add_argument("--split", default="train", help="train, validation or test (default train)")
    verb.add_argument("--data_dir", help="where TFDS keeps its data sets")
    verb.add_argument("--out", required=True, help="FILE.png")

    one = command("bench", "Measure a config: step time, sampler overhead, compile times, data pipeline.", override_help)
    one.add_argument("--config", required=True, help=config_help)
    one.add_argument("--batch_size", type=int, help="instead of the config's")
    one.add_argument("--seconds", type=float, default=20.0, help="time to spend on each comparison (default 20)")
    return top


def _run_flags(one: argparse.ArgumentParser) -> None:
    one.add_argument("--workdir", required=True, help="the run directory that was trained in")
    one.add_argument("--step", type=int, help="checkpoint (default: the newest complete one)")
    one.add_argument("--raw", action="store_true", help="the raw parameters instead of their moving average")


def _draw_flags(one: argparse.ArgumentParser) -> None:
    one.add_argument("--sampler", help="ancestral, ddim, heun, dpm_solver, unipc, ... (default: the config's)")
    one.add_argument("--steps", type=int, help="steps of the sampler (default: the config's)")
    one.add_argument("--guidance", type=float, help="classifier-free scale: 0 without class, 1 plain, above 1 stronger")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--batch_size", type=int, default=250, help="samples a call (default 250)")


def _overrides(rest: Sequence[str], allowed: bool) -> list[tuple[str, str]]:
    """`--config.key=value` words; any other leftover word is wrong."""
    found, words = [], list(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not (allowed and name.startswith("--config.")):
            raise ValueError(f"unknown argument {word!r}; see jaxdiff --help")
        if not equals:
            if not words:
                raise ValueError(f"{name} has no value; mend: {name}=VALUE")
            value = words.pop(0)
        found.append((name.removeprefix("--config."), value))
    return found


def _load(args: argparse.Namespace) -> Any:
    from jaxdiff.run import load_run

    return load_run(args.workdir, args.step, ema=not args.raw)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    return {"num_steps": args.steps, "sampler": args.sampler, "guidance": args.guidance}


def train(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Train, resuming by itself, and score the result."""
    from jaxdiff import configfile, fit

    config = configfile.load(args.config, overrides)
    outcome = fit.train(config, args.workdir, progress=not args.quiet)
    if outcome.signal is not None:
        print(f"stopped at step {outcome.step} and saved; the same command goes on from there")
        return 128 + outcome.signal
    print(f"trained to step {outcome.step} in {args.workdir}")
    if args.no_evaluate or config.loss.kind == "classification":
        return 0
    return _evaluate(args.workdir, None, {}, progress=not args.quiet)


def evaluate(args: argparse.Namespace) -> int:
    """Score a run's samples."""
    run = _load(args)
    with run.config.unlocked():
        run.config.evaluate.batch_size = args.batch_size
        for key in ("inception", "classifier"):
            if getattr(args, key) is not None:
                with run.config.ignore_type():
                    run.config.evaluate[key] = getattr(args, key)
    metrics = tuple(filter(None, (args.metrics or "").split(",")))
    return _evaluate(args.workdir, run, {"num": args.num, "metrics": metrics, "seed": args.seed, **_how(args)})


def _evaluate(workdir: str, run: Any, options: dict[str, Any], progress: bool = True) -> int:
    from jaxdiff import evaluation, fit, score
    from jaxdiff.run import load_run

    run = load_run(workdir) if run is None else run
    found, samples = score.score(run, workdir, progress=progress, **options)
    folder = Path(workdir) / "evaluation"
    found = {"step": run.step, **{k: v for k, v in options.items() if v not in (None, ())}, **found}
    real = None if run.facts.kind == "image" else score.real_examples(run, "test")["x"]
    shown = fit.picture(samples.x[: 10 * (run.facts.num_classes or 10)], run.facts, real)
    picture = evaluation.save_png(folder / f"step_{run.step:06d}.png", shown)
    file = folder / f"step_{run.step:06d}.json"
    evaluation.write_whole(file, lambda out: out.write((json.dumps(found, indent=2) + "\n").encode()))
    for name, value in found.items():
        if not isinstance(value, dict):
            print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    print(f"samples: {picture}\nscores:  {file}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """Draw samples to a file."""
    from jaxdiff import build, evaluation, fit, score

    if Path(args.out).suffix not in (".png", ".npz"):
        raise ValueError(f"--out is {args.out!r}; allowed: a name that ends in .png or .npz")
    run = _load(args)
    label = None if args.label is None else build.labels_from_text(args.label, args.num, run.facts)
    drawn = score.draw(run, args.num, args.seed, label, args.batch_size, **_how(args))
    if args.out.endswith(".npz"):
        labels = {} if drawn.label is None else {"label": drawn.label}
        evaluation.save_npz(args.out, samples=drawn.x, **labels)
    else:
        real = None if run.facts.kind == "image" else score.real_examples(run, "test")["x"]
        evaluation.save_png(args.out, fit.picture(drawn.x, run.facts, real))
    print(f"{args.num} samples: {args.out}")
    return 0


def likelihood(args: argparse.Namespace) -> int:
    """Print the test split's negative log-likelihood."""
    from jaxdiff import score

    found = score.likelihood(_load(args), args.num, args.seed, args.trace, args.probes)
    value = f"{found['value']:.4f} +- {found['standard_error']:.4f} {found['unit']}"
    print(f"{value} ({found['kind']}, n = {found['n']}, test split)")
    return 0


def data(args: argparse.Namespace) -> int:
    """List, prepare or show data sources."""
    from jaxdiff import data as sources
    from jaxdiff import evaluation

    if args.verb == "list":
        for one in sources.list_sources():
            print(f"{one.name:16} {one.description}{'' if one.available else f' [needs {one.needs}]'}")
        return 0
    options = {"data_dir": args.data_dir} if args.data_dir else {}
    if args.verb == "prepare":
        print(sources.prepare(args.name, **options))
        return 0
    if not args.out.endswith(".png"):
        raise ValueError(f"--out is {args.out!r}; allowed: a name that ends in .png")
    records = sources.open_source(args.name, args.split, **options)
    shown = sources.preview(records, args.num)["x"]
    if records.kind == "image":
        picture = evaluation.image_grid(shown)
    else:
        other = "test" if args.split == "train" else "train"
        beside = sources.preview(sources.open_source(args.name, other, **options), args.num)["x"]
        picture = evaluation.scatter_picture(shown, beside, title=args.name, labels=(args.split, other))
    evaluation.save_png(args.out, picture)
    print(f"{len(shown)} of {len(records)} examples of {args.name} ({args.split}), shape {records.shape}, "
          f"{records.num_classes} classes: {args.out}")
    return 0


def bench(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Print timings of a config, as they are measured."""
    from jaxdiff import benchmark, configfile

    config = configfile.load(args.config, overrides)
    for line in benchmark.measure(config, args.batch_size, args.seconds):
        print(line, flush=True)
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train, "sample": sample, "evaluate": evaluate, "likelihood": likelihood, "data": data, "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        args, rest = parser().parse_known_args(argv)
        takes_config = args.command in ("train", "bench")
        overrides = _overrides(rest, takes_config)
        extra = (overrides,) if takes_config else ()
        return COMMANDS[args.command](args, *extra)
    except WRONG_WORDS as error:
        print(f"jaxdiff: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError, RuntimeError) as error:
        print(f"jaxdiff: {' '.join(str(error).split())[:2000]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxdiff: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
