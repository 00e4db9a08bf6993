"""A run over records that notes which it saw: python -m tests.training.walker WORKDIR STEPS [SECONDS A STEP].

One process or several, joined through the environment. Each writes WORKDIR.seen.<processes>.<process>: a line a step, the
step and the numbers of its records.
"""

import sys
import time

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.training import Layout, initialize, make_mesh, train
from tests.training import toy

X = np.random.default_rng(5).normal(size=(37, toy.D)).astype(np.float32)


def pipe():
    source = data.Source("walk", "train", data.Columns({"x": X}), (toy.D,), kind="points")
    shares = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return data.pipeline(source, toy.B, seed=3, num_threads=0, **shares)


def numbers(x):
    """The records that a batch holds."""
    return [int(np.flatnonzero((row == X).all(1))[0]) for row in x]


def batches(start, pause=0.0, note=None):
    for step, batch in enumerate(pipe().batches(start), start):
        time.sleep(pause)
        if note is not None:
            print(step, *numbers(batch["x"]), file=note, flush=True)
        yield {**batch, "y": batch["x"] @ np.array([1.0, -2.0, 0.5], np.float32)}


def walk(workdir, steps, pause=0.0, log_every=5, checkpoint_every=10):
    layout = Layout(make_mesh()) if jax.device_count() > 1 else None
    with open(f"{workdir}.seen.{jax.process_count()}.{jax.process_index()}", "a") as note:
        return train(toy.step(), toy.fresh(), lambda start: batches(start, pause, note), workdir, steps, layout=layout,
                     log_every=log_every, checkpoint_every=checkpoint_every, progress=False)


if __name__ == "__main__":
    initialize(timeout=60)
    outcome = walk(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:4]))
    print("left at", outcome.step, flush=True)
    sys.exit(128 + outcome.signal if outcome.signal else 0)
