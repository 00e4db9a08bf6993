"""CelebA-HQ at 256x256 in 2 network calls: DDGAN (Xiao et al. 2022, appendix C). Not run (no GPU here).

    jaxdiff train --config=configs/celebahq256_ddgan.py --workdir=runs/celebahq256_ddgan

The folder holds the 30,000 pictures. Published: FID 7.64. steps: T; smoke: seconds, on digits at 16x16 RGB.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def recipe(method: str, arg: str):
    """DDGAN's networks and training, under either loss."""
    arg = words(arg, steps=2, smoke=False)
    config = image_gan(base(), method, arg.steps, learning_rates=(2e-4, 1e-4))
    config.name = f"celebahq256_{method}_{arg.steps}"
    config.condition.label = False
    config.data.update({"source": "folder:celebahq256", "size": 256, "flip": True, "batch_size": 32})
    with config.ignore_type():
        config.network.update({"channels": 64, "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2,
                               "attention_resolutions": (16,), "head_channels": 0, "dropout": 0.0})
        config.discriminator.update({"channels": 128, "channel_mult": (1, 2, 4, 4, 4, 4)})
        if method == "ddgan":
            config.loss.update({"r1": 2.0, "r1_every": 10})
        config.ema.decay = 0.999
    config.train.update({"steps": 750_000, "log_every": 100, "eval_every": 25_000, "checkpoint_every": 25_000})
    config.evaluate.update({"num": 50_000, "batch_size": 500})
    if arg.smoke:
        config.data.update({"source": "digits", "size": 16, "channels": 3})
    return smoke(config) if arg.smoke else config


def get_config(arg: str = ""):
    return recipe("ddgan", arg)
