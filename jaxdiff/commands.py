"""What each command of the command line does: its words, already read, become calls of the library and lines of text.

Each returns the exit code, and imports what it needs when it is called, so that `jaxdiff --help` answers before jax is
there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _load(args: argparse.Namespace) -> Any:
    from jaxdiff.run import load_run

    return load_run(args.workdir, args.step, ema=not args.raw)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    return {"num_steps": args.steps, "sampler": args.sampler, "guidance": args.guidance, "threshold": args.threshold,
            "y_draws": args.y_draws} | ({} if args.s is None else {"s": args.s})


def train(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Train, resuming by itself, and score the result."""
    from jaxdiff import training

    training.initialize(args.coordinator, args.num_processes, args.process_id)
    import jax

    from jaxdiff import configfile, fit, judge, score
    from jaxdiff.run import load_run

    config = configfile.load(args.config, overrides)
    score.check_words(config)
    outcome = fit.train(config, args.workdir, progress=not args.quiet)
    first = jax.process_index() == 0  # the one of several processes that speaks
    if outcome.signal is not None:
        if first:
            print(f"stopped at step {outcome.step} and saved; the same command goes on from there")
        return 128 + outcome.signal
    if first:
        print(f"trained to step {outcome.step} in {args.workdir}")
    if jax.process_count() > 1:
        if first and not args.no_evaluate:
            print(f"scores, of one process: jaxdiff evaluate --workdir={args.workdir}")
        return 0
    if args.no_evaluate:
        return 0
    if config.loss.kind == "classification":
        trained = load_run(args.workdir)
        if trained.path is None:
            judged = judge.from_run(trained)
            print(f"accuracy {judged.accuracy:.4f} on {judged.n} held-out pictures")
            return 0
        found, n = judge.noisy_accuracy(trained)
        for level, accuracy in found.items():
            print(f"accuracy {accuracy:.4f} on {n} held-out pictures at noise level {level:.3g} (sigma / alpha)")
        return 0
    try:
        return _evaluate(args.workdir, None, {}, progress=not args.quiet)
    except score.NoScores as reason:
        print(f"no scores: {reason}")
        return 0


def evaluate(args: argparse.Namespace) -> int:
    """Score a run's samples."""
    run = _load(args)
    with run.config.unlocked():
        for key in ("batch_size", "inception", "classifier", "draws", "captions", "lpips", "lpips_net"):
            if getattr(args, key) is not None:
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
    shown = fit.picture(*score.shown(run, samples, 10 * (run.facts.num_classes or 10)))
    picture = evaluation.save_png(folder / f"step_{run.step:06d}.png", shown)
    file = evaluation.write_json(folder / f"step_{run.step:06d}.json", found)
    for name, value in found.items():
        if name.endswith("per_class") and len(value) <= 20:
            names = dict(enumerate(run.facts.class_names))
            print(f"{name:22} " + ", ".join(f"{names.get(c, c)} {share:.2f}" for c, share in value.items()))
        elif not isinstance(value, dict):
            print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    print(f"samples: {picture}\nscores:  {file}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """Draw samples to a file."""
    import numpy as np

    from jaxdiff import evaluation, fit, inverse, score
    from jaxdiff.facts import labels_from_text

    if Path(args.out).suffix not in (".png", ".npz"):
        raise ValueError(f"--out is {args.out!r}; allowed: a name that ends in .png or .npz")
    run = _load(args)
    run = run if args.size is None else run.at(*args.size)
    given: dict[str, Any] = {}
    texts = _prompts(args)
    args.num = args.num or len(texts) or 64
    for line in run.remarks(texts) if texts else ():
        print(line, file=sys.stderr)
    if run.facts.condition or args.task is not None or args.image is not None:
        given |= inverse.from_pictures(run, args.image) if args.image else inverse.examples(run, args.num, args.task)
    num, draws = (len(given["image"]), args.draws) if "image" in given else (args.num, 1)
    if run.facts.text and (texts or "prompt" not in given):
        given["prompt"] = np.resize(texts, num) if texts else score.captions(run, num)
    if args.label is not None:
        given["label"] = labels_from_text(args.label, num, run.facts)
    elif given and not run.facts.num_classes:
        given.pop("label", None)
    truth = given.pop("x", None)
    drawn = score.draw(run, num * draws, args.seed, inverse.repeat(given, draws), args.batch_size, **_how(args))
    if truth is not None:
        drawn = drawn._replace(cond={**drawn.cond, "x": truth})
    if args.out.endswith(".npz"):
        evaluation.save_npz(args.out, samples=drawn.x, **drawn.cond)
    else:
        evaluation.save_png(args.out, fit.picture(*score.shown(run, drawn)))
    print(f"{len(drawn.x)} samples: {args.out}")
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of --text, or the lines of the file --prompts that are not empty."""
    if args.prompts is None:
        return args.text or []
    if args.text is not None:
        raise ValueError("--text came with --prompts, a file of prompts; mend: one of them")
    path = Path(args.prompts)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"--prompts is {args.prompts!r}, which cannot be read; allowed: a text file in UTF-8, a prompt a "
                         "line") from None
    if not any(lines):
        raise ValueError(f"--prompts is {args.prompts!r}, which holds no prompt; allowed: a text file, a prompt a line")
    return [line for line in lines if line]


