"""Plain dict tables: the words that a config may use, and the function that each word calls.

A section of a config is `kind` plus the parameters of every row of its table; a parameter left at None takes the
function's own default, and one that the chosen kind does not take is refused by name. So every option of every function
here is reachable from a config and from `--config.section.option=value`, and a new method is one row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxdiff import augmentation, data, losses, networks, samplers, sde, training
from jaxdiff.losses import weightings
from jaxdiff.sde import grids, parameterizations, times

Table = Mapping[str, Callable[..., Any]]


_ONE_STEP: Table = {"reverse_diffusion": samplers.reverse_diffusion, "euler_maruyama": samplers.euler_maruyama,
                    "ancestral": samplers.ancestral}


def _predictor_corrector(
    snr: float = 0.16, corrector_steps: int = 1, predictor: str = "reverse_diffusion"
) -> samplers.Sampler:
    """Langevin, then a predictor of the reverse SDE."""
    chosen = pick(_ONE_STEP, predictor, "sampler.predictor")()
    return samplers.chain(samplers.langevin(snr, corrector_steps), chosen)


class Process(NamedTuple):
    """What is diffused: `path`, a Path or a dict of them, and what training uses, it or `path_at(step)`."""

    path: Any
    training: Any


def _alone(path: Any) -> Process:
    """x alone is diffused; a condition picture, where there is one, stays clean in the network's input (CDE)."""
    return Process(path, path)


def _cdiffe(path: Any) -> Process:
    """The condition is diffused as x is."""
    return Process({"x": path, "y": path}, {"x": path, "y": path})


def _cmde(path: Any, sigma_max: float = 1.0, sigma_min: float | None = None) -> Process:
    """The condition is diffused up to its own noise level."""
    both = {"x": path, "y": sde.Slower(path, sigma_max, sigma_min)}
    return Process(both, both)


def _vs_cmde(
    path: Any, sigma_max: float = 1.0, sigma_min: float | None = None, horizon: int = 100_000, start: float | None = None
) -> Process:
    """CMDE whose noise level of y falls while training, from x's own (or `start`) to `sigma_max` at step `horizon`."""
    final = _cmde(path, sigma_max, sigma_min)
    first = float(sde.noise_level(path, path.t_max)) if start is None else start
    if horizon < 1 or not first >= sigma_max:
        raise ValueError(f"estimator.horizon is {horizon}, start {first:g}; allowed: horizon from 1, and start at least "
                         f"sigma_max = {sigma_max:g}, from which it falls")

    def path_at(step: Any) -> Any:
        return {"x": path, "y": sde.Slower(path, sde.falling(step, first, sigma_max, horizon), sigma_min)}

    return Process(final.path, path_at)


def _repaint(predictor: str = "ancestral", jump: int = 10, repeats: int = 10) -> samplers.Sampler:
    """Resampling around a one-step sampler."""
    return samplers.repaint(pick(_ONE_STEP, predictor, "sampler.predictor")(), jump, repeats)


