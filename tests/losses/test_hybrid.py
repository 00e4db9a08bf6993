"""iDDPM's hybrid loss: who teaches which head, and T times one term as an estimate of the whole bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.losses.denoising import noised
from jaxdiff.losses.variational import step_term
from jaxdiff.sde import times

KEY = jax.random.key(11)
STEPS, LEVELS = 25, 17
PATH = jd.sde.Discrete(jd.sde.linear_betas(STEPS))
PARAMETERIZATION = jd.parameterizations.learned_variance(jd.parameterizations.eps())
PARAMS = {"denoiser": {"mean": 0.6, "mix": 0.1}}


def network(p, x, c, cond):
    """Two heads: a mean that scales x, and a variance share that depends on x too."""
    return jnp.concatenate([p["mean"] * x, jnp.tanh(p["mix"] * x + 0.01 * c[:, None])], axis=-1)


def batch(size):
    k = np.random.default_rng(0).integers(0, LEVELS, (size, 4))
    return {"x": jnp.asarray(2 * k / (LEVELS - 1) - 1), "index": jnp.arange(size)}


def test_each_head_learns_from_its_own_term(x64):
    """The mean's gradient is that of the plain denoising loss; the variance's is that of the bound, times its weight."""
    data, weights = batch(64), jax.tree.map(jnp.asarray, PARAMS)
    hybrid = jd.losses.hybrid(network, PATH, PARAMETERIZATION, vlb_weight=0.02, levels=LEVELS)
    plain = jd.losses.denoising(network, PATH, PARAMETERIZATION, times.discrete())

    def vlb(p):
        drawn = noised(PATH, times.discrete(), KEY, data)
        prediction = jd.denoiser(network, p["denoiser"], PATH, PARAMETERIZATION)(KEY, drawn.x_t, drawn.t)
        term = step_term(PATH, prediction, drawn.x0, drawn.x_t, drawn.t, LEVELS, "learned")
        return STEPS * term.mean()

    @jax.jit
    def run(p):
        both = jax.value_and_grad(lambda q: hybrid(q, "kept", KEY, data, 0), has_aux=True)
        simple = jax.value_and_grad(lambda q: plain(q, None, KEY, data, 0)[0])
        (value, aux), gradient = both(p)
        return (value, aux.metrics, gradient["denoiser"]), simple(p), jax.value_and_grad(vlb)(p)

    (value, metrics, gradient), (simple, of_simple), (bound, of_bound) = run(weights)
    of_simple, of_bound = of_simple["denoiser"], of_bound["denoiser"]
    np.testing.assert_allclose(metrics["simple"], simple, rtol=1e-12)
    np.testing.assert_allclose(metrics["vlb"], bound, rtol=1e-12)
    np.testing.assert_allclose(value, simple + 0.02 * bound, rtol=1e-12)
    np.testing.assert_allclose(gradient["mean"], of_simple["mean"], rtol=1e-10)
    np.testing.assert_allclose(gradient["mix"], 0.02 * of_bound["mix"], rtol=1e-10)
    assert of_simple["mix"] == 0 and abs(of_bound["mean"]) > 1e-3  # so that both equalities say something
    assert abs(gradient["mix"]) > 1e-5


def test_t_times_one_term_estimates_the_sum():
    """20,000 drawn times against the full sum over the same images, in one run: within 4 standard errors (3 %)."""
    size, repeats = 20, 1000
    data = batch(size)["x"].astype(jnp.float32)
    many = {"x": jnp.tile(data, (repeats, 1))}
    hybrid = jd.losses.hybrid(network, PATH, PARAMETERIZATION, levels=LEVELS)
    vlb = float(jax.jit(hybrid)(PARAMS, None, KEY, many, 0)[1].metrics["vlb"])
    denoise = jd.denoiser(network, PARAMS["denoiser"], PATH, PARAMETERIZATION)
    bound = jax.jit(lambda key, x: jd.losses.variational_bound(denoise, PATH, x, key, LEVELS, "learned"))
    exact = float(bound(KEY, jnp.tile(data, (50, 1))).terms.sum(0).mean())
    np.testing.assert_allclose(vlb, exact, rtol=0.03)


def test_the_default_weight_is_the_papers_and_halves_agree():
    """lambda = .001 (eq. 16); the loss of two halves of a batch averages to the loss of the batch."""
    data = jax.tree.map(lambda v: v.astype(jnp.float32) if v.dtype.kind == "f" else v, batch(16))
    run = jax.jit(lambda b: jd.losses.hybrid(network, PATH, PARAMETERIZATION, levels=LEVELS)(PARAMS, None, KEY, b, 0)[1])
    whole = run(data)
    np.testing.assert_allclose(whole.metrics["loss"], whole.metrics["simple"] + 1e-3 * whole.metrics["vlb"], rtol=1e-6)
    halves = [run(jax.tree.map(lambda v, part=part: v[part], data)).metrics for part in (slice(8), slice(8, None))]
    for name, value in whole.metrics.items():
        np.testing.assert_allclose(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, err_msg=name)


def test_a_network_without_variance_is_refused():
    hybrid = jd.losses.hybrid(lambda p, x, c, cond: x, PATH, jd.parameterizations.eps(), levels=LEVELS)
    with pytest.raises(ValueError, match=r"without var_mix; mend: parameterization\.learned_variance=True"):
        jax.eval_shape(lambda b: hybrid(PARAMS, None, KEY, b, 0), batch(4))
