"""Timings of a config on this machine, each as a ratio measured within one run, A and B in turn.

    sampler    a sampler's call / (its network evaluations x the jitted denoiser's call)      at most 1.05 wanted
    guidance   a call guided classifier-free / the plain denoiser's at twice the batch        at most 1.05 wanted
    compile    compiling a 1,000-step sampler / compiling a 10-step one                       at most 1.3
    pipeline   training steps fed by the real pipeline / fed one resident batch               at most 1.02
    text       a training step that reads captions / of the same network without them         at most 1.25

Medians over as many repeats as the time allows. Figures are of whole calls, waited for on the device.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxdiff import build, guidance, objective, sde, tables, training
from jaxdiff.facts import Facts
from jaxdiff.feed import Feed, open_feed
from jaxdiff.run import Run
from jaxdiff.trees import clock


def _seconds(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def ratio(a: Callable[[], Any], b: Callable[[], Any], seconds: float) -> tuple[float, float, float, int]:
    """`(median of a/b, median a, median b, pairs)`: a and b in turn until the time is over, at least three pairs."""
    a_times: list[float] = []
    b_times: list[float] = []
    a(), b()
    end = time.perf_counter() + seconds
    while len(a_times) < 3 or time.perf_counter() < end:
        a_times.append(_seconds(a))
        b_times.append(_seconds(b))
    pairs = [x / y for x, y in zip(a_times, b_times, strict=True)]
    return statistics.median(pairs), statistics.median(a_times), statistics.median(b_times), len(pairs)


def _sampler_lines(run: Run, num: int, seconds: float) -> Iterator[str]:
    chosen, steps = build.sampler(run.config), run.config.sampler.num_steps
    keys = build.batch_keys(run.config, run.facts)
    cond: Any = {name: jnp.zeros((num, *keys[name])) for name in ("image", "mask") if name in keys}
    if run.facts.num_classes:
        cond["label"] = jnp.arange(num) % run.facts.num_classes
    draw = jax.jit(run.sampler(guidance=1.0), static_argnums=3)
    denoise = jax.jit(lambda params, x, t, told: run.denoiser(params)(jax.random.key(0), x, t, told))
    like: Any = jax.ShapeDtypeStruct((num, *run.facts.shape), jnp.float32)
    told: Any = dict(cond)
    if build.joint(run.config):
        like = {"x": like, "y": told.pop("image")}
    x, cond, told = sde.prior(run.path, jax.random.key(0), like), cond or None, build.told(run.config, run.facts, told)
    t = jnp.asarray(clock(run.path).t_max, jnp.float32)
    calls = chosen.evaluations(steps)

    def many() -> Any:
        for _ in range(calls):
            out = denoise(run.params, x, t, told)
        return out

    value, a, b, pairs = ratio(lambda: draw(run.params, jax.random.key(0), cond, num), many, seconds)
    name = run.config.sampler.kind
    yield (f"sampler    {value:.3f} x  {name}, {steps} steps, {calls} evaluations, {num} samples: {a:.3f} s; "
           f"{calls} denoiser calls: {b:.3f} s ({pairs} pairs)")

    if build.adversarial(run.config):
        return  # it has one number of steps

    def compile_seconds(n: int) -> float:
        jax.clear_caches()
        fresh = jax.jit(run.sampler(num_steps=n, guidance=1.0), static_argnums=3)
        start = time.perf_counter()
        fresh.lower(run.params, jax.random.key(0), cond, num).compile()
        return time.perf_counter() - start

    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    times = [(compile_seconds(1000), compile_seconds(10)) for _ in range(3)]
    jax.config.update("jax_enable_compilation_cache", cached)
    pairs_ = [a / b for a, b in times]
    long, short = (statistics.median(column) for column in zip(*times, strict=True))
    yield f"compile    {statistics.median(pairs_):.3f} x  1,000 steps: {long:.2f} s; 10 steps: {short:.2f} s (3 pairs)"


def _guidance_line(run: Run, num: int, seconds: float) -> str:
    """A classifier-free guided call of `num` examples beside the plain denoiser's of 2 `num`, both jitted."""
    guide = guidance.classifier_free(2.0, run.facts.num_classes)
    spec = jax.ShapeDtypeStruct((2 * num, *run.facts.shape), jnp.float32)
    x, t = sde.prior(run.path, jax.random.key(0), spec), jnp.asarray(run.path.t_max, jnp.float32)
    label = jnp.arange(2 * num) % run.facts.num_classes
    call = lambda wrap: jax.jit(lambda x, label: wrap(run.denoiser(run.params))(jax.random.key(0), x, t, {"label": label}))
    guided, plain = call(guide), call(lambda denoise: denoise)
    each = max(1, int(0.1 / max(min(_seconds(lambda: plain(x, label)) for _ in range(3)), 1e-4)))

    def many(fn: Callable[..., Any], count: int) -> Callable[[], Any]:
        part = x[:count], label[:count]
        return lambda: [fn(*part) for _ in range(each)]

    value, a, b, pairs = ratio(many(guided, num), many(plain, 2 * num), seconds)
    return (f"guidance   {value:.3f} x  a guided call of {num}: {a / each:.4f} s; a plain one of {2 * num}: "
            f"{b / each:.4f} s ({pairs} pairs of {each} calls)")