PATHS: Table = {
    "vp": sde.VP, "subvp": sde.SubVP, "ve": sde.VE, "edm": sde.EDM, "flow": sde.Flow, "cosine": sde.Cosine,
    "discrete": sde.of_schedule,
}
ESTIMATORS: Table = {"none": _alone, "cde": _alone, "cdiffe": _cdiffe, "cmde": _cmde, "vs_cmde": _vs_cmde}
TASKS: Table = {
    "none": lambda: None, "sr": data.super_resolution, "inpaint": data.inpainting, "edges": data.edges,
    "pairs": data.given, "low_res": data.low_resolution,
}
AUGMENTATIONS: Table = {"none": lambda: augmentation.NONE, "gaussian": augmentation.gaussian, "blur": augmentation.blur}
PARAMETERIZATIONS: Table = {
    "eps": parameterizations.eps, "x0": parameterizations.x0, "v": parameterizations.v,
    "velocity": parameterizations.velocity, "edm": parameterizations.edm,
}
TIMES: Table = {
    "uniform": times.uniform, "low_discrepancy": times.low_discrepancy, "lognormal": times.lognormal,
    "logit_normal": times.logit_normal, "discrete": times.discrete,
}
WEIGHTINGS: Table = {
    "simple": weightings.simple, "likelihood": weightings.likelihood, "edm": weightings.edm,
    "min_snr": weightings.min_snr, "sigmoid": weightings.sigmoid, "p2": weightings.p2,
}
NETWORKS: Table = {
    "unet": networks.UNet, "mlp": networks.MLP, "classifier": networks.Classifier, "autoencoder": networks.Autoencoder,
}
DISCRIMINATORS: Table = {
    "none": lambda: None, "conv": networks.Discriminator, "mlp": networks.PointDiscriminator,
    "patch": networks.PatchDiscriminator,
}
LOSSES: Table = {
    "denoising": losses.denoising, "hybrid": losses.hybrid, "classification": losses.classification,
    "ddgan": losses.ddgan, "siddm": losses.siddm, "autoencoder": losses.autoencoder,
}
ADVERSARIAL = ("ddgan", "siddm")  # rows of LOSSES that train a generator of few steps
# the name under which the parameters that are used afterwards are kept; "denoiser" for every other loss
TRAINS = {"classification": "classifier", "autoencoder": "autoencoder", **dict.fromkeys(ADVERSARIAL, "generator")}
# which discriminators a loss goes with; none for every other loss
JUDGED = {**dict.fromkeys(ADVERSARIAL, ("conv", "mlp")), "autoencoder": ("none", "patch")}
SAMPLERS: Table = {
    "ancestral": samplers.ancestral, "ddim": samplers.ddim, "euler_maruyama": samplers.euler_maruyama,
    "reverse_diffusion": samplers.reverse_diffusion, "predictor_corrector": _predictor_corrector,
    "heun": samplers.heun, "dpm_solver": samplers.dpm_solver, "unipc": samplers.unipc, "repaint": _repaint,
}
GRIDS: Table = {
    "uniform": grids.uniform, "karras": grids.karras, "log_snr": grids.log_snr, "discrete": grids.discrete,
}

# what `build` fills in itself, so that no config repeats what the data or another section already says
DERIVED = {
    "estimator": ("path",),
    "augmentation": ("path",),
    # an autoencoder's kind: by its num_codes
    "network": ("num_classes", "out_channels", "name", "parent", "kind", "text_dim", "text_encoder"),
    "loss": ("apply_fn", "path", "parameterization", "draw_times", "weighting", "draw_cond", "stochastic", "network",
             "levels", "augment", "discriminate", "latent_dim", "total_steps", "code", "paint", "perceptual", "track",
             "last_layer"),
    "discriminator": ("num_classes", "out_channels", "denoise", "regress", "variance", "image", "mask", "name",
                      "parent"),
    "grid": ("path", "num_steps"),
    "optimizer": ("total_steps",),
    "ema": ("examples_per_step",),
}


# what an annotation of a parameter accepts, and its name in an error; any other annotation is not checked
_ACCEPTS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"), "float": ((int, float), "a number"), "bool": ((bool,), "True or False"),
    "str": ((str,), "a word"), "Sequence[int]": ((tuple, list), "whole numbers, as in 1,2,2"), "None": ((), "None"),
}


# keys of the sampler section that are not the sampler's own: steps, guidance, bound of the predicted image, how a
# diffused condition is known
SAMPLING = ("num_steps", "guidance", "threshold", "observe")


def _parameters(fn: Callable[..., Any], derived: tuple[str, ...] = ()) -> list[str]:
    return [name for name in inspect.signature(fn).parameters if name not in derived]


