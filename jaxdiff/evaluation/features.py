"""Feature functions, `images float32 [-1, 1] [B, H, W, C] -> [B, D]`, what they saw, and statistics saved once.

Any function of that shape will do: the encoder half of a classifier trained here is one. A feature's name is written
into saved statistics and asked for when they are read, since a distance between two networks' features means nothing.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.evaluation.distances import Moments, moments_of, streaming_moments
from jaxdiff.evaluation.images import save_npz
from jaxdiff.evaluation.inception import InceptionV3, params_from_state_dict, state_dict_shapes
from jaxdiff.types import Array

FeatureFn = Callable[[Any], Array]


def pixels(images: Array) -> Array:
    """The image itself as features, `[B, H W C]`: for tests and for data as small as 8x8 digits."""
    return jnp.reshape(images, (len(images), -1))


def to_rgb(images: Array) -> Array:
    """`[B, H, W, 1]` -> `[B, H, W, 3]` by repetition; three channels pass through."""
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}; allowed: [B, H, W, 1] or [B, H, W, 3]")
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def extract(feature_fn: FeatureFn, images: Any, batch_size: int = 256) -> np.ndarray:
    """Features `[N, D]`, float32, of images `[N, ...]`, `batch_size` at a time.

    The last batch is filled up by repeating its last image, and cut again, so that a jitted function compiles once.
    """
    found = []
    for start in range(0, len(images), batch_size):
        part = np.asarray(images[start : start + batch_size])
        missing = min(batch_size, len(images)) - len(part)
        padded = np.concatenate([part, part[-1:].repeat(missing, 0)])
        found.append(np.asarray(feature_fn(padded), np.float32)[: len(part)])
    if not found:
        raise ValueError("no images came in; give at least one")
    return np.concatenate(found)


def extract_moments(feature_fn: FeatureFn, batches: Iterable[Any]) -> Moments:
    """Moments of the features of many batches of images, without holding the features of more than one."""
    return streaming_moments(np.asarray(feature_fn(batch)) for batch in batches)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Inception's arrays by their PyTorch names, from a PyTorch .pth/.pt state dict or from the same names in .npz.

    Raises FileNotFoundError, ImportError (a PyTorch file, and no torch here) or ValueError (another network's file).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}; give pt_inception-2015-12-05 (.pth), or its .npz by convert_weights"
        )
    try:
        state = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    except ImportError:
        raise
    except Exception as error:  # torch and zipfile raise a dozen kinds for a file that is not theirs
        reason = str(error).strip().partition("\n")[0][:100]
        raise ValueError(f"{path} is not a readable .pth, .pt or .npz file ({reason}); fetch it anew") from None
    wanted = state_dict_shapes()
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(wanted)} arrays, first {missing[0]}; "
            "give the weights pt_inception-2015-12-05, not another Inception's"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has shape {state[name].shape}, expected {shape}; "
                "give the weights pt_inception-2015-12-05, not another Inception's"
            )
    return {name: state[name] for name in wanted}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path} needs torch to be read; pip install torch, or convert it to .npz elsewhere by convert_weights"
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def convert_weights(source: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write the weights of a PyTorch file as .npz, for machines without torch."""
    if Path(target).suffix != ".npz":
        raise ValueError(f"target is {target}; allowed: a name that ends in .npz")
    return save_npz(target, **read_weights(source))


class InceptionOutputs(NamedTuple):
    """`pool3` [B, 2048] is for FID, KID, precision and recall. `logits_unbiased` [B, 1008], without the last bias, is
    what published Inception Scores were computed from; `logits` [B, 1008] have it."""

    pool3: Array
    logits: Array
    logits_unbiased: Array


def inception_outputs(weights: str | os.PathLike, quantize: bool = True) -> Callable[[Any], InceptionOutputs]:
    """Inception-v3 (FID variant), jitted: images [-1, 1] `[B, H, W, 1 or 3]`, any size, to all outputs in one pass.

    Args:
      weights: see `read_weights`.
      quantize: round pixels to 256 levels first, as saved images are: published FIDs are of 8-bit images.
    """
    params = params_from_state_dict(read_weights(weights))

    @jax.jit
    def run(params, images):
        levels = (jnp.clip(images.astype(jnp.float32), -1, 1) + 1) * 127.5
        outputs: Any = InceptionV3().apply({"params": params}, jnp.round(levels) if quantize else levels)
        pool3, logits = outputs
        return InceptionOutputs(pool3, logits, logits - params["fc"]["bias"][None])

    return lambda images: run(params, to_rgb(images))


def inception_features(weights: str | os.PathLike, output: str = "pool3", quantize: bool = True) -> FeatureFn:
    """One output of `inception_outputs` as a feature function; grey images are repeated to RGB."""
    if output not in InceptionOutputs._fields:
        raise ValueError(f"output is {output!r}; allowed: {', '.join(InceptionOutputs._fields)}")
    run = inception_outputs(weights, quantize)
    return lambda images: getattr(run(images), output)


class Statistics(NamedTuple):
    """Reference statistics of `moments.n` examples under the feature called `feature`.

    `features` `[n, D]` float32 are there if they were saved: KID, precision and recall need them, FID does not.
    """

    feature: str
    moments: Moments
    features: np.ndarray | None = None


def statistics_of(feature: str, features: Any, keep: bool = True) -> Statistics:
    """Statistics of features `[n, D]` at hand; `keep` holds them for KID, precision and recall."""
    held = np.asarray(features, np.float32)
    return Statistics(feature, moments_of(held), held if keep else None)


def save_statistics(path: str | os.PathLike, statistics: Statistics) -> Path:
    """Write the feature's name, n, the moments (float64) and, if held, the features themselves to one .npz."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"statistics go to {path}; allowed: a name that ends in .npz")
    feature, moments, features = statistics
    held = {} if features is None else {"features": np.asarray(features, np.float32)}
    expected = (moments.n, moments.mean.size)
    if features is not None and held["features"].shape != expected:
        raise ValueError(f"features {held['features'].shape}, moments of {expected}; save those that the moments saw")
    return save_npz(path, feature=feature, n=moments.n, mean=moments.mean, scatter=moments.scatter, **held)


def load_statistics(path: str | os.PathLike, feature: str, n: int | None = None) -> Statistics:
    """Read what `save_statistics` wrote; ValueError if it is of another feature, or of other than `n` examples."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no statistics at {path}; write them once with save_statistics")
    try:
        held = _read_npz(path)
        found = Statistics(
            str(held["feature"]), Moments(int(held["n"]), held["mean"], held["scatter"]), held.get("features")
        )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} holds no reference statistics; write them anew with save_statistics") from None
    if found.feature != feature:
        raise ValueError(f"{path} is of the feature {found.feature!r}, {feature!r} was asked for; recompute or rename")
    if n is not None and found.moments.n != n:
        raise ValueError(f"{path} is of {found.moments.n} examples, {n} were asked for; recompute it, or ask for those")
    return found
