"""The recipes of CDM on ImageNet (Ho et al. 2022, appendix B): 32 -> 64 -> 256 and 64 -> 128. Not run here.

    jaxdiff train --config=configs/imagenet_cascade.py:stage=base,data=folder:imagenet --workdir=runs/base
    jaxdiff train --config=configs/imagenet_cascade.py:stage=sr64 --workdir=runs/sr64
    jaxdiff train --config=configs/imagenet_cascade.py:stage=sr256 --workdir=runs/sr256
    jaxdiff cascade --stage=runs/base --stage=runs/sr64 --stage=runs/sr256 --num=50000 --out=samples

stage: base (32x32, 4,000 steps with a learned variance; default), sr64 (32 -> 64, Gaussian augmentation), sr128, sr256 (64
-> 128 and 64 -> 256, blur; continuous noise levels of a cosine schedule, 100 steps). data: folder:imagenet (default, a
folder with a class per subfolder), tfds:NAME. smoke: seconds, on scikit-learn's digits at a quarter of the sizes.
Published FID of 50,000 samples against the training / validation set: 32: 1.11 / 1.99, 64: 1.48 / 2.48, 128: 3.52 /
3.76, 256: 4.88 / 4.63. Ours: not run.
"""

from cascade import set_low_res
from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

# side, the side it starts from, augmentation, channels, multipliers, blocks, attention, batch
STAGES = {
    "base": (32, 0, "none", 256, (1, 2, 3, 4), 6, (8, 16), 2048),
    "sr64": (64, 32, "gaussian", 256, (1, 2, 3, 4), 5, (8, 16), 2048),
    "sr128": (128, 64, "blur", 128, (1, 2, 4, 8, 8), 3, (16,), 1024),
    "sr256": (256, 64, "blur", 128, (1, 2, 4, 4, 8, 8), 3, (16,), 1024),
}


def get_config(arg: str = ""):
    arg = words(arg, stage="base", data="folder:imagenet", smoke=False)
    if arg.stage not in STAGES:
        raise ValueError(f"stage is {arg.stage!r}; allowed: {', '.join(STAGES)}")
    side, start, augmentation, width, mult, blocks, attention, batch = STAGES[arg.stage]
    if arg.smoke:
        side, start, arg.data = side // 4, start // 4, "digits"
    config = apply_method(base(), "iddpm")
    config.name = f"imagenet_{arg.stage}"
    config.data.source = arg.data
    with config.ignore_type():
        config.data.update({"size": side, "channels": 3, "batch_size": batch, "resample": "box", "flip": True})
        config.network.update({"kind": "unet", "channels": width, "channel_mult": mult, "num_blocks": blocks,
                               "attention_resolutions": attention, "head_channels": 64, "dropout": 0.0, "dtype": "bfloat16",
                               "remat": side >= 128})
        config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 10_000})
        if augmentation == "blur":  # continuous noise levels: the cosine schedule itself, and no variance to learn
            config.path.update({"kind": "cosine", "num_steps": None, "schedule": None})
            config.parameterization.learned_variance = False
            config.times.kind = "uniform"
            config.loss.kind = "denoising"
            config.sampler.update({"variance": "small", "num_steps": 100})
        else:
            config.path.num_steps = 4000
            config.sampler.num_steps = 4000
    if start:
        set_low_res(config, start, augmentation, 0.0)
    config.ema.decay = 0.9999
    config.train.update({"steps": 500_000, "log_every": 500, "eval_every": 25_000, "checkpoint_every": 10_000,
                         "steps_per_dispatch": 10})
    config.evaluate.update({"num": 50_000, "batch_size": 256})
    return smoke(config) if arg.smoke else config
