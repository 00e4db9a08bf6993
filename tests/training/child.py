"""Trains the toy in a process of its own, to be sent signals: python -m tests.training.child WORKDIR STEPS."""

import sys
import time

from jaxdiff.training import train
from tests.training import toy


def slowly(start):
    for batch in toy.batches(start):
        time.sleep(0.01)
        yield batch


if __name__ == "__main__":
    outcome = train(
        toy.step(),
        toy.fresh(),
        slowly,
        sys.argv[1],
        int(sys.argv[2]),
        log_every=5,
        checkpoint_every=20,
        config={"seed": 0},
        progress=False,
    )
    print("left at", outcome.step, flush=True)
    sys.exit(128 + outcome.signal if outcome.signal else 0)
