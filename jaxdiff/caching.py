"""Latents kept on disk: the autoencoder sees each training picture once, and every epoch draws from its moments.

    codec.cache/cache.json                     what lies here: of which autoencoder, of which pictures
    codec.cache/part-00003-of-00012.arrayrecord   1,024 records: moments, label, caption

Kept are the moments and not one draw of them, so that z is drawn anew at every step, by the keys that it has without a
cache: a run may take up a cache, or leave it, when it goes on. They are float32: float16 would halve the files, but it
keeps 11 bits, so that a run would come to depend on whether its latents were kept. With data.flip the moments of the
mirrored picture stand beside (an encoder is not symmetric), and the one is read that the picture's flip would have given.
A cache is filled a part at a time, so one that was stopped goes on at its first missing part; it is never overwritten.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxdiff import build, data, evaluation
from jaxdiff.facts import Facts
from jaxdiff.latents import Latents

VERSION = 1
PART = 1024  # records of a part; more where there would be over 512 parts, for each is an open file
ENCODE = 32  # pictures that a device encodes at once
TEXTS = ("name", "caption")  # what people wrote of a picture, where its records have it
OTHER = "codec.cache=ANOTHER, or delete it"


class CachedBatches(NamedTuple):
    """The `data.Pipeline` of a cache, whose x `[B, ...]` becomes the moments of one side of each picture.

    sides: 2 where the mirrored pictures' moments are kept beside. flip: half of the examples are mirrored.
    """

    pipe: data.Pipeline
    sides: int
    flip: bool

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """As `data.Pipeline.batches`, x being moments float32 `[b, h, w, c']`."""
        for step, batch in enumerate(self.pipe.batches(start_step), start_step):
            index = batch["index"]
            turned = np.zeros(len(index), int)
            if self.flip:
                turned = data.mirrored(self.pipe.seed, step * self.pipe.batch_size + int(index[0]), len(index)).astype(int)
            yield {**batch, "x": batch["x"][np.arange(len(index)), turned]}


def pipeline(
    config: ConfigDict, records: data.Source, known: Facts, coder: Latents | None, tokenize: data.Tokenize | None = None,
    progress: bool = True,
) -> CachedBatches:
    """Batches of moments from `codec.cache`, which is made first, or made whole, where it is not there or not whole.

    The same records in the same order as `build.pipeline` gives of the pictures. With several processes each makes its
    share of the parts, in a folder that all of them see. Raises ValueError for what cannot be kept, for a folder of
    other things, and for a cache of another autoencoder, of other pictures or of another size.
    """
    coder = _checked(config, known, coder)
    wanted = _description(config, records, known, coder)
    folder = Path(config.codec.cache)
    held = _claim(folder, wanted)
    parts = [folder / f"part-{i:05d}-of-{held['parts']:05d}.arrayrecord" for i in range(held["parts"])]
    spans = [range(start, min(start + held["part"], len(records))) for start in range(0, len(records), held["part"])]
    layout = data.Layout(tuple((name, kind, tuple(shape)) for name, kind, shape in held["arrays"]), tuple(held["texts"]))
    _fill(config, records, known, coder, dict(zip(parts, spans, strict=True)), layout, progress)
    kept = data.open_parts(parts, [len(span) for span in spans], layout)
    source = replace(records, records=kept, shape=layout.arrays[0][2], levels=0, kind="points", has_given=False)
    pipe = data.pipeline(source, config.data.batch_size, config.seed, process_index=jax.process_index(),
                         process_count=jax.process_count(), num_threads=config.data.num_threads, tokenize=tokenize)
    return CachedBatches(pipe, layout.arrays[0][2][0], bool(config.data.flip))


def _checked(config: ConfigDict, known: Facts, coder: Latents | None) -> Latents:
    """The latents to keep; refuses what is not the same at every step, and what a cache does not hold."""
    part, name = config.data, f"codec.cache is {config.codec.cache!r}"
    if coder is None:
        raise ValueError(f"{name} and codec.run None, so that there are no latents; mend: codec.run, or codec.cache=None")
    if part.crop == "random":
        raise ValueError(f"{name} and data.crop 'random', which is another picture at every step; mend: "
                         "data.crop=center, or codec.cache=None")
    if part.scale == "dequantise":
        raise ValueError(f"{name} and data.scale 'dequantise', whose noise is another at every step; mend: "
                         "data.scale=exact, or codec.cache=None")
    if known.condition or config.task.kind != "none":
        raise ValueError(f"{name} and task.kind {config.task.kind!r}, whose condition picture is not kept; mend: "
                         "task.kind=none, or codec.cache=None")
    return coder


def _description(config: ConfigDict, records: data.Source, known: Facts, coder: Latents) -> dict[str, Any]:
    """What `cache.json` says of a cache for this run."""
    part = config.data
    sides = 2 if part.flip else 1
    shape = jax.eval_shape(coder.moments, jax.ShapeDtypeStruct((1, *known.pixels), jnp.float32)).shape[1:]
    size = max(PART, math.ceil(len(records) / 512))
    first, how = records.records[0], build.preprocess(config, known)
    seen = [next(data.in_order(records, how, range(i, i + 1), 1, num_threads=0))
            for i in np.linspace(0, len(records) - 1, 8).astype(int)]
    return {
        "version": VERSION,
        "autoencoder": coder.name,
        "data.source": part.source,
        "data.options": {name: value for name, value in sorted(part.options.items())
                         if value is not None and name != "data_dir"},
        "split": records.split,
        "picture": list(known.pixels),
        **{f"data.{name}": part[name] for name in ("resize", "resample", "crop", "scale")},
        "records": len(records),
        "labels": bool(records.num_classes),
        # mean and label of eight pictures: a folder may keep its name and change what it holds
        "pictures": [[round(float(one["x"].mean()), 4), int(one["label"][0]) if "label" in one else -1] for one in seen],
        "sides": sides,
        "arrays": [["x", "float32", [sides, *shape]], *([["label", "int32", []]] if records.num_classes else [])],
        "texts": [name for name in TEXTS if name in first],
        "part": size,
        "parts": math.ceil(len(records) / size),
    }


def _claim(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The description that lies in `folder`, which fits `wanted`; where nothing lies there, `wanted`, now written."""
    path = folder / "cache.json"
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"codec.cache is {str(folder)!r}, a file; allowed: a directory, or a new name")
    if not path.exists() and folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir()):
        raise FileExistsError(f"codec.cache is {str(folder)!r}, which holds other things; mend: a new directory")
    _wait("jaxdiff cache: looked")
    if not path.exists() and jax.process_index() == 0:
        evaluation.write_whole(path, lambda file: file.write((json.dumps(wanted, indent=1) + "\n").encode()))
    _wait("jaxdiff cache: described")
    try:
        held = json.loads(path.read_text())
        fault = _difference(held, json.loads(json.dumps(wanted)))
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError, ValueError):
        raise ValueError(f"{path} is not the description of cached latents; mend: {OTHER}") from None
    if fault:
        raise ValueError(f"codec.cache is {str(folder)!r}, {fault}; mend: {OTHER}")
    return held


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What of a cache does not fit, in words; "" where it does. One with both sides serves a run without flips too."""
    said = {
        "version": "of format {0}, and this version reads {1}",
        "autoencoder": "latents of the autoencoder {0}, and codec.run is now {1}",
        "picture": "latents of pictures of {0}, and these are {1}",
        "records": "latents of {0} pictures, and these are {1}",
    }
    for name, value in wanted.items():
        if name in ("sides", "arrays", "part", "parts"):
            continue
        if name == "pictures":  # a decoder of JPEG may differ from another in the last levels
            near = all(abs(a - b) < 0.02 and k == n for (a, k), (b, n) in zip(held[name], value, strict=True))
            if not near:
                return "latents of other pictures than its source holds now"
        elif held[name] != value:
            return said.get(name, "latents of {2} {0}, and here it is {1}").format(
                *("x".join(map(str, v)) if name == "picture" else repr(v) if name != "autoencoder" else v
                  for v in (held[name], value)), name)
    if held["sides"] < wanted["sides"]:
        return "latents of pictures alone, and data.flip needs those of their mirrors"
    if held["arrays"][0][2][1:] != wanted["arrays"][0][2][1:]:
        return f"moments of shape {held['arrays'][0][2][1:]}, and codec.run gives {wanted['arrays'][0][2][1:]}"
    return ""


def _fill(
    config: ConfigDict, records: data.Source, known: Facts, coder: Latents, parts: dict[Path, range], layout: data.Layout,
    progress: bool,
) -> None:
    """Make the parts that are missing, this process's share of them, and wait for the others'."""
    devices = np.array(jax.local_devices())
    split = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("batch",)), jax.sharding.PartitionSpec("batch"))
    together, sides = ENCODE * len(devices), layout.arrays[0][2][0]

    @jax.jit
    def moments(x: Any) -> Any:
        both = [coder.moments(side) for side in ((x, x[:, :, ::-1]) if sides == 2 else (x,))]
        return jnp.stack(both, axis=1).astype(jnp.float32)

    threads = config.data.num_threads
    threads = min(8, os.cpu_count() or 1) if threads is None else threads
    for number, (path, span) in enumerate(parts.items()):
        if path.exists() or number % jax.process_count() != jax.process_index():
            continue
        begun = time.monotonic()
        rows: list[dict[str, Any]] = []
        for batch in data.in_order(records, build.preprocess(config, known), span, together, layout.texts, threads):
            count = len(batch["x"])
            whole = batch["x"][np.minimum(np.arange(together), count - 1)]  # one shape, one program
            rows.append({**batch, "x": np.asarray(moments(jax.device_put(whole, split)))[:count]})
        data.write_part(path, layout, {name: np.concatenate([row[name] for row in rows]) if name not in layout.texts
                                       else [text for row in rows for text in row[name]] for name in rows[0]})
        if progress:
            rate = len(span) / max(time.monotonic() - begun, 1e-9)
            print(f"{path.parent}: part {number + 1} of {len(parts)}, {len(span)} pictures, {rate:.3g} a second", flush=True)
    _wait("jaxdiff cache: filled")


def _wait(what: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
