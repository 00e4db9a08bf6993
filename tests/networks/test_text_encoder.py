"""Text encoders: who reads whom, where the text is pooled, and what a wrong input is told. Public weights: tests/interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import TextEncoder
from tests.networks.table import normal, quick, random_params

TOKENS = jnp.array([[5, 3, 7, 2, 9, 1], [4, 4, 2, 8, 8, 8], [6, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


class Ready:
    """A tiny encoder of one kind with random parameters, and one jitted call that the tests share."""

    def __init__(self, kind):
        self.net = TextEncoder(vocab_size=11, kind=kind, max_length=8, width=12, layers=2, heads=3, mlp_width=20)
        self.params = random_params(self.net, TOKENS, MASK)
        self.call = quick(lambda p, tokens, mask: self.net.apply({"params": p}, tokens, mask))
        self.out = self.call(self.params, TOKENS, MASK)


@pytest.fixture(scope="module", params=["clip", "bert"])
def ready(request):
    return Ready(request.param)


def test_shapes_dtypes_and_names(ready):
    assert ready.out.hidden.shape == (4, 6, 12) and ready.out.pooled.shape == (4, 12)
    assert ready.out.hidden.dtype == ready.out.pooled.dtype == jnp.float32
    ends = {"norm_out"} if ready.net.kind == "clip" else {"norm_in", "type"}
    assert ready.params.keys() == {"token", "position", "block_0", "block_1"} | ends


def test_a_masked_token_has_no_influence(ready):
    """Bit for bit, in the same program, whatever number it has; its own vector is zero."""
    other = ready.call(ready.params, jnp.where(MASK, TOKENS, jnp.array([10, 999, 3, -1, 2**30, 0])), MASK)
    np.testing.assert_array_equal(other.hidden, ready.out.hidden)
    np.testing.assert_array_equal(other.pooled, ready.out.pooled)
    table = ready.params["token"]["embedding"].at[0].add(1.0)  # nor has row 0, which stands in for it
    other = ready.call(ready.params | {"token": {"embedding": table}}, TOKENS, MASK)
    np.testing.assert_array_equal(other.hidden, ready.out.hidden)
    assert not np.asarray(ready.out.hidden)[~np.asarray(MASK)].any()
    changed = ready.call(ready.params, TOKENS.at[1, 0].set(9), MASK)  # one that may be read does matter
    assert float(jnp.abs(changed.pooled - ready.out.pooled)[1].max()) > 1e-3


def test_padding_is_as_good_as_absent(ready):
    short = ready.call(ready.params, TOKENS[:, :3], MASK[:, :3])
    np.testing.assert_allclose(short.hidden[1:], ready.out.hidden[1:, :3], atol=2e-5)
    np.testing.assert_allclose(short.pooled[1:], ready.out.pooled[1:], atol=2e-5)


def test_no_mask_reads_everything(ready):
    every = quick(lambda p, tokens: ready.net.apply({"params": p}, tokens))(ready.params, TOKENS[:1])
    np.testing.assert_allclose(every.hidden, ready.out.hidden[:1], atol=2e-5)


def test_clip_looks_back_and_bert_both_ways(ready):
    changed = ready.call(ready.params, TOKENS.at[0, 4].set(3), MASK)
    moved = np.abs(np.asarray(changed.hidden - ready.out.hidden))[0].max(axis=-1) > 1e-4
    assert moved.tolist() == ([False] * 4 + [True] * 2 if ready.net.kind == "clip" else [True] * 6)


def test_pooled(ready):
    hidden, pooled = np.asarray(ready.out.hidden), ready.out.pooled
    if ready.net.kind == "bert":
        expected = [hidden[0].mean(0), hidden[1, [0, 2]].mean(0), hidden[2, 0], np.zeros(12)]
    else:
        expected = [hidden[0, 5], hidden[1, 2], hidden[2, 0], np.zeros(12)]
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_clip_pools_at_the_first_end_token():
    net = TextEncoder(vocab_size=11, width=12, layers=0, end_token=8)
    tokens = jnp.array([[5, 8, 7, 8, 9, 1], [4, 4, 2, 8, 8, 8], [8, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    out = net.apply({"params": random_params(net, tokens, MASK)}, tokens, MASK)
    np.testing.assert_array_equal(out.pooled[0], out.hidden[0, 1])
    np.testing.assert_array_equal(out.pooled[1], out.hidden[1, 2])  # its end tokens are padding: the last readable one
    np.testing.assert_array_equal(out.pooled[2], out.hidden[2, 0])


def test_every_parameter_learns_and_no_gradient_is_nan(ready):
    """With an example that reads nothing in the batch. Rows of tables that no token asks for stay as they are."""
    target, net = normal(3, 4, 6, 12), ready.net.clone(layers=1)

    def loss(params):
        out = net.apply({"params": params}, TOKENS, MASK)
        return jnp.sum((out.hidden - target) ** 2) + jnp.sum(out.pooled**2)

    grads = quick(jax.grad(loss))({name: p for name, p in ready.params.items() if name != "block_1"})
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 1e-6, path
    asked = np.unique(np.asarray(TOKENS)[np.asarray(MASK)])
    rows = np.abs(np.asarray(grads["token"]["embedding"])).max(axis=1)
    assert (rows[asked] > 1e-6).all() and not np.delete(rows, asked).any()


def test_bfloat16_compute(ready):
    half = ready.net.clone(dtype=jnp.bfloat16)
    out = quick(lambda p, tokens, mask: half.apply({"params": p}, tokens, mask))(ready.params, TOKENS, MASK)
    assert out.hidden.dtype == out.pooled.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((out.hidden - ready.out.hidden) ** 2) / jnp.mean(ready.out.hidden**2)))
    assert 1e-5 < error < 0.05, error


WRONG = {
    "kind": ({"kind": "t5"}, TOKENS, MASK, "allowed: 'clip', 'bert'"),
    "activation": ({"activation": "swish"}, TOKENS, MASK, "activation='swish'; allowed: quick_gelu"),
    "heads": ({"heads": 5}, TOKENS, MASK, "not a multiple of heads=5"),
    "length": ({"max_length": 5}, TOKENS, MASK, "L at most 5"),
    "floats": ({}, TOKENS.astype(float), MASK, "must be integers"),
    "mask_shape": ({}, TOKENS, MASK[:, :3], r"bool \(4, 3\); it must be bool \(4, 6\)"),
    "mask_dtype": ({}, TOKENS, MASK.astype(int), "the text mask is int32"),
}


@pytest.mark.parametrize("fields, tokens, mask, words", WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(fields, tokens, mask, words):
    net = TextEncoder(**({"vocab_size": 11, "width": 12, "heads": 3, "layers": 1} | fields))
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(net.init, jax.random.key(0), tokens, mask)
    assert "\n" not in str(error.value)
