"""Training: states, steps, optimizers, checkpoints and the loop around them. The only home of optax and orbax.

step = make_train_step([Update("net", loss, optimizer("adam", 2e-4).transform)], {"net": {"ema": Ema(0.9999)}})
state = init_state({"net": params}, updates, averages, key)
train(step, state, batches, "runs/one", steps=10_000)
"""

from jaxdiff.training.checkpoint import Checkpoints, read_meta, steps
from jaxdiff.training.claim import check_free, claim
from jaxdiff.training.logs import Log
from jaxdiff.training.loop import NonFiniteLoss, Outcome, train
from jaxdiff.training.optimizers import Optimizer, learning_rate_schedule, optimizer
from jaxdiff.training.parallel import (
    AXIS,
    MIN_SIZE,
    Layout,
    batch_sharding,
    compiled_step,
    gathered,
    made_where,
    make_layout,
    make_mesh,
    place_batch,
    place_state,
    replicate,
    shard_batch,
    state_shardings,
)
from jaxdiff.training.processes import agreed, everyones, initialize, leave_alone
from jaxdiff.training.resume import Restored, broken, restore
from jaxdiff.training.rundir import check_config, versions
from jaxdiff.training.state import Ema, TrainState, power_gamma
from jaxdiff.training.step import Metrics, TrainStep, Update, init_state, make_multi_step, make_train_step, update_names

__all__ = [
    "AXIS",
    "MIN_SIZE",
    "Checkpoints",
    "Ema",
    "Layout",
    "Log",
    "Metrics",
    "NonFiniteLoss",
    "Optimizer",
    "Outcome",
    "Restored",
    "TrainState",
    "TrainStep",
    "Update",
    "agreed",
    "batch_sharding",
    "broken",
    "check_config",
    "check_free",
    "claim",
    "compiled_step",
    "everyones",
    "gathered",
    "init_state",
    "initialize",
    "learning_rate_schedule",
    "leave_alone",
    "made_where",
    "make_layout",
    "make_mesh",
    "make_multi_step",
    "make_train_step",
    "optimizer",
    "place_batch",
    "place_state",
    "power_gamma",
    "read_meta",
    "replicate",
    "restore",
    "shard_batch",
    "state_shardings",
    "steps",
    "train",
    "update_names",
    "versions",
]
