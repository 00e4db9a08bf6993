"""One of two processes that train together: python -m tests.training.peer PROCESS PORT WORKDIR."""

import sys

import jax

if __name__ == "__main__":
    process, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)

    from jaxdiff.training import Layout, make_mesh, train
    from tests.training import toy

    half = toy.B // 2
    mine = lambda batch: {k: v[process * half : (process + 1) * half] for k, v in batch.items()}
    for steps in (3, 6):  # the second call resumes
        options = {"layout": Layout(make_mesh()), "log_every": 2, "checkpoint_every": 3, "progress": False}
        outcome = train(toy.step(), toy.fresh(), lambda start: map(mine, toy.batches(start)), workdir, steps, **options)
    assert len(outcome.state.params["net"]["w"].sharding.device_set) == 4
    print(*outcome.state.params["net"]["w"].tolist(), flush=True)
