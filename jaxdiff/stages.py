"""Trained runs as the stages of a cascade: each read from its own run directory, and refused where they do not chain.

    runs = [jd.load_run("runs/base"), jd.load_run("runs/sr1")]
    check_linked(runs)
    stages, params = [stage_of(run) for run in runs], [run.params for run in runs]
    draw = jax.jit(lambda key, params, label: jd.cascade.sample_cascade(key, stages, params, {"label": label}, s=0.2))
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import build, guiding
from jaxdiff.cascade import PIXELS, Codec, Stage
from jaxdiff.run import Run, load_run
from jaxdiff.samplers import Sampler
from jaxdiff.types import Array, Guidance


def stage_of(
    run: Run,
    num_steps: int | None = None,
    sampler: Sampler | str | None = None,
    guidance: Guidance | float | str | None = None,
    threshold: float | None = None,
) -> Stage:
    """A run as a stage; its params are `run.params`. The options are those of `run.sampler`, the config's by default.

    Raises ValueError for a run whose condition is diffused beside x, or that is no model of pictures, and as
    `run.sampler` does for wrong options.
    """
    config = run.config
    if run.facts.kind != "image" or build.joint(config) or (run.facts.condition and not run.facts.low_res):
        raise ValueError(f"the run {config.name!r} is no stage of a cascade; allowed: runs that make pictures from nothing, "
                         "and runs of task.kind=low_res, such as those of configs/cascade.py")
    run.sampler(num_steps, sampler, guidance, threshold=threshold)  # refuses what does not suit the run
    chosen = build.sampler(config, sampler)
    steps = config.sampler.num_steps if num_steps is None else num_steps
    steering = guiding.steering(run, guidance, threshold, load_run)
    coder, codec = run.latents, PIXELS
    if coder is not None:
        codec = Codec(lambda _, key, x: coder.encode(jax.random.split(key, len(x)), x), lambda _, z: coder.decode(z))
    return Stage(
        run.facts.shape, run.path, run.denoiser, chosen, steps, guidance=steering, codec=codec,
        augmentation=build.augmentation(config), can_stop=not build.adversarial(config),
    )


def check_linked(runs: Sequence[Run]) -> None:
    """Refuse runs, base first, that do not hand pictures on to each other: their order, sizes, channels and classes."""
    if not runs:
        raise ValueError("no stages; allowed: one run or more, base first")
    first = runs[0]
    if first.facts.condition:
        raise ValueError(f"the first stage, {first.config.name!r}, needs a {_size(first.facts.condition)} picture itself; "
                         "mend: name the stages from the smallest up, base first")
    for before, after in itertools.pairwise(runs):
        names = f"stage {after.config.name!r} after {before.config.name!r}"
        if not after.facts.low_res:
            raise ValueError(f"{names}: it takes no low-resolution picture; mend: name the stages from the smallest up, all "
                             "but the first runs of task.kind=low_res")
        if after.facts.condition != before.facts.pixels:
            raise ValueError(f"{names}: it takes pictures of {_size(after.facts.condition)} and is given "
                             f"{_size(before.facts.pixels)}; mend: the order, or a stage between them")
        ours, theirs = ((run.facts.num_classes, run.facts.class_names) for run in (after, before))
        if ours[0] != theirs[0] or (ours[0] and ours[1] and theirs[1] and ours[1] != theirs[1]):
            raise ValueError(f"{names}: it has {_classes(*ours)}, the one before {_classes(*theirs)}; mend: train both on "
                             "the same classes")


def told(runs: Sequence[Run], given: Mapping[str, Any]) -> list[dict[str, Array]]:
    """What each run is told of `given`: arrays such as `label` as they are, and `prompt`, a text for each example, as the
    run reads it; a run without captions is told none. Not for inside `jit`."""
    arrays = {name: jnp.asarray(value) for name, value in given.items() if name != "prompt"}
    return [arrays | (run.read(given["prompt"]) if "prompt" in given and run.reader is not None else {}) for run in runs]


def _classes(num: int, names: Sequence[str]) -> str:
    return f"{num} classes" + (f" ({', '.join(names[:3])}, ...)" if names else "")


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]} with {shape[2]} channel{'s' if shape[2] != 1 else ''}"
