"""Every path x parameterisation x sampler recovers a Gaussian, mean .4 and std .5, from the exact denoiser.

For Gaussian data every step is affine in the state. Samplers without noise are therefore run on two states, the prior's
mean +- one standard deviation, whose images give the output's mean and standard deviation exactly; the others are run on
40,000 draws (standard error .002 of the mean, .3 % of the std). Each sampler is compiled once, for all paths.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import parameterizations
from jaxdiff.samplers import ancestral, chain, ddim, dpm_solver, euler_maruyama, heun, langevin, reverse_diffusion, unipc
from tests import oracle

MEAN, STD, DRAWS = 0.4, 0.5, 40_000

PATHS = {
    "VP": jd.sde.VP(), "SubVP": jd.sde.SubVP(), "VE": jd.sde.VE(), "EDM": jd.sde.EDM(), "Flow": jd.sde.Flow(),
    "Cosine": jd.sde.Cosine(), "Discrete": jd.sde.Discrete(jd.sde.linear_betas(1000)),
}
PARAMETERIZATIONS = {name: getattr(parameterizations, name) for name in ("eps", "x0", "v", "velocity", "edm")}
SAMPLERS = {  # name: (sampler, steps on its own grid, whether it draws noise); ddim(1) is ancestral, see test_contract
    "ancestral-small": (ancestral("small"), 600, True),
    "ancestral-large": (ancestral("large"), 300, True),
    "ddim-0": (ddim(0.0), 250, False),
    "ddim-0.5": (ddim(0.5), 300, True),
    "euler_maruyama": (euler_maruyama(), 250, True),
    "reverse_diffusion": (reverse_diffusion(), 300, True),
    "predictor-corrector": (chain(langevin(0.05), reverse_diffusion()), 250, True),
    "heun": (heun(), 60, False),
    "heun-churn": (heun(churn=20.0, churn_min=0.01, churn_max=50.0), 80, True),
    "dpm_solver-2": (dpm_solver(2), 40, False),
    "dpm_solver-sde": (dpm_solver(2, sde=True), 60, True),
    "unipc-2": (unipc(2), 40, False),
    "unipc-3": (unipc(3), 40, False),
}


def program(name, batch, ways=()):
    """`(path number, way number, grid, key) -> samples [batch, 1]`; way 0 is the oracle, others go through `ways`."""
    sampler, _, noisy = SAMPLERS[name]

    @jax.jit
    def run(which_path, which_way, grid, key):
        path = oracle.AnyPath(PATHS.values(), which_path)
        direct = oracle.gaussian(path, MEAN, STD)
        all_ways = [direct] + [oracle.through(path, direct, way()) for way in ways]
        denoise = lambda key, x, t, cond: jax.lax.switch(which_way, all_ways, key, x, t) if ways else direct(key, x, t)
        k_prior, k_steps = jax.random.split(key)
        z = jax.random.normal(k_prior, (batch, 1)) if noisy else jnp.linspace(-1, 1, batch)[:, None]
        return jd.samplers.sample(sampler, denoise, path, grid, k_steps, path.sigma(path.t_max) * z)

    return run


@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_std(x64, name):
    sampler, steps, noisy = SAMPLERS[name]
    run = program(name, DRAWS if noisy else 2)
    for number, (path_name, path) in enumerate(PATHS.items()):
        x = run(number, 0, sampler.grid(path, steps), jax.random.key(11))
        off = float(x.mean()) - MEAN, float(x.std()) / STD - 1
        print(f"{name:20s} {path_name:9s} {steps:4d} steps: mean {off[0]:+.4f}, std {100 * off[1]:+.2f} %")
        assert x.dtype == jnp.float64
        assert abs(off[0]) < 0.01 and abs(off[1]) < 0.02, path_name


@pytest.mark.parametrize("name", ["ancestral-small", "ddim-0", "euler_maruyama", "heun", "dpm_solver-sde", "unipc-3"])
def test_parameterization_makes_no_difference(x64, name):
    """On every path, through any network output space and back, the same key gives the same samples.

    A sampler sees only the pair (x0, eps), which the round trip of tests/sde proves equal; one sampler for each way of
    using the pair is run here.
    """
    run = program(name, 16, tuple(PARAMETERIZATIONS.values()))
    for number, (path_name, path) in enumerate(PATHS.items()):
        grid = SAMPLERS[name][0].grid(path, 12)
        plain = run(number, 0, grid, jax.random.key(5))
        for way, parameterization in enumerate(PARAMETERIZATIONS, 1):
            np.testing.assert_allclose(run(number, way, grid, jax.random.key(5)), plain, rtol=1e-7, atol=1e-7,
                                       err_msg=f"{path_name}, {parameterization}")


@pytest.mark.parametrize("name", ["ddim-0", "ancestral-small", "heun"])
@pytest.mark.parametrize("path", [jd.sde.Flow(t_max=1.0), jd.sde.Cosine(t_max=1.0)], ids=["Flow", "Cosine"])
def test_from_pure_noise(x64, name, path):
    """t_max = 1, where alpha = 0: on a uniform grid, through every parameterisation that is defined there."""
    sampler, steps, noisy = SAMPLERS[name]
    grid = jd.sde.grids.uniform(path, steps)
    x_T = jax.random.normal(jax.random.key(0), (8000, 1)) if noisy else jnp.asarray([[-1.0], [1.0]])
    denoise = oracle.gaussian(path, MEAN, STD)

    @jax.jit
    def run(which, x):
        ways = [denoise] + [oracle.through(path, denoise, PARAMETERIZATIONS[k]()) for k in ("x0", "v", "velocity", "edm")]
        way = lambda key, x_t, t, cond: jax.lax.switch(which, ways, key, x_t, t)
        return jd.samplers.sample(sampler, way, path, grid, jax.random.key(1), x)

    plain = run(0, x_T)
    close = 0.03 if noisy else 0.01  # fewer draws
    assert abs(float(plain.mean()) - MEAN) < close and abs(float(plain.std()) / STD - 1) < 2 * close
    for k in range(1, 5):
        np.testing.assert_allclose(run(k, x_T), plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sampler", [euler_maruyama(), reverse_diffusion(), chain(langevin(), reverse_diffusion()),
                                     dpm_solver(), dpm_solver(sde=True), unipc(2), heun(churn=1.0)])
def test_refused_at_alpha_zero(sampler):
    path = jd.sde.Flow(t_max=1.0)
    grid = jd.sde.grids.uniform(path, 4)
    with pytest.raises(ValueError, match=r"undefined at alpha = 0.*mend") as error:
        jd.samplers.sample(sampler, oracle.gaussian(path, 0.0, 1.0), path, grid, jax.random.key(0), jnp.ones((2, 1)))
    assert "\n" not in str(error.value)
