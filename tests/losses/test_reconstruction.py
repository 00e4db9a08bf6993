"""The autoencoder's losses on a network of two matrices, whose gradients are taken apart elsewhere; then the real networks.

The toy: features = tanh(x A), a draw of noise on them, x_hat = tanh(features) W + b; D(x) = tanh(x V). Its parameters are
named like the real ones, so that `last_layer` finds W.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import approx_fprime

import jaxdiff as jd
from jaxdiff.losses.reconstruction import hinge
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.networks.patch_discriminator import PatchDiscriminator
from jaxdiff.networks.quantizer import fresh_use, histogram, lookup, nearest, quantize, reset_dead, track
from jaxdiff.training import Update, init_state, make_mesh, make_train_step, replicate, shard_batch
from tests.networks.table import normal

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(4)
START = 10
X = 0.5 * normal(0, 8, 4, 4, 2)
BATCH = {"x": X, "index": jnp.arange(8)}


class Coded(NamedTuple):
    features: Any
    costs: dict
    told: dict


def weights():
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(0.5 * rng.standard_normal(shape))
    mine = {"A": draw(2, 3), "head": {"conv": {"kernel": draw(3, 2), "bias": draw(2)}}}
    return {"autoencoder": mine, "discriminator": {"V": draw(2, 2)}}


def code(p, x, keys):
    noise = jax.vmap(lambda k: jax.random.normal(k, (*x.shape[1:-1], 3), x.dtype))(keys)
    h = jnp.tanh(x @ p["A"])
    return Coded(h + 0.1 * noise, {"kl": (h**2).sum((1, 2, 3))}, {})


def paint(p, h):
    return jnp.tanh(h) @ p["head"]["conv"]["kernel"] + p["head"]["conv"]["bias"]


def ask(p, x):
    return jnp.tanh(x @ p["V"]).sum(-1)


def distance(x, x_hat):
    return ((x - x_hat) ** 4).mean((1, 2, 3))


def made(**options):
    return jd.losses.autoencoder(code, paint, **{"perceptual": distance, "perceptual_weight": 0.7, "kl_weight": 1e-2,
                                                 "disc_weight": 0.5, "disc_start": START} | options)


def wide(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


def painted(params):
    """x_hat as the losses draw it, and the KL of each example."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.split(KEY)[0], i))(jnp.arange(8))
    coded = code(params["autoencoder"], wide(X), keys)
    return paint(params["autoencoder"], coded.features), coded.costs["kl"]


def rec(params):
    x_hat, _ = painted(params)
    return jnp.abs(X - x_hat).mean() + 0.7 * distance(X, x_hat).mean()


def gan(params):
    return -ask(params["discriminator"], painted(params)[0]).mean()


def slopes(loss, params, network, step, batch):
    def value(p):
        return loss({**params, network: p}, {}, KEY, batch, step)

    (total, aux), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params[network])
    return total, aux, grads


def same(a, b, rtol=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * 0.1), a, b)


def test_without_a_discriminator(x64):
    """The weighted sum and its gradient, written out; nothing of D in it."""
    params, batch = wide(weights()), wide(BATCH)
    for losses in (made(), made(discriminate=ask, disc_weight=0.0)):
        assert losses.discriminator is None
        total, aux, grads = slopes(losses.generator, {"autoencoder": params["autoencoder"]}, "autoencoder", 99, batch)
        x_hat, kl = painted(params)
        parts = {"l1": np.abs(X - x_hat).mean(), "perceptual": ((X - x_hat) ** 4).mean(), "kl": kl.mean()}
        want = parts["l1"] + 0.7 * parts["perceptual"] + 1e-2 * parts["kl"]
        np.testing.assert_allclose(total, want, rtol=1e-12)
        same(aux.metrics, parts | {"loss": want})
        same(grads, jax.grad(lambda p: rec({"autoencoder": p}) + 1e-2 * painted({"autoencoder": p})[1].mean())(
            params["autoencoder"]))


