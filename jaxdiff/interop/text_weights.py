"""Public text encoders from safetensors files: CLIP's text half and BERT, in the names that Hugging Face stores them by.

Nothing is downloaded: the user names the weight files, and the `config.json` that came with them tells the sizes. What a
file holds beside the encoder is passed over: the other parts of a larger checkpoint (CLIP's vision half, a language
model's head), position numbers, and BERT's pooler, in whose place this encoder pools by the mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxdiff.networks import TextEncoder
from jaxdiff.types import Params

# our module -> theirs; several are joined along the output axis, in this order. "*" is the number of the block
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "clip": {
        "token": ("embeddings.token_embedding",),
        "position": ("embeddings.position_embedding",),
        "block_*/norm_attention": ("encoder.layers.*.layer_norm1",),
        "block_*/qkv": tuple(f"encoder.layers.*.self_attn.{name}_proj" for name in "qkv"),
        "block_*/out": ("encoder.layers.*.self_attn.out_proj",),
        "block_*/norm_mlp": ("encoder.layers.*.layer_norm2",),
        "block_*/mlp_in": ("encoder.layers.*.mlp.fc1",),
        "block_*/mlp_out": ("encoder.layers.*.mlp.fc2",),
        "norm_out": ("final_layer_norm",),
    },
    "bert": {
        "token": ("embeddings.word_embeddings",),
        "position": ("embeddings.position_embeddings",),
        "type": ("embeddings.token_type_embeddings",),
        "norm_in": ("embeddings.LayerNorm",),
        "block_*/qkv": tuple(f"encoder.layer.*.attention.self.{name}" for name in ("query", "key", "value")),
        "block_*/out": ("encoder.layer.*.attention.output.dense",),
        "block_*/norm_attention": ("encoder.layer.*.attention.output.LayerNorm",),
        "block_*/mlp_in": ("encoder.layer.*.intermediate.dense",),
        "block_*/mlp_out": ("encoder.layer.*.output.dense",),
        "block_*/norm_mlp": ("encoder.layer.*.output.LayerNorm",),
    },
}
PASSED_OVER = ("embeddings.position_ids", "pooler.", "text_projection.")
# field -> key of config.json, and its value where the file leaves it out
SIZES: dict[str, dict[str, tuple[str, Any]]] = {
    "clip": {
        "vocab_size": ("vocab_size", 49408),
        "max_length": ("max_position_embeddings", 77),
        "width": ("hidden_size", 512),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 8),
        "mlp_width": ("intermediate_size", 2048),
        "activation": ("hidden_act", "quick_gelu"),
        "eps": ("layer_norm_eps", 1e-5),
        "end_token": ("eos_token_id", 49407),
    },
    "bert": {
        "vocab_size": ("vocab_size", 30522),
        "max_length": ("max_position_embeddings", 512),
        "width": ("hidden_size", 768),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 12),
        "mlp_width": ("intermediate_size", 3072),
        "activation": ("hidden_act", "gelu"),
        "eps": ("layer_norm_eps", 1e-12),
        "token_types": ("type_vocab_size", 2),
    },
}
MODEL_TYPES = {"clip_text_model": "clip", "clip": "clip", "bert": "bert"}
SAME_ACTIVATION = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
File = str | os.PathLike


def load_text_encoder(
    files: File | Sequence[File],
    config: File | Mapping[str, Any] | TextEncoder | None = None,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> tuple[TextEncoder, Params]:
    """The encoder that `files` (one .safetensors file, or all parts of a divided one) hold, and its parameters.

    `config` is the model's `config.json` (a path, or what it holds), by default the one beside the first file, or the
    `TextEncoder` itself, whose own dtypes are then kept. `dtype` is for arithmetic, `param_dtype` for the parameters,
    to which the file's float16, bfloat16 or float32 are cast. FileNotFoundError for a file that is not there, ValueError
    for one that is not safetensors or holds another architecture: it names what is missing and what is left over.
    """
    paths = [Path(f) for f in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ValueError("load_text_encoder got no weight file; name one .safetensors file, or all parts of a divided one")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no weight file {path}; name the .safetensors file of a text encoder")
    if isinstance(config, TextEncoder):
        net = config
    else:
        config = paths[0].parent / "config.json" if config is None else config
        told = config if isinstance(config, Mapping) else _read_config(config)
        net = encoder_of_config(told, dtype=dtype, param_dtype=param_dtype)
    return net, _parameters(net, paths)


def encoder_of_config(config: Mapping[str, Any], *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> TextEncoder:
    """The encoder that the contents of a `config.json` describe; ValueError for a model that is neither CLIP nor BERT.

    A whole CLIP's config is read at its `text_config`.
    """
    kind = MODEL_TYPES.get(config.get("model_type", ""))
    if kind is None:
        raise ValueError(
            f"the text encoder's config has model_type={config.get('model_type')!r}; allowed: {', '.join(MODEL_TYPES)}"
        )
    config = config.get("text_config") or config
    for key, allowed in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if config.get(key, allowed) != allowed:
            raise ValueError(f"the text encoder's config has {key}={config[key]!r}; only {allowed!r} can be loaded")
    fields = {field: config.get(key, default) for field, (key, default) in SIZES[kind].items()}
    fields["activation"] = SAME_ACTIVATION.get(fields["activation"], fields["activation"])
    if fields.get("end_token") == 2:  # CLIP's first public configs say 2 and mean the highest number, "<|endoftext|>"
        fields["end_token"] = fields["vocab_size"] - 1
    return TextEncoder(kind=kind, dtype=dtype, param_dtype=param_dtype, **fields)


def _read_config(path: File) -> Mapping[str, Any]:
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError(f"a {type(told).__name__} where names and values belong")
        return told
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}; name the config.json that came with the weights") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a model's config ({error}); name the config.json of the weights") from None


def _parameters(net: TextEncoder, paths: Sequence[Path]) -> Params:
    """Every leaf of `net`'s parameters, read by its name in the files; all names are compared before anything is read."""
    token = jnp.zeros((1, 1), jnp.int32)
    wanted = jax.eval_shape(lambda key: net.init(key, token), jax.random.key(0))["params"]
    leaves = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
    sources = {path: _theirs(net.kind, path) for path in leaves}
    found = {name: place for path in paths for name, place in _names(path).items()}
    anchor = sources["token", "embedding"][0]
    prefix = next((name.removesuffix(anchor) for name in found if name.endswith(anchor)), "")
    found = {name.removeprefix(prefix): place for name, place in found.items() if name.startswith(prefix)}

    needed = {name for names in sources.values() for name in names}
    missing = sorted(needed - found.keys())
    over = sorted(name for name in found.keys() - needed if not name.startswith(PASSED_OVER))
    files = ", ".join(path.name for path in paths)
    if missing or over:
        raise ValueError(
            f"{files} does not fit a {net.kind} text encoder of {net.layers} layers: missing {_few(missing)} of "
            f"{len(needed)}, left over {_few(over)}; give the weights and the config.json of one model"
        )
    values = {}
    for path, leaf in leaves.items():
        parts = [_tensor(*found[name]) for name in sources[path]]
        value = np.concatenate([part.T if path[-1] == "kernel" else part for part in parts], axis=-1)
        if value.shape != leaf.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{files}: {' + '.join(sources[path])} is {value.dtype} {value.shape} where the config asks for "
                f"floats {leaf.shape}; give the weights and the config.json of one model"
            )
        values[path] = jnp.asarray(value, leaf.dtype)
    return jax.tree_util.tree_map_with_path(lambda path, _: values[tuple(k.key for k in path)], wanted)


def _theirs(kind: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """Their names for our leaf: ("block_3", "out", "kernel") of BERT -> "encoder.layer.3.attention.output.dense.weight"."""
    block, number = path[0].split("_") if path[0].startswith("block_") else ("", "")
    module = "/".join([f"{block}_*", *path[1:-1]]) if block else path[0]
    part = "bias" if path[-1] == "bias" else "weight"
    return tuple(f"{name.replace('*', number)}.{part}" for name in NAMES[kind][module])


def _names(path: Path) -> dict[str, tuple[Path, str]]:
    """The names in one file -> where each lies; layer norms that still carry TensorFlow's names get their present ones."""
    try:
        with safe_open(path, framework="numpy") as file:
            stored = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); name a .safetensors file") from None
    new = {".gamma": ".weight", ".beta": ".bias"}
    renamed = {name: next((name.removesuffix(a) + b for a, b in new.items() if name.endswith(a)), name) for name in stored}
    return {renamed[name]: (path, name) for name in stored}


def _tensor(path: Path, name: str) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)


def _few(names: Sequence[str]) -> str:
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
