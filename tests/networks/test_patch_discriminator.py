"""The patch discriminator: the published size, its map of answers, examples apart, refusals; torch is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.layers import count_params
from jaxdiff.networks.patch_discriminator import PatchDiscriminator
from tests.networks.table import normal, quick, random_params


def shapes(net, x):
    return jax.eval_shape(net.init_with_output, jax.random.key(0), x)


def test_published_size_and_map():
    """The 70 x 70 network on three channels has 2,764,737 parameters where its norms have none (CycleGAN's); at 256 x 256
    it gives 30 x 30 answers."""
    logits, variables = shapes(PatchDiscriminator(), jnp.zeros((1, 256, 256, 3)))
    assert logits.shape == (1, 30, 30)
    assert count_params(variables["params"]) == 2_764_737 + 2 * (128 + 256 + 512)


@pytest.mark.parametrize("layers, size", [(1, 6), (2, 12), (2, 28), (3, 24), (3, 31), (4, 64)])
def test_size_of_the_map(layers, size):
    net = PatchDiscriminator(4, layers)
    assert shapes(net, jnp.zeros((2, size, size + 8, 1)))[0].shape == (2, size // 2**layers - 2, (size + 8) // 2**layers - 2)


def test_answers_and_gradients():
    """float32 out of bfloat16 too, finite gradients for every parameter, and examples that do not see each other."""
    net, x = PatchDiscriminator(8, 2), normal(0, 3, 12, 16, 2)
    params = random_params(net, x)
    call = quick(lambda p, x: net.apply({"params": p}, x))
    y = call(params, x)
    np.testing.assert_allclose(call(params, x.at[0].set(5.0))[1:], y[1:], atol=1e-5)
    half = quick(lambda p, x: net.clone(dtype=jnp.bfloat16).apply({"params": p}, x))(params, x)
    assert half.dtype == y.dtype == jnp.float32
    assert 1e-6 < float(jnp.sqrt(jnp.mean((half - y) ** 2) / jnp.mean(y**2))) < 0.05
    grads = quick(jax.grad(lambda p: (net.apply({"params": p}, x) ** 2).mean()))(params)
    assert all(bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 1e-7 for g in jax.tree.leaves(grads))


def test_small_pictures_are_refused():
    for net, shape in ((PatchDiscriminator(), (1, 16, 64, 3)), (PatchDiscriminator(4, 0), (1, 8, 8, 1)),
                       (PatchDiscriminator(), (64, 64, 3))):
        with pytest.raises(ValueError, match=r"x has shape .* allowed: \(B, H, W, C\) with H and W at least"):
            shapes(net, jnp.zeros(shape))