def test_adaptive_weight(x64):
    """lambda is the ratio of the last kernel's gradient norms, by finite differences and by the whole tree's gradient;
    the loss's gradient is that of rec + lambda gan with lambda held, and what lambda weighs is heard by every layer."""
    params = wide(weights())
    total, aux, grads = slopes(made(discriminate=ask).generator, params, "autoencoder", START, wide(BATCH))

    def of_kernel(fn, flat):
        mine = params["autoencoder"]
        conv = {**mine["head"]["conv"], "kernel": jnp.asarray(flat).reshape(3, 2)}
        return float(fn({**params, "autoencoder": {**mine, "head": {"conv": conv}}}))

    flat = np.asarray(params["autoencoder"]["head"]["conv"]["kernel"]).ravel()
    norms = [np.linalg.norm(approx_fprime(flat, partial(of_kernel, jax.jit(fn)), 1e-7)) for fn in (rec, gan)]
    np.testing.assert_allclose(aux.metrics["adaptive"], 0.5 * norms[0] / (norms[1] + 1e-6), rtol=1e-5)

    of = lambda fn: jax.grad(lambda p: fn({**params, "autoencoder": p}))(params["autoencoder"])
    of_rec, of_gan, of_kl = of(rec), of(gan), of(lambda p: painted(p)[1].mean())
    size = lambda tree: jnp.linalg.norm(tree["head"]["conv"]["kernel"].ravel())
    weight = 0.5 * size(of_rec) / (size(of_gan) + 1e-6)
    np.testing.assert_allclose(aux.metrics["adaptive"], weight, rtol=1e-9)
    same(grads, jax.tree.map(lambda a, b, c: a + weight * b + 1e-2 * c, of_rec, of_gan, of_kl))
    want = rec(params) + weight * gan(params) + 1e-2 * painted(params)[1].mean()
    np.testing.assert_allclose(total, want, rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["gan"], gan(params), rtol=1e-12)
    assert float(jnp.abs(weight * of_gan["A"]).max()) > 1e-3


def test_adaptive_weight_is_clipped(x64):
    """A discriminator that hardly answers is not amplified without end: at most 1e4, times its weight."""
    faint = lambda p, x: 1e-9 * ask(p, x)
    _, aux, _ = slopes(made(discriminate=faint).generator, wide(weights()), "autoencoder", START, wide(BATCH))
    assert float(aux.metrics["adaptive"]) == 0.5 * 1e4


def test_hinge_by_hand():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([-3.0, 0.0, 0.5])
    np.testing.assert_allclose(hinge(real, fake), 0.5 * ((0 + 0.5 + 2 + 0) / 4 + (0 + 1 + 1.5) / 3), rtol=1e-6)
    assert hinge(jnp.full(3, 1.5), jnp.full(5, -1.5)) == 0


def test_discriminators_loss(x64):
    """The hinge of real and painted pictures, and its gradient."""
    params = wide(weights())
    total, aux, grads = slopes(made(discriminate=ask).discriminator, params, "discriminator", START, wide(BATCH))
    x_hat, _ = painted(params)

    def want(p):
        return 0.5 * (jnp.maximum(1 - ask(p, X), 0).mean() + jnp.maximum(1 + ask(p, x_hat), 0).mean())

    np.testing.assert_allclose(total, want(params["discriminator"]), rtol=1e-12)
    same(grads, jax.grad(want)(params["discriminator"]))
    np.testing.assert_allclose(aux.metrics["real"], ask(params["discriminator"], X).mean(), rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["fake"], ask(params["discriminator"], x_hat).mean(), rtol=1e-12)


def test_silence_before_the_start(x64):
    """Up to disc_start - 1 D is not run at all (its host counter stands still), gets a gradient of exactly 0, and the
    autoencoder's is the one without D; at disc_start it is run."""
    heard = []

    def counting(p, x):
        jax.debug.callback(lambda: heard.append(1))
        return ask(p, x)

    params, batch = wide(weights()), wide(BATCH)
    with_d = made(discriminate=counting)
    plain = slopes(made().generator, params, "autoencoder", 0, batch)
    for step in (0, START - 1, START):
        total, aux, grads = slopes(with_d.generator, params, "autoencoder", step, batch)
        value, told, of_d = slopes(with_d.discriminator, params, "discriminator", step, batch)
        jax.effects_barrier()
        if step == START:
            break
        assert not heard and value == 0 and aux.metrics["gan"] == aux.metrics["adaptive"] == told.metrics["real"] == 0
        np.testing.assert_array_equal(of_d["V"], 0)
        np.testing.assert_allclose(total, plain[0], rtol=1e-12)
        same(grads, plain[2], rtol=1e-12)
    assert len(heard) == 3 and value > 0 and np.abs(of_d["V"]).max() > 0


