"""jaxdiff: diffusion models in JAX as pure functions: paths, losses and samplers that jit, vmap, grad and shard.

>>> import jax, jaxdiff as jd
>>> path = jd.sde.VP()
>>> grid = jd.sde.grids.uniform(path, 10)
>>> grid.shape
(11,)
"""

from jaxdiff import conditioning, guidance, losses, samplers, sde, types
from jaxdiff.denoiser import denoiser
from jaxdiff.sde import parameterizations
from jaxdiff.types import Prediction
from jaxdiff.version import __version__

__all__ = [
    "Prediction", "__version__", "conditioning", "denoiser", "guidance", "losses", "parameterizations", "samplers", "sde",
    "types",
]
