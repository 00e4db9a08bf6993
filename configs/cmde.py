"""CMDE's own recipes, CelebA-HQ at 160x160 and edges2shoes at 64x64: not run (no GPU here).

    jaxdiff train --config=configs/cmde.py:data=folder:celebahq,task=sr,estimator=cmde --workdir=runs/celebahq_sr
    jaxdiff train --config=configs/cmde.py:data=pairs:edges2shoes,task=pairs --workdir=runs/edges2shoes

Batzolis et al. 2021: VE, sigma_max of x = sqrt(C H W) (here twice that, for data in [-1, 1]), DDPM's U-Net of 96 channels,
Adam 2e-4 with a warm-up of 2,500 steps, gradients clipped at 1, dropout .1, EMA .999, 500,000 steps of 16 (sr x8), 25
(inpaint) or 50 (pairs) examples, likelihood weighting diag(g_x^2, g_y^2); 1,000 predictor-corrector steps, snr .15.
VS-CMDE's horizon: 250,000 (sr), 500,000 (inpaint), 300,000 (pairs). data: folder:PATH, pairs:FOLDER or tfds:NAME. smoke.
"""

from common import smoke
from inverse import SIGMA_MAX_Y, set_estimator, set_path

from jaxdiff.configfile import words
from jaxdiff.tables import base

BATCH = {"sr": 16, "inpaint": 25, "edges": 50, "pairs": 50}
HORIZON = {"sr": 250_000, "inpaint": 500_000, "edges": 300_000, "pairs": 300_000}


def get_config(arg: str = ""):
    arg = words(arg, data="folder:celebahq", task="sr", estimator="cmde", side=0, smoke=False)
    if arg.task not in SIGMA_MAX_Y:
        raise ValueError(f"task is {arg.task!r}; allowed: {', '.join(SIGMA_MAX_Y)}")
    side = arg.side or (64 if arg.task in ("edges", "pairs") else 160)
    config = base()
    config.name = f"cmde_{arg.task}_{arg.estimator}"
    config.data.source = arg.data
    with config.ignore_type():
        config.data.update({"size": side, "batch_size": BATCH[arg.task], "flip": arg.task != "pairs"})
        config.network.update({"kind": "unet", "channels": 96, "channel_mult": (1, 1, 2, 2, 3, 3), "num_blocks": 2,
                               "attention_resolutions": (20, 16), "head_channels": 0, "dropout": 0.1, "scale_shift": False,
                               "resample_in_block": False})
        config.optimizer.update({"learning_rate": 2e-4, "warmup_steps": 2500, "clip": 1.0})
    config.ema.decay = 0.999
    config.train.update({"steps": 500_000, "log_every": 1000, "eval_every": 10_000, "checkpoint_every": 10_000,
                         "preview": 32})
    config.evaluate.update({"num": 1000, "batch_size": 50})
    set_path(config, "ve", 3 * side * side)
    config.sampler.num_steps = 1000
    set_estimator(config, arg.estimator, arg.task, 8, HORIZON[arg.task])
    return smoke(config) if arg.smoke else config
