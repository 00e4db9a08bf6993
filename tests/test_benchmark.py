"""`jaxdiff bench`: exact FLOP counts, what it says of a tiny config, the peer that is the same network, wrong words."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import benchmark, build, comparisons, configfile, flops, networks, objective, peers, profiling, stopwatch
from jaxdiff.chips import chip
from jaxdiff.cli import main
from jaxdiff.feed import open_feed
from jaxdiff.interop import unet_params
from tests.conftest import ROOT, load

pytestmark = pytest.mark.usefixtures("quick_compile")

POINTS = f"--config={ROOT}/configs/gaussians25.py:smoke"
UNET = f"--config={ROOT}/configs/cifar10.py:smoke"
spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def call(capsys, *words):
    capsys.readouterr()
    try:
        code = main(["bench", *words])
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    return code, said.out, said.err


def shapes_of(config, known):
    """An abstract batch of a config."""
    return {name: jax.ShapeDtypeStruct((config.data.batch_size, *shape), build.dtype_of(name))
            for name, shape in build.batch_keys(config, known).items()}


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def test_products_by_hand():
    """2 x multiply-adds of a matrix product, a batched one, and one under jit, vmap and scan."""
    assert flops.count(jnp.matmul, spec(3, 4), spec(4, 5)) == 2 * 3 * 4 * 5
    assert flops.count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), spec(2, 3, 4), spec(2, 5, 4)) == 2 * 2 * 3 * 5 * 4
    assert flops.count(jax.vmap(jax.jit(jnp.matmul)), spec(7, 3, 4), spec(7, 4, 5)) == 7 * 120
    ten = lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=10)[0]
    assert flops.count(ten, spec(3, 4), spec(4, 4)) == 10 * 2 * 3 * 4 * 4
    either = lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)
    assert flops.count(either, spec(3, 4), spec(4, 4)) == 2 * 2 * 3 * 4 * 4
    assert flops.count(lambda x: jnp.exp(x) + jnp.sort(x), spec(100)) == 0


def test_a_loop_of_unknown_length_is_refused():
    loop = lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    with pytest.raises(ValueError, match="while loop with products"):
        flops.count(loop, spec(4, 4), spec(4, 4))
    assert flops.count(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x * 2, x), spec()) == 0


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_convolutions_by_hand(stride, groups):
    """Forward, and the gradients with respect to kernel and input: each as many multiply-adds as the forward pass."""
    x, kernel = spec(2, 8, 6, 4), spec(3, 3, 4 // groups, 12)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), feature_group_count=groups,
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * 2 * (8 // stride) * (6 // stride) * 12 * (4 // groups) * 3 * 3
    assert flops.count(conv, x, kernel) == forward
    loss = lambda x, kernel: conv(x, kernel).sum()
    for argnums, gradients in ((0, 1), (1, 1), ((0, 1), 2)):
        # the sum's gradient does not need the forward pass, but it is written down
        assert flops.count(jax.grad(loss, argnums), x, kernel) == (1 + gradients) * forward


def test_a_training_step_of_an_mlp():
    """Three times the forward pass in interior layers, twice in the first, whose input no gradient is asked for."""
    config = load("gaussians25", "smoke")
    known = build.facts(config, build.source(config, "train"))
    net = build.network(config, known)
    parts = objective.train_step(config, net, known)
    size = config.data.batch_size
    batch = shapes_of(config, known)
    kernels = [leaf for leaf in jax.tree.leaves(parts.state.params["denoiser"]) if leaf.ndim == 2]
    label = {"label": batch["label"]} if "label" in batch else None
    forward = flops.count(lambda p, x, t: net.apply({"params": p}, x, t, label), parts.state.params["denoiser"],
                          spec(size, 2), spec(size))
    counted = flops.count(parts.step, parts.state, batch)
    print(counted, forward, [k.shape for k in kernels])
    assert 2 * forward < counted < 3 * forward


def test_recomputation_is_not_counted():
    """The count is of the model: the same with `remat` and without, and several micro-batches are the whole batch."""
    def of(**options):
        config = load("digits", "smoke", **options)
        known = build.facts(config, build.source(config, "train"))
        return benchmark.model_flops(config, known, shapes_of(config, known))

    assert of() == of(network__remat=True) == of(train__accumulate=2)
    layer = lambda w, x: jnp.tanh(x @ w).sum()
    again = flops.count(jax.grad(jax.checkpoint(layer)), spec(4, 4), spec(3, 4))
    assert again == 1.5 * flops.count(jax.grad(layer), spec(4, 4), spec(3, 4))  # as written it does count


def test_utilisation():
    """Model FLOP/s over the peak: published for a chip, given for any other, unknown for a CPU."""
    v5e = chip("TPU v5 lite")
    assert flops.Use(2e9, 9850.0, v5e.peak("bfloat16")).utilisation == pytest.approx(0.1)
    use = flops.Use(3e9, 100.0, flops.peak("float32", 0.5, devices=2))
    assert use.utilisation == pytest.approx(0.3) and use.per_second == 3e11 and "30.0 % of the peak, 1" in str(use)
    unknown = flops.Use(3e9, 100.0, flops.peak("float32"))
    assert unknown.utilisation is None and unknown.figures()["peak_flops"] is None and "--peak_tflops=X" in str(unknown)
