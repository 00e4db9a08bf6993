"""The words of the command line: every command and flag, and what is said about them. Nothing here imports jax."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from jaxdiff.version import __version__

WAYS_OF_GUIDANCE = """\
ways of guidance, written NAME:OPTION=VALUE,OPTION=VALUE; several joined by + act one after the other on each prediction:
  classifier_free    from what the model predicts without a class or text on through what it predicts with it
    scale=2            how far: 1 to the prediction with it, 2 twice as far (--guidance=2 is short for this)
    interval=0.3-5     only while the noise level, sigma / alpha, is from 0.3 to 5
    rescale=0.7        keep the contrast from growing with the scale: 0 no, 1 wholly
  classifier         towards what a second model takes for the class
    run=DIR            that model, trained with configs/noisy_classifier.py
    scale=2            how strongly: 0 not at all
  autoguidance       from what a weaker model predicts on through what this one does; needs no classes
    run=DIR            the weaker model; step=500 for its checkpoint of that step, raw=true for parameters not averaged
    scale=2            how far, and interval=0.3-5 when, as for classifier_free
  dynamic_threshold  shrink a predicted picture that leaves -bound..bound until the share percentile of it is inside
    percentile=0.995   and bound=1, unless given
  static_threshold   clip pixels outside -bound..bound, bound=1 unless given, as --threshold=1 does
for example
  --guidance=3
  --guidance=classifier_free:scale=3,interval=0.3-5
  --guidance=autoguidance:run=runs/digits,step=400,scale=2
  --guidance=classifier_free:scale=6,rescale=0.7+dynamic_threshold"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose flags are written out in full."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _guidance(text: str) -> float | str:
    """A number, or words that jaxdiff.guiding reads."""
    try:
        return float(text)
    except ValueError:
        return text


