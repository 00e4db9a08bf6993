"""CIFAR-10 at each paper's full recipe, unconditional. Full-scale runs: not run.

    jaxdiff data prepare tfds:cifar10
    jaxdiff train --config=configs/cifar10.py:method=ddpm --workdir=runs/cifar10_ddpm

| method | published FID (network calls) | source |
|---|---|---|
| ddpm | 3.17 (1000) | Ho et al. 2020 |
| iddpm | 2.90 (4000) | Nichol & Dhariwal 2021, L_simple, 500k steps; its L_hybrid gives 3.19 |
| score_vp, subvp, score_ve | 2.20 (2000), deep VE | Song et al. 2021 |
| edm | 1.97 (35) | Karras et al. 2022 |
| flow | 6.35 (142) | Lipman et al. 2023 |

smoke: seconds, on scikit-learn's digits enlarged to 16x16 RGB, so that it runs without the data set.
"""

from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

# what the papers' recipes have beyond DDPM's: the score SDE's and EDM's DDPM++ network, iDDPM's long chain
RECIPES = {
    "ddpm": {},
    "iddpm": {"path.num_steps": 4000, "sampler.num_steps": 4000, "optimizer.learning_rate": 1e-4, "network.num_blocks": 3,
              "network.scale_shift": True, "network.head_channels": 64, "network.attention_resolutions": (16, 8),
              "network.dropout": 0.3, "train.steps": 500_000},
    "score_vp": {"network.num_blocks": 4, "network.resample_in_block": True, "sampler.num_steps": 1000,
                 "train.steps": 1_300_000, "optimizer.warmup_steps": 5000},
    "score_ve": {"network.num_blocks": 4, "network.resample_in_block": True, "sampler.num_steps": 1000, "ema.decay": 0.999,
                 "train.steps": 1_300_000, "optimizer.warmup_steps": 5000},
    "subvp": {"network.num_blocks": 4, "network.resample_in_block": True, "sampler.num_steps": 1000,
              "train.steps": 1_300_000, "optimizer.warmup_steps": 5000, "data.scale": "dequantise"},
    "edm": {"network.channel_mult": (2, 2, 2), "network.num_blocks": 4, "network.resample_in_block": True,
            "network.dropout": 0.13, "data.batch_size": 512,
            "optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 19_531, "train.steps": 390_625, "ema.decay": None,
            "ema.warmup": None, "ema.half_life": 500_000.0, "ema.ramp": 0.05},
    "flow": {"times.kind": "uniform", "network.num_blocks": 4, "network.scale_shift": True, "network.head_channels": 64,
             "data.batch_size": 256, "optimizer.learning_rate": 5e-4, "train.steps": 400_000},
}


def get_config(arg: str = ""):
    arg = words(arg, method="ddpm", smoke=False)
    config = apply_method(base(), arg.method)
    config.name = f"cifar10_{arg.method}"
    config.condition.label = False
    config.data.update({"source": "tfds:cifar10", "flip": True, "batch_size": 128})
    with config.ignore_type():
        config.network.update({"kind": "unet", "channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 2,
                               "attention_resolutions": (16,), "head_channels": 256, "dropout": 0.1, "scale_shift": False,
                               "resample_in_block": False})
        config.optimizer.update({"learning_rate": 2e-4, "warmup_steps": 5000, "clip": 1.0})
        config.ema.decay = 0.9999
        config.sampler.num_steps = 1000 if arg.method == "ddpm" else config.sampler.num_steps
        config.parameterization.scale_input = False if arg.method == "ddpm" else None
        config.train.update({"steps": 800_000, "log_every": 100, "eval_every": 25_000, "checkpoint_every": 25_000})
        config.evaluate.update({"num": 50_000, "batch_size": 500})
        config.update_from_flattened_dict(RECIPES[arg.method])
        if arg.smoke:
            config.data.update({"source": "digits", "size": 16, "channels": 3})
            if arg.method == "iddpm":
                config.path.num_steps = 1000
    return smoke(config) if arg.smoke else config
