"""Whole networks: published sizes, zero start, remat, non-square images, text and low-res conditioning, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.hardware import flops
from jaxdiff.networks import MLP, Classifier, UNet, UNetEncoder, count_params
from tests.networks.table import ONE_LEVEL, TIMES, TINY, images, normal, quick, random_params

ADM = {"out_channels": 6, "num_classes": 1000, "attention_resolutions": (32, 16, 8)}
PUBLISHED = {
    "DDPM CIFAR-10": (
        35.746307e6,  # the authors' network; the paper prints 35.7M
        32,
        UNet(
            channels=128,
            channel_mult=(1, 2, 2, 2),
            attention_resolutions=(16,),
            head_channels=0,
            scale_shift=False,
            resample_in_block=False,
        ),
    ),
    "ADM ImageNet-64": (295.9e6, 64, UNet(channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, **ADM)),
    "ADM ImageNet-128": (422e6, 128, UNet(channels=256, channel_mult=(1, 1, 2, 3, 4), **ADM)),
    "ADM ImageNet-256": (554e6, 256, UNet(channels=256, channel_mult=(1, 1, 2, 2, 4, 4), **ADM)),
}


def shapes(net, x, t=None, cond=None):
    return jax.eval_shape(net.init, jax.random.key(0), x, t, cond)["params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    published, size, net = PUBLISHED[name]
    count = count_params(shapes(net, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jnp.zeros((1,))))
    assert abs(count / published - 1) < 0.002, count


def test_efficient_order_works_at_low_resolution():
    """Imagen's order spends its blocks below full resolution: far fewer operations for the same widths."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def flops(order):
        net = UNet(channels=16, channel_mult=(1, 2), num_blocks=2, attention_resolutions=(), level_order=order)
        lowered = jax.jit(net.apply).lower({"params": shapes(net, x, jnp.zeros((1,)))}, x, jnp.zeros((1,)))
        return lowered.cost_analysis()["flops"]

    assert flops("efficient") < 0.4 * flops("adm")


def test_untrained_networks_answer_zero():
    net = MLP(width=8, depth=1)
    y, _ = net.init_with_output(jax.random.key(0), normal(0, 4, 2), TIMES)
    np.testing.assert_array_equal(y, np.zeros((4, 2)))
    unet = UNet(**ONE_LEVEL)
    params = quick(lambda k: unet.init(k, images(), TIMES)["params"])(jax.random.key(0, impl="rbg"))
    assert not any(params["head"][k].any() for k in ("kernel", "bias"))
    assert not params["encoder"]["mid_0"]["res"]["conv_out"]["kernel"].any()
    assert not params["encoder"]["mid_0"]["attention"]["out"]["kernel"].any()


@pytest.mark.parametrize("remat", [True, "products"])
def test_remat_changes_nothing(remat):
    """Same parameter tree, value and gradient. All is computed again, or all but convolutions and dense layers: what
    attention's two products cost is less than an eighth of this network."""
    plain = UNetEncoder(**ONE_LEVEL, text_dim=5)
    x, cond = images(), {"text": normal(1, 4, 2, 5)}
    params = random_params(plain, x, TIMES, cond)

    def value_and_grad(net):
        loss = lambda p: (net.apply({"params": p}, x, TIMES, cond).h ** 2).mean()
        return quick(jax.value_and_grad(loss))(params)

    a, b = value_and_grad(plain), value_and_grad(plain.clone(remat=remat))
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-6), a, b)

    def work(net):
        return flops.count(jax.grad(lambda p: (net.apply({"params": p}, x, TIMES, cond).h ** 2).mean()), params)

    more = work(plain.clone(remat=remat)) / work(plain)
    assert 1.2 < more < 1.34 if remat is True else 1 < more < 1.125


def test_unknown_remat_is_refused():
    with pytest.raises(ValueError, match=r"network\.remat is 'dots'; allowed: False, True, products"):
        jax.eval_shape(UNet(**TINY, remat="dots").init, jax.random.key(0), jnp.zeros((2, 8, 8, 3)), jnp.zeros(2))


def test_sizes():
    """Any even sides that the halvings divide, not only squares; one line for others."""
    for order, side in (("adm", 12), ("efficient", 16)):
        net = UNet(**TINY, level_order=order, patch_size=2)
        t = jnp.zeros((2,))
        y = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 8, side, 3)), t)[0]
        assert y.shape == (2, 8, side, 3)
        with pytest.raises(ValueError, match=r"multiples of \d"):
            net.init(jax.random.key(0), jnp.zeros((2, 8, 10 if order == "efficient" else 6, 3)), t)


def test_low_res_is_upsampled_to_x():
    """A constant low-res image is the same at any size, and equals its full-size self."""
    net = UNet(**ONE_LEVEL, low_res="bilinear")
    call = quick(lambda p, low: net.apply({"params": p}, images(), TIMES, {"low_res": low}))
    const = lambda h, w: jnp.broadcast_to(jnp.array([0.3, -0.2, 0.9]), (4, h, w, 3))
    params = random_params(net, images(), TIMES, {"low_res": const(2, 2)})
    np.testing.assert_allclose(call(params, const(2, 4)), call(params, const(8, 8)), rtol=1e-3, atol=1e-4)


