"""What the configs of few-step adversarial diffusion share: the two methods as settings of path, networks and loss.

| word | paper | discriminator | regulariser |
|---|---|---|---|
| ddgan | Xiao et al. 2022 | of the pair (x_{t-1}, x_t) | R1 |
| siddm | Xu et al. 2023 | of x_{t-1} alone, with auxiliary forward diffusion | its decoder denoises x_{t-1} |
"""

from ml_collections import ConfigDict

LOSSES = {"ddgan": {"kind": "ddgan"}, "siddm": {"kind": "siddm"}}


def apply_gan(config: ConfigDict, method: str, steps: int) -> ConfigDict:
    """Set path, times, loss and sampler to a few-step chain; the networks and optimizers stay as they are."""
    if method not in LOSSES:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(LOSSES)}")
    with config.ignore_type():
        config.path.update({"kind": "discrete", "schedule": "vp", "num_steps": steps})
        config.times.kind = "discrete"
        config.loss.update(LOSSES[method])
        config.sampler.update({"kind": "ancestral", "num_steps": steps})
    return config
