"""A run's programs from its config alone, as they would be compiled for a machine: no data, no parameters, no devices.

    config -> facts of the data -> abstract state and batch, each array with its sharding -> program -> what it takes

The program is `fit.train`'s own: `objective.train_step` under `training.compiled_step`, with the state laid out by
`config.parallel`, its buffers donated and `train.steps_per_dispatch` steps in one call; or the run's sampler, its samples
split over the devices. Everything is traced with `jax.ShapeDtypeStruct`s, so a network of any size costs no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdiff import build, configfile, data, objective, prompts, training
from jaxdiff.facts import Facts
from jaxdiff.hardware import compiling, flops, programs, roofline
from jaxdiff.hardware.roofline import Plan
from jaxdiff.hardware.topologies import Topology
from jaxdiff.latents import Latents, shape_of
from jaxdiff.run import Run, open_latents
from jaxdiff.types import Tree

PLANNED = "planned"  # in place of a fingerprint


class Told(NamedTuple):
    """What the command line says of data and other runs that are not here: the number of classes, 0 without; the latents'
    shape (h, w, c) of `codec.run`; and the channels of a frozen text encoder's embeddings."""

    num_classes: int | None = None
    latents: tuple[int, int, int] | None = None
    text_width: int | None = None


class Work(NamedTuple):
    """A program to compile: `call`, jitted, and its abstract arguments `args`; `parts`, what lies in a device's memory
    before it is called, by name; the `examples` and the `steps` that one call does."""

    what: str
    call: Any
    args: tuple[Any, ...]
    parts: dict[str, Tree]
    examples: int
    steps: int
    parameters: int


