"""Autoencoders against diffusers' AutoencoderKL and VQModel, and the patch discriminator against torch's layers, in float64
with the peer's random weights; its norms' epsilon is set to ours, 1e-5 for 1e-6, so that the rest is equal to 1e-9."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop.unet_weights import array, attention, conv, linear, norm
from jaxdiff.networks import count_params
from jaxdiff.networks.autoencoder import Autoencoder, kl_to_normal
from jaxdiff.networks.patch_discriminator import PatchDiscriminator
from tests.parity.test_networks import randomised

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZES = {
    "block_out_channels": (128, 256),  # from 128 channels on, our groups are the peer's 32
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 3,
    "norm_num_groups": 32,
}


def peer_of(module):
    for m in module.modules():
        if isinstance(m, torch.nn.GroupNorm):
            m.eps = 1e-5
    return randomised(module)


def block(m, attends=None):
    p = {"norm_in": norm(m.norm1), "conv_in": conv(m.conv1), "norm_out": norm(m.norm2), "conv_out": conv(m.conv2)}
    if m.conv_shortcut is not None:
        p["skip"] = linear(m.conv_shortcut)
    return p if attends is None else p | {"attention": attention(attends)}


def middle(m):
    return {"block_0": block(m.resnets[0], m.attentions[0]), "block_1": block(m.resnets[1])}


def head(m):
    return {"norm": norm(m.conv_norm_out), "conv": conv(m.conv_out)}


def autoencoder_params(peer):
    """Parameters of diffusers' AutoencoderKL or VQModel as our Autoencoder's tree."""
    into, out = peer.encoder, peer.decoder
    p = {
        "encoder_stem": conv(into.conv_in),
        "encoder_middle": middle(into.mid_block),
        "encoder_head": head(into),
        "to_latent": linear(peer.quant_conv),
        "from_latent": linear(peer.post_quant_conv),
        "decoder_stem": conv(out.conv_in),
        "decoder_middle": middle(out.mid_block),
        "head": head(out),
    }
    for i, down in enumerate(into.down_blocks):
        p[f"encoder_levels_{i}"] = {f"block_{j}": block(r) for j, r in enumerate(down.resnets)}
        if down.downsamplers is not None:
            p[f"encoder_levels_{i}"]["down"] = conv(down.downsamplers[0].conv)
    for i, up in enumerate(out.up_blocks):
        p[f"decoder_levels_{i}"] = {f"block_{j}": block(r) for j, r in enumerate(up.resnets)}
        if up.upsamplers is not None:
            p[f"decoder_levels_{i}"]["up"] = {"conv": conv(up.upsamplers[0].conv)}
    if hasattr(peer, "quantize"):
        p["codebook"] = array(peer.quantize.embedding.weight)
    return p


def ours(**kind):
    return Autoencoder(channels=128, channel_mult=(1, 2), num_blocks=1, latent_channels=3, down="asymmetric",
                       dtype=jnp.float64, param_dtype=jnp.float64, **kind)


def call(net, params, method, x):
    return np.asarray(jax.jit(lambda p, x: net.apply({"params": p}, x, method=method))(params, jnp.asarray(x)))


def first(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def agree(a, b):
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(b).max())


PICTURES = np.random.default_rng(0).standard_normal((2, 3, 8, 12))


def test_kl_equals_diffusers(x64):
    """Moments, their KL, and pictures out of latents."""
    peer, net = peer_of(diffusers.AutoencoderKL(**SIZES)), ours()
    params = autoencoder_params(peer)
    assert count_params(params) == sum(p.numel() for p in peer.parameters())
    posterior = peer.encode(torch.tensor(PICTURES)).latent_dist
    moments = call(net, params, "encode", PICTURES.transpose(0, 2, 3, 1))
    agree(moments, np.concatenate([first(posterior.mean), first(posterior.logvar)], axis=-1))
    np.testing.assert_allclose(kl_to_normal(jnp.asarray(moments)), posterior.kl().detach().numpy(), rtol=1e-9)
    z = np.random.default_rng(1).standard_normal((2, 3, 4, 6))
    agree(call(net, params, "decode", z.transpose(0, 2, 3, 1)), first(peer.decode(torch.tensor(z)).sample))


def test_vq_equals_diffusers(x64):
    """What is encoded, what is decoded after quantising it, and the two losses' common value."""
    peer, net = peer_of(diffusers.VQModel(**SIZES, num_vq_embeddings=11)), ours(kind="vq", num_codes=11)
    params = autoencoder_params(peer)
    assert count_params(params) == sum(p.numel() for p in peer.parameters())
    z_e = peer.encode(torch.tensor(PICTURES)).latents
    agree(call(net, params, "encode", PICTURES.transpose(0, 2, 3, 1)), first(z_e))
    agree(call(net, params, "decode", first(z_e)), first(peer.decode(z_e).sample))
    coded = jax.jit(lambda p, x: net.apply({"params": p}, x, None, method="code"))(
        params, jnp.asarray(PICTURES.transpose(0, 2, 3, 1)))
    _, cost, _ = peer.quantize(z_e)
    np.testing.assert_allclose(float(coded.costs["codebook"].mean() + 0.25 * coded.costs["commitment"].mean()),
                               cost.item(), rtol=1e-9)


def test_patch_discriminator_equals_torch(x64):
    """pix2pix's layers with group norm."""
    layers, widths = [], [2, 8, 16, 32]
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [torch.nn.Conv2d(a, b, 4, 2 if i < 2 else 1, 1)]
        layers += [torch.nn.GroupNorm(b // 4, b)] if i else []
        layers += [torch.nn.LeakyReLU(0.2)]
    peer = peer_of(torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 1, 4, 1, 1)))
    convs = [m for m in peer if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in peer if isinstance(m, torch.nn.GroupNorm)]
    params = {f"conv_{i}": conv(m) for i, m in enumerate(convs[:-1])} | {"logits": conv(convs[-1])}
    params |= {f"norm_{i + 1}": norm(m) for i, m in enumerate(norms)}
    x = np.random.default_rng(2).standard_normal((2, 2, 13, 16))
    net = PatchDiscriminator(8, 2, dtype=jnp.float64, param_dtype=jnp.float64)
    got = jax.jit(net.apply)({"params": params}, jnp.asarray(x.transpose(0, 2, 3, 1)))
    agree(np.asarray(got), peer(torch.tensor(x)).detach().numpy()[:, 0])