def updates(losses, rate=1e-2, forward=True):
    return [Update("discriminator", losses.discriminator, optax.adam(rate)),
            Update("autoencoder", losses.generator, optax.adam(rate), forward=losses.forward if forward else None)]


def trained(step, state, batch, steps):
    step = jax.jit(step)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def test_a_train_step_with_and_without_the_shared_forward(x64):
    """Both give the same parameters; D stands still bit for bit until its start, and moves from there on."""
    losses, start = made(discriminate=ask, disc_start=2), wide(weights())
    states = []
    for forward in (True, False):
        pair = updates(losses, forward=forward)
        step = make_train_step(pair, {})
        state, _ = trained(step, init_state(start, pair, {}, KEY), wide(BATCH), 2)
        np.testing.assert_array_equal(state.params["discriminator"]["V"], start["discriminator"]["V"])
        state, metrics = trained(step, state, wide(BATCH), 2)
        assert float(jnp.abs(state.params["discriminator"]["V"] - start["discriminator"]["V"]).max()) > 1e-3
        assert metrics["finite"] == 1 and metrics["autoencoder/adaptive"] > 0
        states.append(state.params)
    same(*states)


def test_devices_and_micro_batches_change_nothing():
    """Four devices give the one-device step with D; two micro-batches give it without D, whose weight is each one's own."""
    for losses, split in ((made(discriminate=ask, disc_start=0), 1), (made(), 2)):
        pair = [u for u in updates(losses) if u.loss is not None]
        whole, first = make_train_step(pair, {}), init_state(weights(), pair, {}, KEY)
        one, _ = trained(whole, first, BATCH, 2)
        if split == 1:
            mesh = make_mesh(jax.devices()[:4])
            many, _ = trained(whole, replicate(first, mesh), shard_batch(BATCH, mesh), 2)
        else:
            many, _ = trained(make_train_step(pair, {}, accumulate=split), first, BATCH, 2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many.params, one.params)


# the codebook: three codes near the data, and two that no vector is near
BOOK = jnp.array([[0.5, 0.5], [-0.5, 0.5], [0.0, -0.5], [50.0, 0.0], [0.0, 50.0]])


def vq_code(p, x, keys):
    found = quantize(p["codebook"], x)
    costs = {"codebook": found.codebook, "commitment": found.commitment}
    return Coded(found.z, costs, {"histogram": histogram(found.codes, 5), "z_e": jax.lax.stop_gradient(x)})


def vq_params():
    return {"autoencoder": {"codebook": BOOK, "head": {"conv": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}}}


def vq_losses(**options):
    picture = lambda p, h: h @ p["head"]["conv"]["kernel"] + p["head"]["conv"]["bias"]
    return jd.losses.autoencoder(vq_code, picture, track=track(0.9, 0.05), **options)


def test_codebook_terms_and_state():
    """Weights 1 and .25 of the codebook's two errors, and the use of the codes carried in the autoencoder's state."""
    state = {"autoencoder": fresh_use(5, 2), "other": {"kept": jnp.ones(1)}}
    total, aux = vq_losses().generator(vq_params(), state, KEY, BATCH, 0)
    nearby = lookup(BOOK, nearest(BOOK, X))
    error, l1 = ((X - nearby) ** 2).mean(), jnp.abs(X - nearby).mean()
    np.testing.assert_allclose(total, l1 + 1.25 * error, rtol=1e-5)
    shares = np.bincount(np.asarray(nearest(BOOK, X)).ravel(), minlength=5) * 5 / 128
    np.testing.assert_allclose(aux.state["autoencoder"]["counts"], 0.1 * shares, rtol=1e-5)
    assert aux.state["other"] is state["other"]
    p = shares[:3] / shares.sum()
    perplexity = np.exp(-(p * np.log(p)).sum())
    np.testing.assert_allclose([aux.metrics["usage"], aux.metrics["perplexity"]], [0.6, perplexity], rtol=1e-5)
    np.testing.assert_allclose([aux.metrics["codebook"], aux.metrics["commitment"]], [error, error], rtol=1e-5)
    doubled = vq_losses(codebook_weight=2.0, commitment_weight=0.0).generator(vq_params(), state, KEY, BATCH, 0)[0]
    np.testing.assert_allclose(doubled, l1 + 2 * error, rtol=1e-5)


