"""Pictures from pictures: super-resolution, inpainting, edges, pairs, with four estimators of the conditional score.

    jaxdiff train --config=configs/inverse.py:estimator=cmde,task=inpaint --workdir=runs/inpaint
    jaxdiff sample --workdir=runs/inpaint --num=8 --draws=4 --out=inpainted.png
    jaxdiff train --config=configs/inverse.py:estimator=vs_cmde,task=edges,data=pairs:edges2shoes --workdir=runs/shoes

Batzolis et al. 2021, "Conditional image generation with score-based diffusion models". estimator: cde (y clean in the
network's input), cdiffe (y diffused as x is), cmde (default; y diffused less), vs_cmde (y's noise falls while training).
task: sr (factor=4, or 8), inpaint (default), edges, pairs (data=pairs:FOLDER, pictures A|B side by side).
data: mnist5k (default), emoji, tfds:NAME, folder:PATH, pairs:FOLDER. side: of the pictures (0: 28 for mnist5k, else 64).
path: edm (default), ve (the paper's, with its predictor-corrector), vp, subvp. smoke: seconds.
The paper's own recipes are in configs/cmde.py. Scores: README.md.
"""

import math

from common import smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

# y's noise at t_max in [-1, 1], twice the paper's for [0, 1]
SIGMA_MAX_Y = {"sr": 1.0, "inpaint": 2.0, "edges": 2.0, "pairs": 2.0}


def set_path(config, path, dim):
    """x's process, what is predicted and how it is sampled; `dim` is C H W, of which the paper takes sigma_max."""
    with config.ignore_type():
        if path == "edm":
            config.sampler.update({"kind": "predictor_corrector", "num_steps": 50, "snr": 0.15})
            return
        config.path.kind = path
        if path == "ve":
            config.path.update({"sigma_min": 0.01, "sigma_max": 2 * math.sqrt(dim)})
        config.parameterization.kind = "eps"
        config.times.kind = "low_discrepancy"
        config.weighting.kind = "likelihood" if path == "ve" else "simple"  # VE's g^2 / sigma^2 is one number a variable
        config.sampler.update({"kind": "predictor_corrector", "num_steps": 200, "snr": 0.15})


def set_estimator(config, estimator, task, factor, horizon):
    """How y is made and told."""
    config.condition.label = False
    with config.ignore_type():
        config.task.kind = task
        if task == "sr":
            config.task.factor = factor
        config.estimator.kind = estimator
        if estimator in ("cmde", "vs_cmde"):
            config.estimator.sigma_max = SIGMA_MAX_Y[task]
        if estimator == "vs_cmde":
            config.estimator.horizon = horizon


def get_config(arg: str = ""):
    arg = words(arg, estimator="cmde", task="inpaint", data="mnist5k", factor=4, side=0, path="edm", smoke=False)
    for name, allowed in {"task": tuple(SIGMA_MAX_Y), "path": ("edm", "ve", "vp", "subvp"),
                          "estimator": ("cde", "cdiffe", "cmde", "vs_cmde")}.items():
        if getattr(arg, name) not in allowed:
            raise ValueError(f"{name} is {getattr(arg, name)!r}; allowed: {', '.join(allowed)}")
    small = arg.data == "mnist5k"
    side = arg.side or (28 if small else 64)
    config = base()
    config.name = f"{arg.data}_{arg.task}{arg.factor if arg.task == 'sr' else ''}_{arg.estimator}".replace(":", "_")
    config.data.source = arg.data
    with config.ignore_type():
        config.data.update({"size": side, "batch_size": 64})
        # small: 0.83M parameters, 0.55 s of one CPU core a step
        width, mult, blocks = (32, (1, 2), 1) if small else (64, (1, 2, 2), 2)
        config.network.update({"kind": "unet", "channels": width, "channel_mult": mult, "num_blocks": blocks,
                               "attention_resolutions": (7, 16), "head_channels": width, "dropout": 0.1, "patch_size": 2})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay": "cosine", "final_scale": 0.02})
    config.train.update({"steps": 1000, "log_every": 100, "eval_every": 500, "checkpoint_every": 250, "preview": 32})
    config.evaluate.update({"num": 200, "batch_size": 200, "draws": 3})
    set_path(config, arg.path, side * side * (1 if small else 3))
    set_estimator(config, arg.estimator, arg.task, arg.factor, config.train.steps // 2)
    return smoke(config) if arg.smoke else config
