"""Forward processes against their papers' closed forms, in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.sde import EDM, VE, VP, Cosine, Discrete, Flow, Slower, SubVP, cosine_betas, linear_betas, of_schedule

PATHS = {
    "VP": VP(), "SubVP": SubVP(), "VE": VE(), "EDM": EDM(), "Flow": Flow(), "Cosine": Cosine(),
    "Cosine0": Cosine(offset=0.0), "linear": Discrete(linear_betas(1000)), "cosine": Discrete(cosine_betas(100)),
    "Slower": Slower(VP(), 2.0), "ddgan": Discrete((0.478255, 0.849206, 0.956418, 0.987404)),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def times(path, n=41):
    return jnp.linspace(path.t_min, path.t_max, n)


def beta_and_integral(t, low=0.1, high=20.0):
    return low + t * (high - low), low * t + 0.5 * (high - low) * t**2


def test_vp_drift_and_diffusion(x64):
    t = np.linspace(1e-5, 1, 101)
    beta, _ = beta_and_integral(t)
    np.testing.assert_allclose(jd.sde.drift(VP(), jnp.ones(101), t), -beta / 2, rtol=1e-10)
    np.testing.assert_allclose(jd.sde.diffusion(VP(), t) ** 2, beta, rtol=1e-10)


def test_subvp_drift_and_diffusion(x64):
    t = np.linspace(1e-5, 1, 101)
    beta, integral = beta_and_integral(t)
    np.testing.assert_allclose(jd.sde.drift(SubVP(), jnp.ones(101), t), -beta / 2, rtol=1e-10)
    g2 = beta * -np.expm1(-2 * integral)  # Song et al. 2021, eq. 28
    np.testing.assert_allclose(jd.sde.diffusion(SubVP(), t) ** 2, g2, rtol=1e-10)


def test_ve_drift_and_diffusion(x64):
    t = np.linspace(1e-5, 1, 101)
    path = VE(0.01, 50.0)
    assert not np.any(jd.sde.drift(path, jnp.ones(101), t))
    g2 = (0.01 * 5000**t) ** 2 * 2 * np.log(5000)  # Song et al. 2021, eq. 30
    np.testing.assert_allclose(jd.sde.diffusion(path, t) ** 2, g2, rtol=1e-10)


def test_edm_and_flow_diffusion(x64):
    t = np.linspace(1e-3, 0.99, 50)
    np.testing.assert_allclose(jd.sde.diffusion(EDM(), t) ** 2, 2 * t, rtol=1e-10)
    np.testing.assert_allclose(jd.sde.diffusion(Flow(), t) ** 2, 2 * t / (1 - t), rtol=1e-10)
    np.testing.assert_allclose(jd.sde.drift(Flow(), jnp.ones(50), t), -1 / (1 - t), rtol=1e-10)


@pytest.mark.parametrize("path", [VP(), Cosine(), Cosine(offset=0.0), Discrete(linear_betas(50))], ids=repr)
def test_variance_preserving_paths_keep_the_variance(x64, path):
    t = times(path)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, rtol=1e-14)


def test_cosine_is_the_papers_alpha_bar(x64):
    t = np.linspace(0, 1, 101)
    bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(Cosine().alpha(t) ** 2, bar, rtol=1e-10, atol=1e-15)
    assert float(Cosine(t_max=1.0).alpha(1.0)) == 0.0 and float(Flow(t_max=1.0).alpha(1.0)) == 0.0


def test_betas_against_the_papers(x64):
    np.testing.assert_allclose(linear_betas(1000), np.linspace(1e-4, 0.02, 1000), rtol=1e-14)
    np.testing.assert_allclose(linear_betas(250), np.linspace(4e-4, 0.08, 250), rtol=1e-14)
    t = np.arange(101) / 100
    bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine_betas(100), np.minimum(1 - bar[1:] / bar[:-1], 0.999), rtol=1e-12)
    assert max(cosine_betas(100)) == 0.999
    assert of_schedule("scaled_linear", 10, beta_end=0.02).betas[-1] == pytest.approx(0.02)
    assert of_schedule("cosine", 100) == Discrete(cosine_betas(100))
    for words, line in (({"schedule": "sigmoid"}, "allowed: linear, scaled_linear, cosine, vp"),
                        ({"schedule": "cosine", "beta_end": 0.1}, "'cosine' has none; allowed: with linear or scaled"),
                        ({"schedule": "scaled_linear", "beta_end": 2.0}, "0 < beta_start <= beta_end < 1")):
        with pytest.raises(ValueError, match=line):
            of_schedule(**words)


@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(1000), (0.3,), (0.1, 0.9, 0.1)], ids=len)
def test_discrete_is_the_chain_at_whole_times_and_falls_between(x64, betas):
    path = Discrete(betas)
    whole = np.arange(1, len(betas) + 1)
    np.testing.assert_allclose(path.alpha(whole) ** 2, np.cumprod(1 - np.asarray(betas)), rtol=1e-12)
    assert float(path.alpha(0)) == 1.0 and float(path.sigma(0)) == 0.0
    assert np.all(np.diff(path.log_alpha_bar(jnp.linspace(0, path.t_max, 20 * len(betas) + 1))) < 0)


def test_discrete_betas_that_jump_still_fall_where_a_plain_spline_would_rise(x64):
    from scipy.interpolate import CubicSpline

    betas = (0.001, 0.9, 0.001, 0.9, 0.001)
    t = np.linspace(0, 5, 501)
    spline = CubicSpline(np.arange(6), np.concatenate([[0], np.cumsum(np.log1p(-np.asarray(betas)))]))
    assert np.any(np.diff(spline(t)) > 0)
    assert np.all(np.diff(Discrete(betas).log_alpha_bar(t)) <= 0)


@every_path
def test_discrete_and_continuous_velocity_has_no_jumps(x64, path):
    """The time derivative just before and just after every time agrees: no kink for an ODE solver to stumble over."""
    t = times(path)[1:-1]
    step = 1e-7 * (path.t_max - path.t_min)
    before, after = (jax.jvp(path.alpha, (u,), (jnp.ones_like(u),))[1] for u in (t - step, t + step))
    np.testing.assert_allclose(before, after, rtol=2e-4, atol=1e-9)


def test_ddgan_chain_from_vp(x64):
    """DDGAN's T = 4 betas, from VP at t_i = (i / T)(1 - 1e-3) + 1e-3 (Xiao et al. 2022)."""
    bar = VP().alpha(np.arange(5) / 4 * (1 - 1e-3) + 1e-3) ** 2
    betas = 1 - bar[1:] / bar[:-1]
    np.testing.assert_allclose(betas, [0.478255, 0.849206, 0.956418, 0.987404], atol=1e-5)
    root_bar = Discrete(betas).alpha(jnp.arange(5.0))
    np.testing.assert_allclose(root_bar, [1, 0.722319, 0.280492, 0.058557, 0.006572], atol=1e-5)


