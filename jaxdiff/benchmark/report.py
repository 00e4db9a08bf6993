"""How fast a config is on this machine: `jaxdiff bench`, as lines that are told as they are measured.

    train    seconds a step on one resident batch, examples/s, model FLOPs and utilisation (flops.py), memory
    data     the pipeline alone, and (with train) a step that it feeds / a resident one; at most 1.02 wanted
    sample   the sampler's rate, and beside its network's calls (comparisons.py)

and, where asked for, a trace of training steps (profiling.py) and the same network in diffusers (peers.py). Medians and
quartiles of at least five repeats, each long enough to time, waited for on the device.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, objective, tables, training
from jaxdiff.benchmark import comparisons, peers, profiling, stopwatch
from jaxdiff.benchmark.stopwatch import Line
from jaxdiff.facts import Facts
from jaxdiff.feed import Feed, open_feed
from jaxdiff.hardware import flops
from jaxdiff.networks.layers import count_params
from jaxdiff.run import Run

WHAT = ("train", "sample", "data")
COMPARE = ("torch",)
MIB = 2**20
AHEAD = 8  # dispatches in flight, as in training


def measure(
    config: ConfigDict,
    batch_size: int | None = None,
    seconds: float = 20.0,
    what: tuple[str, ...] | None = None,
    compare: str | None = None,
    profile: str | None = None,
    peak_tflops: float | None = None,
) -> Iterator[Line]:
    """Lines of a report, as they are measured; `seconds` on each comparison, compiling apart.

    Args:
      batch_size: instead of the config's.
      what: some of "train", "sample", "data"; by default all that the config's network does, nothing with `compare`.
      compare: "torch", to run the network beside diffusers'.
      profile: a directory for a trace of training steps, which "train" must be among.
      peak_tflops: TFLOP/s that one device can do, where chips.py does not know it.

    Raises ValueError for words that are not among these, a config that cannot be measured so, ImportError where diffusers
    is asked for and is not there.
    """
    drawn = build.trains(config) in ("denoiser", "generator")
    if what is None:
        what = () if compare else tuple(word for word in WHAT if drawn or word != "sample")
    _check(config, what, compare, seconds, profile, peak_tflops, drawn)
    if batch_size is not None:
        with config.unlocked():
            config.data.batch_size = batch_size
    with tempfile.TemporaryDirectory() as nowhere:  # a run that is not begun
        feed = open_feed(config, nowhere)
    known, layout = feed.known, tables.call(training.make_layout, config.parallel, "parallel")
    net = build.network(config, known)
    if compare:
        peers.check(config, net)
    if profile is not None:
        profiling.check(profile)
    fresh = lambda: build.init_params(config, net, known, jax.random.key(0))
    yield _header(config, count_params(jax.eval_shape(fresh)))
    if "data" in what:
        yield _data(feed, layout, seconds)
    if "train" in what:
        yield from _training(feed, layout, seconds, "data" in what, profile, peak_tflops)
        if known.text:
            yield comparisons.reading(config, known, seconds)
        if build.joint(config):
            yield comparisons.estimating(feed, seconds)
    if "sample" in what:
        run = Run(config, fresh(), build.path(config), known, net, 0, feed.coder, feed.reader)
        num = min(config.data.batch_size, 64)
        yield from comparisons.sampling(run, num, seconds, flops.peak(_dtype(config), peak_tflops))
        if known.num_classes and not known.condition and not build.adversarial(config):
            yield comparisons.guided(run, num, seconds)
    if compare:
        yield from peers.compare(config, known, layout, seconds)


def _check(config: ConfigDict, what: tuple[str, ...], compare: str | None, seconds: float, profile: str | None,
           peak_tflops: float | None, drawn: bool) -> None:
    """Wrong words, before anything is measured."""
    for word in what:
        if word not in WHAT:
            raise ValueError(f"--what is {','.join(what)!r}; allowed: some of {', '.join(WHAT)}, with commas")
    if "sample" in what and not drawn:
        raise ValueError(f"--what is {','.join(what)!r} and the config trains a {build.trains(config)}, with nothing to "
                         "sample; allowed: train,data")
    if compare is not None and compare not in COMPARE:
        raise ValueError(f"--compare is {compare!r}; allowed: {', '.join(COMPARE)}")
    if not seconds > 0:
        raise ValueError(f"--seconds is {seconds:g}; allowed: above 0; at least five repeats are made")
    if profile is not None and "train" not in what:
        raise ValueError(f"--profile came with --what={','.join(what)} and is of training steps; mend: --what=train")
    if peak_tflops is not None and not 0 < peak_tflops < float("inf"):
        raise ValueError(f"--peak_tflops is {peak_tflops:g}; allowed: above 0, the TFLOP/s that one device can do")


def _header(config: ConfigDict, parameters: int) -> Line:
    device, count = jax.devices()[0], jax.device_count()
    return Line("", f"{config.name} on {count} x {device.device_kind} ({device.platform}), jax {jax.__version__}, "
                f"{parameters:,} parameters",
                {"config": config.name, "devices": count, "device": device.device_kind, "platform": device.platform,
                 "jax": jax.__version__, "parameters": parameters})


def _dtype(config: ConfigDict) -> str:
    """Of the network's arithmetic."""
    return config.network.dtype or "float32"