def _check_type(value: Any, annotation: Any, name: str) -> None:
    """Raise ValueError where a value is not of a parameter's annotated type."""
    words = [word.strip() for word in str(annotation).split("|")]
    if not set(words) <= set(_ACCEPTS):
        return
    for word in words:
        fits = isinstance(value, _ACCEPTS[word][0]) and isinstance(value, bool) == (word == "bool")
        if fits and not (isinstance(value, (tuple, list)) and any(type(v) is not int for v in value)):
            return
    allowed = " or ".join(_ACCEPTS[word][1] for word in words)
    raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def section(table: Table, kind: str, derived: str = "", **values: Any) -> ConfigDict:
    """A config section: `kind` and every parameter that any row takes, None unless given."""
    skip = DERIVED.get(derived, ())
    names = {name for fn in table.values() for name in _parameters(fn, skip)}
    return ConfigDict({"kind": kind, **dict.fromkeys(sorted(names)), **values}, convert_dict=True)


def options(fn: Callable[..., Any], derived: str = "", **values: Any) -> ConfigDict:
    """A config section without kinds: one function's parameters, None unless given."""
    return ConfigDict({**dict.fromkeys(_parameters(fn, DERIVED.get(derived, ()))), **values})


def make(table: Table, part: Mapping[str, Any], name: str, derived: str = "", **extra: Any) -> Any:
    """Call the row that `part["kind"]` names with the section's given parameters and `extra`."""
    kind = part["kind"]
    fn = pick(table, kind, f"{name}.kind")
    given = {key: value for key, value in part.items() if key != "kind" and value is not None}
    allowed = _parameters(fn, DERIVED.get(derived, ()))
    for key in given:
        if key not in allowed:
            raise ValueError(f"{name}.{key} is {given[key]!r}, but kind {kind!r} does not take it (it takes "
                             f"{', '.join(allowed) or 'nothing'}); mend: {name}.{key}=None")
    return call(fn, given, name, **extra)


def setting(table: Table, part: Mapping[str, Any], key: str) -> Any:
    """What a section says of one option of its kind: the value given, else the row's own default, None without one."""
    parameters = inspect.signature(table[part["kind"]]).parameters
    if part[key] is not None or key not in parameters:
        return part[key]
    return parameters[key].default


def call(fn: Callable[..., Any], part: Mapping[str, Any], name: str, **extra: Any) -> Any:
    """Call `fn` with the values of a section that are not None, their types checked, and with `extra`."""
    given = {key: value for key, value in part.items() if value is not None}
    parameters = inspect.signature(fn).parameters
    for key, value in given.items():
        _check_type(value, parameters[key].annotation, f"{name}.{key}")
    return fn(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}, **extra)


def pick(table: Mapping[str, Any], word: str, name: str) -> Any:
    """A table's row, or one line that lists the rows."""
    if word not in table:
        raise ValueError(f"{name} is {word!r}; allowed: {', '.join(table)}")
    return table[word]


def needed() -> set[str]:
    """The dotted keys that may not be None: those that `base` gives a value, the options of table rows apart."""
    keys = set()
    for section_name, part in base().items():
        if not isinstance(part, ConfigDict):
            keys.add(section_name)
            continue
        rows = "kind" in part or section_name == "ema"  # their options at None are left to the function
        own = ("kind", "learned_variance", *SAMPLING) if rows else tuple(part)
        keys |= {f"{section_name}.{key}" for key in own if key in part and part[key] is not None}
    return keys


