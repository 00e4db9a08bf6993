"""Training on several devices is the same code: parameters replicated, batches split over one mesh axis.

Under `jit` with these shardings the gradient of a mean over the global batch *is* the global gradient: XLA inserts the
all-reduce, and no axis name appears in a loss. Because each example draws its noise from its number in the global batch
(`batch["index"]`), one device and many compute the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.types import Batch, Tree

AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh named "data" over `devices`, or over every device of every process."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def shard_batch(batch: Batch, mesh: Mesh, axis: int = 0) -> Batch:
    """Split every array of a batch along `axis` (the examples) over the mesh.

    Each process gives its own part, `[B / processes, ...]`; the result is one global array `[B, ...]`. `axis` is 1 for
    batches stacked as `[steps, B, ...]`. Raises ValueError where B does not divide among the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    parts = mesh.devices.size // jax.process_count()

    def place(x: Any) -> jax.Array:
        if np.ndim(x) <= axis or np.shape(x)[axis] % parts:
            raise ValueError(
                f"a batch array of shape {np.shape(x)} does not split over {parts} devices along axis {axis}; "
                f"give a batch size that is a multiple of {mesh.devices.size}, or fewer devices"
            )
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, batch)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The same values on every device of the mesh; every process must bring the same ones, and nobody compares."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(place, tree)
