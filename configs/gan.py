"""What the configs of few-step adversarial diffusion share: a chain of T large steps, two networks, two optimizers.

| word | paper | the discriminator sees | what keeps it smooth |
|---|---|---|---|
| ddgan | Xiao et al. 2022 | the pair (x_{t-1}, x_t) | R1 |
| siddm | Xu et al. 2023 | x_{t-1} alone, with auxiliary forward diffusion | its decoder denoises x_{t-1} |
"""

from ml_collections import ConfigDict

METHODS = ("ddgan", "siddm")


def apply_gan(config: ConfigDict, method: str, steps: int) -> ConfigDict:
    """Set path, times, loss and sampler to a few-step chain; networks and optimizers stay as they are."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    with config.ignore_type():
        config.path.update({"kind": "discrete", "schedule": "vp", "num_steps": steps})
        config.times.kind = "discrete"
        config.loss.kind = method
        config.sampler.update({"kind": "ancestral", "num_steps": steps})
    return config


def image_gan(
    config: ConfigDict, method: str, steps: int, latent_dim: int = 100,
    learning_rates: tuple[float, float] = (1.6e-4, 1.25e-4),
) -> ConfigDict:
    """`apply_gan` for pictures, with DDGAN's optimizers: a bounded x_0, Adam (.5, .9), cosine to 1e-5; rates of G and D."""
    apply_gan(config, method, steps)
    with config.ignore_type():
        if method == "siddm":
            config.loss.form = "printed"  # its anchor stays; on digits a Frechet distance a fifth of the other form's
        config.parameterization.kind = "x0"
        config.network.update({"kind": "unet", "latent_dim": latent_dim, "tanh": True})
        config.discriminator.kind = "conv"
        for name, rate in zip(("optimizer", "discriminator_optimizer"), learning_rates, strict=True):
            config[name].update({"kind": "adam", "learning_rate": rate, "b1": 0.5, "b2": 0.9, "decay": "cosine",
                                 "final_scale": min(1.0, 1e-5 / rate), "clip": None})
    return config
