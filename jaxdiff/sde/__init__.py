"""Forward processes and all that follows from them: paths, kernels, parameterisations, training times, grids."""

from jaxdiff.sde import grids, parameterizations, times
from jaxdiff.sde.discrete import Discrete, cosine_betas, linear_betas, of_schedule, scaled_linear_betas, vp_betas
from jaxdiff.sde.kernels import (
    diffusion,
    drift,
    log_snr,
    perturb,
    posterior,
    prior,
    prior_log_prob,
    score,
    time_at,
    transition,
    velocity,
)
from jaxdiff.sde.parameterizations import Parameterization, c_noise
from jaxdiff.sde.paths import EDM, VE, VP, Cosine, Flow, SubVP
from jaxdiff.sde.slower import Slower, falling, noise_level

__all__ = [
    "EDM", "VE", "VP", "Cosine", "Discrete", "Flow", "Parameterization", "Slower", "SubVP", "c_noise", "cosine_betas",
    "diffusion", "drift", "falling", "grids", "linear_betas", "log_snr", "noise_level", "of_schedule", "parameterizations",
    "perturb", "posterior", "prior", "prior_log_prob", "scaled_linear_betas", "score", "time_at", "times", "transition",
    "velocity", "vp_betas",
]
