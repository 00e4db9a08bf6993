"""Where a run writes what it sees: `metrics.jsonl`, TensorBoard, and pictures under `samples/`.

Only process 0 writes. After a resume the rows beyond the restored step are taken out, so that no step is told twice;
TensorBoard, whose files only grow, is told to forget what came after it (`purge_step`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

_ROWS = "metrics.jsonl"


class Log:
    """The open files of one run; use it as a context manager. `start` is the step that the run resumes from."""

    def __init__(self, workdir: str | os.PathLike, start: int = 0) -> None:
        self._directory = Path(workdir)
        self._writes = jax.process_index() == 0
        if self._writes:
            self._directory.mkdir(parents=True, exist_ok=True)
            _cut(self._directory / _ROWS, start)
            self._rows = (self._directory / _ROWS).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self._directory / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of finite numbers, flushed at once. Raises OSError, in words, where it cannot be written."""
        if self._writes:
            values = {k: float(v) for k, v in values.items() if math.isfinite(v)}
            try:
                self._rows.write(json.dumps({"step": step, **values}) + "\n")
                self._rows.flush()
            except OSError as error:
                raise OSError(f"could not write the row of step {step} to {self._directory / _ROWS} ({error.strerror}); "
                              "the checkpoints are untouched; free some space and run again") from None
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def images(self, step: int, images: Sequence[tuple[str, np.ndarray]]) -> None:
        """Pictures, uint8 `[H, W, C]` with C 1, 3 or 4: the first as samples/step_<step>.png, others with their name.

        Raises ValueError for another dtype or shape.
        """
        if self._writes:
            (self._directory / "samples").mkdir(exist_ok=True)
            for i, (name, image) in enumerate(images):
                image = np.asarray(image)
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
                    raise ValueError(
                        f"preview '{name}' is {image.dtype}{list(image.shape)}; allowed: uint8 [H, W, C], C 1, 3 or 4"
                    )
                tail = "" if i == 0 else "_" + name.replace("/", "_")
                squeezed = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(squeezed).save(self._directory / "samples" / f"step_{step:06d}{tail}.png")
                self._board.add_image(name, image, step, dataformats="HWC")
            self._board.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writes:
            for file in (self._rows, self._board):  # behind another error, that these fail too must not hide it
                with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
                    file.close()


def _cut(path: Path, start: int) -> None:
    """Drop the rows after step `start`, and a last row that a kill left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
