"""Data: sources of random-access records, what is done to a record, and batches whose only position is the step.

The one home of grain, ArrayRecord, TFDS and tokenizers. `open_source` -> `pipeline` -> `batches(start_step)` ->
`on_device`. For conditional generation a `Task` puts a condition picture beside x, and a `Tokenizer` the captions' token
numbers. `write_part` and `open_parts` keep what a network made of records.
"""

from jaxdiff.data.cached import Layout, in_order, mirrored, open_parts, write_part
from jaxdiff.data.captions import Tokenize, captions
from jaxdiff.data.emoji import emoji
from jaxdiff.data.memory import arrays, digits, mnist5k, npz
from jaxdiff.data.pairs import pairs
from jaxdiff.data.pictures import folder
from jaxdiff.data.pipeline import Pipeline, on_device, pipeline, preview
from jaxdiff.data.preprocess import Preprocess, scale_dequantised, scale_exact, to_levels
from jaxdiff.data.records import Columns, Records, Source, Subset
from jaxdiff.data.sources import SourceInfo, describe, list_sources, open_source, prepare
from jaxdiff.data.tasks import Task, edges, given, inpainting, low_resolution, super_resolution
from jaxdiff.data.tfds_source import tfds_source
from jaxdiff.data.tokenizer import Tokenizer, Tokens, load_tokenizer, train_tokenizer
from jaxdiff.data.toys import (
    gaussians25,
    gaussians25_centres,
    gaussians25_from_raw,
    gaussians25_std,
    gaussians25_to_raw,
)

__all__ = [
    "Columns",
    "Layout",
    "Pipeline",
    "Preprocess",
    "Records",
    "Source",
    "SourceInfo",
    "Subset",
    "Task",
    "Tokenize",
    "Tokenizer",
    "Tokens",
    "arrays",
    "captions",
    "describe",
    "digits",
    "edges",
    "emoji",
    "folder",
    "gaussians25",
    "gaussians25_centres",
    "gaussians25_from_raw",
    "gaussians25_std",
    "gaussians25_to_raw",
    "given",
    "in_order",
    "inpainting",
    "list_sources",
    "load_tokenizer",
    "low_resolution",
    "mirrored",
    "mnist5k",
    "npz",
    "on_device",
    "open_parts",
    "open_source",
    "pairs",
    "pipeline",
    "prepare",
    "preview",
    "scale_dequantised",
    "scale_exact",
    "super_resolution",
    "tfds_source",
    "to_levels",
    "train_tokenizer",
    "write_part",
]
