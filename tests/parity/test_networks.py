"""Our layers and whole U-Nets against torch and diffusers, with the peer's random weights copied, in one run.

float64 on both sides, so that a disagreement is a difference of definition and not of rounding; where the peer drops to
float32 inside (its time embedding and cross-framework exponentials), 1e-5 is the floor.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop import unet_params
from jaxdiff.interop.unet_weights import array, linear, norm
from jaxdiff.networks import UNet, count_params
from jaxdiff.networks.attention import CrossAttention, SelfAttention
from jaxdiff.networks.layers import GroupNorm

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def randomised(module):
    """The torch module in float64 with every parameter drawn anew, so that no zero or one hides a difference."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            scale = 0.5 if p.ndim < 2 else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale + (0.5 if p.ndim < 2 else 0))
    return module


def first_level(down, up):
    """Block types of two levels, of which only the first one's differ between the styles."""
    return {"down_block_types": (down, "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", up)}


STYLES = {
    "adm": (
        {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"},
        {"attention_head_dim": 64, "num_class_embeds": 4} | first_level("AttnDownBlock2D", "AttnUpBlock2D"),
        {"head_channels": 64, "num_classes": 3, "attention_resolutions": (8, 4)},
    ),
    "ddpm": (
        {"downsample_type": "conv", "upsample_type": "conv", "resnet_time_scale_shift": "default"},
        {"attention_head_dim": None} | first_level("DownBlock2D", "UpBlock2D"),
        {"head_channels": 0, "attention_resolutions": (4,), "scale_shift": False, "resample_in_block": False},
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_unet_equals_diffusers(style, x64):
    """The whole network, ADM's and DDPM's blocks: every weight placed, the same output."""
    blocks_of, heads, ours = STYLES[style]
    peer = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(128, 256),  # from 128 channels on, our groups are the peer's 32
        layers_per_block=1,
        attn_norm_num_groups=32,
        **blocks_of,
        **heads,
    )
    peer = randomised(peer)
    net = UNet(
        channels=128,
        channel_mult=(1, 2),
        num_blocks=1,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **ours,
    )
    rng = np.random.default_rng(0)
    x, t, label = rng.standard_normal((3, 3, 8, 8)), np.array([0.25, 17.0, 900.0]), np.array([0, 2, 3])
    with torch.no_grad():
        labels = torch.tensor(label) if "num_classes" in ours else None
        want = peer(torch.tensor(x), torch.tensor(t), class_labels=labels).sample.numpy()
    params = unet_params(peer)
    assert count_params(params) == sum(p.numel() for p in peer.parameters())
    cond = {"label": jnp.asarray(label)} if "num_classes" in ours else None
    got = jax.jit(net.apply)({"params": params}, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(t), cond)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), want, atol=1e-5 * np.abs(want).max())


def attention_params(peer):
    weight, bias = array(peer.in_proj_weight), array(peer.in_proj_bias)
    return weight, bias, linear(peer.out_proj)


def test_self_attention_equals_torch(x64):
    """GroupNorm and MultiheadAttention of torch, four heads, one product for q, k and v."""
    group = randomised(torch.nn.GroupNorm(4, 16, eps=1e-5))
    peer = randomised(torch.nn.MultiheadAttention(16, 4, batch_first=True))
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 16))
    with torch.no_grad():
        h = group(torch.tensor(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        want = x + peer(h, h, h)[0].numpy().reshape(x.shape)
    weight, bias, out = attention_params(peer)
    params = {"norm": norm(group), "qkv": {"kernel": weight.T, "bias": bias}, "out": out}
    net = SelfAttention(4, jnp.float64, jnp.float64)
    np.testing.assert_allclose(net.apply({"params": params}, jnp.asarray(x)), want, atol=1e-10)
    np.testing.assert_allclose(
        GroupNorm(jnp.float64).apply({"params": norm(group)}, jnp.asarray(x)),
        group(torch.tensor(x).permute(0, 3, 1, 2)).detach().numpy().transpose(0, 2, 3, 1),
        atol=1e-10,
    )


def test_cross_attention_equals_torch(x64):
    """MultiheadAttention with a key padding mask."""
    group = randomised(torch.nn.GroupNorm(4, 16, eps=1e-5))
    peer = randomised(torch.nn.MultiheadAttention(16, 2, batch_first=True))
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((2, 3, 4, 16)), rng.standard_normal((2, 6, 16))
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1]], bool)
    with torch.no_grad():
        h = group(torch.tensor(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        tokens = torch.tensor(text)
        want = x + peer(h, tokens, tokens, key_padding_mask=torch.tensor(~mask))[0].numpy().reshape(x.shape)
    weight, bias, out = attention_params(peer)
    params = {
        "norm": norm(group),
        "q": {"kernel": weight[:16].T, "bias": bias[:16]},
        "kv": {"kernel": weight[16:].T, "bias": bias[16:]},
        "out": out,
    }
    net = CrossAttention(8, jnp.float64, jnp.float64)
    got = net.apply({"params": params}, jnp.asarray(x), jnp.asarray(text), jnp.asarray(mask))
    np.testing.assert_allclose(got, want, atol=1e-10)
