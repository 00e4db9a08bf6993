"""Autoencoders in the walk from data to runs: what one gives back, the latents of batches, and the eye that it learns by.

The eye is a perceptual distance (Zhang et al. 2018): LPIPS with the weights of a file, or the squared distance of unit
features of a classifier's run, LPIPS's form on a network of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdiff import build, evaluation, training
from jaxdiff.facts import Facts, facts_of_run
from jaxdiff.latents import Latents, shape_of, unit_scale
from jaxdiff.run import load_run, open_latents
from jaxdiff.spread import Spread
from jaxdiff.trees import example_keys
from jaxdiff.types import Array, Params


def reconstruction(net: Any) -> Callable[[Params, Array], Array]:
    """`(params, x [B, H, W, C]) -> x_hat`, through the latent's mean or its nearest codes, clipped to [-1, 1]."""
    return lambda params, x: jnp.clip(net.apply({"params": params}, x), -1, 1)


def pair_picture(x: Any, x_hat: Any) -> np.ndarray:
    """original | reconstruction of `[N, H, W, C]` in [-1, 1], uint8 `[H', W', C]`."""
    return evaluation.columns_picture({"original": x, "reconstruction": x_hat})


def preview(
    config: ConfigDict, net: Any, known: Facts, params_of: Callable[[Any], Params], mesh: Mesh | None = None
) -> Callable[..., Any]:
    """`(state, step) -> [(name, picture)]`: `train.preview` test pictures and their reconstructions, the same every time.

    mesh: of the devices on which the state lies, where there are several.
    """
    real = build.examples(config, known, "test", config.train.preview)["x"]
    again = Spread(lambda params, key, x, num: reconstruction(net)(params, x), mesh)

    def picture(state: Any, step: int) -> list[tuple[str, np.ndarray]]:
        del step
        return [("reconstructions", pair_picture(real, again(params_of(state), None, real, len(real))))]

    return picture


def linked(config: ConfigDict, known: Facts, workdir: Any) -> tuple[Facts, Latents | None]:
    """The facts of the latents of `codec.run`, and these; those given, and None, where a run diffuses pixels.

    The scale is `codec.scale`, or measured on 1,000 training pictures; a run that goes on keeps its own.
    """
    begun = training.steps(workdir) and (Path(workdir) / "data.json").exists()  # lost, it is written again
    held = facts_of_run(workdir) if begun else None
    if held is not None and bool(held.codec) != bool(config.codec.run):
        raise ValueError(f"codec.run is {config.codec.run!r}, and the run in {str(workdir)!r} diffuses "
                         f"{'latents' if held.codec else 'pixels'}; mend: codec.run as it was, or another workdir")
    if not config.codec.run:
        return known, None
    if known.kind != "image" or build.trains(config) != "denoiser" or build.joint(config):
        raise ValueError(f"codec.run is {config.codec.run!r}; allowed with loss.kind=denoising on pictures, whose condition "
                         "is not diffused")
    if config.loss.kind != "denoising":
        raise ValueError(f"loss.kind is {config.loss.kind!r}, a bound on grey levels, and latents have none; mend: "
                         "loss.kind=denoising")
    known = known._replace(picture=known.shape, levels=0)
    if held is not None:
        known = known._replace(scale=held.scale, codec=held.codec)
    elif config.codec.scale:
        known = known._replace(scale=config.codec.scale)
    coder = open_latents(config, known)
    if held is None and not config.codec.scale:
        known = known._replace(scale=unit_scale(coder, build.examples(config, known, "train", 1000)["x"]))
        coder = open_latents(config, known)
    return known._replace(shape=shape_of(coder, known.picture), codec=coder.name), coder


def encoder(
    coder: Latents, seed: int, cached: bool = False
) -> Callable[[Iterator[dict[str, Any]], int], Iterator[dict[str, Any]]]:
    """`(batches, start) -> the same batches, from step `start` on, with the latents of their pictures`, or of their `cached`
    moments; one program for all streams.

    An example's draw depends on the seed, the step and its number in the batch, so a run that goes on draws the same, and
    one with a cache draws what it would without.
    """
    key = jax.random.fold_in(jax.random.key(seed), 4)
    latents = coder.draw if cached else coder.encode

    @jax.jit
    def encode(step: Array, x: Array, index: Array) -> Array:
        return latents(example_keys(jax.random.fold_in(key, step), index), x)

    def stream(batches: Iterator[dict[str, Any]], start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(batches, start):
            yield {**batch, "x": encode(jnp.asarray(step), batch["x"], batch["index"])}

    return stream


def perceptual(config: ConfigDict) -> Callable[[Array, Array], Array] | None:
    """`(x, x_hat) [B, H, W, C] -> [B]`, how unlike two pictures look, by the section `perceptual`; None is off.

    Raises ValueError for both a file and a classifier, or a run that is no classifier of clean pictures.
    """
    part = config.perceptual
    if part.weights and part.classifier:
        raise ValueError(f"perceptual.weights is {part.weights!r} and perceptual.classifier {part.classifier!r}; allowed: "
                         "one of them")
    if part.weights:
        return evaluation.lpips_distance(part.weights, part.net)
    if not part.classifier:
        return None
    run = load_run(part.classifier)
    if build.trains(run.config) != "classifier" or run.path is not None:
        raise ValueError(f"perceptual.classifier is {part.classifier!r}, the run of {run.config.name!r}; allowed: a "
                         "classifier of clean pictures, from configs/classifier.py")

    def features(x: Array) -> Array:
        return evaluation.unit_length(run.network.apply({"params": run.params}, x, method="features"))

    return lambda x, x_hat: ((features(x) - features(x_hat)) ** 2).sum(-1)
