"""ImageNet-64, class-conditional, in 4 network calls: SIDDM (Xu et al. 2023). Not run (no GPU here).

    jaxdiff data prepare tfds:downsampled_imagenet/64x64      (or data=folder:PATH with a class per subfolder)
    jaxdiff train --config=configs/imagenet64_siddm.py --workdir=runs/imagenet64_siddm

Published: FID 3.13 (DDGAN 20.63). Batch, rates and size are ours: the ADM U-Net of imagenet64.py at 128
channels. steps: T; smoke: seconds, on digits at 16x16 RGB.
"""

from common import smoke
from gan import image_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, steps=4, smoke=False, data="folder:imagenet")
    config = image_gan(base(), "siddm", arg.steps, learning_rates=(2e-4, 1e-4))
    config.name = f"imagenet64_siddm_{arg.steps}"
    config.data.update({"source": arg.data, "size": 64, "channels": 3, "flip": True, "batch_size": 1024})
    with config.ignore_type():
        config.network.update({"channels": 128, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
                               "attention_resolutions": (32, 16, 8), "head_channels": 64, "dropout": 0.0,
                               "dtype": "bfloat16"})
        config.discriminator.update({"channels": 192, "channel_mult": (1, 2, 4, 4), "dtype": "bfloat16"})
        config.ema.decay = 0.9999
    config.train.update({"steps": 400_000, "log_every": 100, "eval_every": 20_000, "checkpoint_every": 20_000})
    config.evaluate.update({"num": 50_000, "batch_size": 500})
    if arg.smoke:
        config.data.update({"source": "digits", "size": 16, "channels": 3})
    return smoke(config) if arg.smoke else config
