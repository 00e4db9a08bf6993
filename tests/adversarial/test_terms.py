"""Every term of both losses on given draws: exact expectations where a term is quadratic, and all terms by hand.

The draws are handed to the losses in place of their own (which test_gradients.py holds to their law).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.losses import adversarial
from tests.adversarial.gaussian import LINE, PLANE, slopes
from tests.adversarial.linear import balanced, flat, losses, silent

WORLDS = {"line": LINE, "plane": PLANE}
KEY = jax.random.key(2)


@pytest.fixture
def given(monkeypatch, quick_compile):
    """`given(drawn)` makes the losses use these draws."""
    return lambda drawn: monkeypatch.setattr(adversarial, "draw_chain", lambda *_: drawn)


def wrong(world, joint=False):
    """A generator, and a discriminator that is not the best against it."""
    return {"generator": world.off(), "discriminator": world.optimal(world.off(seed=1), joint)}


def mean_over_t(world, term):
    return np.mean([term(t) for t in range(1, world.steps + 1)])


QUADRATIC = {  # options, step, exact terms
    "kl": ({}, 100, [(1.0, "kl_bracket")]),
    "anchor": ({"anchor": 0.6}, 0, [(0.6, "anchor")]),
    "both, lambda": ({"weight": 0.4}, 55, [(0.4, "kl_bracket"), (0.4 * 0.5, "anchor")]),
    "printed": ({"form": "printed"}, 100, [(1.0, "printed_bracket")]),
}


@pytest.mark.parametrize("name", QUADRATIC)
@pytest.mark.parametrize("where", WORLDS)
def test_auxiliary_forward_diffusion_is_its_expectation(x64, given, where, name):
    """Value and gradient for G, to rounding, of brackets with a C that is not the best."""
    world, (options, step, terms) = WORLDS[where], QUADRATIC[name]
    params = wrong(world) | {"discriminator": silent(wrong(world)["discriminator"])}
    given(balanced(world))
    loss = losses(world, "siddm", **options).generator
    value = lambda own: loss({**params, "generator": own}, None, KEY, {}, step)[0]
    got, grad = jax.jit(jax.value_and_grad(value))(params["generator"])
    exact = lambda theta: mean_over_t(world, lambda t: sum(
        w * getattr(world, term)(theta, params["discriminator"], t) for w, term in terms))
    np.testing.assert_allclose(got - np.log(2), exact(params["generator"]), rtol=1e-10)
    truth = slopes(exact, params["generator"])
    np.testing.assert_allclose(flat(grad), flat(truth), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["ddgan", "siddm"])
@pytest.mark.parametrize("where", WORLDS)
def test_r1_is_half_the_mean_squared_gradient(x64, given, where, kind):
    """gamma / 2 E |grad log q / p|^2 on steps that r1_every divides, there alone; of a pair's gradient the part of x_s."""
    world = WORLDS[where]
    params = wrong(world, kind == "ddgan")
    given(balanced(world))
    loss = losses(world, kind, r1=0.3, r1_every=4).discriminator
    run = jax.jit(lambda step: loss(params, None, KEY, {}, step)[0])
    values = np.array([run(step) for step in range(9)])
    phi, d = params["discriminator"], world.d

    def squared(t):
        _, x_s, x_t = world.real(t)
        rows = phi["Q"][t - 1][:d]
        slope = rows[:, :d] @ x_s + rows[:, d:] @ x_t if kind == "ddgan" else rows @ x_s
        return d * slope.shifted(phi["l"][t - 1][:d]).mean_square()

    due = np.arange(9) % 4 == 0
    assert np.ptp(values[~due]) == 0
    np.testing.assert_allclose(values[due] - values[1], 0.15 * mean_over_t(world, squared), rtol=1e-9)


def softplus(v):
    return np.logaddexp(0, v)


