"""With the optimal discriminator and C of a Gaussian world, every gradient of the losses is a number known beforehand.

The library's gradient, averaged over 131,072 draws, is held against central differences of exact expectations, which share
no code with it; and one batch's gradient against differences of the library's own value.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import jaxdiff as jd
from jaxdiff.losses import adversarial
from tests.adversarial.gaussian import PLANE, World, beside, slopes
from tests.adversarial.linear import discriminate, flat, losses, sampled, silent
from tests.conftest import less_optimized


class Part(NamedTuple):
    """One part of the generator's loss: a loss and a step at which it stands alone, and its exact expectation.

    A logit of 0 silences the GAN term (it is log 2 then), c = 0 the KL-consistent bracket.
    """

    kind: str
    step: int
    mute: str  # parameters of the discriminator that are set to 0
    expected: Any


# the KL-consistent parts are all of one loss: warm-up to step 10, the anchor gone at 100
PARTS = {
    "gan": Part("siddm", 100, "Ww", World.gan),
    "kl": Part("siddm", 100, "Qlk", World.kl_bracket),
    "anchor": Part("siddm", 0, "Qlk", World.anchor),
    "printed": Part("printed", 0, "Qlk", World.printed_bracket),
    "joint gan": Part("ddgan", 0, "", lambda *a: World.gan(*a, joint=True, nodes=18)),
}


def pair_of(kind):
    return losses(PLANE, "ddgan", denoise=0.5, r1=0.0) if kind == "ddgan" else losses(
        PLANE, "siddm", form={"siddm": "kl", "printed": "printed"}[kind])


@cache
def optimum(kind, at):
    """The generator `at` "truth" or "off", and its optimal discriminator."""
    theta = PLANE.truth() if at == "truth" else PLANE.off()
    phi = PLANE.optimal(theta, kind == "ddgan")
    return theta, phi


def muted(part, at):
    theta, phi = optimum(part.kind, at)
    return theta, silent(phi, part.mute), part.step


@cache
def gradients(at):
    """Every part's sampled value and gradient for the generator, and their standard errors."""
    names = {kind: [n for n, part in PARTS.items() if part.kind == kind] for kind in ("siddm", "printed", "ddgan")}
    questions = {pair_of(kind).generator: [muted(PARTS[n], at) for n in own] for kind, own in names.items()}
    answers = sampled(PLANE, "generator", questions)
    return {n: a for own, found in zip(names.values(), answers.values(), strict=True)
            for n, a in zip(own, found, strict=True)}


@cache
def expectation(name, at):
    """A part's exact value and slopes, the mean over t; the numbers of t matter to the term of t alone."""
    part = PARTS[name]
    theta, phi, _ = muted(part, at)
    values, rows = [], []
    for t in range(1, PLANE.steps + 1):
        value = lambda row, t=t: part.expected(PLANE, {k: [v] * PLANE.steps for k, v in row.items()}, phi, t) / PLANE.steps
        row = {k: v[t - 1] for k, v in theta.items()}
        values.append(value(row))
        rows.append(slopes(value, row))
    constant = np.log(2) if "Q" in part.mute else 0.0
    return {"value": sum(values) + constant, **{k: np.stack([row[k] for row in rows]) for k in theta}}


def deviation(mean, error, truth):
    """The largest distance from the truth in standard errors; rounding is forgiven where the loss is a constant."""
    return max((np.abs(mean[k] - truth[k]) / np.maximum(error[k], 1e-9)).max() for k in truth)


@pytest.mark.parametrize("name", PARTS)
def test_the_generators_gradient_is_that_of_the_expectation(x64, name):
    """Within 4.5 standard errors in each of 41 numbers, while the largest stand 40 errors from zero."""
    (mean, error), truth = gradients("off")[name], expectation(name, "off")
    apart, power = deviation(mean, error, truth), max(np.abs(truth[k] / error[k]).max() for k in "AbL")
    print(f"{name:9s}: largest deviation {apart:.2f} standard errors, signal {power:.0f}")
    assert apart < 4.5 and power > 40


@pytest.mark.parametrize("name", ["gan", "joint gan", "kl"])
def test_no_gradient_at_the_true_posterior(x64, name):
    """GAN and KL-consistent AFD: not a small mean, but nothing in any batch; nor in the expectation."""
    (mean, error), truth = gradients("truth")[name], expectation(name, "truth")
    for values in (mean, error, truth):
        np.testing.assert_allclose(flat({k: values[k] for k in "AbL"}), 0, atol=1e-8)


def test_the_printed_form_moves_away_from_the_true_posterior(x64):
    """With c at its best, 0, only the distance to x_s is left, at G 2 Var(x_s | x_t), which a narrower G makes smaller."""
    (mean, error), truth = gradients("truth")["printed"], expectation("printed", "truth")
    spread = np.diagonal(mean["L"] / error["L"], axis1=1, axis2=2).min(1)
    print(f"off by {deviation(mean, error, truth):.2f} standard errors; d/dL stands {spread.round(1)} from 0 at t = 1..T")
    assert deviation(mean, error, truth) < 4.5 and spread[0] > 50
    np.testing.assert_allclose(flat({k: truth[k] for k in "Ab"}), 0, atol=1e-8)  # the mean stays right, the spread shrinks
    np.testing.assert_array_less(0, np.diagonal(truth["L"], axis1=1, axis2=2))


TRAINED = {"ddgan": "QlkHh", "siddm": "QlkWwHh", "printed": "QlkWwHh"}


