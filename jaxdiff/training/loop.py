"""The training loop: resume, step, log, evaluate, save, leave. It knows no network, no path and no data.

A *step number* counts updates done: step k is the k-th update, and a checkpoint of step k is followed by batch number k
(counted from 0). Inside the loop nothing is fetched from the device: metrics stay there until a log step (meter.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.checkpoint import steps as saved_steps
from jaxdiff.training.claim import claim
from jaxdiff.training.logs import Log
from jaxdiff.training.meter import Meter
from jaxdiff.training.parallel import Layout, compiled_step, place_batch, place_state
from jaxdiff.training.processes import agreed
from jaxdiff.training.resume import restore, set_aside
from jaxdiff.training.rundir import check_config, write_run_files
from jaxdiff.training.signals import Leave
from jaxdiff.training.state import TrainState
from jaxdiff.training.step import TrainStep
from jaxdiff.types import Batch


class Outcome(NamedTuple):
    """How training ended: last state, its step, the signal that ended it (None: all steps done), last metrics."""

    state: TrainState
    step: int
    signal: int | None
    metrics: dict[str, float]


class NonFiniteLoss(ArithmeticError):
    """A loss, gradient or update was NaN or infinite at `step`; the checkpoints before it are untouched."""

    def __init__(self, step: int, saved: int | None, workdir: str | os.PathLike) -> None:
        last = "there is no checkpoint before it" if saved is None else f"the last good checkpoint is step {saved}"
        super().__init__(
            f"loss or gradient not finite at step {step} in {os.fspath(workdir)}; {last}; "
            f"lower the learning rate, clip gradients or check the data, then run again to resume"
        )
        self.step = step
        self.saved = saved


def train(
    step_fn: TrainStep,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    workdir: str | os.PathLike,
    steps: int,
    *,
    log_every: int = 100,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
    keep: int = 3,
    best_metric: str | None = None,
    best_mode: str = "min",
    evaluate: Callable[[TrainState, int], Mapping[str, float]] | None = None,
    preview: Callable[[TrainState, int], Sequence[tuple[str, np.ndarray]]] | None = None,
    config: Mapping[str, Any] | None = None,
    may_change: Sequence[str] = (),
    defaults: Mapping[str, Any] = {},
    schedules: Mapping[str, Callable[[int], Any]] | None = None,
    examples_per_step: int | None = None,
    steps_per_dispatch: int = 1,
    layout: Layout | None = None,
    progress: bool = True,
) -> Outcome:
    """Train up to step `steps`, going on from the newest checkpoint in `workdir` if there is one.

    step_fn: from `make_train_step`, not jitted: the loop jits it and donates `state`, whose arrays are gone afterwards. With
        a layout of kind "pmap" it has `axis_name="data"`.
    batches: start step -> iterator of batches from there on; with a `layout`, of this process's part of each.
    evaluate, preview: called on every process with the state at steps divisible by `eval_every` and at the last one;
        scalars are logged as "eval/<name>", images (uint8 [H, W, C]) go to samples/ and TensorBoard.
    best_metric: a logged name, such as "eval/fid", whose best checkpoint stays; then every evaluation is saved.
    config, may_change, defaults: see `rundir.check_config`. schedules: logged as "schedule/<name>" at each log step.
    steps_per_dispatch: steps that one call of the device runs; it must divide `steps` and the three intervals.
    layout: train over its devices; a checkpoint of any layout, or of none, is resumed under any other.

    SIGINT and SIGTERM save and end with `Outcome.signal` set; of several processes one that receives it is enough, and all
    leave at the same step, seconds later (signals.py). A row is logged at every save too, so that the rows after a resume
    are means over the same steps as without a stop.
    Raises NonFiniteLoss at a NaN, ValueError for another config in `workdir`, another training there or bad intervals,
    OSError where `workdir` cannot be written, RuntimeError where `batches` ends early or a save fails; older checkpoints
    stay whatever happens.
    """
    _check_intervals(steps_per_dispatch, steps=steps, log=log_every, eval=eval_every, checkpoint=checkpoint_every)
    config = dict(config or {})
    if agreed(saved_steps(workdir)):
        check_config(workdir, config, may_change, defaults)
    if layout is not None:
        state = place_state(state, layout)
    with claim(workdir):
        start = 0
        if agreed(saved_steps(workdir)):
            start, state = _resume(workdir, state)
        write_run_files(workdir, config)
        if start >= steps:
            return Outcome(state, start, None, {})

        step = compiled_step(step_fn, state, layout, steps_per_dispatch)
        source = dispatches(batches(start), steps_per_dispatch, layout, start)
        meter = Meter(examples_per_step, steps_per_dispatch)
        latest: dict[str, float] = {}
        with (
            Leave() as leave,
            Log(workdir, start) as log,
            Checkpoints(workdir, keep, best_metric, best_mode, config) as saves,
            tqdm(
                total=steps,
                initial=start,
                disable=not progress or jax.process_index() > 0,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,
                bar_format="{percentage:3.0f}% |{bar:20}| {n}/{total} [{elapsed}<{remaining}{postfix}]",
            ) as bar,
        ):
            saved = start or None

            def stop_if_bad() -> None:
                """No evaluation and no save behind a step that was not finite."""
                if (bad := meter.first_bad()) is not None:
                    raise NonFiniteLoss(bad, saved, workdir)

            for n in range(start + steps_per_dispatch, steps + 1, steps_per_dispatch):
                state, metrics = step(state, next(source))
                meter.add(n, metrics)
                bar.update(steps_per_dispatch)
                due = lambda every, n=n: n == steps or n % every == 0
                waits = due(log_every) or due(eval_every) or due(checkpoint_every)
                signal = leave.agreed(now=waits)
                saves_best = best_metric is not None and due(eval_every)
                if due(log_every) or due(checkpoint_every) or saves_best or signal:
                    stop_if_bad()
                    _seal(saves)
                    latest = meter.read() | {f"schedule/{k}": float(rate(n - 1)) for k, rate in (schedules or {}).items()}
                    log.scalars(n, latest)
                    bar.set_postfix_str(_summary(latest), refresh=False)
                scores: dict[str, float] = {}
                if due(eval_every) and not signal:
                    stop_if_bad()
                    with meter.paused():
                        scores = _evaluate(evaluate, preview, state, n, log)
                if due(checkpoint_every) or signal or (best_metric in scores):
                    stop_if_bad()
                    with meter.paused():
                        _save(saves, n, state, latest | scores, leaving=n == steps or signal is not None)
                    saved = n
                if signal:
                    return Outcome(state, n, signal, latest)
                latest |= scores if n == steps else {}
        return Outcome(state, steps, None, latest)


def _resume(workdir: str | os.PathLike, state: TrainState) -> tuple[int, TrainState]:
    restored = restore(workdir, like=state)
    set_aside(workdir, restored.step)
    # The fresh state is donated like any other: without this, the caller's name for it keeps a second model in memory.
    for old in jax.tree.leaves(state):
        if isinstance(old, jax.Array):
            old.delete()
    return restored.step, restored.tree


def dispatches(source: Iterator[Batch], n: int, layout: Layout | None, start: int) -> Iterator[Batch]:
    """Batches on their devices, `n` of them stacked per dispatch; `start` is the step they go on from.

    Raises RuntimeError where `source` ends.
    """
    done = start
    while True:
        group = []
        for _ in range(n):
            try:
                group.append(next(source))
            except StopIteration:
                raise RuntimeError(
                    f"the data ended after {done} steps; let the source repeat, or lower the number of steps"
                ) from None
            done += 1
        batch = group[0] if n == 1 else jax.tree.map(lambda *xs: np.stack(xs), *group)
        yield batch if layout is None else place_batch(batch, layout, axis=0 if n == 1 else 1)


def _evaluate(evaluate: Any, preview: Any, state: TrainState, step: int, log: Log) -> dict[str, float]:
    scores = {} if evaluate is None else {f"eval/{k}": float(v) for k, v in (evaluate(state, step) or {}).items()}
    if scores:
        log.scalars(step, scores)
    if preview is not None:
        log.images(step, preview(state, step) or [])
    return scores


def _seal(saves: Checkpoints) -> None:
    """Hear of a save that failed behind as soon as a row is due, and not an interval later."""
    try:
        saves.seal()
    except Exception as error:
        raise _unsaved("a checkpoint", saves, error) from error


def _save(saves: Checkpoints, step: int, state: TrainState, metrics: dict[str, float], leaving: bool) -> None:
    _seal(saves)
    try:
        saves.save(step, state, metrics)
        if leaving:
            saves.wait()
    except Exception as error:
        raise _unsaved(f"step {step}", saves, error) from error


def _unsaved(what: str, saves: Checkpoints, error: Exception) -> RuntimeError:
    kept = ", ".join(map(str, saved_steps(saves.directory.parent))) or "none"
    reason = " ".join(str(error).split())
    reason = reason if len(reason) < 300 else f"{reason[:100]} ... {reason[-180:]}"  # the cause comes last
    return RuntimeError(
        f"could not save {what} in {saves.directory} ({reason}); "
        f"the older ones are untouched ({kept}); free some space and run again"
    )


def _summary(metrics: Mapping[str, float]) -> str:
    losses = {k: v for k, v in metrics.items() if k.endswith("/loss")}
    words = [f"loss {v:.4g}" if len(losses) == 1 else f"{k} {v:.4g}" for k, v in losses.items()]
    words += [f"{metrics[k]:.3g} {k[:-6]}/s" for k in ("steps_per_s", "examples_per_s") if k in metrics]
    return ", ".join(words)


def _check_intervals(per_dispatch: int, **intervals: int) -> None:
    for name, value in {"steps_per_dispatch": per_dispatch, **intervals}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 or more steps")
        if value % per_dispatch:
            raise ValueError(f"{name} is {value}; allowed: a multiple of steps_per_dispatch={per_dispatch}")
