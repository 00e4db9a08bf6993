"""Flags that several commands share, and how the values of flags are read. Nothing here imports jax."""

from __future__ import annotations

import argparse
from typing import Any

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


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def guidance(text: str) -> float | str:
    """A number, or words that jaxdiff.guiding reads."""
    try:
        return float(text)
    except ValueError:
        return text


def levels(text: str) -> tuple[float, ...]:
    """Numbers, with commas."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or numbers with commas as in 0,0.1,0.2") from None


def size(text: str) -> tuple[int, int]:
    """A side, or height x width."""
    words = text.split("x")
    if len(words) > 2 or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a side, as 128, or height x width, as 64x128")
    return int(words[0]), int(words[-1])


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def shape(text: str) -> tuple[int, int, int]:
    """Height x width x channels."""
    words = text.split("x")
    if len(words) != 3 or not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not height x width x channels, as 64x64x4")
    return int(words[0]), int(words[1]), int(words[2])


def seed(text: str) -> int:
    """A whole number from 0 that fits into 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def process_flags(one: argparse.ArgumentParser) -> None:
    """How several processes find each other."""
    several = one.add_argument_group("several processes", "The same command in each of them, on one machine or many, which\n"
                                     "share the workdir. Slurm, Open MPI and TPU pods need no words; launch/ holds scripts.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, or auto: what the cluster "
                         "says (default: JAX_COORDINATOR_ADDRESS, or a cluster's if there is one)")
    several.add_argument("--num_processes", type=count, metavar="N", help="how many there are (default: JAX_NUM_PROCESSES)")
    several.add_argument("--process_id", type=seed, metavar="I", help="which of them this is, from 0 (default: "
                         "JAX_PROCESS_ID)")


def plan_flags(one: argparse.ArgumentParser, config_help: str) -> None:
    """What is planned, for which machine, and what of the data is not here."""
    one.add_argument("--config", required=True, metavar="FILE.py[:WORDS]", help=config_help)
    one.add_argument("--topology", required=True, metavar="NAME", help="v4:AxBxC, v5e:AxB, v5p:AxBxC or v6e:AxB, so many "
                     "chips of a TPU pod, such as v5e:16x16 (needs pip install 'jaxdiff[plan]'); or cpu:N, N devices here")
    one.add_argument("--sampler", action="store_true", help="the sampler instead of the training step")
    one.add_argument("--batch_size", type=count, metavar="N", help="of all chips (default: the config's "
                     "data.batch_size; with --sampler its evaluate.batch_size)")
    one.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON in place of the text, or in FILE beside it")
    one.add_argument("--num_classes", type=whole, metavar="N", help="of data that are not here (0: no labels); their "
                     "size is the config's data.size and data.channels")
    one.add_argument("--latents", type=shape, metavar="HxWxC", help="of an autoencoder's run, codec.run, that is not here")
    one.add_argument("--text_width", type=count, metavar="D", help="channels of the embeddings of a text.encoder that "
                     "is not here")
    one.add_argument("--quiet", action="store_true", help="no lines of progress")


def run_flags(one: argparse.ArgumentParser, which: Any = None) -> None:
    """--workdir, or that among the flags of which one is wanted, and what is read there."""
    (which or one).add_argument("--workdir", required=which is None, metavar="DIR", help="directory of the run, as given to "
                                "jaxdiff train")
    one.add_argument("--step", type=count, metavar="N", help="checkpoint of this training step (default: the newest one)")
    one.add_argument("--raw", action="store_true", help="use the parameters themselves, not their moving average (EMA)")


def draw_flags(one: argparse.ArgumentParser) -> None:
    """How a run is sampled."""
    one.epilog = WAYS_OF_GUIDANCE
    one.add_argument("--sampler", metavar="NAME", help="ancestral, ddim, euler_maruyama, reverse_diffusion, "
                     "predictor_corrector, heun, dpm_solver, unipc or repaint (default: the config's)")
    one.add_argument("--steps", type=count, metavar="N", help="steps of the sampler (default: the config's)")
    one.add_argument("--guidance", type=guidance, metavar="HOW", help="how strongly samples are led to their class or "
                     "text: 1 as the model learned it, 2 or 3 more strongly, with less variety, 0 not at all; or the name "
                     "of another way, see below (default: the config's)")
    one.add_argument("--threshold", type=float, metavar="BOUND", help="clip the predicted image to -BOUND..BOUND at every "
                     "step, 0: do not (default: the config's)")
    one.add_argument("--y_draws", choices=("redraw", "one_path", "one_noise"), help="how a condition that is diffused too "
                     "(cdiffe, cmde, vs_cmde) is known: drawn afresh at each network call, along one path, or with one "
                     "noise throughout (default: the config's)")
    one.add_argument("--s", type=float, metavar="S", help="for a super-resolution stage of a cascade: noise "
                     "its low-resolution input to this time of its augmentation's path (default 0, clean)")
    one.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random numbers: the same seed, the same "
                     "samples (default 0)")


