"""Source -> batches. The only position is the global step, so a run restores on any number of processes.

    position p = step * batch_size + index         of an example in the whole run, `index` in the global batch
    epoch, place = divmod(p, N)                    a fresh permutation of the N records every epoch
    record = permutation(seed, epoch)[place]

Shuffling and repeating come first, then whole global batches (of a finite run the remainder is dropped), and only
then a process takes its contiguous share: batch k is the same set, in the same order, on 1, 2 or 4 processes. Nothing
is stored between batches. Batches run over the end of an epoch, so every epoch holds every record exactly once, and a
batch may be larger than the data set.

grain runs it: a `MapDataset` over batch numbers, read ahead by threads. The permutation is numpy's, kept for an epoch,
because grain's own shuffle costs 16 microseconds a record on small sets: more than all the rest.

With a task every batch also holds the condition picture. What is random about it (where the hole is) comes from the
position in training, so that it differs from epoch to epoch, and from the record's number alone in evaluation, so that
every run and every process sees the same test picture through the same mask. With `tokenize` every batch also holds its
records' captions as token numbers, which depend on the record alone.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import grain
import jax
import numpy as np

from jaxdiff.data.captions import Tokenize, captions_of, check_captions, text_batch
from jaxdiff.data.preprocess import TASK, Preprocess, examples, uniform_bits
from jaxdiff.data.records import SPLIT_SEED, Columns, Source, Subset, take
from jaxdiff.data.tasks import Task


@functools.lru_cache(maxsize=4)
def _permutation(num_records: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.RandomState([seed, epoch]).permutation(num_records)  # a frozen stream, unlike Generator's


def record_numbers(num_records: int, seed: int, start: int, count: int) -> np.ndarray:
    """The records, int64 [count], at positions start..start+count-1 of the shuffled, endlessly repeated source."""
    pieces, position = [], start
    while position < start + count:
        epoch, place = divmod(position, num_records)
        piece = _permutation(num_records, seed, epoch)[place : place + start + count - position]
        pieces.append(piece)
        position += len(piece)
    return np.concatenate(pieces)


@dataclass(frozen=True)
class Pipeline:
    """Batches of a source for one process; made by `pipeline`. `batch_size` is global, `local_batch_size` its share.

    A batch is `x` float32 [b, ...], `index` int32 [b] (place in the global batch) and, with classes, `label` int32 [b];
    with a task also `image` float32 [b, H, W, C'] and, for inpainting, `mask` float32 [b, H, W, 1]; with `tokenize` also
    `tokens` int32 [b, L] and `text_mask` bool [b, L], False on padding.
    """

    source: Source
    batch_size: int
    seed: int
    preprocess: Preprocess
    num_epochs: int | None
    process_index: int
    process_count: int
    num_threads: int
    task: Task | None = None
    tokenize: Tokenize | None = None

    @property
    def local_batch_size(self) -> int:
        return self.batch_size // self.process_count

    @property
    def num_steps(self) -> int | None:
        """How many batches there are; None without end."""
        return None if self.num_epochs is None else len(self.source) * self.num_epochs // self.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's share of batch number `step`: a pure function."""
        first = self.process_index * self.local_batch_size
        start = step * self.batch_size + first
        numbers = record_numbers(len(self.source), self.seed, start, self.local_batch_size)
        return make_batch(self.source, numbers, self.preprocess, self.seed, start, first, self.task, self.tokenize)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches start_step, start_step + 1, ...: what an uninterrupted run would have seen from there on."""
        if start_step < 0:
            raise ValueError(f"start_step={start_step}; allowed: 0 or more")
        # a step beyond 2^40 is not reached, and grain wants an end
        end = 2**40 if self.num_steps is None else max(self.num_steps, start_step)
        return _read_ahead(self.batch, start_step, end, self.num_threads)

    def epoch(self) -> Iterator[dict[str, np.ndarray]]:
        """Every record once, in the source's order, for evaluation: centre crops, no flips, dequantised by record.

        A task's mask depends on the record's number and on nothing else, the seed included.

        The last batch is smaller where the batch size does not divide the source; a process whose share of it would
        be nothing gets arrays of length 0, so that all processes see the same number of batches.
        """
        how = self.preprocess.without_augmentation()
        total, local = len(self.source), self.local_batch_size

        def batch(number: int) -> dict[str, np.ndarray]:
            first = self.process_index * local
            start = min(number * self.batch_size + first, total)
            numbers = np.arange(start, min(start + local, total))
            return make_batch(self.source, numbers, how, self.seed, start, first, self.task, self.tokenize, evaluation=True)

        return _read_ahead(batch, 0, -(-total // self.batch_size), self.num_threads)


def pipeline(
    source: Source,
    batch_size: int,
    seed: int = 0,
    *,
    preprocess: Preprocess = Preprocess(),
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    task: Task | None = None,
    tokenize: Tokenize | None = None,
) -> Pipeline:
    """Shuffled batches of `batch_size` (over all processes) from `source`, the same for the same `seed`.

    `num_threads` read ahead, a batch each (default 1 from memory, else up to 8; 0 reads when asked). `task` (see
    `tasks`) puts the condition picture beside x; `tokenize` (see `captions`) the captions' token numbers, and is called
    by several threads at once.

    Raises ValueError for a batch that the processes cannot share, for pictures' options on points, for a task that does
    not fit the pictures, and for `tokenize` where the source has no captions.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {process_count} processes that share it")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}; allowed: 0..{process_count - 1}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; allowed: 0..2**32 - 1")
    if num_epochs is not None and num_epochs * len(source) < batch_size:
        raise ValueError(f"{num_epochs} epochs of {len(source)} records do not fill one batch of {batch_size}")
    if source.kind == "points" and preprocess != Preprocess():
        raise ValueError(f"{source.name} holds points, which take no {preprocess}")
    if preprocess.scale == "dequantise" and not source.levels:
        raise ValueError(f"{source.name} is continuous: there is nothing to dequantise; allowed: scale='exact'")
    _check_task(source, preprocess, task)
    if tokenize is not None:
        check_captions(source)
    if num_threads is None:
        num_threads = 1 if _in_memory(source.records) else min(8, os.cpu_count() or 1)
    shares = process_index, process_count
    return Pipeline(source, batch_size, seed, preprocess, num_epochs, *shares, num_threads, task, tokenize)


