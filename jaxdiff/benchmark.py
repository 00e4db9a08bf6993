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
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxdiff import build, comparisons, flops, objective, peers, profiling, stopwatch
from jaxdiff.facts import Facts
from jaxdiff.feed import Feed, open_feed
from jaxdiff.networks.layers import count_params
from jaxdiff.run import Run
from jaxdiff.stopwatch import Line

WHAT = ("train", "sample", "data")
COMPARE = ("torch",)
MIB = 2**20


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
    known = feed.known
    net = build.network(config, known)
    if compare:
        peers.check(config, net)
    if profile is not None:
        profiling.check(profile)
    params = build.init_params(config, net, known, jax.random.key(0))
    yield _header(config, count_params(params))
    if "data" in what:
        yield _data(feed, seconds)
    if "train" in what:
        yield from _training(feed, seconds, "data" in what, profile, peak_tflops)
        if known.text:
            yield comparisons.reading(config, known, seconds)
        if build.joint(config):
            yield comparisons.estimating(feed, seconds)
    if "sample" in what:
        run = Run(config, params, build.path(config), known, net, 0, feed.coder, feed.reader)
        num = min(config.data.batch_size, 64)
        yield from comparisons.sampling(run, num, seconds, flops.peak(_dtype(config), peak_tflops))
        if known.num_classes and not known.condition and not build.adversarial(config):
            yield comparisons.guided(run, num, seconds)
    if compare:
        yield from peers.compare(config, known, seconds)


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


def _data(feed: Feed, seconds: float) -> Line:
    """The feed with nothing that waits for it, its batches on the device."""
    batches, size = feed.batches()(0), feed.config.data.batch_size
    draw = lambda: next(batches)
    jax.block_until_ready(draw())
    each = stopwatch.enough(draw, 0.1)
    (times,) = stopwatch.in_turn([lambda: [draw() for _ in range(each)]], seconds)
    found = stopwatch.spread(times).over(each)
    return Line("data", f"{size / found.median:.1f} examples/s from the pipeline alone: a batch of {size} in {found}, "
                f"{found.repeats} times {each} batches",
                {"examples_per_second": size / found.median, **found.figures(), "batch_size": size})


def _training(feed: Feed, seconds: float, fed: bool, profile: str | None, peak_tflops: float | None) -> Iterator[Line]:
    """The step of `jaxdiff train`; with `fed` also beside the same step fed by the pipeline."""
    config, known = feed.config, feed.known
    parts = objective.train_step(config, build.network(config, known), known)
    step = jax.jit(parts.step, donate_argnums=0)
    batches, size = feed.batches()(0), config.data.batch_size
    resident = next(batches)
    start = time.perf_counter()
    compiled = step.lower(parts.state, resident).compile()
    compiling = time.perf_counter() - start
    asked = model_flops(config, known, resident)
    now = {"state": parts.state}

    def one(batch: Any) -> Any:
        now["state"], metrics = compiled(now["state"], batch)
        return metrics

    jax.block_until_ready(one(resident))
    each = stopwatch.enough(lambda: one(resident), 0.5)

    def steps(batch: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [one(batch()) for _ in range(each)][-1]

    if fed:
        found = stopwatch.ratio(steps(lambda: next(batches)), steps(lambda: resident), seconds).over(each)
        said = found.said("a step fed by the pipeline", "with a resident batch")
        yield Line("pipeline", f"{said} of {each} steps", found.figures())
        alone = found.b
    else:
        (times,) = stopwatch.in_turn([steps(lambda: resident)], seconds)
        alone = stopwatch.spread(times).over(each)
    rate = size / alone.median
    cached = " or read from the compilation cache" if jax.config.jax_compilation_cache_dir else ""  # type: ignore[attr-defined]
    yield Line("train", f"{rate:.1f} examples/s at batch {size}: a step in {alone}, {alone.repeats} times {each} steps; it "
               f"compiled{cached} in {compiling:.1f} s",
               {**alone.figures(), "examples_per_second": rate, "batch_size": size, "compile_seconds": compiling})
    use = flops.Use(asked / size, rate, flops.peak(_dtype(config), peak_tflops))
    yield Line("flops", str(use), use.figures())
    yield _memory(compiled)
    if profile is not None:
        yield profiling.trace(lambda: one(resident), compiled, profile)


def model_flops(config: ConfigDict, known: Facts, batch: Any) -> int:
    """Of a training step on a batch, arrays or their shapes: forward and backward, without what `remat` does twice."""
    config = config.copy_and_resolve_references().unlock()
    config.network.remat = None
    made: list[objective.Training] = []

    def state() -> Any:  # traced, so that no parameters are made
        made.append(objective.train_step(config, build.network(config, known), known))
        return made[0].state

    shapes = jax.eval_shape(state)
    return flops.count(made[0].step, shapes, batch)


def _memory(compiled: Any) -> Line:
    """What the compiled step holds, and the most that the device, or on a CPU the process, has held until now."""
    said, found = [], dict[str, int]()
    analysis = compiled.memory_analysis()
    if analysis is not None:
        found |= {"temporaries": analysis.temp_size_in_bytes, "arguments": analysis.argument_size_in_bytes}
        said.append(f"{found['temporaries'] / MIB:.1f} MiB of temporaries in a training step")
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
