"""The codebook against brute force, gradients by hand, scipy's entropy, and what a reset may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from jaxdiff.networks.quantizer import (
    fresh_use,
    histogram,
    lookup,
    nearest,
    perplexity,
    quantize,
    reset_dead,
    track,
    usage,
)
from tests.networks.table import normal

K, D = 7, 3
BOOK, Z = normal(0, K, D), normal(1, 2, 4, 5, D)


def brute(book, z):
    gaps = np.asarray(z, np.float64)[..., None, :] - np.asarray(book, np.float64)
    return (gaps**2).sum(-1).argmin(-1)


@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["centred", "far from 0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nearest_code_is_brute_force(dtype, shift):
    """Also where |e|^2 is 1e4 times the gaps that decide."""
    z, book = (Z + shift).astype(dtype), BOOK + shift
    codes = jax.jit(nearest)(book, z)
    assert codes.dtype == jnp.int32 and codes.shape == Z.shape[:-1]
    np.testing.assert_array_equal(codes, brute(book, z))
    np.testing.assert_array_equal(codes, nearest(book, z))
    assert len(np.unique(codes)) > 3 or dtype == "bfloat16"


def test_a_tie_takes_the_first():
    np.testing.assert_array_equal(nearest(jnp.array([[1.0], [-1.0], [1.0]]), jnp.array([[0.0], [2.0]])), [0, 0])


def test_the_gradient_passes_straight_through():
    """d/dz of any function of the quantised z is that function's own gradient; the codebook gets none of it."""
    weight = normal(2, *Z.shape)
    of_book, of_z = jax.grad(lambda b, z: (weight * quantize(b, z).z).sum(), argnums=(0, 1))(BOOK, Z)
    np.testing.assert_array_equal(of_z, weight)
    np.testing.assert_array_equal(of_book, 0)
    found = quantize(BOOK, Z)
    np.testing.assert_allclose(found.z, BOOK[brute(BOOK, Z)], atol=1e-6)
    np.testing.assert_array_equal(lookup(BOOK, found.codes), BOOK[brute(BOOK, Z)])


def test_both_errors_and_their_gradients_by_hand(x64):
    """Equal values; a code moves towards the mean of its vectors, a vector towards its code."""
    book, z, codes = np.asarray(BOOK, np.float64), np.asarray(Z, np.float64), brute(BOOK, Z)
    found = quantize(jnp.asarray(book), jnp.asarray(z))
    want = ((z - book[codes]) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.codebook, want, rtol=1e-12)
    np.testing.assert_allclose(found.commitment, want, rtol=1e-12)

    size = z[0].size
    pull = np.zeros_like(book)
    for code, vector in zip(codes.ravel(), z.reshape(-1, D), strict=True):
        pull[code] += 2 * (book[code] - vector) / size
    grads = lambda which: jax.grad(lambda b, v: getattr(quantize(b, v), which).sum(), argnums=(0, 1))(book, z)
    of_book, of_z = grads("codebook")
    np.testing.assert_allclose(of_book, pull, atol=1e-12)
    np.testing.assert_array_equal(of_z, 0)
    of_book, of_z = grads("commitment")
    np.testing.assert_array_equal(of_book, 0)
    np.testing.assert_allclose(of_z, 2 * (z - book[codes]) / size, atol=1e-12)


def test_use_of_the_codes():
    codes = jnp.array([[0, 0, 2], [0, 3, 0]], jnp.int32)
    counts = jax.jit(histogram, static_argnums=1)(codes, 5)
    np.testing.assert_allclose(counts, np.array([4, 0, 1, 1, 0]) * 5 / 6, rtol=1e-6)
    np.testing.assert_allclose([usage(counts), usage(counts, 1.0)], [0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(perplexity(counts), np.exp(entropy([4, 1, 1])), rtol=1e-6)
    np.testing.assert_allclose([perplexity(jnp.ones(8)), perplexity(jnp.eye(8)[3])], [8, 1], rtol=1e-6)


def test_dead_codes_are_reset_and_live_ones_untouched():
    counts = jnp.array([0.0, 1.0, 0.03, 0.031, 2.0, 0.01, 5.0])
    dead = np.array([True, False, True, False, False, True, False])
    rows = {tuple(row) for row in np.asarray(Z.reshape(-1, D)).tolist()}
    reset = jax.jit(lambda key: reset_dead(key, BOOK, counts, Z, 0.03))
    draws = []
    for seed in range(8):
        book = reset(jax.random.key(seed))
        np.testing.assert_array_equal(book[~dead], BOOK[~dead])
        assert {tuple(row) for row in np.asarray(book[dead]).tolist()} <= rows
        draws.append(np.asarray(book[dead]))
    assert len(np.unique(np.concatenate(draws), axis=0)) > 12  # 24 draws of 40 rows, and not the same few
    np.testing.assert_array_equal(reset_dead(jax.random.key(0), BOOK, jnp.ones(K), Z, 0.03), BOOK)


def test_track_carries_counts_and_a_pool():
    """The recursion in numpy; every vector of the pool is one of the batch's; devices average to the whole batch."""
    update = jax.jit(track(decay=0.9, threshold=0.1))
    told = lambda z: {"histogram": histogram(nearest(BOOK, z), K), "z_e": z}
    state, counts = fresh_use(K, D), np.zeros(K)
    for n in range(3):
        z = normal(10 + n, *Z.shape)
        state, metrics = update(state, jax.random.key(n), told(z))
        counts = 0.9 * counts + 0.1 * np.bincount(brute(BOOK, z).ravel(), minlength=K) * K / z[..., 0].size
        np.testing.assert_allclose(state["counts"], counts, rtol=1e-5)
        assert {tuple(r) for r in state["pool"].tolist()} <= {tuple(r) for r in z.reshape(-1, D).tolist()}
    np.testing.assert_allclose(metrics["usage"], (counts > 0.1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(entropy(counts)), rtol=1e-5)
    assert state["pool"].shape == (K, D) and len(np.unique(np.asarray(state["pool"]), axis=0)) > 3

    whole, halves = told(Z), [told(Z[:1]), told(Z[1:])]
    parts = [update(state, jax.random.key(0), half)[0]["counts"] for half in halves]
    np.testing.assert_allclose(sum(parts) / 2, update(state, jax.random.key(0), whole)[0]["counts"], rtol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"z_e has shape \(2, 4\) and the codebook \(7, 3\); allowed"):
        nearest(BOOK, jnp.zeros((2, 4)))
    for numbers in ({"decay": 1.0}, {"threshold": 1.0}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match=r"codebook's decay is .* allowed"):
            track(**numbers)
