"""Autoencoder, KL and VQ: properties over random weights, closed forms of its latents, published sizes, refusals."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.integrate import quad
from scipy.stats import norm

from jaxdiff.networks.autoencoder import Autoencoder, kl_to_normal, sample_moments, split_moments
from jaxdiff.networks.layers import count_params
from jaxdiff.networks.levels import Level
from jaxdiff.networks.quantizer import histogram, lookup, nearest
from tests.networks.table import BATCH, normal, quick, random_params

TINY = {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "out_channels": 2, "latent_channels": 3}
NETS = {
    "kl": Autoencoder(**TINY, patch_size=2, attention_resolutions=(4,)),
    "vq": Autoencoder(**TINY, kind="vq", num_codes=5, attend=False, down="asymmetric"),
}
X = normal(0, BATCH, 8, 16, 2)
KEYS = jax.random.split(jax.random.key(3), BATCH)


class Ready(NamedTuple):
    """A network with random weights, and its jitted methods."""

    net: Any
    params: Any
    call: Any


@cache
def ready_net(name):
    net = NETS[name]
    calls = {m: quick(lambda p, *a, m=m: net.apply({"params": p}, *a, method=m))
             for m in ("__call__", "encode", "decode", "code", "features", "paint")}
    return Ready(net, random_params(net, X), calls)


@pytest.fixture(scope="module", params=list(NETS))
def ready(request):
    return ready_net(request.param)


def run(ready, method, *args):
    return ready.call[method](ready.params, *args)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


def test_shapes_and_dtypes(ready):
    f, kl = ready.net.reduction, ready.net.kind == "kl"
    assert f == (4 if kl else 2)
    encoded = run(ready, "encode", X)
    assert encoded.shape == (BATCH, 8 // f, 16 // f, 6 if kl else 3) and encoded.dtype == jnp.float32
    y = run(ready, "decode", encoded[..., :3])
    assert y.shape == X.shape and y.dtype == jnp.float32
    coded = run(ready, "code", X, KEYS)
    costs = ["kl"] if kl else ["codebook", "commitment"]
    assert {k: v.shape for k, v in coded.costs.items()} == dict.fromkeys(costs, (BATCH,))
    assert run(ready, "paint", coded.features).shape == X.shape
    assert float(jnp.std(y)) > 1e-3


def test_the_methods_agree(ready):
    """decode is paint of features, x -> x decodes the mean or the nearest codes, code draws or quantises."""
    encoded = run(ready, "encode", X)
    free = z = normal(5, *encoded.shape[:3], 3)
    coded = run(ready, "code", X, KEYS)
    if ready.net.kind == "kl":
        middle, drawn = split_moments(encoded)[0], jax.vmap(sample_moments)(KEYS, encoded)
        assert coded.told == {}
    else:
        book = ready.params["codebook"]
        z = lookup(book, nearest(book, z))
        middle = drawn = lookup(book, nearest(book, encoded))
        np.testing.assert_array_equal(coded.told["histogram"], histogram(nearest(book, encoded), 5))
        close(coded.told["z_e"], encoded)
        close(run(ready, "decode", free), run(ready, "decode", z))
    close(run(ready, "paint", run(ready, "features", z)), run(ready, "decode", z))
    close(run(ready, "paint", run(ready, "features", middle)), run(ready, "__call__", X))
    close(coded.features, run(ready, "features", drawn))


def test_bfloat16_compute(ready):
    """Same parameters, bfloat16 arithmetic: float32 out, within a few of bfloat16's 3 digits."""
    method = "__call__" if ready.net.kind == "kl" else "encode"  # a code may change with the last digit
    net, full = ready.net.clone(dtype=jnp.bfloat16), run(ready, method, X)
    half = quick(lambda p: net.apply({"params": p}, X, method=method))(ready.params)
    assert half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    assert 1e-6 < error < 0.05, error


def test_gradients_reach_every_parameter(ready):
    def loss(p):
        coded = ready.net.apply({"params": p}, X, KEYS, method="code")
        error = jnp.mean((ready.net.apply({"params": p}, coded.features, method="paint") - X) ** 2)
        return error + sum(c.mean() for c in coded.costs.values())

    grads = flatten_dict(quick(jax.grad(loss))(ready.params))
    for name, g in grads.items():
        assert bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 1e-7, name
    assert ready.net.last_layer in grads


def test_examples_are_independent(ready):
    order = jnp.array([2, 0, 3, 1])
    close(run(ready, "__call__", X[order]), run(ready, "__call__", X)[order])
    close(run(ready, "__call__", X.at[0].set(9.0))[1:], run(ready, "__call__", X)[1:])
    close(run(ready, "code", X[order], KEYS[order]).features, run(ready, "code", X, KEYS).features[order])


