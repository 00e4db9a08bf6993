"""A linear regression with noise drawn per example: small enough to check by hand, shaped like a diffusion loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.training import Ema, Update, init_state, make_train_step
from jaxdiff.trees import example_keys
from jaxdiff.types import Aux

B, D = 8, 3
AVERAGES = {"net": {"slow": Ema(decay=0.9), "power": Ema(gamma=6.94)}}


def loss(params, state, key, batch, step):
    """mean_i (w . x_i + b + noise_i - y_i)^2"""
    noise = jax.vmap(jax.random.normal)(example_keys(key, batch["index"]))
    p = params["net"]
    error = batch["x"] @ p["w"] + p["b"] + noise - batch["y"]
    return jnp.mean(error**2), Aux({"noise": jnp.mean(noise)})


def updates():
    return [Update("net", loss, optax.adam(1e-2))]


def step(**options):
    return make_train_step(updates(), AVERAGES, **options)


def fresh(seed=0):
    w, b = jax.random.normal(jax.random.key(seed), (D,)), jnp.zeros(())
    return init_state({"net": {"w": w, "b": b}}, updates(), AVERAGES, jax.random.key(7))


def batch(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(B, D)).astype(np.float32)
    return {"x": x, "y": (x @ np.array([1.0, -2.0, 0.5], np.float32)), "index": np.arange(B, dtype=np.int32)}


def batches(start):
    n = start
    while True:
        yield batch(n)
        n += 1


def same(a, b):
    """Bit for bit, keys included."""
    plain = lambda t: jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _typed(x) else x), t)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def _typed(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
