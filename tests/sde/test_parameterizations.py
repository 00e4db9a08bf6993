"""Every parameterisation, on every path, converts exactly; EDM's and iDDPM's own formulas are met."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import parameterizations as P
from tests.sde.test_paths import PATHS, every_path, times

MAKERS = {"eps": P.eps, "x0": P.x0, "v": P.v, "velocity": P.velocity, "edm": P.edm}
every_parameterization = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_path
@every_parameterization
def test_round_trip(x64, path, make):
    """predict(target(x0, eps), x_t) is (x0, eps), to the accuracy that the division by alpha or sigma leaves."""
    t = times(path, 15)
    rng = np.random.default_rng(0)
    x0, eps = jnp.asarray(rng.normal(size=(2, 15, 3)))
    x_t = jd.sde.perturb(path, x0, eps, t)
    p = make()
    got = p.predict(path, p.target(path, x0, eps, t), x_t, t)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    scale = (alpha + sigma) * 1e-12
    assert np.all(abs(got.x0 - x0) < scale * (1 + 1 / alpha) + 1e-12)
    assert np.all(abs(got.eps - eps) < scale * (1 + 1 / sigma) + 1e-12)
    np.testing.assert_allclose(jd.sde.perturb(path, got.x0, got.eps, t), x_t, rtol=1e-9, atol=1e-12)


@every_path
@every_parameterization
def test_any_raw_output_is_a_consistent_pair(x64, path, make):
    """alpha x0 + sigma eps = x_t for whatever the network says, and target of that pair is the raw output again."""
    t = times(path, 9)[1:-1]
    rng = np.random.default_rng(1)
    raw, x_t = jnp.asarray(rng.normal(size=(2, 7, 3)))
    p = make(sigma_data=0.7)
    pair = p.predict(path, raw, x_t, t)
    np.testing.assert_allclose(jd.sde.perturb(path, pair.x0, pair.eps, t), x_t, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(p.target(path, pair.x0, pair.eps, t), raw, rtol=1e-6, atol=1e-7)
    assert pair.var_mix is None


def test_targets_in_words(x64):
    x0, eps, t = jnp.asarray([0.4]), jnp.asarray([-1.0]), 0.3
    vp, flow = jd.sde.VP(), jd.sde.Flow()
    assert P.eps().target(vp, x0, eps, t) == eps and P.x0().target(vp, x0, eps, t) == x0
    np.testing.assert_allclose(P.v().target(vp, x0, eps, t), vp.alpha(t) * eps - vp.sigma(t) * x0, rtol=1e-14)
    np.testing.assert_allclose(P.velocity().target(flow, x0, eps, t), eps - x0, rtol=1e-14)


@every_path
@every_parameterization
def test_network_input_has_unit_variance(x64, path, make):
    """c_in x_t for data of standard deviation sigma_data: variance 1 exactly, from the two unit directions."""
    t = times(path, 9)
    one, zero = jnp.ones((9, 1)), jnp.zeros((9, 1))
    p = make(sigma_data=0.7)
    parts = [p.inputs(path, jd.sde.perturb(path, 0.7 * a, b, t), t)[0] for a, b in ((one, zero), (zero, one))]
    np.testing.assert_allclose(parts[0] ** 2 + parts[1] ** 2, 1, rtol=1e-12)
    net_x, net_t = make(scale_input=False).inputs(path, one, t)
    np.testing.assert_array_equal(net_x, one)
    np.testing.assert_array_equal(net_t, jd.sde.c_noise(path, t))


def test_edm_is_the_papers_preconditioning(x64):
    """Karras et al. 2022, table 1: D = c_skip x + c_out F, and mean square of F = their weighted denoising loss."""
    sd = 0.5
    sigma = np.exp(np.linspace(-6, 4, 21))[:, None]
    rng = np.random.default_rng(0)
    x0, eps, raw = jnp.asarray(rng.normal(size=(3, 21, 4)))
    x_t = x0 + sigma * eps
    path, p = jd.sde.EDM(), P.edm(sd)
    t = jnp.asarray(sigma[:, 0])
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / np.sqrt(sigma**2 + sd**2)
    denoised = p.predict(path, raw, x_t, t).x0
    np.testing.assert_allclose(denoised, c_skip * x_t + c_out * raw, rtol=1e-10)
    np.testing.assert_allclose(p.inputs(path, x_t, t)[0], x_t / np.sqrt(sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(p.inputs(path, x_t, t)[1], np.log(sigma[:, 0]) / 4, rtol=1e-12)
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    np.testing.assert_allclose(
        (raw - p.target(path, x0, eps, t)) ** 2, weight * (denoised - x0) ** 2, rtol=1e-7, atol=1e-12)


@every_path
def test_edm_target_has_unit_variance(x64, path):
    t = times(path, 9)
    one, zero = jnp.ones((9, 1)), jnp.zeros((9, 1))
    p = P.edm(0.7)
    from_data, from_noise = p.target(path, 0.7 * one, zero, t), p.target(path, zero, one, t)
    np.testing.assert_allclose(from_data**2 + from_noise**2, 1, rtol=1e-12)


def test_learned_variance_splits_channels(x64):
    raw = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 6)))
    x_t = jnp.ones((2, 4, 4, 3))
    t = jnp.asarray([3, 7])
    path = PATHS["linear"]
    got = P.learned_variance(P.eps()).predict(path, raw, x_t, t)
    plain = P.eps().predict(path, raw[..., :3], x_t, t)
    np.testing.assert_array_equal(got.x0, plain.x0)
    np.testing.assert_array_equal(got.eps, plain.eps)
    np.testing.assert_allclose(got.var_mix, (raw[..., 3:] + 1) / 2)


def test_dict_of_paths(x64):
    path = {"x": jd.sde.VP(), "y": jd.sde.VE(0.01, 3.0)}
    rng = np.random.default_rng(0)
    tree = lambda n: {k: jnp.asarray(rng.normal(size=(4, n))) for k in path}
    x0, eps, t = tree(3), tree(3), jnp.asarray([0.2, 0.4, 0.6, 0.8])
    for make in MAKERS.values():
        p = make()
        x_t = jd.sde.perturb(path, x0, eps, t)
        raw = p.target(path, x0, eps, t)
        got = p.predict(path, raw, x_t, t)
        net_x, net_t = p.inputs(path, x_t, t)
        for k in path:
            np.testing.assert_allclose(got.x0[k], x0[k], rtol=1e-8)
            np.testing.assert_allclose(net_x[k], p.inputs(path[k], x_t[k], t)[0])
        np.testing.assert_array_equal(net_t, jd.sde.c_noise(path["x"], t))
    double = {k: jnp.concatenate([v, v], -1) for k, v in raw.items()}
    mixed = P.learned_variance(P.edm()).predict(path, double, x_t, t)
    assert jax.tree.map(jnp.shape, mixed.var_mix) == {"x": (4, 3), "y": (4, 3)}


@pytest.mark.parametrize("path", [jd.sde.Flow(t_max=1.0), jd.sde.Cosine(t_max=1.0)], ids=repr)
def test_alpha_zero(x64, path):
    """At alpha = 0, x_t is pure noise: x0, v, velocity and edm know both parts there, eps cannot."""
    x0, eps = jnp.asarray([0.4, -0.2]), jnp.asarray([1.1, 0.3])
    for name in ("x0", "v", "velocity", "edm"):
        p = MAKERS[name]()
        got = p.predict(path, p.target(path, x0, eps, 1.0), eps, 1.0)
        np.testing.assert_allclose(got.x0, x0, atol=1e-12)
        np.testing.assert_allclose(got.eps, eps, atol=1e-12)
    with pytest.raises(ValueError, match=r"eps prediction.*t_max=\.999") as error:
        jax.jit(partial(P.eps().predict, path))(eps, eps, 1.0)
    assert "\n" not in str(error.value)


@every_parameterization
def test_wrong_sigma_data(make):
    with pytest.raises(ValueError, match="sigma_data is 0"):
        make(sigma_data=0.0)