def cascade(args: argparse.Namespace) -> int:
    """Draw samples from a cascade of runs: a picture, parts in a directory with their scores, or a sweep over s."""
    from jaxdiff import cascading, evaluation, stream, sweeping

    drawn = Path(args.out).suffix == ".png"
    if Path(args.out).suffix in (".npz", ".jpg", ".jpeg"):
        raise ValueError(f"--out is {args.out!r}; allowed: a name that ends in .png, or a directory")
    for flag in ("metrics", "sweep_s"):
        if drawn and getattr(args, flag) is not None:
            raise ValueError(f"--{flag} came with --out={args.out}, a picture; mend: --out=DIR, a directory")
    count, prompts = len(args.stage), _prompts(args)
    how = {"num_steps": args.steps, "sampler": args.sampler, "guidance": args.guidance, "threshold": args.threshold}
    chosen = cascading.open_cascade(args.stage, cascading.for_stages(how, count), args.inception)
    swept = args.sweep_s is not None
    num = args.num or (len(prompts) or 16 if drawn else None)
    order = cascading.order(
        chosen, cascading.levels(args.s, count - 1 - swept), args.truncated, num, args.label, args.seed, args.batch_size,
        prompts,
    )
    for line in cascading.remarks(chosen, prompts):
        print(line, file=sys.stderr)
    words = args.metrics or ("frechet" if swept else "")
    metrics = () if words == "all" else tuple(filter(None, words.split(",")))
    if swept:
        found = sweeping.sweep(chosen, order, args.sweep_s, args.out, metrics, args.quiet)
        place: Any = evaluation.save_png(Path(args.out) / "sweep.png", sweeping.picture(chosen, found))
        print("\n".join(sweeping.table(found)))
    elif drawn:
        place = evaluation.save_png(args.out, cascading.picture(chosen, order))
    else:
        wanted = cascading.check_metrics(chosen, metrics) if words else None
        stream.fill(args.out, cascading.words(chosen, order), cascading.drawer(chosen, order), args.quiet)
        place = args.out
        if wanted is not None:
            print("\n".join(cascading.table(cascading.score_parts(chosen, order, args.out, wanted, args.quiet))))
    print(f"{order.num} samples: {place}")
    return 0


def likelihood(args: argparse.Namespace) -> int:
    """Print the test split's negative log-likelihood under a run, or the bound of a cascade and its parts."""
    for flag, of in (("step", "workdir"), ("s", "stage"), ("times", "stage")):
        if getattr(args, flag) is not None and getattr(args, of) is None:
            raise ValueError(f"--{flag} came without --{of}, to which it belongs; mend: leave it out")
    if args.stage is not None:
        return _cascade_likelihood(args)
    from jaxdiff import score

    found = score.likelihood(_load(args), args.num, args.seed, args.trace, args.probes)
    print(f"{_measured(found)} {found['unit']} ({found['kind']}, n = {found['n']}, test split)")
    return 0


def _cascade_likelihood(args: argparse.Namespace) -> int:
    from jaxdiff import cascade_likelihood, cascading
    from jaxdiff.run import load_run

    s = cascading.levels(args.s, len(args.stage) - 1)
    runs = [load_run(workdir, ema=not args.raw) for workdir in args.stage]
    found = cascade_likelihood.likelihood(runs, args.num, args.seed, s, args.trace, args.probes, args.times or 32)
    print(f"{_measured(found)} {found['unit']} ({found['kind']}, n = {found['n']}, test split)")
    for part in found["terms"]:
        print(f"  {_measured(part)} by the stage of {part['shape'][0]} x {part['shape'][1]} ({part['kind']})")
    return 0


def _measured(found: dict[str, Any]) -> str:
    return f"{found['value']:.4f} +- {found['standard_error']:.4f}"


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
    what = None if args.what is None else tuple(args.what.split(","))
    found: dict[str, Any] = {}
    for line in benchmark.measure(config, args.batch_size, args.seconds, what, args.compare, args.profile, args.peak_tflops):
        print(line, flush=True, file=sys.stderr if args.json else sys.stdout)
        found |= {line.name: line.figures} if line.name else line.figures
    if args.json:
        print(json.dumps(found))
    return 0


def plan(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Print what a config's program takes on a machine that need not be there."""
    import json

    import jax

    jax.config.update("jax_platforms", "cpu")  # what is compiled for is not here, and a TPU that is stays free
    from jaxdiff import configfile, planning
    from jaxdiff.hardware import roofline, topologies

    config = configfile.load(args.config, overrides)
    topology = topologies.open_topology(args.topology)
    told = planning.Told(args.num_classes, args.latents, args.text_width)
    found = planning.plan(config, topology, told, args.sampler, args.batch_size, progress=not args.quiet)
    text = json.dumps(roofline.as_json(found), indent=2)
    print(text if args.json == "-" else "\n".join(roofline.lines(found)))
    if args.json not in (None, "-"):
        Path(args.json).write_text(text + "\n")
    return 0 if found.fits in (True, None) else 1


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train, "sample": sample, "evaluate": evaluate, "cascade": cascade, "likelihood": likelihood,
    "data": data, "plan": plan, "bench": bench,
}


TAKE_CONFIG = ("train", "plan", "bench")
