"""The classifier that judges samples: an ordinary run of ours on the real images, trained once beside the run it judges.

Its logits say whether a sample shows the class it was asked for; its features (the vector before the last layer) serve
Frechet and kernel distances where no Inception weights are at hand. It sees training images only, and its accuracy on
held-out ones bounds what it can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, configfile, evaluation, fit, guidance, sde, tables, training
from jaxdiff.run import Run, load_run
from jaxdiff.spread import by_example
from jaxdiff.trees import fingerprint
from jaxdiff.types import Array


class Judge(NamedTuple):
    """`logits` and `features` take images float32 [-1, 1] `[B, H, W, C]`; `accuracy` is on `n` held-out images."""

    logits: Callable[[Any], Array]
    features: Callable[[Any], Array]
    accuracy: float
    n: int
    name: str


def classifier_config(
    data: ConfigDict, side: int, seed: int = 0, steps: int | None = None, smoke: bool = False
) -> ConfigDict:
    """The config of a classifier of clean images `side` pixels long, of `data` (a config's data section).

    `steps` None is what suits the side; `smoke` is a tiny network and a few steps, for tests and first looks.
    """
    small = side <= 16
    patch = 1 if small or side % 2 else 2
    steps = 4 if smoke else steps or (250 if small else 800)
    config = tables.base()
    config.name, config.seed = "classifier", seed
    config.data.update(data.to_dict())
    config.condition.drop = 0.0
    with config.ignore_type():
        config.data.update({"batch_size": 128, "scale": "exact"})
        config.path.kind = "none"
        config.loss.kind = "classification"
        config.loss.smoothing = 0.1
        config.network.update({"kind": "classifier", "channels": 32, "num_blocks": 1,
                               "channel_mult": (1, 2) if side % (2 * patch) == 0 else (1,),
                               "attention_resolutions": (), "dropout": 0.2, "pool": "mean",
                               "patch_size": patch})
        config.optimizer.update({"kind": "adamw", "learning_rate": 2e-3, "warmup_steps": steps // 10, "decay": "cosine",
                                 "weight_decay": 0.05})
        config.ema.decay = 0.99
        if smoke:
            config.network.update({"channels": 8, "channel_mult": (1,)})
    config.train.update({"steps": steps, "log_every": 100, "eval_every": steps, "checkpoint_every": steps, "keep": 1})
    return config


def from_run(run: Run) -> Judge:
    """A judge from a trained classifier; its accuracy is measured here, on the test split of its own data."""
    if run.config.loss.kind != "classification":
        raise ValueError(f"the run {run.config.name!r} is not a classifier; mend: train one with configs/classifier.py")
    if run.path is not None:
        raise ValueError(f"the run {run.config.name!r} is a classifier of noisy pictures, for guidance, and no judge of "
                         "clean ones; mend: train one with configs/classifier.py")
    logits = by_example(lambda x: run.network.apply({"params": run.params}, x))
    features = by_example(lambda x: run.network.apply({"params": run.params}, x, method="features"))
    x, y = _held_out(run)
    accuracy = evaluation.accuracy(evaluation.extract(logits, x), y)
    # no two classifiers share a name
    name = f"classifier {fingerprint(run.params)} of {run.config.data.source}, step {run.step}"
    return Judge(logits, features, accuracy, len(y), name)


def _held_out(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of the test split."""
    records = build.source(run.config, "test")
    pipe = build.pipeline(run.config, records, batch_size=min(256, len(records)))
    images, labels = zip(*((batch["x"], batch["label"]) for batch in pipe.epoch()), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def noisy_accuracy(run: Run, levels: Sequence[float] = (0.1, 0.5, 1.0, 2.0, 5.0)) -> tuple[dict[float, float], int]:
    """What a classifier of noisy pictures reads right of the test split, by noise level sigma / alpha, and its size.

    The first level is the path's lowest; those of `levels` that its training never meets are left out. One draw of noise
    a picture, the same at every level.
    """
    logits = guidance.classifier_logits(lambda p, x, t, cond: run.network.apply({"params": p}, x, t), run.params, run.path)
    x, y = _held_out(run)
    noise = jax.random.normal(jax.random.key(0), x.shape)
    lowest, highest = (float(jnp.exp(-0.5 * sde.log_snr(run.path, t))) for t in (run.path.t_min, run.path.t_max))
    read = jax.jit(lambda x, noise, t: logits(sde.perturb(run.path, x, noise, t), t))
    found = {}
    for level in (lowest, *(level for level in levels if lowest < level <= highest)):
        t = sde.time_at(run.path, -2 * jnp.log(level))
        right = [np.asarray(read(x[i : i + 256], noise[i : i + 256], t)).argmax(1) == y[i : i + 256]
                 for i in range(0, len(x), 256)]
        found[level] = float(np.concatenate(right).mean())
    return found, len(y)


def judge_of(run: Run, workdir: Any, progress: bool = True) -> Judge:
    """The judge of a run: `evaluate.classifier` if its config names one, else one trained in `workdir`/classifier."""
    config = run.config
    if config.evaluate.classifier:
        return from_run(load_run(config.evaluate.classifier))
    home = Path(workdir) / "classifier"
    held = training.steps(home)
    if held:
        wanted = configfile.from_run(home)
    else:
        smoke = config.train.steps <= 20  # a smoke run judges with a smoke classifier
        wanted = classifier_config(config.data, run.facts.pixels[0], config.seed, smoke=smoke).lock()
    if not held or held[-1] < wanted.train.steps:
        if progress:
            print(f"training a classifier of {config.data.source}, once, to judge samples with")
        fit.train(wanted, home, progress)
    return from_run(load_run(home))
