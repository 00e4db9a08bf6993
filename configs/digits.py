"""scikit-learn's 1,797 handwritten digits at 8x8, class-conditional: real images in minutes on a CPU.

    jaxdiff train --config=configs/digits.py --workdir=runs/digits
    jaxdiff train --config=configs/digits.py:method=flow --workdir=runs/digits_flow

method: ddpm, iddpm, score_vp, score_ve, subvp, edm (default), flow. smoke: seconds. Scores: README.md.
"""

from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="edm", smoke=False)
    config = apply_method(base(), arg.method)
    config.name = f"digits_{arg.method}"
    config.data.source = "digits"
    with config.ignore_type():
        # a patch-2 stem and one level: 4x4 positions, so that a step costs 0.15 s of one CPU core
        config.network.update({"kind": "unet", "channels": 64, "channel_mult": (1,), "num_blocks": 1, "patch_size": 2,
                               "attention_resolutions": (4,), "head_channels": 64, "dropout": 0.1})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay": "cosine", "final_scale": 0.02})
    config.data.batch_size = 128
    config.train.update({"steps": 1200, "log_every": 100, "eval_every": 400, "checkpoint_every": 400, "preview": 100})
    return smoke(config) if arg.smoke else config
