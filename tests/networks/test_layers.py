"""Bricks against closed forms: group norm, embeddings, attention, resampling, initialisation and remat."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.attention import CrossAttention, SelfAttention, attend
from jaxdiff.networks.embeddings import TextPool, TimeEmbedding, fourier, sinusoidal
from jaxdiff.networks.layers import (
    GroupNorm,
    ResidualBlock,
    count_params,
    depth_to_space,
    double,
    group_count,
    halve,
    space_to_depth,
)
from tests.networks.table import normal, quick, random_params


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_closed_form(dtype):
    """Twelve channels make three groups of four; statistics over pixels and the group, in float32 whatever comes in."""
    x = (3 + 2 * normal(0, 2, 4, 6, 12)).astype(dtype)
    norm = GroupNorm()
    p = random_params(norm, x)
    y = quick(norm.apply)({"params": p}, x)
    v = np.asarray(x, np.float64).reshape(2, 24, 3, 4)
    v = (v - v.mean(axis=(1, 3), keepdims=True)) / np.sqrt(v.var(axis=(1, 3), keepdims=True) + 1e-5)
    scale, bias = (np.asarray(p[k], np.float64) for k in ("scale", "bias"))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, v.reshape(2, 4, 6, 12) * scale + bias, atol=2e-5)


def test_group_counts():
    """Always a divisor, at most 32, and ADM's 32 at every published width."""
    counts = {c: group_count(c) for c in range(1, 1100)}
    assert all(c % g == 0 and g <= 32 for c, g in counts.items())
    assert all(counts[c] == 32 for c in (128, 192, 256, 384, 512, 576, 768, 1024))


@pytest.mark.parametrize("t", [-1.6, 0.0, 0.37, 999.0])
def test_sinusoidal_formula(t):
    got = sinusoidal(jnp.array([t], jnp.bfloat16 if t == 0.0 else jnp.float32), 8)
    want = [f(t * 10_000 ** (-i / 4)) for f in (math.cos, math.sin) for i in range(4)]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], want, atol=1e-4)  # float32 angles near 999 are good to 6e-5


def test_time_embedding_keeps_levels_apart_in_bfloat16():
    """Two levels that bfloat16 cannot tell apart (0.5 and 0.5005) still get different embeddings."""
    net = TimeEmbedding(8, 8, dtype=jnp.bfloat16)
    t = jnp.array([0.5, 0.5005])
    y = quick(net.apply)({"params": random_params(net, t)}, t)
    assert t.astype(jnp.bfloat16)[0] == t.astype(jnp.bfloat16)[1]
    assert y.dtype == jnp.float32 and float(jnp.abs(y[0] - y[1]).max()) > 1e-5


def test_fourier_kernel_and_stability():
    """E[cos(2 pi w (x - y))] = exp(-2 (pi scale |x - y|)^2); and the first frequencies of the frozen stream."""
    x, y = jnp.array([[0.1, -0.2]]), jnp.array([[0.3, 0.1]])
    fx, fy = fourier(x, 20_000, 0.5), fourier(y, 20_000, 0.5)
    want = math.exp(-2 * (math.pi * 0.5) ** 2 * (0.2**2 + 0.3**2))
    assert abs(float((fx * fy).sum()) / 10_000 - want) < 0.02
    w = np.random.RandomState(0).standard_normal(2)
    np.testing.assert_allclose(fourier(jnp.array([0.1]), 4)[0, 2:], np.sin(0.2 * np.pi * w), atol=1e-6)


def test_attend_against_numpy(x64):
    q, k, v = (np.asarray(normal(i, 2, 3, n, 4), np.float64) for i, n in enumerate((5, 7, 7)))
    mask = np.array([[1, 1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0]], bool)
    logits = np.einsum("bhqd,bhkd->bhqk", q, k) / 2.0
    np.testing.assert_allclose(quick(attend)(q, k, v), np.einsum("bhqk,bhkd->bhqd", softmax(logits), v), atol=1e-12)
    masked = np.where(mask[:, None, None, :], logits, -np.inf)
    np.testing.assert_allclose(
        quick(attend)(q, k, v, mask), np.einsum("bhqk,bhkd->bhqd", softmax(masked), v), atol=1e-12
    )


def test_nothing_readable_is_zero_with_finite_gradients():
    q, k, v = (normal(i, 1, 2, 3, 4) for i in range(3))
    mask = jnp.zeros((1, 3), bool)
    total = lambda *a: (attend(*a, mask).sum(), attend(*a, mask))
    grads, y = quick(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert not y.any()
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_attention_symmetries(x64):
    """Self-attention commutes with any permutation of pixels; cross-attention ignores token order and padding."""
    x = normal(0, 2, 3, 4, 8).astype(jnp.float64)
    attention = SelfAttention(4, jnp.float64, jnp.float64)
    p = {"params": random_params(attention, x)}
    order = np.random.default_rng(0).permutation(12)
    shuffle = lambda v: v.reshape(2, 12, 8)[:, order].reshape(2, 3, 4, 8)
    call = quick(attention.apply)
    np.testing.assert_allclose(call(p, shuffle(x)), shuffle(call(p, x)), atol=1e-12)

    text = normal(1, 2, 3, 5).astype(jnp.float64)
    mask = jnp.array([[True, True, True], [True, False, True]])
    cross = CrossAttention(4, jnp.float64, jnp.float64)
    p = {"params": random_params(cross, x, text, mask)}
    call = quick(cross.apply)
    want = call(p, x, text, mask)
    np.testing.assert_allclose(call(p, x, text[:, ::-1], mask[:, ::-1]), want, atol=1e-12)
    padding = 1e3 * jnp.ones((2, 2, 5))
    longer = jnp.concatenate([text, padding], axis=1), jnp.concatenate([mask, jnp.zeros((2, 2), bool)], axis=1)
    np.testing.assert_allclose(call(p, x, *longer), want, atol=1e-12)


def test_pooled_text_ignores_padding():
    text, mask = normal(0, 2, 3, 5), jnp.array([[True, True, False], [False, False, False]])
    pool = TextPool(4)
    p = {"params": random_params(pool, text, mask)}
    call = quick(pool.apply)
    y = call(p, text, mask)
    alone = call(p, text[:1, :2], mask[:1, :2])
    np.testing.assert_allclose(y[0], alone[0], atol=1e-6)
    assert bool(jnp.isfinite(y).all())


def test_resampling_identities():
    x = normal(0, 2, 4, 6, 3)
    np.testing.assert_allclose(halve(double(x)), x, atol=1e-6)
    np.testing.assert_allclose(halve(x)[1, 1, 2], x[1, 2:4, 4:6].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_array_equal(double(x)[:, 1::2, ::2], x)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 2), 2), x)
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 1, 2, 3:6], x[0, 2, 5])


def test_blocks_start_as_identity():
    """Zero-initialised last layers: at initialisation only the skip is left."""
    x, emb = normal(0, 2, 4, 4, 8), normal(1, 2, 6)
    for block, args in ((ResidualBlock(8), (x, emb)), (SelfAttention(4), (x,))):
        y = quick(block.init_with_output)(jax.random.key(0, impl="rbg"), *args)[0]
        np.testing.assert_array_equal(y, x)


def test_count_params():
    assert count_params({"a": jnp.zeros((2, 3)), "b": {"c": jax.ShapeDtypeStruct((4,), jnp.float32)}}) == 10
