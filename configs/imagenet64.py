"""Class-conditional ImageNet at 64x64 at the papers' full recipes. Full-scale runs: not run.

    jaxdiff data prepare tfds:downsampled_imagenet/64x64      (or folder:PATH with a class per subfolder)
    jaxdiff train --config=configs/imagenet64.py:method=edm --workdir=runs/imagenet64_edm

| method | published FID | source |
|---|---|---|
| iddpm | 2.92 (250 calls) | Nichol & Dhariwal 2021: 270M parameters, 4000 steps, batch 2048, 250k updates |
| edm | 1.36 (511 calls, churn) | Karras et al. 2022: ADM network, batch 4096, 2,500M images |
| ddpm, score_vp, score_ve, subvp, flow | - | the ADM network with that method's process |

smoke: seconds, on scikit-learn's digits enlarged to 16x16 RGB, so that it runs without the data set.
"""

from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="edm", smoke=False, data="folder:imagenet")
    config = apply_method(base(), arg.method)
    config.name = f"imagenet64_{arg.method}"
    config.data.update({"source": arg.data, "flip": True, "batch_size": 4096 if arg.method == "edm" else 2048})
    with config.ignore_type():
        config.data.update({"size": 64, "channels": 3})
        config.network.update({"kind": "unet", "channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
                               "attention_resolutions": (32, 16, 8), "head_channels": 64, "dropout": 0.1,
                               "dtype": "bfloat16", "remat": True})
        config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 2500, "clip": 1.0})
        config.ema.decay = 0.9999
        config.train.update({"steps": 250_000, "log_every": 100, "eval_every": 10_000, "checkpoint_every": 10_000})
        config.evaluate.update({"num": 50_000, "batch_size": 500})
        if arg.method == "edm":
            config.ema.update({"decay": None, "warmup": None, "half_life": 50_000_000.0, "ramp": 0.05})
            config.train.steps = 610_352
            config.sampler.update({"num_steps": 256, "churn": 40.0, "churn_min": 0.05, "churn_max": 50.0,
                                   "noise_scale": 1.003})
        if arg.method == "iddpm":
            config.path.num_steps = 4000
            config.sampler.num_steps = 250
            config.network.update({"attention_resolutions": (16, 8), "resample_in_block": False})
        if arg.smoke:
            config.data.update({"source": "digits", "size": 16, "channels": 3})
            if arg.method == "iddpm":
                config.path.num_steps = 1000
    return smoke(config) if arg.smoke else config
