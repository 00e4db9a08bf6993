"""25 Gaussians on a 5x5 grid in the plane (250,000 points), without classes: every sampler error is visible as dots.

    jaxdiff train --config=configs/gaussians25.py --workdir=runs/gaussians25
    jaxdiff train --config=configs/gaussians25.py:method=siddm,steps=4 --workdir=runs/gaussians25_siddm

method: ddpm, iddpm, score_vp, score_ve, subvp, edm (default), flow; few-step generators: ddgan, siddm, with `steps`, the
network calls of a sample. smoke: seconds. Scores: README.md.
"""

from common import apply_method, smoke
from gan import METHODS, apply_gan

from jaxdiff.configfile import words
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, method="edm", steps=4, smoke=False)
    few = arg.method in METHODS
    config = apply_gan(base(), arg.method, arg.steps) if few else apply_method(base(), arg.method)
    config.name = f"gaussians25_{arg.method}" + (f"_{arg.steps}" if few else "")
    config.data.source = "gaussians25"
    config.data.batch_size = 512
    config.condition.label = False
    with config.ignore_type():
        config.data.options.scale = "unit2"  # centred, standard deviation 2
        config.parameterization.sigma_data = 2.0
        config.network.update({"kind": "mlp", "width": 128, "depth": 4, "fourier_features": 64, "fourier_scale": 1.0})
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100, "decay": "cosine"})
    config.train.update({"steps": 8000, "log_every": 200, "eval_every": 4000, "checkpoint_every": 4000, "preview": 5000,
                         "steps_per_dispatch": 20})
    config.evaluate.update({"num": 20_000, "batch_size": 5000})
    config.sampler.num_steps = arg.steps if few else max(config.sampler.num_steps, 40)
    config.sampler.threshold = None  # points have no range to clip to
    if few:
        with config.ignore_type():
            # found by some forty runs of a minute; a group of the minibatch mixes times, too many of them at T = 16
            alike = {"width": 64, "depth": 2, "fourier_features": 64, "fourier_scale": 0.4}
            config.network.update({**alike, "latent_dim": 2})
            config.discriminator.update({"kind": "mlp", **alike, "minibatch_std": 32 if arg.steps <= 8 else 0})
            if arg.method == "siddm":
                config.loss.update({"denoise": 0.3, "form": "printed"} if arg.steps <= 8 else {"denoise": 1.0})
            for name, rate in (("optimizer", 1e-3), ("discriminator_optimizer", 2e-3)):
                config[name].update({"learning_rate": rate, "b1": 0.5, "b2": 0.99, "warmup_steps": 0, "decay": "cosine",
                                     "clip": None})
        config.train.update({"steps": 4000, "eval_every": 4000})
        config.evaluate.num = 50_000
    return smoke(config) if arg.smoke else config
