"""Two programs of a config beside each other, as ratios within one run: what a part of this house costs over what it needs.

    sampler    a sampler's call / (its network evaluations x the jitted denoiser's call)      at most 1.05 wanted
    compile    compiling a 1,000-step sampler / compiling a 10-step one                       at most 1.3
    guidance   a call guided classifier-free / the plain denoiser's at twice the batch        at most 1.05 wanted
    estimator  a training step in which the condition is diffused too / one of CDE, where it stays clean
    text       a training step that reads captions / of the same network without them         at most 1.25
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxdiff import build, guidance, objective, sde, tables
from jaxdiff.benchmark import stopwatch
from jaxdiff.benchmark.stopwatch import Line
from jaxdiff.facts import Facts
from jaxdiff.feed import Feed
from jaxdiff.hardware import flops
from jaxdiff.run import Run
from jaxdiff.trees import clock


def sampling(run: Run, num: int, budget: float, peak: float | None = None) -> Iterator[Line]:
    """The sampler of a run with fresh or trained parameters drawing `num` examples: beside its network's calls, its rate,
    and what compiling it costs. One device; `peak` is its FLOP/s, where known."""
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

    found = stopwatch.ratio(lambda: draw(run.params, jax.random.key(0), cond, num), many, budget)
    name, a = run.config.sampler.kind, found.a.median
    said = found.said(f"{name}, {steps} steps, {calls} evaluations, {num} samples", f"{calls} denoiser calls")
    yield Line("sampler", said,
               {**found.figures(), "kind": name, "steps": steps, "evaluations": calls, "samples": num})
    use = flops.Use(calls * flops.count(denoise, run.params, x, t, told) / num, num / a, peak)
    yield Line("sample", f"{num / a:.1f} examples/s, {num} at once, on one device; {use}",
               {"examples_per_second": num / a, "samples": num, **use.figures()})
    if not build.adversarial(run.config):  # a generator has one number of steps
        yield _compiling(run, cond, num)


def _compiling(run: Run, cond: Any, num: int) -> Line:
    def compile_seconds(n: int) -> float:
        jax.clear_caches()
        fresh = jax.jit(run.sampler(num_steps=n, guidance=1.0), static_argnums=3)
        start = time.perf_counter()
        fresh.lower(run.params, jax.random.key(0), cond, num).compile()
        return time.perf_counter() - start

    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        times = [(compile_seconds(1000), compile_seconds(10)) for _ in range(3)]
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    value = statistics.median(a / b for a, b in times)
    long, short = (statistics.median(column) for column in zip(*times, strict=True))
    return Line("compile", f"{value:.3f} x  1,000 steps: {long:.2f} s; 10 steps: {short:.2f} s (3 pairs)",
                {"ratio": value, "seconds": [long, short], "pairs": 3})


def guided(run: Run, num: int, budget: float) -> Line:
    """A classifier-free guided call of `num` examples beside the plain denoiser's of 2 `num`, both jitted."""
    guide = guidance.classifier_free(2.0, run.facts.num_classes)
    spec = jax.ShapeDtypeStruct((2 * num, *run.facts.shape), jnp.float32)
    x, t = sde.prior(run.path, jax.random.key(0), spec), jnp.asarray(run.path.t_max, jnp.float32)
    label = jnp.arange(2 * num) % run.facts.num_classes
    call = lambda wrap: jax.jit(lambda x, label: wrap(run.denoiser(run.params))(jax.random.key(0), x, t, {"label": label}))
    with_it, plain = call(guide), call(lambda denoise: denoise)
    jax.block_until_ready(plain(x, label))
    each = stopwatch.enough(lambda: plain(x, label), 0.1)

    def many(fn: Callable[..., Any], count: int) -> Callable[[], Any]:
        part = x[:count], label[:count]
        return lambda: [fn(*part) for _ in range(each)]

    found = stopwatch.ratio(many(with_it, num), many(plain, 2 * num), budget).over(each)
    said = found.said(f"a guided call of {num}", f"a plain one of {2 * num}")
    return Line("guidance", f"{said} of {each} calls", {**found.figures(), "samples": num})


def estimating(feed: Feed, budget: float) -> Line:
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
    found = stopwatch.ratio(calls[0], calls[1], budget)
    kind = config.estimator.kind
    return Line("estimator", found.said(f"a training step of {kind}", "of cde"), {**found.figures(), "kind": kind})


def reading(config: ConfigDict, known: Facts, budget: float) -> Line:
    """A training step of the network that reads `text.length` tokens, next to the same network without text."""
    calls = []
    for told in (known, known._replace(text=(), vocab=0)):
        parts = objective.train_step(config, build.network(config, told), told)
        batch = {name: jnp.ones((config.data.batch_size, *shape), build.dtype_of(name))
                 for name, shape in build.batch_keys(config, told).items()}
        calls.append(lambda step=jax.jit(parts.step), state=parts.state, batch=batch: step(state, batch)[1])
    found = stopwatch.ratio(calls[0], calls[1], budget)
    tokens = known.text[0]
    said = found.said(f"a training step that reads {tokens} tokens", "without text")
    return Line("text", said, {**found.figures(), "tokens": tokens})