def _estimator_line(feed: Feed, seconds: float) -> str:
    """A training step in which y is diffused beside x, next to CDE's, which puts the clean y into the same network."""
    config, known = feed.config, feed.known
    calls = []
    for kind in (config.estimator.kind, "cde"):
        one = config.copy_and_resolve_references().unlock()
        one.estimator = tables.section(tables.ESTIMATORS, kind, "estimator")
        if kind == config.estimator.kind:
            one.estimator = config.estimator
        parts = objective.train_step(one, build.network(one, known), known)
        batch = next(feed._replace(config=one).batches()(0))
        calls.append(lambda step=jax.jit(parts.step), state=parts.state, batch=batch: step(state, batch)[1])
    value, a, b, pairs = ratio(calls[0], calls[1], seconds)
    return (f"estimator  {value:.3f} x  a training step of {config.estimator.kind}: {a:.4f} s; of cde: {b:.4f} s "
            f"({pairs} pairs)")


def _text_line(config: ConfigDict, known: Facts, seconds: float) -> str:
    """A training step of the network that reads `text.length` tokens, next to the same network without text."""
    calls = []
    for told in (known, known._replace(text=(), vocab=0)):
        parts = objective.train_step(config, build.network(config, told), told)
        batch = {name: jnp.ones((config.data.batch_size, *shape), build.dtype_of(name))
                 for name, shape in build.batch_keys(config, told).items()}
        calls.append(lambda step=jax.jit(parts.step), state=parts.state, batch=batch: step(state, batch)[1])
    value, a, b, pairs = ratio(calls[0], calls[1], seconds)
    return (f"text       {value:.3f} x  a step that reads {known.text[0]} tokens: {a:.4f} s; without text: {b:.4f} s "
            f"({pairs} pairs)")


def _training_lines(told: Feed, seconds: float) -> Iterator[str]:
    config, known = told.config, told.known
    net = build.network(config, known)
    parts = objective.train_step(config, net, known)
    step = jax.jit(parts.step, donate_argnums=0)
    feed = told.batches()(0)
    resident = next(feed)
    start = time.perf_counter()
    compiled = step.lower(parts.state, resident).compile()
    seconds_to_compile = time.perf_counter() - start
    state = {"now": parts.state}
    each = max(1, int(0.5 / max(_step_seconds(compiled, state, resident), 1e-4)))

    def steps(batches: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            for _ in range(each):
                state["now"], metrics = compiled(state["now"], batches())
            return metrics

        return run

    value, a, b, pairs = ratio(steps(lambda: next(feed)), steps(lambda: resident), seconds)
    size = config.data.batch_size
    yield (f"pipeline   {value:.3f} x  a step fed by the pipeline: {a / each:.4f} s; resident: {b / each:.4f} s "
           f"({pairs} pairs of {each} steps)")
    yield f"train      {size * each / a:.1f} examples/s at batch {size}; the step compiled in {seconds_to_compile:.1f} s"
    memory = compiled.memory_analysis()
    if memory is not None:
        yield f"memory     {memory.temp_size_in_bytes / 2**20:.1f} MiB of temporaries in a training step"


def _step_seconds(compiled: Any, state: dict[str, training.TrainState], batch: Any) -> float:
    state["now"], _ = compiled(state["now"], batch)
    start = time.perf_counter()
    state["now"], metrics = compiled(state["now"], batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - start


def measure(config: ConfigDict, batch_size: int | None = None, seconds: float = 20.0) -> Iterator[str]:
    """Lines of a report, as they are measured; `seconds` on each comparison, compiling apart."""
    if batch_size is not None:
        with config.unlocked():
            config.data.batch_size = batch_size
    with tempfile.TemporaryDirectory() as nowhere:  # a run that is not begun
        feed = open_feed(config, nowhere)
    known = feed.known
    net = build.network(config, known)
    device = jax.devices()[0]
    params = build.init_params(config, net, known, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    yield (f"{config.name} on {jax.device_count()} x {device.device_kind} ({device.platform}), jax {jax.__version__}, "
           f"{count:,} parameters")
    yield from _training_lines(feed, seconds)
    if known.text:
        yield _text_line(config, known, seconds)
    if build.joint(config):
        yield _estimator_line(feed, seconds)
    run = Run(config, params, build.path(config), known, net, 0, feed.coder, feed.reader)
    num = min(config.data.batch_size, 64)
    yield from _sampler_lines(run, num, seconds)
    if known.num_classes and not known.condition and not build.adversarial(config):
        yield _guidance_line(run, num, seconds)
