"""Leaving politely: the first SIGINT or SIGTERM asks the loop to save and go, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Leave:
    """A context in which both signals only set `received` (the signal's number, None before it comes).

    Outside the main thread Python cannot catch signals; the context then does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

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

    def agreed(self) -> int | None:
        """The signal that any process received: every process must call it at the same step, and all get one answer."""
        if jax.process_count() == 1:
            return self.received
        return int(np.max(multihost_utils.process_allgather(np.int32(self.received or 0)))) or None
