"""From a config to objects: the data, the path, the networks, the sampler (and in objective.py what is minimised).

The only reader of configs beside tables.py (what a config may say), configfile.py (where it comes from), the command
line and the launch scripts. Each function reads its own sections and returns an object of the library that a
notebook could have made by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import data, networks, tables
from jaxdiff.augmentation import Augmentation
from jaxdiff.denoiser import stacked, with_latent
from jaxdiff.facts import Facts, folded
from jaxdiff.samplers import Sampler
from jaxdiff.sde import Parameterization, parameterizations
from jaxdiff.types import Array, Key, Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16, "float64": jnp.float64}


def source(config: ConfigDict, split: str) -> data.Source:
    """The records of one split: train, validation or test."""
    given = {name: value for name, value in config.data.options.items() if value is not None}
    return data.open_source(config.data.source, split, **given)


def facts(config: ConfigDict, records: data.Source) -> Facts:
    """The example's shape after preprocessing, and what of the labels the network is told."""
    part = config.data
    shape = tuple(records.shape)
    if records.kind == "image":
        height, width, channels = shape
        if part.size is not None:
            height = width = part.size
        shape = (height, width, part.channels or channels)
    classes = records.num_classes if config.condition.label else 0
    known = Facts(shape, classes, records.levels, records.kind, records.class_names)
    chosen = task(config)
    if (config.loss.kind == "autoencoder") != (config.network.kind == "autoencoder"):
        raise ValueError(f"loss.kind is {config.loss.kind!r} and network.kind {config.network.kind!r}; allowed: autoencoder "
                         "for both, or for neither")
    if config.loss.kind == "autoencoder" and (chosen is not None or records.kind != "image"):
        raise ValueError(f"an autoencoder got task.kind {config.task.kind!r} and data of the kind {records.kind!r}; "
                         "allowed: none and image")
    if config.task.kind != "low_res" and config.augmentation.kind != "none":
        raise ValueError(f"augmentation.kind is {config.augmentation.kind!r} without a low-resolution input; mend: "
                         "task.kind=low_res, or augmentation.kind=none")
    if chosen is None:
        if config.estimator.kind != "none":
            raise ValueError(f"estimator.kind is {config.estimator.kind!r} without a condition; mend: task.kind, one of "
                             f"{', '.join(word for word in tables.TASKS if word != 'none')}")
        return known
    if records.kind != "image":
        raise ValueError(f"task.kind is {config.task.kind!r}, which is of pictures, and {records.name} holds points; mend: "
                         "task.kind=none")
    y_shape = chosen.condition_shape((shape[0], shape[1], shape[2]))
    known = known._replace(condition=tuple(y_shape), masked=chosen.masked)
    if known.low_res and (joint(config) or adversarial(config) or config.network.kind != "unet"):
        raise ValueError(f"task.kind is {config.task.kind!r}, whose small picture only a denoising U-Net reads; mend: "
                         "estimator.kind=cde, loss.kind=denoising, network.kind=unet")
    return known


def task(config: ConfigDict) -> data.Task | None:
    """What makes the condition picture y from x; None for an unconditional or class-conditional run."""
    return tables.make(tables.TASKS, config.task, "task")


def augmentation(config: ConfigDict) -> Augmentation:
    """What is done to a stage's low-resolution input."""
    extra: dict[str, Any] = {}
    if config.augmentation.kind == "gaussian":
        extra["path"] = tables.make(tables.PATHS, config.augmentation_path, "augmentation_path")
    return tables.make(tables.AUGMENTATIONS, config.augmentation, "augmentation", "augmentation", **extra)


def joint(config: ConfigDict) -> bool:
    """Whether the condition is diffused beside x."""
    return tables.pick(tables.ESTIMATORS, config.estimator.kind, "estimator.kind") is not tables.ESTIMATORS["cde"]


def batch_keys(config: ConfigDict, known: Facts) -> dict[str, tuple[int, ...]]:
    """What of a pipeline's batch the loss is given, and the shape of one example of it: x's latents, y's pixels."""
    keys: dict[str, tuple[int, ...]] = {"x": known.shape, "index": ()}
    if known.num_classes:
        keys["label"] = ()
    if known.condition:
        keys["image"] = known.condition
    if known.masked and config.condition.mask:
        keys["mask"] = (*known.pixels[:2], 1)
    if known.text:
        read = {"tokens": known.text[:1]} if known.vocab else {"text": known.text}
        keys |= {**read, "text_mask": known.text[:1]}
    return keys


def dtype_of(name: str) -> Any:
    """The dtype of what stands under `name` in a batch."""
    return {"index": np.int32, "label": np.int32, "tokens": np.int32, "text_mask": np.bool_}.get(name, np.float32)