def plan(
    config: ConfigDict,
    topology: Topology,
    told: Told = Told(),
    sampler: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> Plan:
    """Compile a config's training step, or its sampler, for a topology, and say what it takes.

    batch_size: of all devices, in place of `data.batch_size`; with `sampler` of `evaluate.batch_size`.
    Raises as `facts`, `mesh_of` and the works do.
    """
    if batch_size is not None and not sampler:
        with config.unlocked():
            config.data.batch_size = batch_size
    mesh = mesh_of(config, topology.devices)
    known, coder = facts(config, told)
    if sampler:
        work = sampling_work(config, known, mesh, coder, batch_size or config.evaluate.batch_size)
    else:
        work = training_work(config, known, mesh)
    found = compiling.compiled(work.call.lower(*work.args), topology.name, progress)
    made = _made(config, topology, mesh, known, work, flops.count(work.call, *work.args), found)
    return made._replace(suggestions=roofline.suggest(made, configfile.flat(config)))


def _made(
    config: ConfigDict, topology: Topology, mesh: Mesh, known: Facts, work: Work, written: float, found: compiling.Compiled
) -> Plan:
    memory = {name: bytes_of(tree) for name, tree in work.parts.items()}
    held = sum(memory.values())
    if found.refused:
        wanted = found.refused.get("temporaries", found.refused.get("all", 0.0) - held)
        memory[roofline.TEMPORARIES] = int(wanted)
    else:
        stats = found.memory
        memory |= {
            "padding, less arguments not read": stats["argument"] - held,
            roofline.TEMPORARIES: stats["temp"],
            "outputs not in place": stats["output"] - stats["alias"],
            "the program itself": stats["generated_code"],
        }
    program = programs.read(found.text) if found.text else programs.Program({}, {}, 0.0, 0)
    messages = {kind: programs.Message(*(value / work.steps for value in message))
                for kind, message in program.messages.items()}
    shape = "x".join(map(str, known.shape))
    described = f"{shape}, " + (f"of {known.num_classes} classes" if known.num_classes else "without classes")
    return Plan(
        config.name, work.what, topology.name, mesh.size, topology.chip, dict(mesh.shape), work.examples, work.parameters,
        described, memory, bool(found.refused), written / mesh.size / work.steps,
        {dtype: count / work.steps for dtype, count in program.flops.items()}, program.traffic / work.steps, messages,
        program.unknown, (found.flops, found.accessed), found.seconds,
    )


def facts(config: ConfigDict, told: Told = Told()) -> tuple[Facts, Latents | None]:
    """What the data would tell, and the autoencoder of `codec.run` where it is here.

    What `told` and the config say is taken as it is; for the rest the data, the encoder and the autoencoder are opened, and
    of a TFDS data set that is not prepared TFDS itself is asked. Raises FileNotFoundError that names the words for what
    nobody knows.
    """
    known = _with_text(config, build.facts(config, _records(config, told.num_classes)), told.text_width)
    if not config.codec.run:
        return known, None
    known = known._replace(picture=known.shape, levels=0, scale=config.codec.scale or 1.0)
    if told.latents is not None:
        return known._replace(shape=told.latents, codec=PLANNED), None
    try:
        coder = open_latents(config, known)
    except FileNotFoundError as reason:
        raise FileNotFoundError(f"{reason}; or, for a plan, the latents' shape: --latents=HxWxC") from None
    return known._replace(shape=shape_of(coder, known.picture), codec=coder.name), coder


def _records(config: ConfigDict, classes: int | None) -> data.Source:
    """The source as `build.facts` asks it, opened only where words do not say everything."""
    part = config.data
    classes = classes if config.condition.label else 0
    size, channels = part.size and (part.size, part.size), part.channels
    if classes is not None and size and channels:
        return _unopened(part.source, (*size, channels), classes)
    try:
        return build.source(config, "train")
    except (FileNotFoundError, ImportError) as reason:
        shape, found = data.describe(part.source) or ((None, None, None), None)
        shape = (*(size or shape[:2]), channels or shape[2])
        classes = found if classes is None else classes
        missing = ["--config.data.size=SIDE"] * (None in shape[:2]) + ["--config.data.channels=3"] * (shape[2] is None)
        missing += ["--num_classes=N, 0 without labels"] * (classes is None)
        if missing:
            raise FileNotFoundError(f"{reason}; or, for a plan, what they are: {', '.join(missing)}") from None
        assert classes is not None
        return _unopened(part.source, shape, classes)


def _unopened(name: str, shape: tuple[Any, ...], classes: int) -> data.Source:
    nothing: Any = ()
    return data.Source(name, "train", nothing, shape, 256, classes, has_given=True, has_captions=True)


def _with_text(config: ConfigDict, known: Facts, width: int | None) -> Facts:
    part = config.text
    if part.encoder is None:
        return known
    if part.encoder == prompts.TRAINED:  # as many tokens as its tokenizer may have
        return known._replace(text=(part.length, part.width), vocab=part.vocab_size)
    if width is None:
        try:
            width = prompts.open_reader(config, None, ".").width
        except FileNotFoundError as reason:
            raise FileNotFoundError(f"{reason}; or, for a plan, the channels of its embeddings: --text_width=D") from None
    return known._replace(text=(part.length, width), encoder=PLANNED)


def mesh_of(config: ConfigDict, devices: Any) -> Mesh:
    """The grid that `config.parallel` lays over these devices. Raises ValueError for one that does not fit, and for pmap."""
    part = config.parallel
    if part.kind != "mesh":
        raise ValueError(f"parallel.kind is {part.kind!r}, which has no program for devices that are not there; allowed in "
                         "a plan: mesh")
    return training.make_mesh(devices, part.data, part.fsdp)


def training_work(config: ConfigDict, known: Facts, mesh: Mesh) -> Work:
    """The program of `config.train.steps_per_dispatch` training steps. Raises ValueError for a batch that does not split."""
    size, accumulate, steps = config.data.batch_size, config.train.accumulate, config.train.steps_per_dispatch
    _check_split("data.batch_size", size, mesh, max(accumulate, 1), f" x accumulate {accumulate}")
    step, state, layout = _state(config, known, mesh)
    split = training.batch_sharding(mesh, 0 if steps == 1 else 1)
    stack = () if steps == 1 else (steps,)
    batch = {name: jax.ShapeDtypeStruct((*stack, size, *shape), build.dtype_of(name), sharding=split)
             for name, shape in build.batch_keys(config, known).items()}
    call = training.compiled_step(step, state, layout, steps)
    parts = {"parameters": state.params, "optimizer": state.opt, "averages (EMA)": state.ema,
             "other state": (state.step, state.key, state.state), "batch": batch}
    return Work("training step", call, (state, batch), parts, size, steps, _count(state.params))


def sampling_work(config: ConfigDict, known: Facts, mesh: Mesh, coder: Latents | None, num: int) -> Work:
    """The program that draws `num` samples with the config's sampler and guidance, the samples split over the devices.

    Latents are decoded where the autoencoder is here. Raises ValueError for a run that draws nothing.
    """
    _check_split("the number of samples", num, mesh)
    name = build.trains(config)
    _, state, _ = _state(config, known, mesh)
    path = None if config.path.kind == "none" else build.path(config)
    run = Run(config, None, path, known, build.network(config, known), 0, coder)
    draw = run.sampler()
    split = training.batch_sharding(mesh)
    shapes = {key: shape for key, shape in build.batch_keys(config, known).items() if key not in ("x", "index", "tokens")}
    if known.text:
        shapes["text"] = known.text
    cond = {key: jax.ShapeDtypeStruct((num, *shape), build.dtype_of(key), sharding=split) for key, shape in shapes.items()}
    params = state.ema[name]["ema"]
    call = jax.jit(lambda params, key, cond: draw(params, key, cond or None, num), out_shardings=split)
    parts = {"parameters": params, "conditions": cond}
    return Work("draw", call, (params, state.key, cond), parts, num, 1, _count(params))


def _state(config: ConfigDict, known: Facts, mesh: Mesh) -> tuple[Callable[..., Any], training.TrainState, training.Layout]:
    """The train step, and the abstract state that it starts from with the sharding of each array."""
    net, part = build.network(config, known), config.parallel
    layout = training.Layout(mesh, "mesh", tuple(part.rules), part.min_size)
    made: list[objective.Training] = []

    def start() -> training.TrainState:
        made.append(objective.train_step(config, net, known, layout))
        return made[0].state

    state = jax.eval_shape(start)
    shardings = training.state_shardings(state, mesh, layout.rules, layout.min_size)
    placed = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings)
    return made[0].step, placed, layout


def _check_split(what: str, size: int, mesh: Mesh, each: int = 1, note: str = "") -> None:
    shares = mesh.size * each
    if size < 1 or size % shares:
        raise ValueError(f"{what} is {size}; allowed: a multiple of {shares} ({mesh.size} devices{note})")


def _count(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def bytes_of(tree: Tree) -> int:
    """Bytes that a tree of arrays with shardings takes on each device, without the padding of a device's layout."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
