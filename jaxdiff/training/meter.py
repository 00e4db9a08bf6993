"""Metrics of the steps between two log rows, gathered on the device and averaged when they are asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

_AHEAD = 8  # dispatches in flight: enough to hide the host, few enough to bound memory and to leave quickly


class Meter:
    """Averages metrics over steps and measures the pace of the steps alone, without evaluations and saves."""

    def __init__(self, examples_per_step: int | None = None, per_dispatch: int = 1) -> None:
        self._examples = examples_per_step
        self._per_dispatch = per_dispatch
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._rows: list[Mapping[str, np.ndarray]] = []
        self._clock: tuple[int, float] | None = None  # step and time from which the pace counts
        self._newest = 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of the dispatch that ended at `step`, and wait for the one that lies `_AHEAD` before it."""
        self._pending.append((step, metrics))
        self._newest = step
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD][1])
        if self._clock is None:  # the first dispatch compiles: the pace counts from its end
            self._clock = (step, time.perf_counter())

    def first_bad(self) -> int | None:
        """Fetch what has gathered; the first step in it that was not finite, or None."""
        ends = [step for step, _ in self._pending]
        rows = jax.device_get([metrics for _, metrics in self._pending])
        self._pending = []
        self._rows += rows
        for end, row in zip(ends, rows, strict=True):
            finite = np.atleast_1d(row["finite"])
            if not finite.all():
                return end - self._per_dispatch + 1 + int(np.argmin(finite))
        return None

    def read(self) -> dict[str, float]:
        """Means over the steps fetched since the last read, steps_per_s, and examples_per_s where it is known."""
        rows, self._rows = self._rows, []
        columns = {k: np.concatenate([np.ravel(row[k]) for row in rows]).astype(np.float64) for k in rows[0]}
        del columns["finite"]
        # NaN marks the steps that an update's `every` passed over.
        means = {k: float(np.mean(v[~np.isnan(v)])) for k, v in columns.items() if not np.isnan(v).all()}
        assert self._clock is not None
        now, (step, since) = time.perf_counter(), self._clock
        if self._newest > step and now > since:
            means["steps_per_s"] = (self._newest - step) / (now - since)
            if self._examples is not None:
                means["examples_per_s"] = self._examples * means["steps_per_s"]
        self._clock = (self._newest, now)
        return means

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here does not count."""
        began = time.perf_counter()
        yield
        if self._clock is not None:
            self._clock = (self._clock[0], self._clock[1] + time.perf_counter() - began)