def told(
    config: ConfigDict, known: Facts, cond: Mapping[str, Any] | None, key: Key | None = None, s: float = 0.0
) -> dict[str, Any] | None:
    """A condition as its network reads it: a stage's `image`, noised to s by the key, as `low_res`; others `folded`."""
    if cond is None or not known.low_res:
        return None if not cond else folded(known, cond)
    rest = {name: value for name, value in cond.items() if name != "image"}
    augment = augmentation(config)
    return {**rest, **(augment.tell(cond["image"], s) if key is None else augment.noised(key, cond["image"], s))}


def preprocess(config: ConfigDict, known: Facts) -> data.Preprocess:
    """What is done to a picture before the network sees it; nothing to points."""
    part = config.data
    if known.kind == "points":
        return data.Preprocess()
    shape = (known.pixels[0], known.pixels[1], known.pixels[2])
    return data.Preprocess(shape, part.resize, part.crop, part.resample, part.flip, part.scale)


def pipeline(
    config: ConfigDict, records: data.Source, batch_size: int | None = None, tokenize: data.Tokenize | None = None
) -> data.Pipeline:
    """Batches of examples, shuffled by the seed, this process's share of each; with `tokenize` their captions' tokens."""
    return data.pipeline(
        records,
        config.data.batch_size if batch_size is None else batch_size,
        config.seed,
        preprocess=preprocess(config, facts(config, records)),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        task=task(config),
        tokenize=tokenize,
    )


def process(config: ConfigDict) -> tables.Process:
    """The forward process, of x alone or of x and y, as sampling and as training see it."""
    return tables.make(tables.ESTIMATORS, config.estimator, "estimator", "estimator",
                       path=tables.make(tables.PATHS, config.path, "path"))


def examples(config: ConfigDict, known: Facts, split: str, num: int | None = None) -> dict[str, np.ndarray]:
    """Preprocessed examples of a split with their conditions, captions as `prompt`: all, or `num` drawn by a fixed seed."""
    records = source(config, split)
    num = len(records) if num is None else min(num, len(records))
    found = data.preview(records, num, preprocess=preprocess(config, known), task=task(config), captions=bool(known.text))
    return {"prompt" if name == "caption" else name: value for name, value in found.items()}


def path(config: ConfigDict) -> Any:
    """The forward process of sampling."""
    return process(config).path


def parameterization(config: ConfigDict) -> Parameterization:
    """What the network predicts."""
    part = dict(config.parameterization)
    learned = part.pop("learned_variance")
    made = tables.make(tables.PARAMETERIZATIONS, part, "parameterization")
    return parameterizations.learned_variance(made) if learned else made


def _with_dtypes(config: ConfigDict, section: str) -> dict[str, Any]:
    """A network's section, its words of dtypes read."""
    part = dict(config[section])
    for key in ("dtype", "param_dtype"):
        if part[key] is not None:
            part[key] = tables.pick(DTYPES, part[key], f"{section}.{key}")
    return part


def network(config: ConfigDict, known: Facts) -> Any:
    """The network as a flax module, its class count and output channels taken from the data."""
    part = _with_dtypes(config, "network")
    if part["kind"] == "autoencoder":
        return tables.make(tables.NETWORKS, part, "network", "network", out_channels=known.shape[-1],
                           **({"kind": "vq"} if part["num_codes"] else {}))
    extra: dict[str, Any] = {"num_classes": known.num_classes}
    if part["kind"] == "classifier" and known.num_classes == 0:
        raise ValueError("a classifier needs classes, and this data has none (or condition.label is False); mend: data with "
                         "labels, such as a folder with a class per subfolder")
    if part["kind"] != "classifier":
        channels = known.shape[-1]
        if joint(config):
            channels += known.condition[-1]
            if config.parameterization.learned_variance:
                raise ValueError("parameterization.learned_variance is of x alone; mend: False, or estimator.kind=cde")
        extra["out_channels"] = channels * (2 if config.parameterization.learned_variance else 1)
        if part["kind"] == "unet":
            extra |= {"image": bool(known.condition) and not joint(config) and not known.low_res,
                      "mask": "mask" in batch_keys(config, known)}
            if known.text:
                extra["text_dim"] = known.text[1]
            if known.vocab:
                told = config.text
                extra["text_encoder"] = networks.TextEncoder(known.vocab, max_length=told.length, width=told.width,
                                                             layers=told.layers, heads=told.heads)
            if known.low_res:
                extra |= {"low_res": part.pop("low_res") or "bilinear", "low_res_t": config.augmentation.kind == "gaussian"}
    return tables.make(tables.NETWORKS, part, "network", "network", **extra)


def trains(config: ConfigDict) -> str:
    """The name of the network that a run is for: "denoiser", "generator", "classifier" or "autoencoder"."""
    return tables.TRAINS.get(config.loss.kind, "denoiser")


def adversarial(config: ConfigDict) -> bool:
    """Whether a generator is trained against a discriminator."""
    return config.loss.kind in tables.ADVERSARIAL


