"""Dropping conditions: the share, what goes together, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.trees import example_keys

SIZE, CLASSES = 4000, 10
COND = {
    "label": jnp.arange(SIZE, dtype=jnp.int32) % CLASSES,
    "text": jnp.ones((SIZE, 3, 2)),
    "text_mask": jnp.arange(3) < 1 + jnp.arange(SIZE)[:, None] % 3,
    "low_res": jnp.ones((SIZE, 1, 1, 1)),
}
KEYS = example_keys(jax.random.key(0), jnp.arange(SIZE))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_togetherness(rate):
    out = jax.jit(jd.conditioning.drop(rate, CLASSES))(KEYS, COND)
    gone = np.asarray(out["label"]) == CLASSES
    assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / SIZE)
    np.testing.assert_array_equal(gone, ~np.asarray(out["text_mask"]).any(1))  # label and text fall together
    np.testing.assert_array_equal(out["label"][~gone], COND["label"][~gone])
    np.testing.assert_array_equal(out["text_mask"][~gone], COND["text_mask"][~gone])
    assert out["label"].dtype == jnp.int32 and out["text_mask"].dtype == bool
    for name in ("text", "low_res"):
        np.testing.assert_array_equal(out[name], COND[name])


def test_an_example_is_dropped_by_its_own_key():
    draw = jd.conditioning.drop(0.5, CLASSES)
    whole = draw(KEYS, COND)
    part = draw(KEYS[100:200], jax.tree.map(lambda v: v[100:200], COND))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[100:200], b), whole, part)


def test_rates_zero_and_one():
    kept, dropped = (jd.conditioning.drop(rate, CLASSES)(KEYS, COND) for rate in (0.0, 1.0))
    jax.tree.map(np.testing.assert_array_equal, kept, COND)
    jax.tree.map(np.testing.assert_array_equal, dropped, jd.conditioning.null(COND, CLASSES))
    assert (dropped["label"] == CLASSES).all() and not dropped["text_mask"].any()


def test_text_without_a_mask_is_dropped_too():
    """A missing mask means that all tokens are readable; after dropping there is one."""
    cond = {"text": COND["text"]}
    out = jd.conditioning.drop(0.5, CLASSES)(KEYS, cond)
    share = np.asarray(out["text_mask"]).mean(1)
    assert set(share) == {0.0, 1.0} and abs(share.mean() - 0.5) < 0.04
    assert not jd.conditioning.null(cond, CLASSES)["text_mask"].any() and "text_mask" not in cond


def test_nothing_to_drop_and_bad_rates():
    assert jd.conditioning.drop(0.5, CLASSES)(KEYS, {}) == {}
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"the drop rate is .*; allowed: from 0 to 1"):
            jd.conditioning.drop(rate, CLASSES)