def test_remat_and_eager_change_nothing():
    """On the level that the network repeats: the answer, and its gradient."""
    x = normal(0, 2, 4, 4, 8)
    level = lambda remat: Level(8, 1, "asymmetric", (), 0, remat, jnp.float32, jnp.float32)
    params = random_params(level(False), x)
    value = lambda remat: lambda p: (level(remat).apply({"params": p}, x) ** 2).mean()
    close(quick(value(False))(params), value(False)(params))
    plain, again = (quick(jax.grad(value(remat)))(params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7), again, plain)
    assert "remat" in str(jax.make_jaxpr(value(True))(params)) and "remat" not in str(jax.make_jaxpr(value(False))(params))


def test_untrained_answers_zero():
    net = Autoencoder(channels=8, channel_mult=(1,), num_blocks=1, attend=False)
    y, _ = quick(net.init_with_output)(jax.random.key(0, impl="rbg"), normal(0, 1, 4, 4, 3))
    np.testing.assert_array_equal(y, 0)


def test_log_variance_is_clamped():
    ready = ready_net("kl")
    for push, bound in ((1e3, 20), (-1e3, -30)):
        bias = ready.params["to_latent"]["bias"].at[3:].set(push)
        params = {**ready.params, "to_latent": {**ready.params["to_latent"], "bias": bias}}
        np.testing.assert_array_equal(split_moments(ready.call["encode"](params, X))[1], bound)


def test_kl_against_numerical_integration():
    """The integral of q log(q / p), one dimension at a time; and exactly 0 at N(0, I), with its small values kept."""
    mean, log_var = np.array([0.0, 0.7, -2.0]), np.array([0.0, -1.5, 0.8])
    q = [norm(m, np.exp(v / 2)) for m, v in zip(mean, log_var, strict=True)]
    want = sum(quad(lambda z, d=d: d.pdf(z) * (d.logpdf(z) - norm.logpdf(z)), -15, 15, points=(0, d.mean()))[0] for d in q)
    moments = jnp.asarray(np.concatenate([mean, log_var]), jnp.float32).reshape(1, 1, 1, 6)
    got = kl_to_normal(jnp.concatenate([moments, jnp.zeros_like(moments)]))
    np.testing.assert_allclose(got, [want, 0], rtol=1e-6)
    near = kl_to_normal(jnp.array([[1e-3, 1e-3]]))  # mean and log variance: 1e-6 / 2 + 1e-6 / 4
    np.testing.assert_allclose(near, 7.5e-7, rtol=2e-3)


def test_draws_have_their_moments():
    moments = jnp.array([1.5, -2.0, np.log(0.25), np.log(9.0)], jnp.float32)
    z = jax.vmap(sample_moments, (0, None))(jax.random.split(jax.random.key(0), 40_000), moments)
    np.testing.assert_allclose(z.mean(0), [1.5, -2.0], atol=0.06)  # 4 standard errors of the wider one
    np.testing.assert_allclose(z.std(0), [0.5, 3.0], rtol=0.015)


def test_published_size():
    """AutoencoderKL of the latent diffusion release, f = 8: 128 channels, two blocks, attention in the middle."""
    net = Autoencoder(channels=128, channel_mult=(1, 2, 4, 4), num_blocks=2)
    assert count_params(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]) == 83_653_863


def test_refusals():
    start = lambda net, x: jax.eval_shape(net.init, jax.random.key(0), x)
    for shape in ((1, 10, 8, 2), (1, 8, 8, 3), (8, 8, 2)):
        with pytest.raises(ValueError, match=r"x has shape .* allowed: \(B, H, W, 2\) with H and W multiples of 4"):
            start(NETS["kl"], jnp.zeros(shape))
    ready = ready_net("kl")
    with pytest.raises(ValueError, match=r"z has shape \(1, 2, 2, 6\); allowed: \(B, h, w, 3\)"):
        run(ready, "decode", jnp.zeros((1, 2, 2, 6)))
    for wrong in ({"kind": "vae"}, {"down": "left"}):
        with pytest.raises(ValueError, match="allowed"):
            start(Autoencoder(**TINY, **wrong), X)
    for wrong in ({"kind": "vq"}, {"num_codes": 8}):
        with pytest.raises(ValueError, match=r"num_codes=.* allowed: 'vq' with 2 or more, 'kl' with 0"):
            start(Autoencoder(**TINY, **wrong), X)