def _batches(feed: Feed, layout: training.Layout | None) -> Callable[[], Any]:
    """`() -> the next batch`, on the devices, as the program of training takes it: for each step that it runs at once."""
    stream, steps = feed.batches(placed=layout is None)(0), feed.config.train.steps_per_dispatch

    def draw() -> Any:
        group = [next(stream) for _ in range(steps)]
        batch = group[0] if steps == 1 else jax.tree.map(lambda *xs: np.stack(xs), *group)
        return jax.device_put(batch) if layout is None else training.place_batch(batch, layout, axis=int(steps > 1))

    return draw


def _data(feed: Feed, layout: training.Layout | None, seconds: float) -> Line:
    """The feed with nothing that waits for it, its batches on the devices."""
    draw, size = _batches(feed, layout), feed.config.data.batch_size
    jax.block_until_ready(draw())
    each = stopwatch.enough(draw, 0.1)
    (times,) = stopwatch.in_turn([lambda: [draw() for _ in range(each)]], seconds)
    batches = each * feed.config.train.steps_per_dispatch
    found = stopwatch.timing(times).over(batches)
    return Line("data", f"{size / found.median:.1f} examples/s from the pipeline alone: a batch of {size} in {found}, "
                f"{found.repeats} times {batches} batches",
                {"examples_per_second": size / found.median, **found.figures(), "batch_size": size})


def _training(feed: Feed, layout: training.Layout | None, seconds: float, fed: bool, profile: str | None,
              peak_tflops: float | None) -> Iterator[Line]:
    """The step of `jaxdiff train`, on all devices; with `fed` also beside the same step fed by the pipeline."""
    config, known = feed.config, feed.known
    with training.made_where(layout):
        parts = objective.train_step(config, build.network(config, known), known, layout)
    now = {"state": parts.state if layout is None else training.place_state(parts.state, layout)}
    draw, size, together = _batches(feed, layout), config.data.batch_size, config.train.steps_per_dispatch
    resident = draw()
    program: Any = training.compiled_step(parts.step, now["state"], layout, together)
    start = time.perf_counter()
    compiled = program.lower(now["state"], resident).compile()
    compiling = time.perf_counter() - start
    asked = model_flops(config, known)

    def one(batch: Any) -> Any:
        now["state"], metrics = compiled(now["state"], batch)
        return metrics

    jax.block_until_ready(one(resident))
    calls = stopwatch.enough(lambda: one(resident), 0.5)
    each = calls * together

    def steps(batch: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            pending: deque[Any] = deque(maxlen=AHEAD)
            for _ in range(calls):
                if len(pending) == AHEAD:
                    jax.block_until_ready(pending[0])
                pending.append(one(batch()))
            return pending[-1]

        return run

    if fed:
        found = stopwatch.ratio(steps(draw), steps(lambda: resident), seconds).over(each)
        said = found.said("a step fed by the pipeline", "with a resident batch")
        yield Line("pipeline", f"{said} of {each} steps", found.figures())
        alone = found.b
    else:
        (times,) = stopwatch.in_turn([steps(lambda: resident)], seconds)
        alone = stopwatch.timing(times).over(each)
    rate = size / alone.median
    cached = " or read from the compilation cache" if jax.config.jax_compilation_cache_dir else ""  # type: ignore[attr-defined]
    yield Line("train", f"{rate:.1f} examples/s at batch {size}: a step in {alone}, {alone.repeats} times {each} steps; it "
               f"compiled{cached} in {compiling:.1f} s",
               {**alone.figures(), "examples_per_second": rate, "batch_size": size, "compile_seconds": compiling})
    use = flops.Use(asked / size, rate, flops.peak(_dtype(config), peak_tflops, jax.device_count()))
    yield Line("flops", str(use), use.figures())
    yield _memory(compiled)
    if profile is not None:
        yield profiling.trace(lambda: one(resident), compiled, profile, together)


def model_flops(config: ConfigDict, known: Facts) -> int:
    """Of a training step on a batch: forward and backward, without what `remat` does twice."""
    config = config.copy_and_resolve_references().unlock()
    config.network.remat = None
    made: list[objective.Training] = []

    def state() -> Any:  # traced, so that no parameters are made
        made.append(objective.train_step(config, build.network(config, known), known))
        return made[0].state

    shapes = jax.eval_shape(state)
    batch = {name: jax.ShapeDtypeStruct((config.data.batch_size, *shape), build.dtype_of(name))
             for name, shape in build.batch_keys(config, known).items()}
    return flops.count(made[0].step, shapes, batch)


def _memory(compiled: Any) -> Line:
    """What the compiled step holds, and the most that the device, or on a CPU the process, has held until now."""
    said, found = [], dict[str, int]()
    each = " on each device" if jax.device_count() > 1 else ""
    analysis = compiled.memory_analysis()
    if analysis is not None:
        found |= {"temporaries": analysis.temp_size_in_bytes, "arguments": analysis.argument_size_in_bytes}
        said.append(f"{found['temporaries'] / MIB:.1f} MiB of temporaries in a training step{each}")
        said.append(f"{found['arguments'] / MIB:.1f} MiB of state and batch")
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["peak_device"] = stats["peak_bytes_in_use"]
        said.append(f"{found['peak_device'] / MIB:.1f} MiB at most on a device")
    elif sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        said.append(f"{found['peak_process'] / MIB:.1f} MiB at most in this process, compiling included")
    return Line("memory", "; ".join(said), found)
