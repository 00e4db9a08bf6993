"""Sampling and evaluation on several devices: the same functions, their examples split, their answers put together.

    draw = Spread(run.sampler(num_steps=18))
    images = draw(run.params, jax.random.key(0), {"label": labels}, 250)

A sampler knows nothing of this. Its program is told only that the condition comes in, and the samples go out, in pieces;
XLA works backwards from there and finds that all between falls apart in the same way. It means what it means on one device,
averages over the batch too. Noise is drawn for the batch as a whole, and threefry's bits are a function of the key and an
element's place alone (`jax_threefry_partitionable`), so that each device draws its own piece of the same noise; where that
flag is off nothing is split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import training
from jaxdiff.types import Tree


class Spread:
    """`(params, key, batch, num) -> tree of numpy arrays [num, ...]`, by a function of that shape, jitted, `num` static.

    `batch` is a tree of arrays `[num, ...]`, the same in every process, or None. Examples are split over the devices of
    `mesh`, where `params` may lie already; by default over all of this process. They need not divide: then some devices have
    less to do.
    """

    def __init__(self, fn: Callable[..., Tree], mesh: Mesh | None = None) -> None:
        self._mesh = here() if mesh is None else mesh
        self._held: tuple[Any, Any] = (None, None)
        if self._mesh is None:
            self._program = jax.jit(fn, static_argnums=3)
            return
        split, whole = _split(self._mesh), NamedSharding(self._mesh, PartitionSpec())
        pieces = lambda tree: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split), tree)

        def in_pieces(params: Tree, key: Any, batch: Tree, num: int) -> Tree:
            return pieces(fn(params, key, pieces(batch), num))

        # Every device, and so every process, gets all samples at the end.
        self._program = jax.jit(in_pieces, static_argnums=3, out_shardings=whole)

    def __call__(self, params: Tree, key: Any, batch: Tree, num: int) -> Tree:
        if self._mesh is not None:
            if params is not self._held[0]:
                self._held = (params, jax.tree.map(self._everywhere, params))
            params, key = self._held[1], jax.tree.map(self._everywhere, key)
            batch = shared(batch, self._mesh)
        return jax.tree.map(np.asarray, self._program(params, key, batch, num))

    def eval_shape(self, params: Tree, key: Any, batch: Tree, num: int) -> Tree:
        """Shapes and dtypes of the answers; raises what the function raises."""
        return self._program.eval_shape(params, key, batch, num)

    def _everywhere(self, x: Any) -> Any:
        assert self._mesh is not None
        there = isinstance(x, jax.Array) and x.sharding.device_set == set(self._mesh.devices.flat)
        return x if there else training.replicate(x, self._mesh)


def by_example(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`fn`, `[N, ...] -> [N, ...]` and each example for itself, jitted and split over this process's devices."""
    spread = Spread(lambda params, key, x, num: fn(x))
    return lambda x: spread(None, None, x, len(x))


def here() -> Mesh | None:
    """This process's devices; None for a single one, or where noise would depend on how it is split."""
    several = jax.device_count() > 1 and jax.local_device_count() > 1
    return training.make_mesh(jax.local_devices()) if several and _by_place() else None


def shared(batch: Tree, mesh: Mesh | None) -> Tree:
    """A batch `[B, ...]` that every process has whole, split over a mesh; copied to all of it where B does not divide."""
    if mesh is None:
        return batch

    def place(x: Any) -> jax.Array:
        even = np.shape(x)[0] % mesh.devices.size == 0
        sharding, x = _split(mesh) if even else NamedSharding(mesh, PartitionSpec()), np.asarray(x)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(place, batch)


def _split(mesh: Mesh) -> NamedSharding:
    return training.batch_sharding(mesh) if _by_place() else NamedSharding(mesh, PartitionSpec())


def _by_place() -> bool:
    """Whether an element of a random array depends on its place and not on the whole array's size."""
    flags: Any = jax.config
    return flags.jax_threefry_partitionable and flags.jax_default_prng_impl == "threefry2x32"
