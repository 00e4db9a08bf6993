"""The networks that every property test runs through: a new network or slot adds a row here and inherits the tests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.networks import MLP, Classifier, Discriminator, PointDiscriminator, UNet

BATCH = 4
TINY = {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "head_channels": 8}
ONE_LEVEL = TINY | {"channel_mult": (1,), "attention_resolutions": (8,)}  # half of the blocks to compile


class Row(NamedTuple):
    """A network with valid inputs, the shape of its `joined` output, and another valid value for each key of its cond."""

    net: Any
    x: Any
    cond: dict
    other: dict
    out: tuple


def joined(y):
    """An output as one array: a dict of arrays becomes [B, everything]."""
    if not isinstance(y, dict):
        return y
    return jnp.concatenate([v.reshape(len(v), -1) for v in y.values()], axis=-1)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def images(channels=3):
    return normal(0, BATCH, 8, 8, channels)


def random_params(net, *args):
    """Parameters in which nothing is at its zero initialisation; made without compiling `init`."""
    shapes = jax.eval_shape(lambda key: net.init(key, *args), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 0.25, v.shape), v.dtype), shapes)


def quick(fn):
    """jit without LLVM's optimisation passes: these networks run in milliseconds and compile in seconds."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


TIMES = jnp.array([-1.5, 0.25, 3.0, 998.5])  # c_noise: ln(sigma) / 4 is negative, 1000 t is large, both fractional
LABELS = jnp.array([0, 1, 2, 4])
TOKENS = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


def rows() -> dict[str, Row]:
    text = {"text": normal(1, BATCH, 3, 5), "text_mask": TOKENS}
    spatial = {
        "low_res": normal(2, BATCH, 4, 2, 3),
        "low_res_t": jnp.array([0.0, 1.0, 2.0, 3.0]),
        "image": normal(3, BATCH, 8, 8, 2),
        "mask": (normal(4, BATCH, 8, 8, 1) > 0).astype(jnp.float32),
    }
    return {
        "adm_class": Row(
            UNet(**(TINY | {"attention_resolutions": ()}), num_classes=5, dropout=0.5),
            images(),
            {"label": LABELS},
            {"label": LABELS - 1},
            (BATCH, 8, 8, 3),
        ),
        "ddpm_spatial": Row(
            UNet(
                **(ONE_LEVEL | {"head_channels": 0}),
                scale_shift=False,
                time_embedding="fourier",
                low_res="bicubic",
                low_res_t=True,
                image=True,
                mask=True,
                out_channels=6,
            ),
            images(),
            spatial,
            {
                "low_res": spatial["low_res"] + 1,
                "low_res_t": spatial["low_res_t"] + 0.5,
                "image": -spatial["image"],
                "mask": 1 - spatial["mask"],
            },
            (BATCH, 8, 8, 6),
        ),
        "efficient_text_z": Row(
            UNet(
                **(TINY | {"attention_resolutions": (2,)}),
                level_order="efficient",
                resample_in_block=False,
                patch_size=2,
                text_dim=5,
                latent_dim=6,
                dropout=0.5,
                out_channels=1,
            ),
            images(1),
            text | {"z": normal(5, BATCH, 6)},
            {"text": -text["text"], "text_mask": ~TOKENS, "z": normal(6, BATCH, 6)},
            (BATCH, 8, 8, 1),
        ),
        "mlp": Row(
            MLP(width=16, depth=1, fourier_features=8, num_classes=5, latent_dim=3, image=True, dropout=0.5),
            normal(0, BATCH, 2),
            {"label": LABELS, "z": normal(7, BATCH, 3), "image": normal(8, BATCH, 1)},
            {"label": LABELS - 1, "z": normal(9, BATCH, 3), "image": normal(10, BATCH, 1)},
            (BATCH, 2),
        ),
        "classifier": Row(Classifier(5, **ONE_LEVEL, dropout=0.5), images(), {}, {}, (BATCH, 5)),
        "discriminator": Row(
            Discriminator(
                out_channels=3,
                channels=8,
                channel_mult=(1, 2),
                patch_size=2,
                minibatch_std=0,  # the one thing in which an example sees others
                denoise=True,
                regress=True,
                variance=True,
                num_classes=5,
                image=True,
                mask=True,
            ),
            images(6),
            {"label": LABELS, "image": spatial["image"], "mask": spatial["mask"]},
            {"label": LABELS - 1, "image": -spatial["image"], "mask": 1 - spatial["mask"]},
            (BATCH, 1 + 3 * 8 * 8 * 3),
        ),
        "point_discriminator": Row(
            PointDiscriminator(
                width=16, depth=1, fourier_features=8, denoise=True, regress=True, variance=True, num_classes=5, image=True
            ),
            normal(0, BATCH, 4),
            {"label": LABELS, "image": normal(8, BATCH, 1)},
            {"label": LABELS - 1, "image": normal(10, BATCH, 1)},
            (BATCH, 1 + 3 * 2),
        ),
    }
