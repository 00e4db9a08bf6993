"""Train what a config describes, in a run directory: the walk from records to checkpoints and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdiff import build, codec, data, evaluation, objective, prompts, tables, training
from jaxdiff.facts import Facts, write_facts
from jaxdiff.feed import Feed, open_feed
from jaxdiff.run import Run
from jaxdiff.spread import Spread, shared

# keys that say how a run is watched, not what it is, and the two that mend a run that diverged: they may differ when it
# is resumed
MAY_CHANGE = (
    "name", "sampler", "grid", "evaluate", "train.steps", "train.log_every", "train.eval_every", "train.checkpoint_every",
    "train.keep", "train.preview", "train.steps_per_dispatch", "data.num_threads", "data.options.data_dir", "codec.run",
    "codec.cache", "parallel", "network.remat", "optimizer.learning_rate", "optimizer.clip",
    "discriminator_optimizer.learning_rate", "discriminator_optimizer.clip",
)


def train(config: ConfigDict, workdir: Any, progress: bool = True) -> training.Outcome:
    """Train up to `config.train.steps`, resuming by itself; everything goes to `workdir`.

    On several devices it lies as `config.parallel` says (`training.Layout`); over several processes each reads its share of
    the data. Raises as `jaxdiff.training.train` does; nothing is written before everything is built and its words are right.
    """
    saved = config.to_dict()
    layout = _check(config, workdir, saved)
    feed = open_feed(config, workdir)
    known = feed.known
    net = build.network(config, known)
    mesh, pmapped = (None, False) if layout is None else (layout.mesh, layout.kind == "pmap")
    with training.made_where(layout):
        parts = objective.train_step(config, net, known, layout)
    example = {name: jax.ShapeDtypeStruct((config.data.batch_size, *shape), build.dtype_of(name))
               for name, shape in build.batch_keys(config, known).items()}
    try_ = jax.vmap(parts.step, (None, None), axis_name=training.AXIS, axis_size=1) if pmapped else parts.step
    jax.eval_shape(try_, parts.state, example)  # parts that do not fit say so now; the loop reuses the trace
    stream = feed.batches(progress, placed=layout is None)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        if jax.process_index() == 0:  # here the loop has checked its own words and written config.json
            write_facts(workdir, known)
            if feed.reader is not None:
                prompts.write(workdir, feed.reader)
        return stream(start)

    return training.train(
        parts.step,
        parts.state,
        batches,
        workdir,
        config.train.steps,
        log_every=config.train.log_every,
        eval_every=config.train.eval_every,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
        evaluate=_validation(feed, net, mesh, parts.state, example),
        preview=_preview(feed, net, parts.state, mesh),
        config=saved,
        may_change=MAY_CHANGE,
        defaults=tables.base().to_dict(),
        schedules=parts.schedules,
        examples_per_step=config.data.batch_size,
        steps_per_dispatch=config.train.steps_per_dispatch,
        layout=layout,
        progress=progress,
    )


def _check(config: ConfigDict, workdir: Any, saved: dict[str, Any]) -> training.Layout | None:
    """The layout; and what would otherwise be refused only after the first files are written."""
    part = config.train
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise NotADirectoryError(f"workdir is {str(workdir)!r}, a file; allowed: a directory, or a new name")
    training.check_free(workdir)
    if training.steps(workdir):
        training.check_config(workdir, saved, MAY_CHANGE, tables.base().to_dict())
    for name, least in {"steps": 1, "keep": 1, "preview": 0}.items():
        if part[name] < least:
            raise ValueError(f"train.{name} is {part[name]}; allowed: {least} or more")
    if part.best_mode not in ("min", "max"):
        raise ValueError(f"train.best_mode is {part.best_mode!r}; allowed: min, max")
    shares = jax.device_count() * max(part.accumulate, 1)
    if config.data.batch_size < 1 or config.data.batch_size % shares:
        raise ValueError(f"data.batch_size is {config.data.batch_size}; allowed: a multiple of {shares} "
                         f"({jax.device_count()} devices x accumulate {part.accumulate})")
    return tables.call(training.make_layout, config.parallel, "parallel")


def _validation(feed: Feed, net: Any, mesh: Mesh | None, state: training.TrainState, example: dict[str, Any]) -> Any:
    """The loss of the averaged parameters on the validation split, where the source was told to keep one.

    `example` is an abstract batch. Raises ValueError where `train.best_metric` names nothing that is measured.
    """
    config = feed.config
    if not dict(config.data.options).get("validation"):
        if config.train.best_metric:
            raise ValueError(f"train.best_metric is {config.train.best_metric!r} but there is no validation split; mend: "
                             "--config.data.options.validation=0.1")
        return None
    name = build.trains(config)
    loss = objective.loss(config, net, feed.known).losses[name]
    run = jax.jit(lambda params, state, batch, key: loss(params, state, key, batch, 0)[1].metrics)
    if config.train.best_metric:
        allowed = sorted(f"eval/{key}" for key in jax.eval_shape(run, state.params, state.state, example, state.key))
        if config.train.best_metric not in allowed:
            raise ValueError(f"train.best_metric is {config.train.best_metric!r}; allowed: {', '.join(allowed)}")
    epoch = feed.epoch("validation")

    def evaluate(state: training.TrainState, step: int) -> dict[str, float]:
        rows, params = [], {**state.params, name: state.ema[name]["ema"]}
        for i, batch in enumerate(epoch()):
            key = jax.random.fold_in(jax.random.key(0), i)
            rows.append((len(batch["x"]), run(params, state.state, shared(batch, mesh), key)))
        total = sum(n for n, _ in rows)
        return {key: float(sum(n * row[key] for n, row in rows) / total) for key in rows[0][1]}

    return evaluate


def _preview(feed: Feed, net: Any, state: training.TrainState, mesh: Mesh | None) -> Any:
    """A picture of samples of the averaged parameters, classes or captions in turn, the same noise at every evaluation."""
    config, known = feed.config, feed.known
    num = config.train.preview
    name = build.trains(config)
    if num == 0 or name == "classifier":
        return None
    if name == "autoencoder":
        return codec.preview(config, net, known, lambda state: state.ema[name]["ema"], mesh)
    run = Run(config, None, build.path(config), known, net, 0, feed.coder, feed.reader)
    draw = Spread(run.sampler(), mesh)
    cond: Any = {"label": np.arange(num, dtype=np.int32) % known.num_classes} if known.num_classes else {}
    beside: Any = None
    captions: Any = None
    if known.condition:
        rows = max(1, num // 4)  # four draws of each condition
        beside, num = build.examples(config, known, "test", rows), 4 * rows
        cond = {name: np.concatenate([beside[name]] * 4) for name in ("label", "image", "mask")
                if name in build.batch_keys(config, known)}
        captions = np.concatenate([beside["prompt"]] * 4) if known.text else None
    elif known.text:
        captions = np.resize(build.examples(config, known, "test", num)["prompt"], num)
        beside = {"caption": captions}
    elif known.kind != "image":
        beside = {"x": np.asarray(data.preview(build.source(config, "test"), 5000)["x"])}

    def asked(params: Any) -> Any:
        return {**cond, **({} if captions is None else run._replace(params=params).read(captions))} or None

    draw.eval_shape(state.ema[name]["ema"], state.key, asked(state.ema[name]["ema"]), num)  # as above

    def preview(state: training.TrainState, step: int) -> list[tuple[str, np.ndarray]]:
        params = state.ema[name]["ema"]
        samples = draw(params, jax.random.key(config.seed), asked(params), num)
        return [("samples", picture(samples, known, beside))]

    return preview


def picture(samples: np.ndarray, known: Facts, beside: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Samples as a picture: a grid of images (a column a class, where there are up to 20), real | samples as dots, or
    condition | draws | truth where `beside` holds the conditions `image` `[N, ...]`, for K N samples; where it holds
    `caption`, a text for each, a grid with these; `original` | reconstruction."""
    if beside is not None and "original" in beside:
        return codec.pair_picture(beside["original"], samples)
    if beside is not None and "caption" in beside:
        texts = [str(text) for text in beside["caption"]]
        cycle = len(dict.fromkeys(texts))  # a column a prompt, where several are drawn of each
        return evaluation.captioned_grid(samples, texts, cycle if 1 < cycle <= 12 and cycle < len(texts) else None)
    if beside is not None and "image" in beside:
        draws = samples.reshape(-1, len(beside["image"]), *samples.shape[1:])
        return evaluation.condition_picture(beside["image"], draws, beside.get("x"))
    if known.kind == "image":
        columns = known.num_classes if 1 < known.num_classes <= 20 else None
        return evaluation.image_grid(samples, columns)
    return evaluation.scatter_picture(samples if beside is None else beside["x"], samples)