@every_path
def test_time_at_inverts_log_snr(x64, path):
    t = times(path)
    np.testing.assert_allclose(jd.sde.time_at(path, jd.sde.log_snr(path, t)), t, rtol=1e-8)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), EDM(), Flow()], ids=repr)
def test_closed_form_of_time_at_equals_bisection(x64, path):
    """The same path without its closed form, through the bisections of kernels.time_at."""
    bare = dataclasses.make_dataclass("Bare", [])()
    for name in ("alpha", "sigma", "t_min", "t_max"):
        object.__setattr__(bare, name, getattr(path, name))
    target = jd.sde.log_snr(path, times(path, 11)[1:-1])
    np.testing.assert_allclose(jd.sde.time_at(bare, target), jd.sde.time_at(path, target), rtol=1e-9)


@every_path
def test_time_at_in_float32(path):
    t = times(path, 11)[1:-1]
    np.testing.assert_allclose(jd.sde.time_at(path, jd.sde.log_snr(path, t)), t, rtol=2e-3)


def test_log_snr_falls_on_every_path(x64):
    for path in PATHS.values():
        assert np.all(np.diff(jd.sde.log_snr(path, times(path, 200))) < 0), path


def test_c_noise(x64):
    t = jnp.asarray([0.2, 0.7])
    np.testing.assert_allclose(jd.sde.c_noise(VP(), t), 1000 * t)
    np.testing.assert_allclose(jd.sde.c_noise(Flow(), t), 1000 * t)
    np.testing.assert_allclose(jd.sde.c_noise(EDM(), t), jnp.log(t) / 4)
    np.testing.assert_allclose(jd.sde.c_noise(VE(), t), jnp.log(VE().sigma(t)) / 4)
    np.testing.assert_allclose(jd.sde.c_noise(PATHS["linear"], jnp.asarray([1, 1000])), [0, 999])
    np.testing.assert_allclose(jd.sde.c_noise({"y": VP(), "x": EDM()}, t), jnp.log(t) / 4)  # x keeps the clock


def test_paths_are_equal_by_value_and_static_under_jit():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def sigma(path, t):
        traces.append(path)
        return path.sigma(t)

    for make in (VP, SubVP, VE, EDM, Flow, Cosine, lambda: Discrete(linear_betas(50)), lambda: Discrete([0.1, 0.2])):
        assert make() == make() and hash(make()) == hash(make())
        sigma(make(), 0.5), sigma(make(), 0.5)
    assert len(traces) == 8
    assert VP() != SubVP() and VP() != VP(beta_max=19.0) and Discrete((0.1,)) != Discrete((0.2,))
    assert Discrete(np.array([0.1, 0.2])) == Discrete([0.1, 0.2])


def test_a_path_may_hold_a_traced_number(x64):
    """CMDE's variance schedule shrinks while training: the path is built inside the trace."""

    @jax.jit
    def sigma(sigma_max, t):
        path = VE(0.01, sigma_max)
        return path.sigma(t), jd.sde.diffusion(path, t), jd.sde.time_at(path, jd.sde.log_snr(path, t))

    got = sigma(3.0, 0.4)
    path = VE(0.01, 3.0)
    np.testing.assert_allclose(got, [path.sigma(0.4), jd.sde.diffusion(path, 0.4), 0.4], rtol=1e-12)


@pytest.mark.parametrize("make, word", [
    (lambda: VP(20.0, 0.1), "beta_min"), (lambda: SubVP(-1.0), "SubVP"), (lambda: VE(0.0), "sigma_min"),
    (lambda: EDM(80.0, 0.1), "sigma_max"), (lambda: Flow(t_max=1.5), "t_max"), (lambda: Cosine(t_min=0.0), "t_min"),
    (lambda: Discrete([]), "non-empty"), (lambda: Discrete([0.5, 1.0]), "(0, 1)"), (lambda: Discrete([[0.1]]), "(1, 1)"),
    (lambda: linear_betas(10), "more than 20 steps"),
])
def test_wrong_constants_get_one_line(make, word):
    with pytest.raises(ValueError, match="allowed") as error:
        make()
    assert word in str(error.value) and "\n" not in str(error.value)
