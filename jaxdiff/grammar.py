"""The words of the command line: every command and flag, and what is said about them. Nothing here imports jax."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from jaxdiff.flags import (
    WAYS_OF_GUIDANCE,
    cascade_flags,
    count,
    draw_flags,
    levels,
    plan_flags,
    process_flags,
    run_flags,
    seed,
    size,
    told_flags,
)
from jaxdiff.version import __version__


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose flags are written out in full."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The whole grammar; one sub-command a row of commands.COMMANDS."""
    top = _Parser("jaxdiff", description="Diffusion models in JAX: train one, draw samples from it, score them.",
                  epilog="jaxdiff COMMAND --help tells what a command takes.")
    top.add_argument("--version", action="version", version=f"jaxdiff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    config_help = "a Python file with get_config, and perhaps words for it: configs/digits.py:method=flow,smoke"
    override_help = (
        "--config.SECTION.KEY=VALUE sets any key of the config, for example\n"
        "  --config.train.steps=500 --config.network.channel_mult=1,2,2 --config.ema.decay=None\n"
        "and may be given many times. jaxdiff/tables.py lists the keys."
    )

    one = command("train", "Train the model of a config, then score it. The same command again goes on where it stopped.",
                  override_help)
    one.add_argument("--config", required=True, metavar="FILE.py[:WORDS]", help=config_help)
    one.add_argument("--workdir", required=True, metavar="DIR", help="directory of the run: checkpoints, logs, pictures")
    one.add_argument("--no_evaluate", action="store_true", help="do not score samples at the end")
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    process_flags(one)

    one = command("sample", "Draw samples from a trained run, as a picture (.png) or as arrays (.npz).")
    run_flags(one)
    draw_flags(one)
    one.add_argument("--batch_size", type=count, default=250, metavar="N", help="samples computed at once (default 250)")
    one.add_argument("--num", type=count, metavar="N", help="how many samples (default 64; with prompts one of each)")
    one.add_argument("--size", type=size, metavar="HxW", help="pixels of each picture, or one number for both sides, other "
                     "than the run was trained for, and of what it is given (default: as trained); good while objects fill "
                     "the picture as before")
    told_flags(one)
    one.add_argument("--draws", type=count, default=4, metavar="K", help="samples of each condition picture, for runs that "
                     "take one (default 4); --num is then the number of conditions")
    one.add_argument("--image", metavar="PATH", help="your own condition pictures, a file or a folder (default: made from "
                     "test pictures, whose truth is shown beside)")
    one.add_argument("--task", metavar="NAME", help="inpaint: fill in test pictures with a run that was trained without "
                     "conditions, by replacing known pixels (add --sampler=repaint for resampling)")
    one.add_argument("--out", required=True, metavar="FILE", help="FILE.png, or FILE.npz with the arrays samples (float32, "
                     "in the data's own range) and what they were asked with: label, prompt, image, mask, and x, the truth")

    one = command("evaluate", "Score samples of a run against real data: a table here, and JSON in DIR/evaluation.")
    run_flags(one)
    draw_flags(one)
    one.add_argument("--batch_size", type=count, metavar="N", help="samples computed at once (default: the config's "
                     "evaluate.batch_size)")
    one.add_argument("--num", type=count, metavar="N", help="samples to score (default: the config's evaluate.num)")
    one.add_argument("--metrics", metavar="NAMES", help="some of agreement, frechet, kid, precision_recall, inception_score "
                     "for pictures, words for those of prompts (whether the nearest real picture carries them), and cas "
                     "(real pictures read by a classifier trained on the samples), which is not among the defaults; psnr, "
                     "ssim, lpips, feature_distance, consistency, diversity, frechet, joint_frechet for runs that take a "
                     "condition picture; with commas (default: all that suit the data)")
    one.add_argument("--draws", type=count, metavar="K", help="samples of each condition picture, for runs that take one "
                     "(default: the config's evaluate.draws)")
    one.add_argument("--captions", choices=("train", "validation", "test"), help="the split whose captions runs that read "
                     "them are asked for (default: the config's evaluate.captions)")
    one.add_argument("--lpips", metavar="FILE", help="weights of AlexNet or VGG16 (.pth or .npz), for LPIPS")
    one.add_argument("--lpips_net", choices=("alex", "vgg"), help="which of the two FILE holds (default alex)")
    one.add_argument("--inception", metavar="FILE", help="weights of FID's Inception-v3 (.pth or .npz), to compare pictures "
                     "by its features (default: by those of a classifier of the same data)")
    one.add_argument("--classifier", metavar="DIR", help="run of a classifier, trained with configs/classifier.py, to judge "
                     "with (default: one is trained beside the run, once)")

    one = command("cascade", "Draw samples from a cascade of trained runs and score every stage, or sweep s, the noise on "
                  "what the last one is given.", WAYS_OF_GUIDANCE)
    cascade_flags(one)

    one = command("likelihood", "How likely real held-out data is under the model: bits per dimension, for points nats.")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--stage", action="append", metavar="DIR", help="instead of --workdir: directory of a stage's run, "
                       "once for each stage of a cascade, base first; the bound of the whole cascade, and what of it each "
                       "stage costs")
    run_flags(one, which)
    one.add_argument("--s", type=levels, metavar="S", help="of a cascade, which needs it: how much noise is on what each "
                     "super-resolution stage is given, above 0, a time of its augmentation's path; one for all, or one for "
                     "each with commas. The smaller, the more the stages before the last must tell")
    one.add_argument("--times", type=count, metavar="N", help="of a cascade: network calls for each stage before the last "
                     "whose process is continuous, at as many noise levels (default 32)")
    one.add_argument("--num", type=count, metavar="N", help="examples of the test split (default: all)")
    one.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random numbers (default 0)")
    one.add_argument("--trace", choices=("exact", "hutchinson"), help="how the divergence of the probability-flow ODE is "
                     "computed: exactly, or estimated with random probes (default: exact up to 16 dimensions)")
    one.add_argument("--probes", type=count, default=1, metavar="N", help="probes an example for hutchinson (default 1)")

    one = command("data", "List the data sources, prepare one, or look at one.")
    verbs = one.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    name_help = "a source of `jaxdiff data list`, such as digits, folder:PATH or tfds:cifar10"
    dir_help = "where TFDS keeps its data sets (default: TFDS's own place)"
    verbs.add_parser("list", help="every source, and what it needs", description="Every source, and what it needs.")
    text = "Download a TensorFlow Datasets set and convert it, once; needs pip install 'jaxdiff[prepare]'."
    verb = verbs.add_parser("prepare", help=text, description=text)
    verb.add_argument("name", help="tfds:NAME, such as tfds:cifar10")
    verb.add_argument("--data_dir", metavar="DIR", help=dir_help)
    text = "Write a picture of some examples of a source."
    verb = verbs.add_parser("show", help=text, description=text)
    verb.add_argument("name", help=name_help)
    verb.add_argument("--num", type=count, default=64, metavar="N", help="how many examples (default 64)")
    verb.add_argument("--split", default="train", metavar="SPLIT", help="train, validation or test (default train)")
    verb.add_argument("--data_dir", metavar="DIR", help=dir_help)
    verb.add_argument("--out", required=True, metavar="FILE", help="FILE.png")

    one = command("plan", "Compile a config's training step, or its sampler, for a machine that need not be there, and say "
                  "what it takes: memory of a chip by part, FLOPs, messages between chips, the least time of a step. A big "
                  "network compiles for many minutes; what was found is kept. Exit code 1: it does not fit.", override_help)
    plan_flags(one, config_help)

    one = command("bench", "Measure how fast a config is on this machine: training step, memory, share of the chip's peak, "
                  "sampler, compilation, data pipeline.", override_help)
    one.add_argument("--config", required=True, metavar="FILE.py[:WORDS]", help=config_help)
    one.add_argument("--batch_size", type=count, metavar="N", help="instead of the config's data.batch_size")
    one.add_argument("--seconds", type=float, default=20.0, metavar="S", help="spent on each measurement (default 20), at "
                     "least five repeats")
    one.add_argument("--what", metavar="NAMES", help="some of train, sample, data, with commas (default: all that suit the "
                     "config)")
    one.add_argument("--compare", metavar="NAME", help="torch: run the U-Net beside the same network in diffusers, equal "
                     "in parameters, batch and threads, float32, in turn: its forward pass and a training step (mean square "
                     "and Adam). Alone, unless --what is given; on CPUs, with torch and diffusers installed")
    one.add_argument("--profile", metavar="DIR", help="write a trace of a few training steps, for TensorBoard and "
                     "ui.perfetto.dev, and on a CPU print where a step's time goes")
    one.add_argument("--peak_tflops", type=float, metavar="X", help="what one device can do, in TFLOP/s, for utilisation on "
                     "chips whose figure is not known here, as of CPUs (default: published figures of TPUs and GPUs)")
    one.add_argument("--json", action="store_true", help="print the figures as one JSON object at the end, in seconds and "
                     "bytes; the lines go to the standard error")
    return top
