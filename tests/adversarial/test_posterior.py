"""Drawing x_0 from the true posterior makes the chain exact, however few its steps; its mean does not."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import jaxdiff as jd
from jaxdiff.trees import expand

MEANS = jnp.asarray([[-1.2, -0.4], [0.9, -0.8], [0.5, 1.1]])
WEIGHTS = jnp.asarray([0.5, 0.3, 0.2])
STD, DRAWS = 0.25, 40_000
DIRECTIONS = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)]


def posterior_denoiser(path, draw):
    """x_0 ~ q(x_0 | x_t) of the mixture, one draw a call; with draw=False its mean, an ordinary diffusion model."""

    def denoise(key, x_t, t, cond=None):
        alpha, sigma = expand(path.alpha(t), x_t), expand(path.sigma(t), x_t)
        var = alpha**2 * STD**2 + sigma**2
        logits = jnp.log(WEIGHTS) - 0.5 * ((x_t[:, None] - alpha * MEANS) ** 2).sum(-1) / var
        centre = MEANS + alpha * STD**2 / var * (x_t[:, None] - alpha * MEANS)  # [B, K, 2]
        if draw:
            k_mode, k_noise = jax.random.split(key)
            mode = jax.random.categorical(k_mode, logits)
            spread = STD * sigma / jnp.sqrt(var) * jax.random.normal(k_noise, x_t.shape)
            x0 = jnp.take_along_axis(centre, mode[:, None, None], 1)[:, 0] + spread
        else:
            x0 = (jax.nn.softmax(logits)[..., None] * centre).sum(1)
        return jd.Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


@cache
def trajectory(steps, draw):
    """States at t = T..0, [T + 1, DRAWS, 2], from a true draw of x_T."""
    path = jd.sde.Discrete(jd.sde.vp_betas(steps))

    @jax.jit
    def run(key):
        k_mode, k_data, k_start, k_steps = jax.random.split(key, 4)
        data = MEANS[jax.random.categorical(k_mode, jnp.log(WEIGHTS), shape=(DRAWS,))]
        data += STD * jax.random.normal(k_data, data.shape)
        x_T = jd.sde.perturb(path, data, jax.random.normal(k_start, data.shape), path.t_max)
        grid = jd.sde.grids.discrete(path)
        denoise = posterior_denoiser(path, draw)
        return jd.samplers.sample(jd.samplers.ancestral(), denoise, path, grid, k_steps, x_T, trajectory=True)[1]

    return np.asarray(run(jax.random.key(1)))


def distances(x, alpha):
    """sqrt(N) times the Kolmogorov-Smirnov distance from q at alpha, along three directions; 2.2 has a chance of 1e-4."""
    std = np.sqrt(alpha**2 * STD**2 + 1 - alpha**2)
    found = []
    for direction in DIRECTIONS:
        y = np.sort(x @ direction)
        centres = alpha * np.asarray(MEANS) @ direction
        truth = sum(w * ndtr((y - c) / std) for w, c in zip(np.asarray(WEIGHTS), centres, strict=True))
        rank = np.arange(len(y)) / len(y)
        found.append(np.sqrt(len(y)) * max((truth - rank).max(), (rank + 1 / len(y) - truth).max()))
    return np.array(found)


def alphas(steps):
    return np.sqrt(np.concatenate([[1.0], np.cumprod(1 - np.array(jd.sde.vp_betas(steps)))]))[::-1]


@pytest.mark.parametrize("steps", [2, 4])
def test_posterior_draws_reproduce_every_marginal(steps):
    states = trajectory(steps, True)
    assert states.shape == (steps + 1, DRAWS, 2)
    for x, alpha in zip(states, alphas(steps), strict=True):
        apart = distances(x, alpha)
        print(f"T = {steps}, sqrt(alpha-bar) {alpha:.3f}: sqrt(N) KS {apart.round(2)}")
        assert (apart < 2.2).all()


def summary(x):
    """Mode shares, and mean and std [2] within each mode, by the nearest centre: the modes are 8 std apart."""
    nearest = np.argmin(((x[:, None] - np.asarray(MEANS)) ** 2).sum(-1), axis=1)
    parts = [x[nearest == k] for k in range(3)]
    return np.array([len(p) for p in parts]) / len(x), *(np.stack([f(p, 0) for p in parts]) for f in (np.mean, np.std))


@pytest.mark.parametrize("steps", [2, 4])
def test_posterior_draws_reproduce_the_modes(steps):
    shares, centres, widths = summary(trajectory(steps, True)[-1])
    off = [abs(got - truth).max() for got, truth in ((centres, MEANS), (widths, STD))]
    print(f"T = {steps}: shares {shares}, centres off {off[0]:.4f}, std off {off[1]:.4f}")
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.01)  # four standard errors of .0025
    np.testing.assert_allclose(centres, MEANS, atol=0.012)  # of .25 / sqrt(8000) = .0028
    np.testing.assert_allclose(widths, STD, atol=0.008)  # of .25 / sqrt(16000) = .002


def test_the_posterior_mean_is_not_enough():
    """An ordinary diffusion model at T = 2 starts right and ends wrong: shares, widths and all."""
    states = trajectory(2, False)
    shares, _, widths = summary(states[2])
    apart = distances(states[2], 1.0)
    print(f"sqrt(N) KS {apart.round(1)}, shares {shares}, widths {widths}")
    assert (distances(states[0], alphas(2)[0]) < 2.2).all()
    assert (apart > 20).all() and abs(shares - np.asarray(WEIGHTS)).max() > 0.05 and abs(widths - STD).max() > 0.05
