"""Latent diffusion at full scale (Rombach et al. 2022): classes of ImageNet at 256, and text at 512. Not run here.

    jaxdiff train --config=configs/latent_published.py:recipe=class256,stage=codec --workdir=runs/class256_codec
    jaxdiff train --config=configs/latent_published.py:recipe=class256 --workdir=runs/class256
    jaxdiff sample --workdir=runs/class256 --guidance=1.5 --steps=250 --out=classes.png
    jaxdiff train --config=configs/latent_published.py:recipe=text512,data=folder:captioned --workdir=runs/text512
    jaxdiff sample --workdir=runs/text512 --text="an oil painting of a lighthouse" --guidance=7.5 --out=text.png

recipe: class256 (LDM-4: latents 64x64x3 of a codebook of 8,192, table 12; default), text512 (latents 64x64x4 of a KL
autoencoder, appendix E, with CLIP's text encoder frozen, 77 tokens: name its folder by --config.text.encoder). stage:
model (default), codec, its autoencoder. data: tfds:imagenet2012 (default), folder:PATH; text512 wants captions,
NAME.txt beside NAME.jpg. The autoencoders have the public ones' sizes (55.3M and 83.65M parameters); the denoisers 295M
and 779M where the papers' have 400M and 860M, whose attention is followed by a feed-forward layer. smoke: seconds, on
scikit-learn's digits or folder:PATH at an eighth of the sizes, with a trained text encoder. Published FID of 50,000
samples of class256, 250 steps: 10.56, with guidance 1.5 3.60. Ours: not run.
"""

from common import apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

# side, latent channels, codes, the autoencoder's multipliers; the denoiser's channels, multipliers, sides with
# attention, heads' channels; the betas' ends, batch, learning rate, steps
RECIPES = {
    "class256": (256, 3, 8192, (1, 2, 4), 192, (1, 2, 3, 5), (32, 16, 8), 32, (0.0015, 0.0195), 1200, 1e-4, 178_000),
    "text512": (512, 4, None, (1, 2, 4, 4), 320, (1, 2, 4, 4), (64, 32, 16), 64, (0.00085, 0.012), 2048, 1e-4, 500_000),
}


def get_config(arg: str = ""):
    arg = words(arg, recipe="class256", stage="model", data="tfds:imagenet2012", smoke=False)
    if arg.recipe not in RECIPES or arg.stage not in ("model", "codec"):
        raise ValueError(f"recipe is {arg.recipe!r}, stage {arg.stage!r}; allowed: {', '.join(RECIPES)}, and model or codec")
    side, depth, codes, coder_mult, width, mult, attention, heads, ends, batch, rate, steps = RECIPES[arg.recipe]
    text = arg.recipe == "text512"
    if arg.smoke:
        side //= 8
        arg.data = "digits" if arg.data.startswith("tfds:") else arg.data
    config = apply_method(base(), "ddpm") if arg.stage == "model" else base()
    config.name = f"{arg.recipe}_{arg.stage}"
    config.data.source = arg.data
    config.condition.label = not text
    with config.ignore_type():
        config.data.update({"size": side, "channels": 3, "flip": not text})
        if text:
            config.data.options.captions = True
    if arg.stage == "codec":
        _set_codec(config, depth, codes, coder_mult)
        return smoke(config) if arg.smoke else config
    config.codec.run = f"runs/{arg.recipe}_codec"
    with config.ignore_type():
        config.data.batch_size = batch
        config.path.update({"schedule": "scaled_linear", "beta_start": ends[0], "beta_end": ends[1]})
        config.network.update({"kind": "unet", "channels": width, "channel_mult": mult, "num_blocks": 2,
                               "attention_resolutions": attention, "head_channels": heads, "dropout": 0.0,
                               "dtype": "bfloat16", "remat": text})
        config.optimizer.update({"kind": "adamw", "learning_rate": rate, "warmup_steps": 10_000, "weight_decay": 0.01})
        config.sampler.update({"kind": "ddim", "num_steps": 50 if text else 250, "variance": None,
                               "guidance": 7.5 if text else 1.5, "threshold": None})
        config.ema.decay = 0.9999
    if text:
        config.text.update({"encoder": "trained" if arg.smoke else "clip-vit-large-patch14", "length": 77})
    config.train.update({"steps": steps, "log_every": 500, "eval_every": 25_000, "checkpoint_every": 10_000,
                         "steps_per_dispatch": 1})
    config.evaluate.update({"num": 50_000, "batch_size": 256})
    return smoke(config) if arg.smoke else config


def _set_codec(config, depth, codes, mult):
    """The autoencoder of a recipe, with the perceptual and the patch loss (section 3.1 and appendix G)."""
    with config.ignore_type():
        config.data.batch_size = 64
        config.condition.drop = 0.0
        config.path.kind = "none"
        config.loss.update({"kind": "autoencoder", "disc_start": 50_000})
        config.network.update({"kind": "autoencoder", "latent_channels": depth, "num_codes": codes, "channels": 128,
                               "channel_mult": mult, "num_blocks": 2})
        config.discriminator.update({"kind": "patch", "num_layers": 3})
        config.optimizer.update({"learning_rate": 1.4e-4, "warmup_steps": 1000})
        config.discriminator_optimizer.update({"learning_rate": 1.4e-4, "b1": 0.5, "b2": 0.9})
    config.train.update({"steps": 500_000, "log_every": 100, "eval_every": 5000, "checkpoint_every": 5000, "preview": 8})
    config.evaluate.update({"num": 5000, "batch_size": 50})
