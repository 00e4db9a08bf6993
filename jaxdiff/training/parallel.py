"""One training step on many devices: where its state and its batches lie, and the program that runs there.

    mesh    `jit` over a grid of devices with the axes "data" and "fsdp". Examples are split over both; parameters, optimizer
            states and averages are split along "fsdp" (fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO",
            stage 3; Xu et al. 2020, arXiv 2004.13336) and copied along "data". The gradient of a mean over the global
            batch *is* the global gradient: XLA inserts the collectives, and no axis name appears in a loss.
    pmap    `jax.pmap` over the devices of one process: every device holds the whole state and a share of the batch, and the
            step itself averages over the axis "data" (`make_train_step(axis_name=AXIS)`).

Each example draws its noise from its number in the global batch (`batch["index"]`), so that one device and many compute the
same step, to rounding. What a loss takes from a whole batch (a discriminator's minibatch statistics, a metric of some
examples only) is each device's own under pmap, as it is each micro-batch's under accumulation.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.training.state import TrainState
from jaxdiff.training.step import TrainStep, Update, make_multi_step
from jaxdiff.types import Batch, Tree

AXIS, FSDP = "data", "fsdp"
KINDS = ("mesh", "pmap")
MIN_SIZE = 2**14


class Layout(NamedTuple):
    """How a training lies on its devices. Of `mesh` by `make_mesh`, or one axis "data" for `kind` "pmap"; `rules` and
    `min_size` are those of `state_shardings`."""

    mesh: Mesh
    kind: str = "mesh"
    rules: tuple[str, ...] = ()
    min_size: int = MIN_SIZE

    @property
    def axis_name(self) -> str | None:
        """What `make_train_step` is to average over: the axis of a pmap, and nothing under `jit`."""
        return AXIS if self.kind == "pmap" else None

    @property
    def split(self) -> bool:
        """Whether parameters are split over devices, so that one of them need not hold all."""
        return self.mesh.shape.get(FSDP, 1) > 1


def make_mesh(devices: Sequence[Any] | None = None, data: int | None = None, fsdp: int = 1) -> Mesh:
    """A grid `data` x `fsdp` of `devices`, which are all of every process by default and may be those of a topology.

    They are put in the order of their processes, so that a process's share of a batch is one piece and neighbours share
    parameters. `data=None` takes what `fsdp` leaves. Raises ValueError where the product is not the number of devices.
    """
    found = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    count = len(found)
    for name, value in (("data", data), ("fsdp", fsdp)):
        if value is not None and (value < 1 or count % value):
            raise ValueError(f"parallel.{name} is {value} and there are {count} devices; allowed: a divisor of {count}")
    if data is not None and data * fsdp != count:
        raise ValueError(f"parallel.data is {data} and parallel.fsdp {fsdp}, and there are {count} devices; allowed: "
                         f"data x fsdp = {count}, or data=None, which takes what fsdp leaves")
    return Mesh(np.asarray(found).reshape(-1, fsdp), (AXIS, FSDP))


def make_layout(
    kind: str = "mesh", data: int | None = None, fsdp: int = 1, rules: Sequence[str] = (), min_size: int = MIN_SIZE
) -> Layout | None:
    """The layout that a config's section `parallel` asks for on the devices at hand; None on a single one.

    Raises ValueError for an unknown kind, numbers that are not those of the devices, a rule that cannot be read, and "pmap"
    with fsdp or over several processes.
    """
    if kind not in KINDS:
        raise ValueError(f"parallel.kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if min_size < 0:
        raise ValueError(f"parallel.min_size is {min_size}; allowed: 0 or more elements")
    for rule in rules:
        _read(rule)
    if kind == "pmap" and fsdp != 1:
        raise ValueError(f"parallel.fsdp is {fsdp} with parallel.kind='pmap', where every device holds the whole state; "
                         "mend: parallel.kind=mesh")
    if kind == "pmap" and jax.process_count() > 1:
        raise ValueError(f"parallel.kind is 'pmap' with {jax.process_count()} processes, and it spans the devices of one; "
                         "mend: parallel.kind=mesh")
    mesh = make_mesh(None, data, fsdp)
    if jax.device_count() == 1:
        return None
    return Layout(mesh if kind == "mesh" else Mesh(mesh.devices.reshape(-1), (AXIS,)), kind, tuple(rules), min_size)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Examples, which stand along `axis`, split over all devices: over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def state_shardings(state: TrainState, mesh: Mesh, rules: Sequence[str] = (), min_size: int = MIN_SIZE) -> Tree:
    """A NamedSharding for each array of a TrainState, whose arrays may be abstract.

    `params`, `opt` and `ema` are split along "fsdp": an array's path, such as params/denoiser/encoder/stem/kernel or
    opt/denoiser/0/mu/encoder/stem/kernel, is matched with `rules` in their order, each "REGEX:DIM" or "REGEX:none", and
    the first whose REGEX is found in it names the dimension, or none. Without one it is the largest dimension that the axis
    divides (the last of equals), and arrays of fewer than `min_size` elements stay whole. So does all else, and everything
    on a mesh without "fsdp".

    Raises ValueError for a rule that cannot be read, one found nowhere, and a dimension that is not there or that the axis
    does not divide.
    """
    ways, read = mesh.shape.get(FSDP, 1), [_read(rule) for rule in rules]
    used: set[int] = set()

    def dimension(name: str, shape: tuple[int, ...]) -> int | None:
        for i, (regex, dim) in enumerate(read):
            if regex.search(name):
                used.add(i)
                if dim is None or not shape:  # a count has no dimensions
                    return None
                if not -len(shape) <= dim < len(shape) or shape[dim] % ways:
                    raise ValueError(f"the rule {rules[i]!r} splits {name} of shape {list(shape)} along {dim}; allowed: a "
                                     f"dimension of it that parallel.fsdp={ways} divides, or :none")
                return dim % len(shape)
        if np.prod(shape) < min_size:
            return None
        fitting = [dim for dim, size in enumerate(shape) if size % ways == 0 and size >= ways]
        return max(fitting, key=lambda dim: (shape[dim], dim), default=None)

    def sharding(path: Any, x: Any) -> NamedSharding:
        name = "/".join(map(_word, path))
        dim = dimension(name, tuple(x.shape)) if name.partition("/")[0] in ("params", "opt", "ema") else None
        return NamedSharding(mesh, PartitionSpec(*[None] * dim, FSDP) if dim is not None and ways > 1 else PartitionSpec())

    found = jax.tree_util.tree_map_with_path(sharding, state)
    if unused := [rule for i, rule in enumerate(rules) if i not in used]:
        first = "/".join(map(_word, jax.tree_util.tree_flatten_with_path(state)[0][-1][0]))
        raise ValueError(f"the rule {unused[0]!r} of parallel.rules decides of no array (its REGEX is found nowhere, or "
                         f"behind another rule's); allowed: part of a path such as {first}")
    return found


def place_state(state: TrainState, layout: Layout) -> TrainState:
    """A state on the devices of a layout; every process must bring the same values, and nobody compares."""
    return _placed(state, state_shardings(state, layout.mesh, layout.rules, layout.min_size))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The same values on every device of the mesh; every process must bring the same ones, and nobody compares."""
    return _placed(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def shard_batch(batch: Batch, mesh: Mesh, axis: int = 0) -> Batch:
    """Split every array of a batch along `axis` (the examples) over the mesh.

    Each process gives its own part, `[B / processes, ...]`; the result is one global array `[B, ...]`. `axis` is 1 for
    batches stacked as `[steps, B, ...]`. Raises ValueError where B does not divide among the devices.
    """
    sharding = batch_sharding(mesh, axis)

    def place(x: Any) -> jax.Array:
        _check_split(x, mesh, axis)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, batch)


