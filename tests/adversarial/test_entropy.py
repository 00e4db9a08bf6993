"""What the KL-consistent AFD bounds: 2 KL(p(x_t | x'_s) || q(x_t | x'_s)), with a gap that is known (one dimension).

Let v = Var(x_t | x'_s) under the generator and c* the regression of r on x'_s. Then

    bracket* / 2 = E (E[x_t | x'_s] - a x'_s)^2 / (2 beta)
    KL           = bracket* / 2 + (v / beta - 1 - ln(v / beta)) / 2         and the gap is 0 iff v = beta

With a learned variance, whose best is ln(v / beta), there is no gap: bracket* / 2 = KL.
"""

import jax
import numpy as np
import pytest

from jaxdiff.losses import adversarial
from tests.adversarial.gaussian import LINE, regression
from tests.adversarial.linear import balanced, losses, silent

KEY = jax.random.key(0)
GENERATORS = {
    "truth": lambda theta: theta,
    "shifted": lambda theta: theta | {"b": theta["b"] + 0.5},
    "narrow": lambda theta: theta | {"L": 0.3 * theta["L"]},
    "wide": lambda theta: theta | {"L": 2.0 * theta["L"]},
    "deaf": lambda theta: theta | {"A": 0 * theta["A"]},
}


def divergence(theta, t):
    """KL(p(x_t | x'_s) || q(x_t | x'_s)) averaged over p(x'_s), by midpoints on a grid."""
    fake, x_t, beta = LINE.fake(theta, t), LINE.real(t)[2], LINE.betas[t - 1]
    (gain,), offset = regression(x_t, fake)
    v = (x_t - gain[:, None] @ fake).cov()[0, 0]
    nodes = np.linspace(-9, 9, 1201)[1:] - 9 / 1200
    x, y = (law.offset[0] + np.sqrt(law.cov()[0, 0]) * nodes for law in (fake, x_t))
    normal = lambda z, m, var: np.exp(-0.5 * (z - m) ** 2 / var) / np.sqrt(2 * np.pi * var)
    log_normal = lambda z, m, var: -0.5 * (z - m) ** 2 / var - 0.5 * np.log(2 * np.pi * var)
    p = normal(x, fake.offset[0], fake.cov()[0, 0])[:, None] * normal(y, (gain * x + offset)[:, None], v)
    ratio = log_normal(y, (gain * x + offset)[:, None], v) - log_normal(y, np.sqrt(1 - beta) * x[:, None], beta)
    return (p * ratio).sum() * (x[1] - x[0]) * (y[1] - y[0]), v


@pytest.mark.parametrize("name", GENERATORS)
def test_the_bracket_is_the_divergence_less_its_gap(x64, monkeypatch, name):
    theta = GENERATORS[name](LINE.truth())
    phi = silent(LINE.optimal(theta))
    loss, params = losses(LINE, "siddm", anchor=0.0).generator, {"generator": theta, "discriminator": phi}
    for t in range(1, LINE.steps + 1):
        monkeypatch.setattr(adversarial, "draw_chain", lambda *_, t=t: balanced(LINE, [t]))
        half = (float(loss(params, None, KEY, {}, 0)[0]) - np.log(2)) / 2
        fake, x_t, beta = LINE.fake(theta, t), LINE.real(t)[2], LINE.betas[t - 1]
        gain, offset = regression(x_t, fake)
        distance = ((gain - np.sqrt(1 - beta)) @ fake).shifted(offset).mean_square() / (2 * beta)
        kl, v = divergence(theta, t)
        gap = 0.5 * (v / beta - 1 - np.log(v / beta))
        print(f"{name:8s} t = {t}: bracket / 2 {half:.6f}, gap {gap:.6f}, KL {kl:.6f}, v / beta {v / beta:.3f}")
        np.testing.assert_allclose(half, distance, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(half + gap, kl, rtol=1e-6, atol=1e-9)
        if name == "truth":
            assert abs(half) < 1e-12 and gap < 1e-12
        else:
            assert half > 1e-3 and (gap > 1e-4) == (name != "shifted")  # a shift leaves Var(x_t | x'_s) as it is


@pytest.mark.parametrize("name", GENERATORS)
def test_with_a_learned_variance_the_bracket_is_the_divergence(x64, monkeypatch, name):
    """And C is stationary there: its loss is the bracket's second half."""
    theta = GENERATORS[name](LINE.truth())
    phi = silent(LINE.optimal(theta))
    made = losses(LINE, "siddm", anchor=0.0, variance=True, denoise=0.0)
    for t in range(1, LINE.steps + 1):
        monkeypatch.setattr(adversarial, "draw_chain", lambda *_, t=t: balanced(LINE, [t]))
        kl, v = divergence(theta, t)
        told = np.log(v / LINE.betas[t - 1])
        assert abs(told) < 4
        phi = {**phi, "u": np.full((LINE.steps, 1), 5 * np.arctanh(told / 5))}
        value = float(made.generator({"generator": theta, "discriminator": phi}, None, KEY, {}, 0)[0])
        np.testing.assert_allclose((value - np.log(2)) / 2, kl, rtol=1e-6, atol=1e-9)
        of_c = lambda own, theta=theta: made.discriminator({"generator": theta, "discriminator": own}, None, KEY, {}, 0)[0]
        slopes = jax.grad(of_c)(jax.tree.map(np.asarray, phi))
        assert max(float(np.abs(slopes[key]).max()) for key in ("W", "w", "u")) < 1e-9
        moved = jax.grad(of_c)({**phi, "u": phi["u"] + 0.1})
        assert np.abs(moved["u"]).max() > 1e-2
