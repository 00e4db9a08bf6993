"""Cascades: a base model of small pictures and super-resolution stages, each trained alone, in any order.

    jaxdiff train --config=configs/cascade.py:stage=base --workdir=runs/base
    jaxdiff train --config=configs/cascade.py:stage=sr1,s_max=0.2 --workdir=runs/sr1
    jaxdiff cascade --stage=runs/base --stage=runs/sr1 --s=0.02 --out=cascade.png

Ho et al. 2022, "Cascaded diffusion models for high fidelity image generation". stage: base (default), sr1, sr2, ...
data: mnist5k (default), emoji, tfds:NAME, folder:PATH. sides: of the pictures, smallest first (7+28 for mnist5k, else
16+64); sides=28 alone is the same model without a cascade. method: as in configs/digits.py, of this stage (edm).
cond: class (default), text (captions: data=emoji, or folder:PATH with --config.data.options.captions=True), none; encoder:
of the texts, as in configs/latent.py. augmentation: of the stage's low-resolution input in training, gaussian (default),
blur, none; s_max: its last time s (the end of the augmentation's path, where nothing is left of the input). smoke: seconds.
Scores: README.md.
The paper's own recipes are in configs/imagenet_cascade.py.
"""

from common import MINILM, apply_condition, apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base


def set_low_res(config, side, augmentation, s_max):
    """Give a stage pictures of this side, spoilt as `augmentation` says."""
    with config.ignore_type():
        config.task.update({"kind": "low_res", "side": side})
        config.augmentation.kind = augmentation
        if augmentation == "gaussian":
            config.augmentation.s_max = s_max or None


def number_of(stage, sides):
    """Which of the sides a stage makes: base 0, sr1 1, ..."""
    allowed = ["base", *(f"sr{i}" for i in range(1, len(sides)))]
    if stage not in allowed:
        raise ValueError(f"stage is {stage!r}; allowed with sides {'+'.join(map(str, sides))}: {', '.join(allowed)}")
    return allowed.index(stage)


def get_config(arg: str = ""):
    arg = words(arg, stage="base", data="mnist5k", sides=(), method="edm", cond="class", encoder=MINILM,
                augmentation="gaussian", s_max=0.0, smoke=False)
    sides = arg.sides or ((7, 28) if arg.data == "mnist5k" else (16, 64))
    number = number_of(arg.stage, sides)
    side = sides[number]
    config = apply_method(base(), arg.method)
    config.name = f"{arg.data}_{arg.stage}_{side}".replace(":", "_")
    config.data.source = arg.data
    apply_condition(config, arg)
    grey = arg.data in ("mnist5k", "digits")
    with config.ignore_type():
        # box means, so that the base model's pictures are what the next stage is trained on
        config.data.update({"size": side, "batch_size": 64, "resample": "box" if number + 1 < len(sides) else "bicubic"})
        # digits: 7 x 7 or 8 x 8 places on every stage, so that a CPU can afford all of them
        small = {"channel_mult": (1,), "num_blocks": 1, "patch_size": max(1, side // 7)}
        large = {"channel_mult": (1, 2, 2), "num_blocks": 2, "patch_size": 1 if side <= 32 else 2}
        config.network.update({"kind": "unet", "channels": 64, "attention_resolutions": (7, 8, 16), "head_channels": 32,
                               "dropout": 0.1, **(small if grey else large)})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay": "cosine", "final_scale": 0.02})
    if number:
        set_low_res(config, sides[number - 1], arg.augmentation, arg.s_max)
    steps = 1000 if number == 0 and len(sides) > 1 else 3000
    config.train.update({"steps": steps, "log_every": 100, "eval_every": 1000, "checkpoint_every": 500, "preview": 40})
    config.evaluate.num = 1000
    return smoke(config) if arg.smoke else config