def _levels(text: str) -> tuple[float, ...]:
    """Numbers, with commas."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or numbers with commas as in 0,0.1,0.2") from None


def _size(text: str) -> tuple[int, int]:
    """A side, or height x width."""
    words = text.split("x")
    if len(words) > 2 or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a side, as 128, or height x width, as 64x128")
    return int(words[0]), int(words[-1])


def _whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _shape(text: str) -> tuple[int, int, int]:
    """Height x width x channels."""
    words = text.split("x")
    if len(words) != 3 or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not height x width x channels, as 64x64x4")
    return int(words[0]), int(words[1]), int(words[2])


def _seed(text: str) -> int:
    """A whole number from 0 that fits into 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


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

    one = command("sample", "Draw samples from a trained run, as a picture (.png) or as arrays (.npz).")
    _run_flags(one)
    _draw_flags(one)
    one.add_argument("--batch_size", type=_count, default=250, metavar="N", help="samples computed at once (default 250)")
    one.add_argument("--num", type=_count, metavar="N", help="how many samples (default 64; with prompts one of each)")
    one.add_argument("--size", type=_size, metavar="HxW", help="pixels of each picture, or one number for both sides, other "
                     "than the run was trained for (default: as trained); good while objects fill the picture as before")
    one.add_argument("--label", metavar="CLASS", help="a class, by number or name, or several with commas, drawn in turn "
                     "(default: all classes in turn)")
    one.add_argument("--text", action="append", metavar="PROMPT", help="what is to be seen, for runs trained with captions; "
                     "once for each prompt, drawn in turn and written under the pictures (default: captions of the test "
                     "split)")
    one.add_argument("--prompts", metavar="FILE", help="prompts from a text file, a line each, instead of --text")
    one.add_argument("--draws", type=_count, default=4, metavar="K", help="samples of each condition picture, for runs that "
                     "take one (default 4); --num is then the number of conditions")
    one.add_argument("--image", metavar="PATH", help="your own condition pictures, a file or a folder (default: made from "
                     "test pictures, whose truth is shown beside)")
    one.add_argument("--task", metavar="NAME", help="inpaint: fill in test pictures with a run that was trained without "
                     "conditions, by replacing known pixels (add --sampler=repaint for resampling)")
    one.add_argument("--out", required=True, metavar="FILE", help="FILE.png, or FILE.npz with the arrays samples (float32, "
                     "in the data's own range) and what they were asked with: label, prompt, image, mask, and x, the truth")

    one = command("evaluate", "Score samples of a run against real data: a table here, and JSON in DIR/evaluation.")
    _run_flags(one)
    _draw_flags(one)
    one.add_argument("--batch_size", type=_count, metavar="N", help="samples computed at once (default: the config's "
                     "evaluate.batch_size)")
    one.add_argument("--num", type=_count, metavar="N", help="samples to score (default: the config's evaluate.num)")
    one.add_argument("--metrics", metavar="NAMES", help="some of agreement, frechet, kid, precision_recall, inception_score "
                     "for pictures, words for those of prompts (whether the nearest real picture carries them), and cas "
                     "(real pictures read by a classifier trained on the samples), which is not among the defaults; psnr, "
                     "ssim, lpips, feature_distance, consistency, diversity, frechet, joint_frechet for runs that take a "
                     "condition picture; with commas (default: all that suit the data)")
    one.add_argument("--draws", type=_count, metavar="K", help="samples of each condition picture, for runs that take one "
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
    _cascade_flags(one)

    one = command("likelihood", "How likely real held-out data is under the model: bits per dimension, for points nats.")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--stage", action="append", metavar="DIR", help="instead of --workdir: directory of a stage's run, "
                       "once for each stage of a cascade, base first; the bound of the whole cascade, and what of it each "
                       "stage costs")
    _run_flags(one, which)
    one.add_argument("--s", type=_levels, metavar="S", help="of a cascade, which needs it: how much noise is on what each "
                     "super-resolution stage is given, above 0, a time of its augmentation's path; one for all, or one for "
                     "each with commas. The smaller, the more the stages before the last must tell")
    one.add_argument("--times", type=_count, metavar="N", help="of a cascade: network calls for each stage before the last "
                     "whose process is continuous, at as many noise levels (default 32)")
    one.add_argument("--num", type=_count, metavar="N", help="examples of the test split (default: all)")
    one.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the random numbers (default 0)")
    one.add_argument("--trace", choices=("exact", "hutchinson"), help="how the divergence of the probability-flow ODE is "
                     "computed: exactly, or estimated with random probes (default: exact up to 16 dimensions)")
    one.add_argument("--probes", type=_count, default=1, metavar="N", help="probes an example for hutchinson (default 1)")

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
    verb.add_argument("--num", type=_count, default=64, metavar="N", help="how many examples (default 64)")
    verb.add_argument("--split", default="train", metavar="SPLIT", help="train, validation or test (default train)")
    verb.add_argument("--data_dir", metavar="DIR", help=dir_help)
    verb.add_argument("--out", required=True, metavar="FILE", help="FILE.png")

    one = command("plan", "Compile a config's training step, or its sampler, for a machine that need not be there, and say "
                  "what it takes: memory of a chip by part, FLOPs, messages between chips, the least time of a step. A big "
                  "network compiles for many minutes; what was found is kept. Exit code 1: it does not fit.", override_help)
    _plan_flags(one, config_help)

    one = command("bench", "Measure how fast a config is on this machine: training step, memory, share of the chip's peak, "
                  "sampler, compilation, data pipeline.", override_help)
    one.add_argument("--config", required=True, metavar="FILE.py[:WORDS]", help=config_help)
    one.add_argument("--batch_size", type=_count, metavar="N", help="instead of the config's data.batch_size")
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


def _plan_flags(one: argparse.ArgumentParser, config_help: str) -> None:
    one.add_argument("--config", required=True, metavar="FILE.py[:WORDS]", help=config_help)
    one.add_argument("--topology", required=True, metavar="NAME", help="v4:AxBxC, v5e:AxB, v5p:AxBxC or v6e:AxB, so many "
                     "chips of a TPU pod, such as v5e:16x16 (needs pip install 'jaxdiff[plan]'); or cpu:N, N devices here")
    one.add_argument("--sampler", action="store_true", help="the sampler instead of the training step")
    one.add_argument("--batch_size", type=_count, metavar="N", help="of all chips (default: the config's "
                     "data.batch_size; with --sampler its evaluate.batch_size)")
    one.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON in place of the text, or in FILE beside it")
    one.add_argument("--num_classes", type=_whole, metavar="N", help="of data that are not here (0: no labels); their "
                     "size is the config's data.size and data.channels")
    one.add_argument("--latents", type=_shape, metavar="HxWxC", help="of an autoencoder's run, codec.run, that is not here")
    one.add_argument("--text_width", type=_count, metavar="D", help="channels of the embeddings of a text.encoder that "
                     "is not here")
    one.add_argument("--quiet", action="store_true", help="no lines of progress")


def _run_flags(one: argparse.ArgumentParser, which: Any = None) -> None:
    """--workdir, or that among the flags of which one is wanted, and what is read there."""
    (which or one).add_argument("--workdir", required=which is None, metavar="DIR", help="directory of the run, as given to "
                                "jaxdiff train")
    one.add_argument("--step", type=_count, metavar="N", help="checkpoint of this training step (default: the newest one)")
    one.add_argument("--raw", action="store_true", help="use the parameters themselves, not their moving average (EMA)")


