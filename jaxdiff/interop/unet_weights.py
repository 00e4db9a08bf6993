"""A U-Net of diffusers (its class UNet2DModel), with torch's layers, into the parameters of this house's UNet.

torch itself is not imported: what is given is a module of the caller's, whose tensors are read where they lie. The two
networks are the same function where their sizes agree; diffusers has one number of groups for all norms, which is ours
from 128 channels on (`networks.layers.group_count`).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxdiff.types import Array, Params


def array(tensor: Any) -> Array:
    """A tensor's numbers, in its own dtype."""
    return jnp.asarray(tensor.detach().cpu().numpy())


def conv(module: Any) -> Params:
    """A Conv2d: its kernel [O, I, h, w] as [h, w, I, O]."""
    return {"kernel": array(module.weight).transpose(2, 3, 1, 0), "bias": array(module.bias)}


def linear(module: Any) -> Params:
    """A Linear, or a 1x1 Conv2d, as a dense layer."""
    weight = array(module.weight)
    return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": array(module.bias)}


def joined(*modules: Any) -> Params:
    """Linear layers of one input as one dense layer, their outputs side by side."""
    return {key: jnp.concatenate([linear(module)[key] for module in modules], axis=-1) for key in ("kernel", "bias")}


def norm(module: Any) -> Params:
    """A GroupNorm."""
    return {"scale": array(module.weight), "bias": array(module.bias)}


def attention(module: Any) -> Params:
    """An Attention over pixels with its norm, as a SelfAttention."""
    qkv = joined(module.to_q, module.to_k, module.to_v)
    return {"norm": norm(module.group_norm), "qkv": qkv, "out": linear(module.to_out[0])}


def unet_params(module: Any) -> Params:
    """The parameters of a UNet2DModel as those of `networks.UNet`, in the dtype that they have."""
    time, mid = module.time_embedding, module.mid_block
    encoder = {
        "stem": conv(module.conv_in),
        "time": {"in": linear(time.linear_1), "out": linear(time.linear_2)},
        "mid_0": _block(mid.resnets[0], mid.attentions[0]),
        "mid_1": _block(mid.resnets[1]),
    }
    if module.class_embedding is not None:
        encoder["class"] = {"table": {"embedding": array(module.class_embedding.weight)}}
    decoder = {"head_norm": norm(module.conv_norm_out), "head": conv(module.conv_out)}
    for i, down in enumerate(module.down_blocks):
        encoder |= _level(f"down_{i}", down, down.downsamplers)
    for i, up in enumerate(reversed(module.up_blocks)):
        decoder |= _level(f"up_{i}", up, up.upsamplers)
    return {"encoder": encoder, **decoder}


def _level(name: str, level: Any, resamplers: Any) -> dict[str, Params]:
    """The blocks of one level, and what halves or doubles the feature map behind them."""
    attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
    found = {f"{name}_{j}": _block(*pair) for j, pair in enumerate(zip(level.resnets, attentions, strict=True))}
    if resamplers is not None:
        one = resamplers[0]
        found[f"{name}_resample"] = _block(one) if hasattr(one, "conv1") else {"conv": conv(one.conv)}
    return found


def _block(resnet: Any, attends: Any = None) -> Params:
    found = {
        "norm_in": norm(resnet.norm1),
        "conv_in": conv(resnet.conv1),
        "emb": linear(resnet.time_emb_proj),
        "norm_out": norm(resnet.norm2),
        "conv_out": conv(resnet.conv2),
    }
    if resnet.conv_shortcut is not None:
        found["skip"] = linear(resnet.conv_shortcut)
    return {"res": found} if attends is None else {"res": found, "attention": attention(attends)}
