"""Leaving politely: the first SIGINT or SIGTERM asks the loop to save and go, the second ends the process at once.

A machine about to be taken away sends SIGTERM, to one process or to all, steps apart, some 30 s ahead. Several processes
can only stop together, so they ask each other: at the steps where they wait for the device anyway, and in between every few
seconds, after as many steps as process 0's clock says. Asking waits for the steps in flight, so not at every step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_SECONDS = 4.0  # between two questions; the pace may halve and the answer still come in 10


class Leave:
    """A context in which both signals only set `received` (the signal's number, None before it comes).

    Outside the main thread Python cannot catch signals; the context then does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._calls, self._until = 0, 1  # since the last question, and at the next one
        self._asked: float | None = None  # when; the pace counts from there

    def __enter__(self) -> Leave:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:  # the second time: die as an uncaught signal would
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        # Descriptor 2 directly: a handler may interrupt a print, whose buffer must not be entered again.
        os.write(2, f"\n{signal.Signals(number).name}: saving, then leaving; again to leave now\n".encode())

    def agreed(self, now: bool = True) -> int | None:
        """The signal that any process received, the same answer on all of them; None before the next question.

        Every process calls it once a dispatch, with the same `now`: whether to ask in any case.
        """
        if jax.process_count() == 1:
            return self.received
        self._calls += 1
        if not now and self._calls < self._until:
            return None
        ahead = 1
        if self._asked is not None:  # at most eight times as far as was just measured
            elapsed = max(time.monotonic() - self._asked, 1e-3)
            ahead = int(np.clip(self._calls * _SECONDS / elapsed, 1, 8 * self._calls))
        heard = multihost_utils.process_allgather(np.array([self.received or 0, ahead], np.int32))
        self._calls, self._until, self._asked = 0, int(heard[0, 1]), time.monotonic()
        return int(heard[:, 0].max()) or None