def place_batch(batch: Batch, layout: Layout, axis: int = 0) -> Batch:
    """`shard_batch`, and for pmap the examples `[B, ...]` as `[devices, B / devices, ...]`."""
    if layout.kind == "mesh":
        return shard_batch(batch, layout.mesh, axis)
    count = layout.mesh.devices.size

    def split(x: Any) -> Any:
        _check_split(x, layout.mesh, axis)
        return np.reshape(x, (*np.shape(x)[:axis], count, -1, *np.shape(x)[axis + 1 :]))

    return shard_batch(jax.tree.map(split, batch), layout.mesh, axis)


def compiled_step(step: TrainStep, state: TrainState, layout: Layout | None, steps_per_dispatch: int = 1) -> Callable:
    """The program of training: `(state, batch) -> (state, metrics)`, its state donated, to be called or lowered.

    step: by `make_train_step`, with `axis_name=AXIS` for pmap. state: by `place_state`, or abstract; its shardings are those
    of `state_shardings`. Batches are by `place_batch`, `steps_per_dispatch` of them stacked in front.
    """
    many = step if steps_per_dispatch == 1 else make_multi_step(step, steps_per_dispatch)
    if layout is None:
        return jax.jit(many, donate_argnums=0)
    if layout.kind == "pmap":
        axis = 0 if steps_per_dispatch == 1 else 1
        devices = list(layout.mesh.devices.flat)
        # The state has no axis of devices: it goes in and comes out as one array, the same on each of them.
        return jax.pmap(many, AXIS, in_axes=(None, axis), out_axes=None, devices=devices, donate_argnums=0)
    # Pinned, so that the state comes back as it went in and the second call finds the first one's program.
    same = state_shardings(state, layout.mesh, layout.rules, layout.min_size)
    return jax.jit(many, donate_argnums=0, out_shardings=(same, NamedSharding(layout.mesh, PartitionSpec())))


