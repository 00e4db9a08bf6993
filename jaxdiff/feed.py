"""From a config to batches as a train step takes them: of pictures or their latents, with what their captions say.

    records -> pipeline (or the latents kept on disk) -> captions read -> on the device -> latents drawn

Training and `jaxdiff bench` are fed here, so that what is measured is what is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxdiff import build, caching, codec, data, prompts
from jaxdiff.facts import Facts
from jaxdiff.latents import Latents
from jaxdiff.prompts import Reader


class Feed(NamedTuple):
    """The training split's `records`, what they tell every other part, and how latents (`coder`) and captions (`reader`)
    are made; None where the run diffuses pictures, or reads none."""

    config: ConfigDict
    records: data.Source
    known: Facts
    coder: Latents | None
    reader: Reader | None

    def batches(self, progress: bool = True, placed: bool = True) -> Callable[[int], Iterator[dict[str, Any]]]:
        """`start -> batches from that step on`, each what `build.batch_keys` says; a cache of latents is made now.

        placed: put them on the device ahead of their use; else they are left to the caller, who splits them.
        """
        config, known = self.config, self.known
        tokenize, pipe = self.reader and self.reader.tokens, None
        if config.codec.cache:
            pipe = caching.pipeline(config, self.records, known, self.coder, tokenize, progress)
        source: Any = pipe or build.pipeline(config, self.records, tokenize=tokenize)
        wanted = build.batch_keys(config, known)
        encoded = self.coder and codec.encoder(self.coder, config.seed, bool(config.codec.cache))

        def stream(start: int) -> Iterator[dict[str, Any]]:
            read = ({name: batch[name] for name in wanted} for batch in prompts.told(source.batches(start), self.reader))
            ready = data.on_device(read) if placed else read
            return encoded(ready, start) if encoded else ready

        return stream

    def epoch(self, split: str) -> Callable[[], Iterator[dict[str, Any]]]:
        """`() -> every example of a split once`, without augmentation, all of each batch on every process."""
        pipe = build.pipeline(self.config, build.source(self.config, split), tokenize=self.reader and self.reader.tokens)
        pipe = replace(pipe, process_index=0, process_count=1)
        wanted = build.batch_keys(self.config, self.known)
        encoded = self.coder and codec.encoder(self.coder, self.config.seed)

        def batches() -> Iterator[dict[str, Any]]:
            read = ({name: batch[name] for name in wanted} for batch in prompts.told(pipe.epoch(), self.reader))
            return encoded(read, 0) if encoded else read

        return batches


def open_feed(config: ConfigDict, workdir: Any) -> Feed:
    """The feed of a run in `workdir`, fresh or going on. Raises as `codec.linked` and `prompts.linked` do."""
    records = build.source(config, "train")
    known, reader = prompts.linked(config, build.facts(config, records), records, workdir)
    known, coder = codec.linked(config, known, workdir)
    return Feed(config, records, known, coder, reader)