def _draw_flags(one: argparse.ArgumentParser) -> None:
    one.epilog = WAYS_OF_GUIDANCE
    one.add_argument("--sampler", metavar="NAME", help="ancestral, ddim, euler_maruyama, reverse_diffusion, "
                     "predictor_corrector, heun, dpm_solver, unipc or repaint (default: the config's)")
    one.add_argument("--steps", type=_count, metavar="N", help="steps of the sampler (default: the config's)")
    one.add_argument("--guidance", type=_guidance, metavar="HOW", help="how strongly samples are led to their class or "
                     "text: 1 as the model learned it, 2 or 3 more strongly, with less variety, 0 not at all; or the name "
                     "of another way, see below (default: the config's)")
    one.add_argument("--threshold", type=float, metavar="BOUND", help="clip the predicted image to -BOUND..BOUND at every "
                     "step, 0: do not (default: the config's)")
    one.add_argument("--y_draws", choices=("redraw", "one_path", "one_noise"), help="how a condition that is diffused too "
                     "(cdiffe, cmde, vs_cmde) is known: drawn afresh at each network call, along one path, or with one "
                     "noise throughout (default: the config's)")
    one.add_argument("--s", type=float, metavar="S", help="for a super-resolution stage of a cascade: noise "
                     "its low-resolution input to this time of its augmentation's path (default 0, clean)")
    one.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the random numbers: the same seed, the same "
                     "samples (default 0)")


def _cascade_flags(one: argparse.ArgumentParser) -> None:
    each = "; give it once for all stages, or once for each in the order of --stage (default: each config's)"
    one.add_argument("--stage", action="append", required=True, metavar="DIR", help="directory of a stage's run; once for "
                     "each, the base first and then as the pictures grow")
    one.add_argument("--out", required=True, metavar="OUT", help="FILE.png: a picture, a row a sample: every stage, and the "
                     "training picture nearest to the last; or DIR: samples in parts, DIR/part_00000.npz and on, with the "
                     "8-bit arrays stage_0, stage_1, ... and label; the same command goes on where it was stopped")
    one.add_argument("--s", type=_levels, metavar="S", help="how much noise each super-resolution stage is told is on what "
                     "it is given, a time of its augmentation's path; one for all, or one for each with commas (default 0: "
                     "the pictures as they are, the one s that every stage knows; those trained with Gaussian augmentation "
                     "want more, which --sweep_s finds). With --sweep_s, of the stages before the last")
    one.add_argument("--truncated", action="store_true", help="stop each stage where its own noise is that of s, instead "
                     "of drawing it to the end and adding noise")
    one.add_argument("--sweep_s", type=_levels, metavar="S,S,...", help="draw and score the last stage at each of these s, "
                     "into a DIR: from the same pictures of the stages before, drawn once (with --truncated anew for each "
                     "s). A row a value in DIR/sweep.jsonl, the curves in DIR/sweep.png; values that have a row are passed "
                     "over")
    one.add_argument("--metrics", metavar="NAMES", help="score the parts in a DIR, each stage beside its own run's real "
                     "pictures: some of agreement, frechet, kid, precision_recall, inception_score, cas, with commas, "
                     "or all, of which cas is none; also to DIR/scores.json (default: none; of a sweep frechet)")
    one.add_argument("--inception", metavar="FILE", help="weights of FID's Inception-v3 (.pth or .npz), to compare by its "
                     "features (default: by those of a classifier of each stage's data)")
    one.add_argument("--num", type=_count, metavar="N", help="how many samples (default: 16 in a picture, in a DIR the last "
                     "stage's evaluate.num)")
    one.add_argument("--label", metavar="CLASS", help="a class, by number or name, or several with commas, drawn in turn "
                     "(default: all classes in turn)")
    one.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the random numbers: the same seed and batch "
                     "size, the same samples (default 0)")
    one.add_argument("--batch_size", type=_count, default=250, metavar="N", help="samples computed at once, and kept in a "
                     "part (default 250)")
    one.add_argument("--steps", type=_count, action="append", metavar="N", help="steps of the sampler" + each)
    one.add_argument("--sampler", action="append", metavar="NAME", help="as in jaxdiff sample" + each)
    one.add_argument("--guidance", type=_guidance, action="append", metavar="HOW", help="as in jaxdiff sample, see "
                     "below" + each)
    one.add_argument("--threshold", type=float, action="append", metavar="BOUND", help="as in jaxdiff sample" + each)
    one.add_argument("--quiet", action="store_true", help="no line for each part")