def base() -> ConfigDict:
    """Every key of a config with its default. Configs start from this and change what their method needs."""
    return ConfigDict(
        {
            "name": "jaxdiff",
            "seed": 0,
            "data": {
                "source": "digits",  # see `jaxdiff data list`
                "options": {},  # of the source itself, e.g. scale for gaussians25, data_dir for tfds
                "size": placeholder(int),  # side in pixels; None keeps the source's own
                "channels": placeholder(int),  # 1 grey, 3 RGB; None keeps the source's own
                "resize": placeholder(int),  # shorter side before cropping; None just covers the size
                "resample": "bicubic",
                "crop": "center",
                "flip": False,  # mirror half of the examples
                "scale": "exact",  # grey levels to [-1, 1]: "exact" 2k/(levels-1)-1, "dequantise" 2(k+u)/levels-1
                "batch_size": 128,  # over all processes
                "num_threads": placeholder(int),  # that read ahead
            },
            # drop: share of labels hidden, for classifier-free guidance; mask: the network sees where a picture is hidden
            "condition": {"label": True, "drop": 0.1, "mask": False},
            "task": section(TASKS, "none"),  # what the condition picture y is made from x by
            "estimator": section(ESTIMATORS, "none", "estimator"),  # how y is told
            # what is done to the low-resolution input of a stage of a cascade, and the process whose times s are
            "augmentation": section(AUGMENTATIONS, "none", "augmentation"),
            "augmentation_path": section(PATHS, "cosine"),
            # run: of the autoencoder whose latents are diffused, None for pixels; scale: of the latents, None measures it;
            # cache: a directory for the training split's latents, made once; None encodes pictures at every step
            "codec": {"run": placeholder(str), "scale": placeholder(float), "cache": placeholder(str)},
            # captions as the condition. encoder: None without, "trained" for a small one learned with the network, or the
            # folder of a public one's weights, package:NAME where a package holds them; length: tokens of a caption at most;
            # the rest is of the one that is learned
            "text": {"encoder": placeholder(str), "length": 32, "vocab_size": 4096, "width": 128, "layers": 2, "heads": 4},
            "path": section(PATHS, "edm"),
            "parameterization": section(PARAMETERIZATIONS, "edm", learned_variance=False),
            "times": section(TIMES, "lognormal"),
            "weighting": section(WEIGHTINGS, "simple"),
            "loss": section(LOSSES, "denoising", "loss"),
            "network": section(NETWORKS, "unet", "network"),
            "optimizer": options(training.optimizer, "optimizer", kind="adam", learning_rate=2e-4, clip=1.0),
            # beside a generator; its heads and conditions follow from the loss and the data
            "discriminator": section(DISCRIMINATORS, "none", "discriminator"),
            "discriminator_optimizer": options(training.optimizer, "optimizer", kind="adam", learning_rate=1e-4, b1=0.5),
            # of an autoencoder: how the use of its codes is followed, and after how many steps unused ones start anew; what
            # sees pictures as people do, by a file of AlexNet's or VGG16's weights (as evaluate.lpips) or a classifier's run
            "codebook": options(networks.quantizer.track, decay=0.99, threshold=0.03, revive_every=100),
            "perceptual": {"weights": placeholder(str), "net": "vgg", "classifier": placeholder(str)},
            "ema": options(training.Ema, "ema", decay=0.999, warmup=True),
            "sampler": {**section(SAMPLERS, "heun"), "num_steps": 18, "guidance": None, "threshold": None,
                        "observe": "redraw"},
            "grid": section({**GRIDS, "natural": lambda: None}, "natural", "grid"),
            "train": {
                "steps": 1000,
                "log_every": 50,
                "eval_every": 500,
                "checkpoint_every": 500,
                "keep": 3,
                "best_metric": placeholder(str),
                "best_mode": "min",
                "accumulate": 1,
                "generator_every": 1,  # steps of the discriminator for one of the generator
                "steps_per_dispatch": 1,
                "preview": 64,  # samples in the picture of each evaluation
            },
            # on several devices. kind: mesh, a grid data x fsdp (data None: what fsdp leaves), the state split along fsdp;
            # or pmap, the whole state on each. rules: "REGEX:DIM" or "REGEX:none" by an array's path, else an array of
            # min_size elements or more is split along its largest dimension
            "parallel": options(training.make_layout, kind="mesh", fsdp=1, rules=(), min_size=training.MIN_SIZE),
            "evaluate": {
                "num": 500,
                "batch_size": 250,
                "metrics": (),  # () is every metric that suits the data
                "classifier": placeholder(str),  # a run directory; None trains one beside this run, once
                "inception": placeholder(str),  # a file of FID Inception weights
                "draws": 4,  # of each condition picture
                "captions": "test",  # the split whose captions are drawn, by a run that reads them
                "lpips": placeholder(str),  # a file of AlexNet or VGG16 weights, for LPIPS
                "lpips_net": "alex",
            },
        }
    )