def by_hand(world, params, drawn, step, pair=False, form="kl", weight=1.0, entropy=True, anchor=1.0, warmup=10,
            total_steps=100, denoise=1.0, r1=0.0, r1_every=15, scaled=0.0):
    """Both losses written out, example by example: `[discriminator, generator]`."""
    c_in = 1 / np.sqrt(1 - world.bar + world.bar * scaled**2) if scaled else np.ones(world.steps + 1)
    theta, phi = params["generator"], params["discriminator"]
    drawn = jax.tree.map(np.asarray, drawn._replace(k_network=0))
    rows = []
    for x_0, x_s, x_t, t, z, w, e in zip(
            drawn.x0, drawn.x_s, drawn.x_t, drawn.t, drawn.z, drawn.noise, drawn.fresh, strict=True):
        at = int(t) - 1
        beta, before, after = world.betas[at], world.bar[at], world.bar[at + 1]
        a = np.sqrt(1 - beta)
        g = c_in[at + 1] * theta["A"][at] @ x_t + theta["b"][at] + theta["L"][at] @ z
        mean = (a * (1 - before) * x_t + np.sqrt(before) * beta * g) / (1 - after)
        x_fake = mean + np.sqrt(beta * (1 - before) / (1 - after)) * w
        sees = lambda x, x_t=x_t, at=at: np.concatenate([c_in[at] * x, c_in[at + 1] * x_t]) if pair else c_in[at] * x
        logit = lambda x, at=at: 0.5 * x @ phi["Q"][at] @ x + phi["l"][at] @ x + phi["k"][at]
        c = c_in[at] * phi["W"][at] @ x_fake + phi["w"][at]
        r = (x_t - a * x_fake) / np.sqrt(beta)
        regressed = e if form == "printed" else r
        d = softplus(-logit(sees(x_s))) + softplus(logit(sees(x_fake)))
        d += denoise * ((c_in[at] * phi["H"][at] @ x_s + phi["h"][at] - x_0) ** 2).mean()
        if step % r1_every == 0:
            d += r1 / 2 * (c_in[at] ** 2 * (phi["Q"][at] @ sees(x_s) + phi["l"][at])[: world.d] ** 2).sum()
        has_afd = not pair and weight > 0
        if has_afd and entropy:
            d += ((regressed - c) ** 2).mean()
        told = ((regressed - c) ** 2).mean() if entropy else 0.0
        near = (1 - beta) / beta * ((x_fake - x_s) ** 2).mean()
        if form == "printed":
            afd = anchor * near - told
        elif anchor > 0 and step < warmup:
            afd = anchor * near
        else:
            left = max(0.0, (total_steps - step) / (total_steps - warmup))
            afd = (r**2).mean() - told + anchor * left * near
        rows.append([d, softplus(-logit(sees(x_fake))) + (weight * afd if has_afd else 0.0)])
    return np.mean(rows, axis=0)


SWITCHES = {
    "DDGAN": {"pair": True, "denoise": 0.0, "r1": 0.2, "r1_every": 20},
    "DDGAN, denoising": {"pair": True, "denoise": 0.5},
    "SIDDM": {},
    "all on": {"weight": 0.7, "anchor": 0.8, "denoise": 0.5, "r1": 0.2, "r1_every": 20},
    "scaled inputs": {"scaled": 0.6, "r1": 0.2, "r1_every": 20},
    "DDGAN, scaled inputs": {"pair": True, "scaled": 0.6, "denoise": 0.5, "r1": 0.2, "r1_every": 20},
    "other times": {"warmup": 20, "total_steps": 80},
    "no warm-up": {"warmup": 0},
    "no anchor": {"anchor": 0.0},
    "no C": {"entropy": False},
    "no C, no anchor": {"entropy": False, "anchor": 0.0},
    "lambda 0": {"weight": 0.0},
    "no denoising": {"denoise": 0.0},
    "printed": {"form": "printed"},
    "printed, no C": {"form": "printed", "entropy": False, "anchor": 0.5, "weight": 2.0},
    "printed, no anchor": {"form": "printed", "anchor": 0.0},
}
STEPS = (0, 9, 10, 20, 55, 100, 140)  # warm-up ends at 10, the anchor at 100