def discriminator(config: ConfigDict, known: Facts) -> Any:
    """The discriminator as a flax module, its heads those that the loss reads; None where none is asked for."""
    tables.pick(tables.DISCRIMINATORS, config.discriminator.kind, "discriminator.kind")
    allowed = tables.JUDGED.get(config.loss.kind, ("none",))
    if config.discriminator.kind not in allowed:
        raise ValueError(f"loss.kind is {config.loss.kind!r} and discriminator.kind {config.discriminator.kind!r}; allowed "
                         f"with this loss: {', '.join(allowed)}")
    if config.discriminator.kind == "none":
        return None
    part = _with_dtypes(config, "discriminator")
    if part["kind"] == "patch":
        return tables.make(tables.DISCRIMINATORS, part, "discriminator", "discriminator")
    if (config.discriminator.kind == "mlp") != (known.kind == "points"):
        raise ValueError(f"discriminator.kind is {config.discriminator.kind!r} and the data {known.kind!r}; allowed: mlp "
                         "for points, conv for images")
    value = lambda key: tables.setting(tables.LOSSES, config.loss, key)
    regress = bool(value("entropy") and value("weight"))
    extra = {"num_classes": known.num_classes, "out_channels": known.shape[-1], "denoise": bool(value("denoise")),
             "regress": regress, "variance": regress and bool(value("variance"))}
    if config.discriminator.kind == "conv":
        extra |= {"image": bool(known.condition), "mask": "mask" in batch_keys(config, known)}
    return tables.make(tables.DISCRIMINATORS, part, "discriminator", "discriminator", **extra)


def apply(config: ConfigDict, net: Any, known: Facts, train: bool = False) -> Callable[..., Any]:
    """`(params, x, c_noise, cond, key) -> raw`: the network as samplers and evaluations call it.

    From the key a generator draws its latent and, with `train`, dropout is drawn. Where y is diffused beside x, x and raw
    are dicts.
    """

    def call(params: Params, x: Array, t: Array, cond: Any, *key: Key) -> Array:
        how: dict[str, Any] = {"train": True, "rngs": {"dropout": key[0]}} if train else {}
        return net.apply({"params": params}, x, t, cond, **how)

    if config.network.latent_dim and not train:
        return with_latent(call, config.network.latent_dim)
    return stacked(call, {"x": known.shape[-1], "y": known.condition[-1]}) if joint(config) else call


def init_params(config: ConfigDict, net: Any, known: Facts, key: Key) -> Params:
    """Fresh parameters. They depend on the key and the config only, not on the batch size."""
    if config.network.kind == "autoencoder":
        return _fresh(net, key, jnp.zeros((2, *known.shape)))
    keys = batch_keys(config, known)
    x: list[tuple[int, ...]] = [known.shape]
    told: dict[str, tuple[int, ...]] = {}
    if joint(config):
        x.append(keys.pop("image"))
    if known.low_res:
        low = augmentation(config).tell(jnp.zeros((1, *keys.pop("image"))), 0.0)
        told |= {name: value.shape[1:] for name, value in low.items()}
    if config.network.latent_dim:
        told["z"] = (config.network.latent_dim,)
    seen, t, cond = _shown(x, {} if config.network.kind == "classifier" else {**keys, **told})
    return _fresh(net, key, seen, t, cond and folded(known, cond))


def init_discriminator(config: ConfigDict, net: Any, known: Facts, key: Key) -> Params:
    """Fresh parameters of the discriminator; DDGAN's sees two pictures side by side, and one of patches no time."""
    if config.discriminator.kind == "patch":
        return _fresh(net, key, jnp.zeros((2, *known.shape)))
    seen = 2 if config.loss.kind == "ddgan" else 1
    return _fresh(net, key, *_shown([known.shape] * seen, batch_keys(config, known)))


def _shown(x: Sequence[tuple[int, ...]], keys: dict[str, tuple[int, ...]]) -> tuple[Array, Array, Any]:
    """What a network is called with: variables of shapes `x`, channels side by side, a time, and `keys` as its condition."""
    seen = jnp.concatenate([jnp.zeros((2, *shape)) for shape in x], axis=-1)
    cond = {name: jnp.zeros((2, *shape), dtype_of(name)) for name, shape in keys.items() if name not in ("x", "index")}
    return seen, jnp.ones(2), cond or None


def _fresh(net: Any, key: Key, *shown: Any) -> Params:
    """Parameters of a network for inputs like these."""
    return jax.jit(lambda k: net.init(k, *shown)["params"])(key)


def sampler(config: ConfigDict, chosen: Sampler | str | None = None) -> Sampler:
    """`chosen`, a sampler or the name of one with its defaults; else the config's, on the grid that the config names."""
    if isinstance(chosen, str):
        return tables.make(tables.SAMPLERS, {"kind": chosen}, "sampler")
    if chosen is not None:
        return chosen
    part = {key: value for key, value in config.sampler.items() if key not in tables.SAMPLING}
    made = tables.make(tables.SAMPLERS, part, "sampler")
    if config.grid.kind == "natural":
        return made
    return made._replace(
        grid=lambda p, n: tables.make(tables.GRIDS, config.grid, "grid", "grid", path=p, num_steps=n)
    )