def test_revival_is_a_reset_by_one_gradient_step():
    """As an Update of plain descent at rate 1: dead codes become vectors of the batch, live ones and all else stay bit for
    bit; with micro-batches too. The revived code is used from the next step on."""
    losses, rows = vq_losses(), {tuple(r) for r in np.asarray(X).reshape(-1, 2).tolist()}
    revive = jd.losses.revival(partial(reset_dead, threshold=0.05))
    pair = [Update("autoencoder", losses.generator, optax.sgd(0.0)),
            Update("autoencoder", revive, jd.training.optimizer("sgd", 1.0, b1=0.0).transform, every=2)]
    for split in (1, 2):
        state = init_state(vq_params(), pair, {}, KEY, {"autoencoder": fresh_use(5, 2)})
        step = make_train_step(pair, {}, accumulate=split)
        state, metrics = trained(step, state, BATCH, 1)
        assert metrics["autoencoder:2/revived"] == 2
        book = np.asarray(state.params["autoencoder"]["codebook"])
        np.testing.assert_array_equal(book[:3], BOOK[:3])
        gap = [min(np.abs(np.subtract(row, r)).max() for r in rows) for row in book[3:]]
        assert max(gap) < 1e-5  # 50 - (50 - x) rounds at 50's last digit
        np.testing.assert_array_equal(state.params["autoencoder"]["head"]["conv"]["kernel"], jnp.eye(2))
        state, _ = trained(step, state, BATCH, 2)
        assert (np.asarray(state.state["autoencoder"]["counts"]) > 0).all()
        np.testing.assert_array_equal(state.params["autoencoder"]["codebook"][:3], BOOK[:3])


def pictures():
    """Four 16 x 16 pictures: a disc, a bar, a triangle and a diamond, each of two random colours."""
    row, col = np.mgrid[:16, :16] / 7.5 - 1
    inside = np.stack([row**2 + col**2 < 0.5, np.abs(row) < 0.5, row > col, np.abs(row) + np.abs(col) < 0.8])[..., None]
    colours = np.random.default_rng(0).uniform(-1, 1, (4, 2, 1, 1, 3))
    return jnp.asarray(np.where(inside, colours[:, 0], colours[:, 1]), jnp.float32)


def test_the_real_networks_overfit_four_pictures():
    """VQ with revivals, and a discriminator from step 40 on: from 9.8 dB (an untrained network answers 0) to above 18 in 60
    steps, with every code in use."""
    x = pictures()
    net = Autoencoder(channels=12, channel_mult=(1,), patch_size=2, num_blocks=1, attend=False, kind="vq", num_codes=16)
    judge = PatchDiscriminator(8, 2)
    call = lambda method: lambda p, *args: net.apply({"params": p}, *args, method=method)
    losses = jd.losses.autoencoder(call("code"), call("paint"), lambda p, x: judge.apply({"params": p}, x), track=track(0.9),
                                   disc_start=40)
    revive = jd.losses.revival(partial(reset_dead, threshold=0.03))
    three = [Update("discriminator", losses.discriminator, optax.adam(1e-3)),
             Update("autoencoder", losses.generator, optax.adam(3e-3), forward=losses.forward),
             Update("autoencoder", revive, optax.sgd(1.0), every=20)]
    params = {"autoencoder": jax.jit(net.init)(jax.random.key(0), x)["params"],
              "discriminator": jax.jit(judge.init)(jax.random.key(1), x)["params"]}
    psnr = jax.jit(lambda p: 10 * jnp.log10(4 / jnp.mean((net.apply({"params": p}, x) - x) ** 2)))
    state = init_state(params, three, {}, jax.random.key(2), {"autoencoder": fresh_use(16, 4)})
    state, metrics = trained(make_train_step(three, {}), state, {"x": x, "index": jnp.arange(4)}, 60)
    before, after = float(psnr(params["autoencoder"])), float(psnr(state.params["autoencoder"]))
    print(f"{before:.1f} -> {after:.1f} dB")
    assert 9.5 < before < 10.1 and after > 18 and metrics["finite"] == 1
    assert metrics["autoencoder/usage"] > 0.8 and metrics["autoencoder/perplexity"] > 8
    assert 0 < metrics["autoencoder/adaptive"] < 1 and 0 < metrics["discriminator/loss"] < 1


def test_refusals():
    for option in ("perceptual_weight", "kl_weight", "codebook_weight", "commitment_weight", "disc_weight", "disc_start"):
        with pytest.raises(ValueError, match=f"loss.{option} is -1; allowed: 0 or more"):
            made(**{option: -1})