def told_flags(one: argparse.ArgumentParser) -> None:
    """What is to be seen."""
    one.add_argument("--label", metavar="CLASS", help="a class, by number or name, or several with commas, drawn in turn "
                     "(default: all classes in turn)")
    one.add_argument("--text", action="append", metavar="PROMPT", help="what is to be seen, for runs trained with captions; "
                     "once for each prompt, drawn in turn and written under the pictures (default: captions of the test "
                     "split)")
    one.add_argument("--prompts", metavar="FILE", help="prompts from a text file, a line each, instead of --text")


def cascade_flags(one: argparse.ArgumentParser) -> None:
    """What a cascade is made of, how it is sampled, and where to."""
    each = "; give it once for all stages, or once for each in the order of --stage (default: each config's)"
    one.add_argument("--stage", action="append", required=True, metavar="DIR", help="directory of a stage's run; once for "
                     "each, the base first and then as the pictures grow")
    one.add_argument("--out", required=True, metavar="OUT", help="FILE.png: a picture, a row a sample: every stage, and the "
                     "training picture nearest to the last; or DIR: samples in parts, DIR/part_00000.npz and on, with the "
                     "8-bit arrays stage_0, stage_1, ..., label and prompt; the same command goes on where it was stopped")
    one.add_argument("--s", type=levels, metavar="S", help="how much noise each super-resolution stage is told is on what "
                     "it is given, a time of its augmentation's path; one for all, or one for each with commas (default 0: "
                     "the pictures as they are, the one s that every stage knows; those trained with Gaussian augmentation "
                     "want more, which --sweep_s finds). With --sweep_s, of the stages before the last")
    one.add_argument("--truncated", action="store_true", help="stop each stage where its own noise is that of s, instead "
                     "of drawing it to the end and adding noise")
    one.add_argument("--sweep_s", type=levels, metavar="S,S,...", help="draw and score the last stage at each of these s, "
                     "into a DIR: from the same pictures of the stages before, drawn once (with --truncated anew for each "
                     "s). A row a value in DIR/sweep.jsonl, the curves in DIR/sweep.png; values that have a row are passed "
                     "over")
    one.add_argument("--metrics", metavar="NAMES", help="score the parts in a DIR, each stage beside its own run's real "
                     "pictures: some of agreement, frechet, kid, precision_recall, inception_score, cas, words (where every "
                     "stage reads captions), with commas, or all, of which cas is none; also to DIR/scores.json (default: "
                     "none; of a sweep frechet)")
    one.add_argument("--inception", metavar="FILE", help="weights of FID's Inception-v3 (.pth or .npz), to compare by its "
                     "features (default: by those of a classifier of each stage's data)")
    one.add_argument("--num", type=count, metavar="N", help="how many samples (default: in a picture 16, or one of each "
                     "prompt; in a DIR the last stage's evaluate.num)")
    told_flags(one)
    one.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random numbers: the same seed and batch "
                     "size, the same samples (default 0)")
    one.add_argument("--batch_size", type=count, default=250, metavar="N", help="samples computed at once, and kept in a "
                     "part (default 250)")
    one.add_argument("--steps", type=count, action="append", metavar="N", help="steps of the sampler" + each)
    one.add_argument("--sampler", action="append", metavar="NAME", help="as in jaxdiff sample" + each)
    one.add_argument("--guidance", type=guidance, action="append", metavar="HOW", help="as in jaxdiff sample, see "
                     "below" + each)
    one.add_argument("--threshold", type=float, action="append", metavar="BOUND", help="as in jaxdiff sample" + each)
    one.add_argument("--quiet", action="store_true", help="no line for each part")