def _shape(source: Source, how: Preprocess) -> tuple[int, ...]:
    return how.shape if how.shape and source.kind == "image" else source.shape


def _check_task(source: Source, how: Preprocess, task: Task | None) -> None:
    """Raise ValueError where a task cannot be made from a source's pictures."""
    if task is None:
        return
    if source.kind == "points":
        raise ValueError(f"{source.name} holds points, and task {task.name} needs pictures")
    if task.needs_given and not source.has_given:
        raise ValueError(f"task {task.name} needs records that hold their condition, as pairs:FOLDER has; got {source.name}")
    task.condition_shape(cast("tuple[int, int, int]", _shape(source, how)))


def make_batch(
    source: Source,
    numbers: np.ndarray,
    how: Preprocess,
    seed: int,
    start: int,
    first_index: int,
    task: Task | None = None,
    tokenize: Tokenize | None = None,
    evaluation: bool = False,
) -> dict[str, np.ndarray]:
    """The numbered records as a batch: they stand at positions `start`... of the run and `first_index`... of the batch.

    With a task `image` (and perhaps `mask`) too, its randomness from `seed` and the position, or for `evaluation` from
    the records' numbers only. With `tokenize` `tokens` and `text_mask` too.

    Raises ValueError for a label outside the source's classes, or a picture that does not fit, by name.
    """
    batch = {"index": np.arange(first_index, first_index + len(numbers), dtype=np.int32)}
    if len(numbers) == 0:
        empty = {"x": np.zeros((0, *_shape(source, how)), np.float32)}
        empty |= _condition(task, empty["x"], empty["x"], np.zeros((0, 4), np.uint16)) | text_batch(tokenize, [])
        return batch | empty | ({"label": np.zeros(0, np.int32)} if source.num_classes else {})
    columns = take(source.records, numbers)
    if source.kind == "points":
        batch["x"] = np.asarray(columns["x"], np.float32)
    else:
        names = columns.get("name", [f"record {number} of {source.name} ({source.split})" for number in numbers])
        batch["x"] = examples(columns["image"], how, source.levels, seed, start, names)
    if task is not None:
        beside = None
        if task.needs_given:  # the same draws, so the same crop and flip; but x's dequantisation noise is not y's to tell
            beside = examples(columns["given"], replace(how, scale="exact"), source.levels, seed, start, names)
        batch |= _condition(task, batch["x"], beside, _task_bits(numbers, seed, start, evaluation))
    if tokenize is not None:
        batch |= text_batch(tokenize, columns["caption"])
    if source.num_classes:
        label = np.asarray(columns["label"], np.int32)
        wrong = np.flatnonzero((label < 0) | (label >= source.num_classes))
        if len(wrong):
            raise ValueError(
                f"record {numbers[wrong[0]]} of {source.name} ({source.split}) has label {label[wrong[0]]}; "
                f"allowed: 0..{source.num_classes - 1}"
            )
        batch["label"] = label
    return batch


