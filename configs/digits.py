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
        config.network.update({"kind": "unet", "channels": 48, "channel_mult": (1, 2), "num_blocks": 1,
                               "attention_resolutions": (4,), "head_channels": 48, "dropout": 0.1})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay": "cosine", "final_scale": 0.02})
    config.data.batch_size = 128
    config.train.update({"steps": 2000, "log_every": 100, "eval_every": 1000, "checkpoint_every": 1000, "preview": 100})
    return smoke(config) if arg.smoke else config
