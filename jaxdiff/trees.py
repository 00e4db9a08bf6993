"""Functions over one variable or several: a path may be a dict of paths on one clock, and arrays follow its shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array, Key, Path, Tree


def over(fn: Callable[..., Any], path: Any, *trees: Tree) -> Any:
    """Apply `fn(path, *arrays)` to one path, or to each entry of a dict of paths and the same entries of `trees`.

    >>> over(lambda p, a, b: (p, a + b), {"x": "px", "y": "py"}, {"x": 1, "y": 2}, {"x": 10, "y": 20})
    {'x': ('px', 11), 'y': ('py', 22)}
    >>> over(lambda p, a: (p, a), "p", 3)
    ('p', 3)
    """
    if isinstance(path, Mapping):
        return {name: fn(path[name], *(tree[name] for tree in trees)) for name in path}
    return fn(path, *trees)


def unzip(path: Any, tree: Tree, n: int) -> tuple[Tree, ...]:
    """Turn `over`'s dict of n-tuples into an n-tuple of dicts; a single path's tuple passes through."""
    if isinstance(path, Mapping):
        return tuple({name: tree[name][i] for name in path} for i in range(n))
    return tuple(tree)


def clock(path: Any) -> Path:
    """The path whose time grids, embeddings and log-SNR speak for all: the path itself, or a dict's first entry."""
    if isinstance(path, Mapping):
        return path["x"] if "x" in path else next(iter(path.values()))
    return path


def fingerprint(tree: Tree) -> str:
    """12 hexadecimal digits of the SHA-256 of all leaves' values: parameters that were trained on have others."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()[:12]


def expand(v: Any, x: Array) -> Array:
    """A scalar or `[B]` value, reshaped to broadcast against `x` `[B, ...]` and cast to its dtype."""
    v = jnp.asarray(v)
    if v.ndim > 1:
        raise ValueError(f"a time or coefficient has shape {v.shape}; allowed: a scalar or one value per example, [B]")
    return v.reshape(v.shape + (1,) * (x.ndim - v.ndim)).astype(x.dtype)


def noise_like(key: Key, tree: Tree) -> Tree:
    """Standard normal noise of `tree`'s shapes and dtypes, an independent draw for every leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    if len(leaves) == 1:  # one variable uses the key itself, so that x alone and {"x": x} draw alike
        return jax.tree.unflatten(treedef, [jax.random.normal(key, leaves[0].shape, leaves[0].dtype)])
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, draws)


def example_keys(key: Key, index: Array) -> Key:
    """One key per example, `[B]`, from its number in the global batch: the same draw on one device or many."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def noise_per_example(keys: Key, tree: Tree) -> Tree:
    """`noise_like` for a batch `[B, ...]` whose every example has its own key."""
    return jax.vmap(noise_like)(keys, tree)
