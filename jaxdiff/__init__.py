"""jaxdiff: diffusion models in JAX as pure functions: paths, losses and samplers that jit, vmap, grad and shard.

>>> import jaxdiff as jd
>>> path = jd.sde.VP()
>>> jd.sde.grids.uniform(path, 10).shape
(11,)

Everything is imported when it is first used, so that `jaxdiff --help` answers before jax is there.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaxdiff.version import __version__

if TYPE_CHECKING:
    from jaxdiff import (
        augmentation,
        cascade,
        conditioning,
        configfile,
        data,
        evaluation,
        fit,
        guidance,
        interop,
        losses,
        networks,
        observe,
        samplers,
        score,
        sde,
        stages,
        training,
        types,
    )
    from jaxdiff.denoiser import denoiser
    from jaxdiff.run import load_run
    from jaxdiff.sde import parameterizations
    from jaxdiff.types import Prediction

# names that are not modules of this package, and the modules that hold them
_HELD = {
    "Prediction": "jaxdiff.types", "denoiser": "jaxdiff.denoiser", "load_run": "jaxdiff.run",
    "parameterizations": "jaxdiff.sde",
}

__all__ = [
    "Prediction", "__version__", "augmentation", "cascade", "conditioning", "configfile", "data", "denoiser", "evaluation",
    "fit", "guidance", "interop", "load_run", "losses", "networks", "observe", "parameterizations", "samplers", "score",
    "sde", "stages", "training", "types",
]


class _Package(ModuleType):
    """This package as a module whose public names are imported at first use."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")
        found = importlib.import_module(_HELD.get(name, f"jaxdiff.{name}"))
        if name in _HELD:
            found = getattr(found, name)
        super().__setattr__(name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HELD and isinstance(value, ModuleType):
            return  # importing a submodule binds it here: `jd.denoiser` stays the function of that name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