def _task_bits(numbers: np.ndarray, seed: int, start: int, evaluation: bool) -> np.ndarray:
    if evaluation:
        return np.concatenate([uniform_bits(SPLIT_SEED, TASK, int(number), 1, 4) for number in numbers])
    return uniform_bits(seed, TASK, start, len(numbers), 4)


def _condition(task: Task | None, x: np.ndarray, beside: np.ndarray | None, bits: np.ndarray) -> dict[str, np.ndarray]:
    """What a task puts into a batch; `beside` is the picture that came with the record, where the task takes one."""
    if task is None:
        return {}
    return {"image": cast(np.ndarray, beside)} if task.make is None else task.make(x, bits)


def _in_memory(records: Any) -> bool:
    return _in_memory(records.records) if isinstance(records, Subset) else isinstance(records, Columns)


def _read_ahead(batch: Any, start: int, end: int, num_threads: int) -> Iterator[dict[str, np.ndarray]]:
    """`batch(start)`, ..., `batch(end - 1)` in order, computed ahead by `num_threads` threads."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(grain.MapDataset.range(start, end).map(batch).to_iter_dataset(options))


def on_device(
    batches: Iterable[dict[str, np.ndarray]], sharding: jax.sharding.Sharding | None = None, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """The same batches on the device, `ahead` of them in flight, so that copying overlaps computing.

    With a `sharding` each process hands in its share and the arrays come out global, in process order.
    """

    def put(value: np.ndarray) -> jax.Array:
        if sharding is None:
            return jax.device_put(value)
        return jax.make_array_from_process_local_data(sharding, value)

    flying: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        flying.append({name: put(value) for name, value in batch.items()})
        if len(flying) > ahead:
            yield flying.popleft()
    yield from flying


def preview(
    source: Source,
    num: int = 64,
    *,
    preprocess: Preprocess = Preprocess(),
    seed: int = 0,
    task: Task | None = None,
    tokenize: Tokenize | None = None,
    captions: bool = False,
) -> dict[str, np.ndarray]:
    """Up to `num` examples, drawn from the whole source by a fixed seed and in its order, as evaluation sees them.

    Drawn, because an even stride would beat against records whose classes come in turn.

    Pictures of differing shapes are fitted to the source's `shape` if none is asked for. With a task its condition
    comes too, the one that `Pipeline.epoch` gives the same record; with `tokenize` also `tokens` and `text_mask`; with
    `captions` the texts themselves, `caption` str [b], which no device takes. Raises ValueError for a task that does not
    fit, and for either of the others where the source has no captions.
    """
    how = preprocess.without_augmentation()
    if source.kind == "image" and how.shape is None:
        how = Preprocess(cast("tuple[int, int, int]", source.shape), resample=how.resample, scale=how.scale)
    numbers = np.sort(_permutation(len(source), 0, 0)[:num])
    _check_task(source, how, task)
    if tokenize is not None or captions:
        check_captions(source)
    batch = make_batch(source, numbers, how, seed, 0, 0, task, tokenize, evaluation=True)
    return batch | ({"caption": np.array(captions_of(source, numbers))} if captions else {})
