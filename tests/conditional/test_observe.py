"""Observe hooks: their distributions, replacement inpainting beside the exact answer, and a mixture by samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.samplers import ancestral, chain, ddim, heun, langevin, repaint, reverse_diffusion, sample
from tests import oracle
from tests.conditional.gaussian import KEY, Pair, error, moments

VE = jd.sde.VE(0.01, 50.0)
PATHS = [VE, jd.sde.VP(), jd.sde.EDM(), jd.sde.Flow()]


def states(hook, y, times, key=KEY):
    """y_t at several times, one call after another, [T, N, D]."""
    empty = {"x": jnp.zeros(1), "y": jnp.zeros_like(y)}
    return np.stack([hook(jax.random.fold_in(key, i), empty, t)["y"] for i, t in enumerate(times)])


@pytest.mark.parametrize("p", PATHS, ids=repr)
def test_y_is_drawn_from_its_own_process(p):
    """Mean alpha y and std sigma at every time, in all three modes; between two times the correlations tell them apart."""
    path = {"x": p, "y": jd.sde.Slower(p, 2.0)}
    n = 20_000
    y = jnp.full((n, 1), 0.7)
    high, low = (jd.sde.time_at(p, -2 * jnp.log(p_level)) for p_level in jd.sde.noise_level(p, jnp.asarray(
        [p.t_max, 0.3 * p.t_max + 0.7 * p.t_min])))
    times = [high, low, high]
    alpha, sigma = (np.asarray([float(getattr(path["y"], name)(t)) for t in times]) for name in ("alpha", "sigma"))
    modes = {"redraw": jd.observe.redraw(path, y), "one_path": jd.observe.one_path(path, y, jax.random.key(5)),
             "one_noise": jd.observe.one_noise(path, y, jax.random.key(5))}
    r = (sigma[1] / alpha[1]) / (sigma[0] / alpha[0])  # of a Brownian path: the lower over the higher noise level
    want = {"redraw": (0.0, 0.0), "one_path": (r, 1.0), "one_noise": (1.0, 1.0)}
    for mode, hook in modes.items():
        got = states(hook, y, times)[..., 0]
        np.testing.assert_allclose(got.mean(1), alpha * 0.7, atol=5 * sigma.max() / np.sqrt(n))
        np.testing.assert_allclose(got.std(1), sigma, rtol=0.03)
        cross = np.corrcoef(got)
        np.testing.assert_allclose((cross[0, 1], cross[0, 2]), want[mode], atol=0.03, err_msg=mode)


def test_one_path_at_a_noise_free_time_is_y():
    path = {"x": jd.sde.EDM(), "y": jd.sde.Slower(jd.sde.EDM(), 2.0)}
    y = jnp.asarray([[0.3, -0.4]])
    for hook in (jd.observe.redraw(path, y), jd.observe.one_path(path, y, KEY), jd.observe.one_noise(path, y, KEY)):
        np.testing.assert_allclose(states(hook, y, [0.0])[0], y, atol=1e-6)


def test_replacement_is_biased_and_resampling_lessens_it(x64, monkeypatch):
    """METHODS.md: known pixel 1.2, correlation .8: .960/.360 is the truth, replacement with ancestral steps .59/.48."""
    pair = Pair(1, 1)
    pair.cov, pair.mean, pair.y = np.array([[1.0, 0.8], [0.8, 1.0]]), np.zeros(2), np.array([1.2])
    truth = pair.given()
    both = {"x": VE, "y": VE}
    exact = pair.denoise(both)

    def denoise(key, z, t, cond=None):  # the unconditional model of the two pixels, side by side
        out = exact(key, {"x": z[:, :1], "y": z[:, 1:]}, t)
        return jd.Prediction(*(jnp.concatenate([part["x"], part["y"]], 1) for part in (out.x0, out.eps)))

    hook = jd.observe.known_pixels(VE, jnp.asarray([[0.0, 1.2]]), jnp.asarray([[1.0, 0.0]]))
    found = {}
    for repeats in (1, 4, 10):
        sampler = repaint(ancestral(), 10, repeats)
        mean, cov = moments(sampler, denoise, VE, sampler.grid(VE, 200), jnp.zeros(2), hook, monkeypatch)
        found[repeats] = mean[0], cov[0, 0]
    np.testing.assert_allclose(found[1], (0.59, 0.48), atol=0.02)
    errors = [abs(mean - truth[0][0]) for mean, _ in found.values()]
    print("replacement, hidden pixel's mean and variance by repeats:", found, "truth", truth)
    assert errors[0] > 2 * errors[1] > 3 * errors[2]


@pytest.mark.parametrize("path", [VE, jd.sde.VP()], ids=repr)
def test_walking_a_stretch_again_keeps_the_marginal(path, x64, monkeypatch):
    """With nothing known, every jump back adds the noise that the steps down took away: the data's moments come out."""
    sampler = repaint(ancestral(), 10, 4)
    exact = oracle.gaussian(path, 0.4, 0.5)
    mean, cov = moments(sampler, exact, path, sampler.grid(path, 1600), jnp.zeros(1), None, monkeypatch)
    np.testing.assert_allclose((mean[0], np.sqrt(cov[0, 0])), (0.4, 0.5), rtol=0.015)


