"""Training losses, each a `LossFn`: `(params, state, key, batch, step) -> (scalar, Aux)`."""

from jaxdiff.losses import weightings
from jaxdiff.losses.adversarial import Adversarial, ddgan, siddm
from jaxdiff.losses.bound import prior_kl, truncated_bound
from jaxdiff.losses.classification import classification
from jaxdiff.losses.denoising import denoising, jointly
from jaxdiff.losses.reconstruction import Reconstruction, autoencoder, revival
from jaxdiff.losses.variational import hybrid, variational_bound

__all__ = [
    "Adversarial", "Reconstruction", "autoencoder", "classification", "ddgan", "denoising", "hybrid", "jointly", "prior_kl",
    "revival", "siddm", "truncated_bound", "variational_bound", "weightings",
]