def library(params, options):
    """`(step, key, batch) -> [discriminator, generator]`."""
    kind = "ddgan" if options.get("pair") else "siddm"
    pair = losses(PLANE, kind, **({"r1": 0.0} if kind == "ddgan" else {}) | {k: options[k] for k in options if k != "pair"})
    return jax.jit(lambda step, key, batch: jnp.stack([loss(params, None, key, batch, step)[0] for loss in pair[:2]]))


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_drops_its_term_and_no_other(x64, given, name):
    """Against the remaining formula, at steps before, at and after each turn of the anchor's schedule."""
    options = SWITCHES[name]
    params, drawn = wrong(PLANE, options.get("pair", False)), balanced(PLANE)
    given(drawn)
    run = library(params, options)
    got = [run(step, KEY, {}) for step in STEPS]
    np.testing.assert_allclose(got, [by_hand(PLANE, params, drawn, step, **options) for step in STEPS], rtol=1e-9)


def test_both_losses_use_the_draws_of_their_key(x64):
    options, batch = SWITCHES["printed"], {"x": jnp.asarray(np.random.default_rng(4).normal(size=(6, 2)))}
    params = wrong(PLANE)
    drawn = adversarial.draw_chain(jd.sde.Discrete(PLANE.betas), KEY, batch, PLANE.d)
    got = library(params, options)(20, KEY, batch)
    np.testing.assert_allclose(got, by_hand(PLANE, params, drawn, 20, **options), rtol=1e-9)


@pytest.mark.parametrize("kind", ["ddgan", "siddm"])
def test_a_shared_forward_pass_changes_nothing(x64, given, kind):
    """x'_s made once by `forward` and handed to both losses: the same values, and G's gradient pulled back through it."""
    given(balanced(LINE))
    params, adversary = wrong(LINE, kind == "ddgan"), losses(LINE, kind, denoise=0.5)

    def value(loss, own, batch):
        return loss(params | {"generator": own}, None, KEY, batch, 55)[0]

    @jax.jit
    def run(theta):
        plain, direct = jax.value_and_grad(lambda own: value(adversary.generator, own, {}))(theta)
        shared, pull = jax.vjp(lambda own: adversary.forward(params | {"generator": own}, KEY, {}, 55), theta)
        handed, slope = jax.value_and_grad(lambda x: value(adversary.generator, theta, {"shared": x}))(shared)
        judged = [value(adversary.discriminator, theta, batch) for batch in ({}, {"shared": shared})]
        return jnp.stack([plain, judged[0]]), jnp.stack([handed, judged[1]]), direct, pull(slope)[0]

    plain, handed, direct, pulled = run(params["generator"])
    np.testing.assert_allclose(handed, plain, rtol=1e-12)
    np.testing.assert_allclose(flat(pulled), flat(direct), rtol=1e-9, atol=1e-12)


def test_the_anchor_leaves_in_a_straight_line(x64, given):
    """Full and alone before the warm-up's end, then from full to nothing at total_steps, and nothing after."""
    given(balanced(LINE))
    params = wrong(LINE) | {"discriminator": silent(wrong(LINE)["discriminator"])}
    theta, phi = params.values()
    run = jax.jit(lambda step: losses(LINE, "siddm", anchor=2.0).generator(params, None, KEY, {}, step)[0])
    steps = np.array([0, 9, 10, 25, 55, 99, 100, 500])
    near, bracket = (mean_over_t(LINE, lambda t, of=of: of(theta, phi, t)) for of in (LINE.anchor, LINE.kl_bracket))
    shares = np.array([1, 1, 1, 1 - 15 / 90, 0.5, 1 / 90, 0, 0])
    truth = np.log(2) + 2.0 * shares * near + np.where(steps < 10, 0, bracket)
    np.testing.assert_allclose([run(step) for step in steps], truth, rtol=1e-10)
