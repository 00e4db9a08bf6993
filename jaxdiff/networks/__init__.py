"""Networks: `net.apply({"params": params}, x, t, cond, train=False) -> raw output`, and nothing about diffusion.

`x` [B, ...], `t` the noise level as the network is told it (c_noise, [B]), `cond` a dict of `jaxdiff.types.Cond`'s
keys or None (`net.cond_keys` names those it reads, and any other is refused); the answer is float32, an array, or a
dict of arrays from a discriminator. Training with dropout passes `train=True, rngs={"dropout": key}`.
`TextEncoder` makes `cond["text"]` and is called with tokens and their mask.
`Autoencoder`, by its methods, and `PatchDiscriminator` are told nothing beside x.
"""

from jaxdiff.networks import quantizer as quantizer
from jaxdiff.networks.autoencoder import Autoencoder as Autoencoder
from jaxdiff.networks.classifier import Classifier as Classifier
from jaxdiff.networks.discriminator import Discriminator as Discriminator
from jaxdiff.networks.encoder import UNetEncoder as UNetEncoder
from jaxdiff.networks.layers import count_params as count_params
from jaxdiff.networks.mlp import MLP as MLP
from jaxdiff.networks.patch_discriminator import PatchDiscriminator as PatchDiscriminator
from jaxdiff.networks.point_discriminator import PointDiscriminator as PointDiscriminator
from jaxdiff.networks.text_encoder import EncodedText as EncodedText
from jaxdiff.networks.text_encoder import TextEncoder as TextEncoder
from jaxdiff.networks.unet import UNet as UNet
