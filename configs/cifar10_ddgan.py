"""CIFAR-10, unconditional, in 4 network calls: DDGAN's recipe (Xiao et al. 2022, appendix C). Not run (no GPU here).

    jaxdiff data prepare tfds:cifar10
    jaxdiff train --config=configs/cifar10_ddgan.py --workdir=runs/cifar10_ddgan

Published: FID 3.75, IS 9.63, recall .57. steps: T; smoke: seconds, on scikit-learn's digits enlarged to 16x16 RGB.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def recipe(method: str, arg: str):
    """DDGAN's networks and training, under either loss."""
    arg = words(arg, steps=4, smoke=False)
    config = image_gan(base(), method, arg.steps)
    config.name = f"cifar10_{method}_{arg.steps}"
    config.condition.label = False
    config.data.update({"source": "tfds:cifar10", "flip": True, "batch_size": 256})
    with config.ignore_type():
        config.network.update({"channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 2,
                               "attention_resolutions": (16,), "head_channels": 0, "dropout": 0.0})
        config.discriminator.update({"channels": 128, "channel_mult": (1, 2, 4, 4)})
        if method == "ddgan":
            config.loss.update({"r1": 0.02, "r1_every": 15})
        config.ema.decay = 0.9999
    config.train.update({"steps": 400_000, "log_every": 100, "eval_every": 20_000, "checkpoint_every": 20_000})
    config.evaluate.update({"num": 50_000, "batch_size": 500})
    if arg.smoke:
        config.data.update({"source": "digits", "size": 16, "channels": 3})
    return smoke(config) if arg.smoke else config


def get_config(arg: str = ""):
    return recipe("ddgan", arg)
