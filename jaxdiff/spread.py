"""Sampling and evaluation on several devices: the same functions, their examples split, their answers put together.

    draw = Spread(run.sampler(num_steps=18))
    images = draw(run.params, jax.random.key(0), {"label": labels}, 250)

A sampler knows nothing of this. Its program is told only that the condition comes in, and the samples go out, in pieces;
XLA works backwards from there and finds that all between falls apart in the same way. Noise is drawn for the batch as a
whole: threefry's bits are a function of the key and an element's place alone (`jax_threefry_partitionable`), so that each
device draws its own piece of the same noise. Where that flag is off nothing is split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import training
from jaxdiff.types import Tree


class Spread:
    """`(params, key, batch, num) -> tree of numpy arrays [num, ...]`, by a function of that shape, jitted, `num` static.

    `batch` is a tree of arrays `[num, ...]`, the same in every process, or None. Examples are split over the devices of
    `mesh`, where `params` may lie already; by default over all of this process. A number that they do not divide is rounded
    up for them, by going on with the first rows, and the answers are cut: sample i does not depend on how many follow it.
    """

    def __init__(self, fn: Callable[..., Tree], mesh: Mesh | None = None) -> None:
        if mesh is None and jax.device_count() > 1 and _by_place():
            mesh = training.make_mesh(jax.local_devices())
        self._mesh = mesh if mesh is not None and mesh.devices.size > 1 else None
        self._held: tuple[Any, Any] = (None, None)
        whole = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
        self._split = whole if self._mesh is None or not _by_place() else training.batch_sharding(self._mesh)
        self._program = jax.jit(fn, static_argnums=3, out_shardings=self._split)

    def __call__(self, params: Tree, key: Any, batch: Tree, num: int) -> Tree:
        size = self._size(num)
        if self._mesh is not None:
            if params is not self._held[0]:
                self._held = (params, jax.tree.map(self._everywhere, params))
            params, key = self._held[1], jax.tree.map(self._everywhere, key)
            rows = np.arange(size) % num
            batch = jax.tree.map(lambda x: _placed(np.asarray(x)[rows], self._split), batch)
        found = self._program(params, key, batch, size)
        if jax.process_count() > 1 and self._mesh is not None:
            found = multihost_utils.process_allgather(found, tiled=True)
        return jax.tree.map(lambda x: np.asarray(x)[:num], found)

    def eval_shape(self, params: Tree, key: Any, batch: Tree, num: int) -> Tree:
        """Shapes and dtypes of the answers, before they are cut; raises what the function raises."""
        size = self._size(num)
        longer = lambda x: jax.ShapeDtypeStruct((size, *np.shape(x)[1:]), x.dtype)
        return self._program.eval_shape(params, key, jax.tree.map(longer, batch), size)

    def _size(self, num: int) -> int:
        parts = 1 if self._mesh is None else self._mesh.devices.size
        return -(-num // parts) * parts

    def _everywhere(self, x: Any) -> Any:
        assert self._mesh is not None
        there = isinstance(x, jax.Array) and x.sharding.device_set == set(self._mesh.devices.flat)
        return x if there else training.replicate(x, self._mesh)


def by_example(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`fn`, `[N, ...] -> [N, ...]` and each example for itself, jitted and split over this process's devices."""
    spread = Spread(lambda params, key, x, num: fn(x))
    return lambda x: spread(None, None, x, len(x))


def shared(batch: Tree, mesh: Mesh) -> Tree:
    """A batch `[B, ...]` that every process has whole, split over a mesh; copied to all of it where B does not divide."""

    def place(x: Any) -> jax.Array:
        even = np.shape(x)[0] % mesh.devices.size == 0
        return _placed(np.asarray(x), training.batch_sharding(mesh) if even else NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(place, batch)


def _placed(x: np.ndarray, sharding: Any) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def _by_place() -> bool:
    """Whether an element of a random array depends on its place and not on the whole array's size."""
    flags: Any = jax.config
    return flags.jax_threefry_partitionable and flags.jax_default_prng_impl == "threefry2x32"