@cache
def stationary(at):
    """By kind, the discriminator's gradient at its optimum and .1 from it: `[(mean, error), (mean, error)]`."""
    questions = {}
    for kind in TRAINED:
        theta, phi = optimum(kind, at)
        if kind == "printed":
            phi = silent(phi, "Ww")  # what it regresses is fresh noise
        questions[pair_of(kind).discriminator] = [(theta, {k: v + d for k, v in phi.items()}, 0) for d in (0.0, 0.1)]
    return dict(zip(TRAINED, sampled(PLANE, "discriminator", questions).values(), strict=True))


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("at", ["off", "truth"])
def test_the_discriminator_is_stationary_at_its_optimum(x64, at, kind):
    """log q - log p, the regression of r (printed: of fresh noise) and E[x_0 | x_s]. At the true posterior these are a logit
    and a c of 0: that no gradient moves them says that the library's fake pairs have the law of its real ones."""
    (mean, error), (moved, moved_error) = stationary(at)[kind]
    apart = deviation(mean, error, dict.fromkeys(TRAINED[kind], 0))
    power = {k: float(np.abs(moved[k] / moved_error[k]).max().round()) for k in TRAINED[kind]}
    print(f"{kind} {at}: largest gradient {apart:.2f} standard errors; moved by .1: {power}")
    assert apart < 4.5 and min(power.values()) > 15
    if at == "truth":
        np.testing.assert_allclose(flat({k: optimum(kind, at)[1][k] for k in "QlkWw"}), 0, atol=1e-9)


FULL = {  # every term of each loss is on at this step, which r1_every divides; the anchor is half gone
    "ddgan": ("ddgan", {"denoise": 0.5, "r1": 0.3}),
    "siddm": ("siddm", {"weight": 0.7, "warmup": 5, "total_steps": 25}),
    "printed": ("siddm", {"form": "printed", "anchor": 0.8}),
}
STEP = 15


@cache
def differences():
    """The gradient of both networks' losses of each kind by autodiff and by central differences, [6, points] each; one
    program, a key and a batch for all. Also which points are whose."""
    batch = {"x": jnp.asarray(PLANE.mean + np.random.default_rng(3).normal(size=(24, PLANE.d)) @ PLANE.root.T)}
    drawn = adversarial.draw_chain(jd.sde.Discrete(PLANE.betas), jax.random.key(5), batch, PLANE.d)
    wrong = PLANE.off(seed=1)
    tree = {"ddgan": PLANE.optimal(wrong, True), "generator": PLANE.off(), "siddm": PLANE.optimal(wrong)}
    points, unravel = ravel_pytree(tree)
    owners = np.concatenate([[name] * len(flat(tree[name])) for name in sorted(tree)])

    def values(v):
        params, found = unravel(v), []
        for kind, options in FULL.values():
            own = {"generator": params["generator"], "discriminator": params[kind]}
            found += [loss(own, None, jax.random.key(5), batch, STEP)[0] for loss in losses(PLANE, kind, **options)[:2]]
        return jnp.stack(found)

    @jax.jit
    def run(points):
        moves = 1e-5 * jnp.eye(len(points))
        moved = jax.vmap(values)(jnp.concatenate([points + moves, points - moves]))
        return jax.jacrev(values)(points), (moved[: len(points)] - moved[len(points) :]).T / 2e-5

    # the draws hang on no parameter: made once, they need not be compiled into each of the losses
    with less_optimized(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "draw_chain", lambda *_: drawn)
        return *(np.asarray(v) for v in run(points)), owners


@pytest.mark.parametrize("name", FULL)
def test_gradients_are_differences_of_the_value(x64, name):
    """What is trained is the whole value; but of D's the fakes are held fixed, so that it tells G nothing."""
    grad, found, owners = differences()
    row = 2 * list(FULL).index(name)
    for i, own in [(row, owners == FULL[name][0]), (row + 1, owners == "generator")]:
        np.testing.assert_allclose(grad[i, own], found[i, own], rtol=1e-6, atol=1e-7 * np.abs(grad[i]).max())
        assert np.abs(grad[i, own]).max() > 1e-2
    assert (grad[row, owners == "generator"] == 0).all() and np.abs(found[row, owners == "generator"]).max() > 1e-2


@pytest.mark.parametrize("joint", [False, True])
def test_the_closed_forms_themselves(x64, joint):
    """The logit is the difference of scipy's log densities, the network form of it says the same; the quadrature is fine."""
    theta = PLANE.off()
    phi = PLANE.optimal(theta, joint)
    as_jax = {k: jnp.asarray(v) for k, v in phi.items()}
    for t in range(1, PLANE.steps + 1):
        _, x_s, x_t = PLANE.real(t)
        laws = [beside(law, x_t) if joint else law for law in (x_s, PLANE.fake(theta, t))]
        x = np.random.default_rng(0).normal(size=(5, len(laws[0].offset)))
        truth = np.subtract(*[multivariate_normal(law.offset, law.cov()).logpdf(x) for law in laws])
        np.testing.assert_allclose(discriminate(as_jax, x, jnp.full(5, t - 1.0), None)["logit"], truth, rtol=1e-9)
        few, many = (PLANE.gan(theta, phi, t, joint, nodes) for nodes in ((18, 22) if joint else (60, 80)))
        np.testing.assert_allclose(few, many, rtol=1e-4 if joint else 1e-6)
