"""One of two tasks of Slurm's, as its environment says, that train together: python -m tests.training.peer WORKDIR."""

import sys

import jax

from jaxdiff.training import Layout, initialize, make_mesh, train
from tests.training import toy

if __name__ == "__main__":
    initialize(timeout=60)
    workdir, process, half = sys.argv[1], jax.process_index(), toy.B // 2
    mine = lambda batch: {k: v[process * half : (process + 1) * half] for k, v in batch.items()}
    for steps in (3, 6):  # the second call resumes
        options = {"layout": Layout(make_mesh()), "log_every": 2, "checkpoint_every": 3, "progress": False}
        outcome = train(toy.step(), toy.fresh(), lambda start: map(mine, toy.batches(start)), workdir, steps, **options)
    assert len(outcome.state.params["net"]["w"].sharding.device_set) == 4
    print(*outcome.state.params["net"]["w"].tolist(), flush=True)
