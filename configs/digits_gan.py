"""A few-step generator of scikit-learn's 8x8 digits, class-conditional: T network calls a sample.

    jaxdiff train --config=configs/digits_gan.py --workdir=runs/digits_gan
    jaxdiff train --config=configs/digits_gan.py:method=ddgan,steps=2 --workdir=runs/digits_ddgan

method: siddm (default), ddgan; steps: T, 4 by default; smoke: seconds. The generator is the U-Net of configs/digits.py.
Scores: README.md.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="siddm", steps=4, smoke=False)
    config = image_gan(base(), arg.method, arg.steps, latent_dim=64, learning_rates=(5e-4, 5e-4))
    config.name = f"digits_{arg.method}_{arg.steps}"
    config.data.source = "digits"
    with config.ignore_type():
        config.network.update({"channels": 64, "channel_mult": (1,), "num_blocks": 1, "patch_size": 2,
                               "attention_resolutions": (4,), "head_channels": 64})
        config.discriminator.update({"channels": 64, "channel_mult": (1, 2), "patch_size": 2})
    config.data.batch_size = 128
    config.train.update({"steps": 1200, "log_every": 100, "eval_every": 400, "checkpoint_every": 400, "preview": 100})
    return smoke(config) if arg.smoke else config
