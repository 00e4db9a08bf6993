"""The first stage of latent diffusion: an autoencoder of pictures, with a Gaussian latent (kl) or a codebook (vq).

    jaxdiff train --config=configs/autoencoder.py --workdir=runs/mnist5k_kl
    jaxdiff train --config=configs/autoencoder.py:data=emoji,adversarial --workdir=runs/emoji_kl

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models"; Esser et al. 2021 (VQ-GAN).
data: mnist5k (default), digits, emoji, tfds:NAME, folder:PATH. kind: kl (default), vq. size: side of the pictures (28, 8,
else 64); latent: side of the latent map (7, 4, else 16). adversarial: a discriminator of patches from half of the training
on. smoke: seconds. Scores: README.md. Beyond 64 pixels: the published network, data=tfds:imagenet2012,size=256,latent=64
for LDM-4, with `--config.perceptual.weights=FILE` (not run).
"""

from common import smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

SIDES = {"mnist5k": (28, 7), "digits": (8, 4)}
# what a CPU affords: the first halving is a patch
SMALL = {"patch_size": 2, "num_blocks": 1, "channel_mult": (1, 2, 4)}
PUBLISHED = {"channels": 128, "num_blocks": 2, "channel_mult": (1, 2, 4, 4, 4, 4)}


def get_config(arg: str = ""):
    arg = words(arg, data="mnist5k", kind="kl", size=0, latent=0, adversarial=False, smoke=False)
    size, latent = SIDES.get(arg.data, (64, 16))
    size, latent = arg.size or size, arg.latent or latent
    halvings = (size // latent).bit_length() - 1
    if size != latent * 2**halvings or halvings < 1:
        raise ValueError(f"size is {size} and latent {latent}; allowed: a latent map that is the size halved some times")
    if arg.kind not in ("kl", "vq"):
        raise ValueError(f"kind is {arg.kind!r}; allowed: kl, vq")
    config = base()
    config.name = f"{arg.data}_{arg.kind}_{latent}".replace(":", "_")
    config.data.source = arg.data
    small = size <= 64
    shape = dict(SMALL, channels=32) if small else PUBLISHED
    levels = halvings + 1 - small  # a level less where a patch halves too
    with config.ignore_type():
        config.data.update({"size": size, "batch_size": 16 if arg.data == "emoji" else 32, "flip": arg.data not in SIDES})
        config.condition.drop = 0.0
        config.path.kind = "none"
        config.loss.kind = "autoencoder"
        config.network.update({"kind": "autoencoder", "latent_channels": 4, **shape,
                               "channel_mult": shape["channel_mult"][:levels],
                               "num_codes": 512 if arg.kind == "vq" else None})
        config.optimizer.update({"learning_rate": 1e-3 if small else 1.4e-4, "warmup_steps": 100, "decay": "cosine",
                                 "final_scale": 0.02})
    config.train.update({"steps": 2000 if small else 200_000, "log_every": 50, "eval_every": 500, "checkpoint_every": 500,
                         "preview": 8})
    if arg.adversarial:
        with config.ignore_type():
            config.discriminator.update({"kind": "patch", "num_layers": 2 if small else 3})
            config.discriminator_optimizer.update({"learning_rate": 2e-4, "b2": 0.9})
            config.loss.disc_start = config.train.steps // 2
    config.evaluate.update({"num": 1000, "batch_size": 100})
    return smoke(config) if arg.smoke else config