def gathered(updates: Sequence[Update], layout: Layout | None) -> list[Update]:
    """The same updates, whose losses read parameters that were put together again on each device, where "fsdp" splits them.

    Without this XLA takes the parameters' split for one of the activations too, and moves these instead: many messages, some
    of whole feature maps, and work that is done twice. So each array of parameters is gathered once.
    """
    if layout is None or not layout.split:
        return list(updates)
    whole = NamedSharding(layout.mesh, PartitionSpec())

    def of(fn: Callable[..., Any] | None) -> Any:
        return fn and (lambda params, *rest: fn(jax.lax.with_sharding_constraint(params, whole), *rest))

    return [update._replace(loss=of(update.loss), forward=of(update.forward)) for update in updates]


def made_where(layout: Layout | None) -> Any:
    """A context for making a state: in the host's memory where it is split, for it may be more than one device holds."""
    if layout is None or not layout.split:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told of no CPU
        return contextlib.nullcontext()


def _placed(tree: Tree, shardings: Tree) -> Tree:
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(x: Any, sharding: NamedSharding) -> jax.Array:
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(place, tree, shardings)


def _check_split(x: Any, mesh: Mesh, axis: int) -> None:
    parts = mesh.devices.size // jax.process_count()
    if np.ndim(x) <= axis or np.shape(x)[axis] % parts:
        raise ValueError(
            f"a batch array of shape {np.shape(x)} does not split over {parts} devices along axis {axis}; "
            f"give a batch size that is a multiple of {mesh.devices.size}, or fewer devices"
        )


def _read(rule: Any) -> tuple[re.Pattern, int | None]:
    """"REGEX:DIM" in two."""
    regex, _, dim = rule.rpartition(":") if isinstance(rule, str) else ("", "", "")
    try:
        if regex and (dim == "none" or re.fullmatch(r"-?\d+", dim)):
            return re.compile(regex), None if dim == "none" else int(dim)
        why = "REGEX:DIM, such as attention/.*kernel:1, or REGEX:none"
    except re.error as error:
        why = f"a regular expression of Python before the colon ({error})"
    raise ValueError(f"parallel.rules has {rule!r}; allowed: {why}")


def _word(key: Any) -> str:
    """One step of a path into a tree, as checkpoints write it."""
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))
