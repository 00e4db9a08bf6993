"""Cross entropy: by hand in numpy, against optax, and of noised images at unit variance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff.losses.classification import log_likelihoods
from jaxdiff.sde import times

KEY = jax.random.key(2)
WEIGHTS = np.random.default_rng(0).standard_normal((6, 5))
X, LABEL = np.random.default_rng(1).standard_normal((40, 6)), np.random.default_rng(2).integers(0, 5, 40)
BATCH = {"x": jnp.asarray(X, jnp.float32), "label": jnp.asarray(LABEL, jnp.int32)}


def linear(p, x, c, cond):
    return x @ p["w"]


def run(loss, batch=BATCH, w=WEIGHTS):
    return loss({"classifier": {"w": jnp.asarray(w)}}, "kept", KEY, batch, 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_by_hand_and_against_optax(x64, smoothing):
    batch = {"x": jnp.asarray(X), "label": jnp.asarray(LABEL, jnp.int32)}
    value, aux = run(jd.losses.classification(linear, smoothing=smoothing), batch)
    logits = X @ WEIGHTS
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    asked = np.eye(5)[LABEL]
    expected = -((asked * (1 - smoothing) + smoothing / 5) * log_p).sum(1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    peer = optax.softmax_cross_entropy(jnp.asarray(logits), optax.smooth_labels(jnp.asarray(asked), smoothing)).mean()
    np.testing.assert_allclose(value, peer, rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["accuracy"], (logits.argmax(1) == LABEL).mean(), rtol=1e-6)
    assert aux.metrics["loss"] == value and aux.state == "kept"
    np.testing.assert_allclose(log_likelihoods(jnp.asarray(logits), LABEL), log_p[np.arange(40), LABEL], rtol=1e-12)


def test_smoothing_out_of_range_is_refused():
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"smoothing is {smoothing}; allowed"):
            jd.losses.classification(linear, smoothing=smoothing)


def test_bfloat16_logits_are_read_in_float32():
    """Logits of 0 and 8 give a loss of 3.4e-4, which bfloat16's log-softmax rounds away."""
    network = lambda p, x, c, cond: (8 * jax.nn.one_hot(x[:, 0].astype(int), 2)).astype(jnp.bfloat16)
    batch = {"x": jnp.array([[0.0], [1.0]]), "label": jnp.array([0, 1])}
    value, _ = jd.losses.classification(network)({"classifier": {}}, None, KEY, batch, 0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log1p(np.exp(-8.0)), rtol=1e-3)


@pytest.mark.parametrize("path", [jd.sde.VP(), jd.sde.VE(), jd.sde.EDM(), jd.sde.Flow()], ids=lambda p: type(p).__name__)
def test_noised_images_have_unit_variance(path):
    """Data of standard deviation 1/2, at a fixed time: the network sees variance 1 and is told c_noise; no condition."""
    x = 0.5 * jax.random.normal(jax.random.key(0), (2000, 16))
    for t in (path.t_min, 0.5, path.t_max):
        seen = []

        def network(p, x, c, cond, seen=seen):
            seen.append((x, c, cond))
            return jnp.zeros((x.shape[0], 3))

        at = lambda path, key, index, t=t: jnp.full(index.shape, t)
        loss = jd.losses.classification(network, path, at)
        value, _ = loss({"classifier": {}}, None, KEY, {"x": x, "label": jnp.zeros(2000, jnp.int32)}, 0)
        (net_x, c, cond), = seen
        np.testing.assert_allclose(net_x.var(), 1.0, atol=0.04)
        np.testing.assert_allclose(c, jd.sde.c_noise(path, jnp.full(2000, t)), rtol=1e-6)
        assert c.dtype == jnp.float32 and cond is None
        np.testing.assert_allclose(value, np.log(3), rtol=1e-6)


@pytest.mark.parametrize("path", [None, jd.sde.VP()], ids=["clean", "noisy"])
def test_draws_follow_the_global_index(path):
    """Augmentation and noise of an example depend on its global number: halves average to the whole, order is nothing."""
    flip = lambda key, x: jnp.where(jax.random.bernoulli(key), -x, x)
    loss = jd.losses.classification(linear, path, times.low_discrepancy(), augment=flip)
    value = jax.jit(lambda b: run(loss, b, WEIGHTS.astype(np.float32))[0])
    batch = BATCH | {"index": jnp.arange(40) + 7}
    take = lambda rows: {k: v[np.asarray(rows)] for k, v in batch.items()}
    whole = value(batch)
    np.testing.assert_allclose(whole, (value(take(range(20))) + value(take(range(20, 40)))) / 2, rtol=1e-6)
    np.testing.assert_allclose(whole, value(take(range(39, -1, -1))), rtol=1e-6)
    plain = run(jd.losses.classification(linear, path, times.low_discrepancy()), batch)[0]
    assert abs(whole - plain) > 1e-2  # about half of the examples were flipped


def test_stochastic_network_gets_a_key():
    seen = []

    def network(p, x, c, cond, key):
        seen.append(jax.random.key_data(key))
        return x @ p["w"]

    loss = jd.losses.classification(network, stochastic=True)
    for start in (0, 40):
        run(loss, BATCH | {"index": jnp.arange(40) + start})
    assert not np.array_equal(*seen)
