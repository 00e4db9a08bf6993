"""SIDDM's theorem 1 (Xu et al. 2023) by quadrature: two terms that a model can train bound the joint divergence.

    JSD(q(x_s, x_t), p(x_s, x_t)) <= 2 c_1 sqrt(2 JSD(q(x_s), p(x_s))) + 2 c_2 sqrt(2 KL(p(x_t|x_s) || q(x_t|x_s)))

with c_1, c_2 = 1/2 for densities and the KL averaged over p(x_s). Why it holds, with TV = 1/2 int |q - p|:

    JSD <= ln 2 TV                                                    (Lin 1991)
    TV(joint) <= TV(q(x_s), p(x_s)) + E_p TV(q(x_t|x_s), p(x_t|x_s))  (triangle inequality through p(x_s) q(x_t|x_s))
    TV(q, p) <= sqrt(2 JSD(q, p))                                     (Pinsker twice, against the mixture)
    E_p TV <= sqrt(KL / 2)                                            (Pinsker, Jensen)

So JSD(joint) <= ln 2 (sqrt(2 JSD) + sqrt(KL / 2)), which is below the printed bound.
"""

import numpy as np
import pytest

import jaxdiff as jd

MEANS, WEIGHTS, STD = np.array([-1.1, 0.2, 1.3]), np.array([0.4, 0.25, 0.35]), 0.2
EDGES = np.linspace(-7, 7, 561)
X = 0.5 * (EDGES[1:] + EDGES[:-1])  # midpoints: spectrally exact for smooth densities that vanish at both ends
CELL = X[1] - X[0]
BETAS = np.array(jd.sde.vp_betas(4))
BAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])


def normal(x, mean, var):
    return np.exp(-0.5 * (x - mean) ** 2 / var) / np.sqrt(2 * np.pi * var)


def marginal(t):
    """q(x_t) on the grid."""
    return sum(w * normal(X, np.sqrt(BAR[t]) * m, BAR[t] * STD**2 + 1 - BAR[t]) for w, m in zip(WEIGHTS, MEANS, strict=True))


def true_joint(t):
    """q(x_s) q(x_t | x_s), rows x_s."""
    return marginal(t - 1)[:, None] * normal(X[None], np.sqrt(1 - BETAS[t - 1]) * X[:, None], BETAS[t - 1])


def posterior(t):
    """q(x_0 | x_t), a mixture: shares, means and the common variance; [3, grid], [3, grid], scalar."""
    alpha, var = np.sqrt(BAR[t]), BAR[t] * STD**2 + 1 - BAR[t]
    shares = WEIGHTS[:, None] * normal(X, alpha * MEANS[:, None], var)
    means = MEANS[:, None] + alpha * STD**2 / var * (X - alpha * MEANS[:, None])
    return shares / shares.sum(0), means, STD**2 * (1 - BAR[t]) / var


def model_joint(t, shares, means, var):
    """q(x_t) int q(x_s | x_t, x_0) p(x_0 | x_t) dx_0 for a mixture p(x_0 | x_t)."""
    beta, before, after = BETAS[t - 1], BAR[t - 1], BAR[t]
    keep, take = np.sqrt(1 - beta) * (1 - before) / (1 - after), np.sqrt(before) * beta / (1 - after)
    spread = beta * (1 - before) / (1 - after) + take**2 * var
    parts = shares[:, None] * normal(X[None, :, None], keep * X + take * means[:, None], spread)  # [3, x_s, x_t]
    return parts.sum(0) * marginal(t)


# generators: what each does to the true posterior's shares, means and variance
WRONG = {
    "shifted": lambda w, m, v: (w, m + 0.3, v),
    "wide": lambda w, m, v: (w, m, 4 * v),
    "narrow": lambda w, m, v: (w, m, 0.3 * v),
    "slightly off": lambda w, m, v: (w, 1.02 * m, v),
    "one mode": lambda w, m, v: (np.array([[0.0], [0.0], [1.0]]) + 0 * w, m, v),
    "mean only": lambda w, m, v: (w, (w * m).sum(0) + 0 * m, v),
    "ignores x_t": lambda w, m, v: (WEIGHTS[:, None] + 0 * w, MEANS[:, None] + 0 * m, STD**2),
    "mirrored": lambda w, m, v: (w[:, ::-1], m[:, ::-1], v),
}


def kl(p, q, cell):
    """int p log(p / q); cells where p has underflowed count nothing."""
    inside = p > 1e-290
    return (p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-300))).sum() * cell


def jsd(p, q, cell):
    return 0.5 * kl(p, 0.5 * (p + q), cell) + 0.5 * kl(q, 0.5 * (p + q), cell)


def tv(p, q, cell):
    return 0.5 * abs(p - q).sum() * cell


def parts(q, p):
    """Joint JSD, marginal JSD, mean conditional KL; and the three total variations of the derivation."""
    q_s, p_s = q.sum(1) * CELL, p.sum(1) * CELL
    mixed = q * (p_s / np.maximum(q_s, 1e-300))[:, None]  # p(x_s) q(x_t | x_s)
    divergences = jsd(q, p, CELL**2), jsd(q_s, p_s, CELL), kl(p, mixed, CELL**2)
    return divergences, (tv(q, p, CELL**2), tv(q_s, p_s, CELL), tv(p, mixed, CELL**2))


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_bound_and_each_step_of_its_proof(t, name):
    q, p = true_joint(t), model_joint(t, *WRONG[name](*posterior(t)))
    np.testing.assert_allclose([q.sum() * CELL**2, p.sum() * CELL**2], 1, rtol=1e-9)
    (joint, alone, conditional), (tv_joint, tv_alone, tv_conditional) = parts(q, p)
    bound = np.sqrt(2 * alone) + np.sqrt(2 * conditional)
    print(f"t = {t}, {name:13s} JSD {joint:.5f} <= {bound:.5f}   (marginal {alone:.5f}, KL {conditional:.5f})")
    assert joint <= np.log(2) * tv_joint
    assert tv_joint <= tv_alone + tv_conditional + 1e-12
    assert tv_alone <= np.sqrt(2 * alone) + 1e-12 and tv_conditional <= np.sqrt(conditional / 2) + 1e-12
    assert 1e-9 < joint <= np.log(2) * (np.sqrt(2 * alone) + np.sqrt(conditional / 2)) <= bound


@pytest.mark.parametrize("t", [1, 2, 3])
def test_all_of_it_vanishes_at_the_true_posterior(t):
    divergences, _ = parts(true_joint(t), model_joint(t, *posterior(t)))
    np.testing.assert_allclose(divergences, 0, atol=1e-12)


def test_a_right_marginal_is_not_enough():
    """A generator that draws from the data whatever x_t is: at t = 1 the marginal is exact and the pair is not."""
    (joint, alone, conditional), _ = parts(true_joint(1), model_joint(1, *WRONG["ignores x_t"](*posterior(1))))
    print(f"joint JSD {joint:.4f}, marginal JSD {alone:.1e}, KL {conditional:.4f}")
    assert abs(alone) < 1e-12 and joint > 0.1
    assert joint > np.sqrt(2 * max(alone, 0))  # the first term alone bounds nothing
    assert joint < np.sqrt(2 * conditional)