def test_text_masks():
    """A masked token has no influence, not even as NaN; no text is text with nothing readable."""
    net = UNet(**ONE_LEVEL, text_dim=5)
    text, mask = normal(0, 4, 3, 5), jnp.array([[1, 1, 0]] * 3 + [[0, 0, 0]], bool)
    params = random_params(net, images(), TIMES, {"text": text})
    call = quick(lambda p, cond: net.apply({"params": p}, images(), TIMES, cond))
    y = call(params, {"text": text, "text_mask": mask})
    np.testing.assert_array_equal(y, call(params, {"text": text.at[:, 2].set(jnp.nan), "text_mask": mask}))
    absent = call(params, {})
    np.testing.assert_allclose(y[3], absent[3], rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(y[:3] - absent[:3]).max()) > 1e-2


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_classifier_features_and_clean_images(pool):
    """Logits are the head of `features`; parameters made without t serve both clean and noisy images."""
    net = Classifier(5, **ONE_LEVEL, pool=pool)
    params = random_params(net, images())

    def both(p, t):
        v = {"params": p}
        return net.apply(v, images(), t), net.apply(v, images(), t, method="features")

    (clean, _), (noisy, features) = quick(both)(params, None), quick(both)(params, TIMES)
    assert features.shape == (4, 8) and features.dtype == clean.dtype == jnp.float32
    np.testing.assert_allclose(features @ params["head"]["kernel"] + params["head"]["bias"], noisy, atol=1e-4)
    assert float(jnp.abs(clean - noisy).max()) > 1e-3
    labelled = lambda: net.apply({"params": params}, images(), None, {"label": jnp.zeros((4,), jnp.int32)})
    assert jax.eval_shape(labelled).shape == (4, 5)


U = UNet(**TINY)
Z = normal(0, 4, 3)
LOW = normal(0, 4, 4, 4, 3)
REFUSED = {
    "unknown key": (U, {"lable": Z}, r"cond\['lable'\]; allowed keys: label, text"),
    "key without field": (U, {"label": jnp.zeros(4, jnp.int32)}, "set num_classes"),
    "field without key": (UNet(**TINY, low_res="bilinear"), {}, r"low_res='bilinear' and needs cond\['low_res'\]"),
    "latent missing": (UNet(**TINY, latent_dim=3), None, r"needs cond\['z'\]"),
    "latent size": (UNet(**TINY, latent_dim=4), {"z": Z}, r"\(B, latent_dim\) = \(B, 4\)"),
    "float label": (UNet(**TINY, num_classes=3), {"label": jnp.zeros(4)}, "must be integers of shape"),
    "label shape": (UNet(**TINY, num_classes=3), {"label": jnp.zeros((4, 1), jnp.int32)}, "must be integers of shape"),
    "low_res too large": (UNet(**TINY, low_res="bilinear"), {"low_res": normal(0, 4, 16, 16, 3)}, "no larger than x"),
    "way to resize": (UNet(**TINY, low_res="lanczos"), {"low_res": LOW}, "nearest, bilinear, bicubic"),
    "image size": (UNet(**TINY, image=True), {"image": LOW}, r"cond\['image'\] has shape"),
    "text width": (UNet(**TINY, text_dim=7), {"text": normal(0, 4, 2, 5)}, "text_dim"),
    "mask alone": (UNet(**TINY, text_dim=7), {"text_mask": jnp.ones((4, 2), bool)}, "without cond"),
    "float mask": (UNet(**TINY, text_dim=5), {"text": normal(0, 4, 2, 5), "text_mask": jnp.ones((4, 2))}, "bool"),
    "level order": (UNet(**TINY, level_order="imagen"), None, "'adm', 'efficient'"),
    "time embedding": (UNet(**TINY, time_embedding="learned"), None, "'sinusoidal', 'fourier'"),
    "blocks": (UNet(**(TINY | {"num_blocks": (1, 1, 1)})), None, "2 levels"),
    "heads": (UNet(**(TINY | {"head_channels": 3})), None, "not a multiple of head_channels=3"),
    "pool": (Classifier(3, **TINY, pool="max"), None, "'attention', 'mean'"),
    "classifier conditioned": (Classifier(3, **TINY), {"z": Z}, r"cond\['z'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_clear_line(case):
    net, cond, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        shapes(net, images(), TIMES, cond)
    assert "\n" not in str(caught.value)


def test_times_and_vectors_refused():
    with pytest.raises(ValueError, match="one value per example"):
        shapes(U, images(), jnp.zeros((3,)))
    with pytest.raises(ValueError, match="use UNet for images"):
        shapes(MLP(), images(), TIMES)
    with pytest.raises(ValueError, match="needs t"):
        shapes(U, images(), None)
