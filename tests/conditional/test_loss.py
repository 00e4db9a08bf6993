"""What the losses of the conditional estimators are minimised by, and what their weighting matrix bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp

import jaxdiff as jd
from tests.conditional.gaussian import Pair

PAIR = Pair()
N, D = PAIR.dx, PAIR.dx + PAIR.dy
PLAIN = jd.parameterizations.eps(scale_input=False)


def drawn(n, key=7):
    z = PAIR.mean + jax.random.normal(jax.random.key(key), (n, D)) @ jnp.linalg.cholesky(PAIR.cov).T
    return {"x": z[:, :N], "image": z[:, N:], "index": jnp.arange(n)}


@pytest.mark.parametrize("path", [jd.sde.VE(0.01, 50.0), jd.sde.VP()], ids=repr)
def test_cdes_minimiser_is_the_score_given_y(path, x64):
    """A linear network's loss is quadratic: its exact minimiser over 200,000 examples is the score of x | y within 2 %."""
    for level in (0.5, 2.0):
        t = float(jd.sde.time_at(path, -2 * np.log(level)))
        net = lambda params, x, c, cond: jnp.concatenate([x, cond["image"], jnp.ones((len(x), 1))], 1) @ params.T
        loss = jd.losses.denoising(net, path, PLAIN, lambda p, key, index, t=t: jnp.full(index.shape, t))
        value = jax.jit(lambda w, loss=loss: loss({"denoiser": w}, {}, jax.random.key(0), drawn(200_000), 0)[0])
        zero = jnp.zeros((N, D + 1))
        slope = jax.grad(value)(zero).ravel()
        bend = jax.hessian(value)(zero).reshape(slope.size, slope.size)
        found = -jnp.linalg.solve(bend, slope).reshape(zero.shape)
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        mean, cov = PAIR.given()
        gain = PAIR.cov[:N, N:] @ np.linalg.inv(PAIR.cov[N:, N:])
        inverse = np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(N))  # eps = sigma inverse (x_t - alpha E[x | y])
        shift = PAIR.mean[:N] - gain @ PAIR.mean[N:]
        want = sigma * inverse @ np.concatenate([np.eye(N), -alpha * gain, -alpha * shift[:, None]], 1)
        assert np.linalg.norm(found - want) < 0.02 * np.linalg.norm(want)
        np.testing.assert_allclose(mean, gain @ PAIR.y + shift)


def test_the_weighting_matrix_bounds_the_joint_likelihood(x64):
    """KL of the reverse SDE's model, begun at true noise, <= half the integral of g_x^2 |error_x|^2 + g_y^2 |error_y|^2.

    The oracle's score is tilted by a matrix; the loss with weights diag(g_x^2, g_y^2), above the oracle's, is that integral
    (against quadrature), and the model's own Gaussian, from its moment equations, is under the bound. With x's and y's
    weights exchanged it is not: the matrix is needed.
    """
    x_path = jd.sde.VE(0.01, 20.0)
    path = {"x": x_path, "y": jd.sde.Slower(x_path, 0.5)}
    tilt = np.zeros((D, D))
    tilt[:N, :N] = 0.1 * np.random.default_rng(3).normal(size=(N, N))

    def g2(t):
        rates = jd.sde.diffusion(path, t)
        return jnp.concatenate([jnp.full(N, rates["x"] ** 2), jnp.full(D - N, rates["y"] ** 2)])

    # tilted only where the data's own scale is: elsewhere the error would drown in the noise of x_t
    strength = lambda t: 1 / (1 + x_path.sigma(t) ** 2) ** 2
    spread = lambda t: PAIR.cov + jnp.diag(jnp.asarray(list(PAIR.scales(path, t))[1]) ** 2)

    def density(t, swap=False):
        rates = jnp.concatenate([g2(t)[N:][:1].repeat(N), g2(t)[:1].repeat(D - N)]) if swap else g2(t)
        wrong = strength(t) * tilt
        return 0.5 * jnp.sum(rates * jnp.diag(wrong @ spread(t) @ wrong.T))

    exact, swapped = (float(quad_vec(jax.jit(lambda t, s=s: density(t, s)), x_path.t_min, 1, epsrel=1e-6)[0])
                      for s in (False, True))

    def value(on):
        exact_pair = PAIR.denoise(path)

        def net(params, z, c, cond):  # c_noise of VE is ln(sigma) / 4
            t = jd.sde.time_at(x_path, -8 * c)
            one = lambda u, v: exact_pair(None, jax.tree.map(lambda a: a[None], u), v).eps
            eps = jax.tree.map(lambda a: a[:, 0], jax.vmap(one)(z, t))
            sigma = x_path.sigma(t)[:, None]
            flat = jnp.concatenate([z["x"], z["y"]], 1) - PAIR.mean
            return {**eps, "x": eps["x"] + on * sigma * strength(t)[:, None] * (flat @ tilt.T)[:, :N]}

        loss = jd.losses.jointly(jd.losses.denoising(net, path, PLAIN, jd.sde.times.low_discrepancy(),
                                                     jd.losses.weightings.likelihood()))
        return jax.jit(lambda: loss({"denoiser": {}}, {}, jax.random.key(1), drawn(80_000), 0)[0])()

    above = float(value(1.0) - value(0.0)) * D / 2 * (x_path.t_max - x_path.t_min)
    np.testing.assert_allclose(above, exact, rtol=0.1)

    @jax.jit
    def rate(t, packed):  # of the model's covariance; its mean stays the data's
        cov = packed.reshape(D, D)
        pull = g2(t)[:, None] * (jnp.linalg.inv(spread(t)) + strength(t) * tilt)
        return (pull @ cov + cov @ pull.T - jnp.diag(g2(t))).ravel()

    done = solve_ivp(lambda t, p: np.asarray(rate(t, p)), (1.0, x_path.t_min), np.asarray(spread(1.0)).ravel(),
                     method="LSODA", rtol=1e-9, atol=1e-12)
    model, data = done.y[:, -1].reshape(D, D), np.asarray(spread(x_path.t_min))
    logs = np.linalg.slogdet(model)[1] - np.linalg.slogdet(data)[1]
    divergence = 0.5 * (np.trace(np.linalg.solve(model, data)) - D + logs)
    print("KL of the model", divergence, "bound by quadrature", exact, "by the loss", above, "weights exchanged", swapped)
    assert swapped < divergence < exact