def test_repaint_with_one_walk_is_its_predictor(x64):
    plain, walked = ancestral(), repaint(ancestral(), 3, 1)
    np.testing.assert_array_equal(walked.grid(VE, 10), plain.grid(VE, 10))
    grid = np.asarray(repaint(ancestral(), 3, 2).grid(VE, 7))
    up = np.diff(grid) > 0
    assert up.sum() == 3 + 3 + 1 and (~up).sum() == repaint(ancestral(), 3, 2).evaluations(7) == 14
    np.testing.assert_array_equal(grid[[0, -1]], np.asarray(plain.grid(VE, 7))[[0, -1]])
    with pytest.raises(ValueError, match="remembers earlier steps"):
        sample(repaint(heun()), lambda *a: None, VE, jnp.asarray([1.0, 0.5]), KEY, jnp.ones((1, 1)))


@pytest.mark.parametrize("sampler", [reverse_diffusion(), chain(langevin(0.15), reverse_diffusion()), heun()],
                         ids=["reverse_diffusion", "predictor_corrector", "heun"])
def test_a_mixture_given_y(sampler):
    """Two clusters in (x, y): CMDE's draws of x | y have the shares, means and spread of the exact conditional."""
    means, std, weights = jnp.asarray([[-1.0, -0.5], [1.0, 0.4]]), 0.4, jnp.asarray([0.5, 0.5])
    path = {"x": VE, "y": jd.sde.Slower(VE, 0.05)}

    def denoise(key, z, t, cond=None):
        sigma = jnp.stack([path["x"].sigma(t), path["y"].sigma(t)])
        both = jnp.concatenate([z["x"], z["y"]], axis=1)
        gap = both[:, None] - means
        share = jax.nn.softmax(jnp.log(weights) - 0.5 * (gap**2 / (std**2 + sigma**2)).sum(-1), axis=1)[..., None]
        eps = (share * gap).sum(1) * sigma / (std**2 + sigma**2)
        x0 = both - sigma * eps
        return jd.Prediction({"x": x0[:, :1], "y": x0[:, 1:]}, {"x": eps[:, :1], "y": eps[:, 1:]})

    n, y = 20_000, 0.1
    held = jnp.full((n, 1), y)
    x_T = jd.sde.prior(path, KEY, {"x": jax.ShapeDtypeStruct((n, 1), jnp.float32), "y": held})
    draw = jax.jit(lambda key: sample(sampler, denoise, path, sampler.grid(path, 400), key, x_T, None,
                                      jd.observe.redraw(path, held))["x"][:, 0])
    x = np.asarray(draw(jax.random.key(1)))
    odds = np.exp(-0.5 * ((y - np.asarray([-0.5, 0.4])) ** 2) / std**2)
    share = odds[1] / odds.sum()
    mean = 2 * share - 1
    np.testing.assert_allclose(x.mean(), mean, atol=0.03)
    np.testing.assert_allclose(x.var(), std**2 + 1 - mean**2, rtol=0.03)


def test_ddim_with_y_in_the_state_keeps_y():
    """What a sampler returns for y is y itself, up to the noise that is left at the last time."""
    path = {"x": jd.sde.EDM(), "y": jd.sde.Slower(jd.sde.EDM(), 1.0)}
    y = jnp.asarray([[0.2], [0.9]])
    nothing = lambda key, z, t, cond: jd.Prediction(jax.tree.map(jnp.zeros_like, z), z)
    out = sample(ddim(), nothing, path, jd.sde.grids.karras(path, 5), KEY, {"x": y, "y": y}, None,
                 jd.observe.redraw(path, y))
    np.testing.assert_allclose(out["y"], y, atol=1e-6)
    assert error((np.asarray(out["y"]),), (np.asarray(y),)) < 1e-6
