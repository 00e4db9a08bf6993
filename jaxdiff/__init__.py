"""jaxdiff: diffusion models in JAX as pure functions: paths, losses and samplers that jit, vmap, grad and shard.

>>> import jaxdiff as jd
>>> path = jd.sde.VP()
>>> jd.sde.grids.uniform(path, 10).shape
(11,)

The wings that other JAX code seldom needs (`data`, `evaluation`, `networks`, `training`) and what stands above them
(`fit`, `load_run`) are imported when they are first used.
"""

import importlib
from typing import Any

from jaxdiff import conditioning, guidance, losses, samplers, sde, types
from jaxdiff.denoiser import denoiser
from jaxdiff.sde import parameterizations
from jaxdiff.types import Prediction
from jaxdiff.version import __version__

_LATER = {
    "configfile": "jaxdiff.configfile", "data": "jaxdiff.data", "evaluation": "jaxdiff.evaluation", "fit": "jaxdiff.fit",
    "networks": "jaxdiff.networks", "score": "jaxdiff.score", "training": "jaxdiff.training",
}


def __getattr__(name: str) -> Any:
    if name == "load_run":
        return importlib.import_module("jaxdiff.run").load_run
    if name in _LATER:
        return importlib.import_module(_LATER[name])
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER, "load_run"])


__all__ = [
    "Prediction", "__version__", "conditioning", "configfile", "data", "denoiser", "evaluation", "fit", "guidance",
    "load_run", "losses", "networks", "parameterizations", "samplers", "score", "sde", "training", "types",
]
