"""CIFAR-10, unconditional, in 4 network calls: SIDDM (Xu et al. 2023) on DDGAN's networks. Not run (no GPU here).

    jaxdiff data prepare tfds:cifar10
    jaxdiff train --config=configs/cifar10_siddm.py --workdir=runs/cifar10_siddm

Published: FID 2.24, IS 9.85, recall .61; lambda (loss.weight) 0, .1, .5, 1, 5, inf: FID 77.15, 3.32, 2.63, 2.24, 2.55,
41.27; without the discriminator's denoising (loss.denoise=0) 3.20. steps: T; smoke: seconds, on digits at 16x16 RGB.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, steps=4, smoke=False)
    config = image_gan(base(), "siddm", arg.steps)
    config.name = f"cifar10_siddm_{arg.steps}"
    config.condition.label = False
    config.data.update({"source": "tfds:cifar10", "flip": True, "batch_size": 256})
    with config.ignore_type():
        config.network.update({"channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 2,
                               "attention_resolutions": (16,), "head_channels": 0, "dropout": 0.0})
        config.discriminator.update({"channels": 128, "channel_mult": (1, 2, 4, 4)})
        config.loss.weight = 1.0
        config.ema.decay = 0.9999
    config.train.update({"steps": 400_000, "log_every": 100, "eval_every": 20_000, "checkpoint_every": 20_000})
    config.evaluate.update({"num": 50_000, "batch_size": 500})
    if arg.smoke:
        config.data.update({"source": "digits", "size": 16, "channels": 3})
    return smoke(config) if arg.smoke else config
