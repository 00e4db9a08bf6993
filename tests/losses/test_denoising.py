"""The denoising loss: exact values on Gaussian data, its minimiser, and whose draws depend on what."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff.losses import weightings
from jaxdiff.losses.denoising import noised
from jaxdiff.sde import times
from tests import oracle
from tests.losses.closed_forms import PARAMETERIZATIONS, ROWS, at, exact_apply, posterior_variance, raw_per_x0

KEY = jax.random.key(3)
MEAN, STD = 0.3, 0.4


def params(**values):
    return {"denoiser": values}


def gaussian_batch(size, dims, seed=0):
    return {"x": jnp.asarray(MEAN + STD * np.random.default_rng(seed).standard_normal((size, dims)))}


def build(name, **options):
    return getattr(jd.parameterizations, name)(scale_input=False, **options)


@pytest.mark.parametrize("name", ROWS)
def test_exact_denoiser_has_the_closed_form_loss(x64, name):
    """Expected error s^2 sigma^2 / c in x0, carried to each raw space; 5 standard errors are 3 % here."""
    row, batch = ROWS[name], gaussian_batch(2000, 32)

    def losses(t):
        def one(kind):
            parameterization = build(kind)
            apply_fn = exact_apply(row.path, parameterization, t, oracle.gaussian(row.path, MEAN, STD))
            return jd.losses.denoising(apply_fn, row.path, parameterization, at(t))(params(), None, KEY, batch, 0)[0]

        return {kind: one(kind) for kind in PARAMETERIZATIONS}, noised(row.path, at(t), KEY, batch)

    for t in row.times:
        seen, drawn = losses(t)
        alpha, sigma = row.alpha(t), row.sigma(t)
        shrink = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x_t = alpha * np.asarray(drawn.x0) + sigma * np.asarray(drawn.eps)
        error = ((MEAN + shrink * (x_t - alpha * MEAN) - np.asarray(drawn.x0)) ** 2).mean()  # of the very same draws
        for kind, value in seen.items():
            factor = raw_per_x0(kind, row, t)
            np.testing.assert_allclose(value, factor * error, rtol=1e-7, err_msg=f"{kind} {t}")
            np.testing.assert_allclose(value, factor * posterior_variance(row, t, STD), rtol=3e-2, err_msg=f"{kind} {t}")


@pytest.mark.parametrize("name", ROWS)
def test_minimiser_is_least_squares_in_every_parameterization(x64, name):
    """raw = a x_t + b at one t: the gradient vanishes at the least-squares denoiser of the same draws, which is the true
    one within sampling error, whatever the parameterisation and the weighting."""
    row, batch = ROWS[name], gaussian_batch(2000, 32)
    every = (weightings.simple(), weightings.likelihood(), weightings.edm(), weightings.min_snr(), weightings.sigmoid())
    apply_fn = lambda p, x, c, cond: p["a"] * x + p["b"]

    def run(t, slope, intercept):
        def one(kind, weighting):
            parameterization, (alpha, sigma) = build(kind), (row.path.alpha(t), row.path.sigma(t))
            x = jnp.array([0.0, 1.0])
            clean = intercept + slope * x
            b, a = parameterization.target(row.path, clean, (x - alpha * clean) / sigma, t)
            loss = jd.losses.denoising(apply_fn, row.path, parameterization, at(t), weighting)
            f = lambda q: loss(params(**q), None, KEY, batch, 0)[0]
            return jax.value_and_grad(f)({"a": a - b, "b": b}), f({"a": 1.1 * (a - b), "b": b})

        return [one(kind, weighting) for kind, weighting in zip(PARAMETERIZATIONS, every, strict=True)]

    for t in row.times[:2]:
        drawn = noised(row.path, at(t), KEY, batch)
        x, x0 = np.asarray(drawn.x_t).ravel(), np.asarray(drawn.x0).ravel()
        slope, intercept = np.polyfit(x, x0, 1)
        alpha, sigma = row.alpha(t), row.sigma(t)
        truth = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        assert abs(slope / truth - 1) < 0.03 and abs(intercept - MEAN * (1 - alpha * truth)) < 0.01
        for kind, ((value, gradient), worse) in zip(PARAMETERIZATIONS, run(t, slope, intercept), strict=True):
            assert max(abs(float(g)) for g in gradient.values()) < 1e-9 * max(1.0, float(value)), (kind, t, gradient)
            assert worse > value, (kind, t)


def test_edm_plain_mse_is_the_papers_weighted_loss(x64):
    """lambda(s) |c_skip x + c_out F(c_in x; c_noise) - y|^2 with table 1 of Karras et al. 2022, for a nonlinear F."""
    path, sd, batch = jd.sde.EDM(), 0.6, gaussian_batch(64, 5)

    def network(p, x, c, cond):
        return jnp.sin(p["w"] * x + c[:, None]) + x**2

    parameterization = jd.parameterizations.edm(sigma_data=sd)
    loss = jax.jit(jd.losses.denoising(network, path, parameterization, times.lognormal()))
    value, aux = loss(params(w=jnp.asarray(1.7)), None, KEY, batch, 0)
    drawn = noised(path, times.lognormal(), KEY, batch)
    y, s = np.asarray(drawn.x0), np.asarray(drawn.t)[:, None]
    x = y + s * np.asarray(drawn.eps)
    c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / np.sqrt(s**2 + sd**2)
    c_in, c_noise = 1 / np.sqrt(s**2 + sd**2), (np.log(s) / 4).astype(np.float32)  # networks are told in float32
    f = np.sin(1.7 * c_in * x + c_noise) + (c_in * x) ** 2
    errors = ((s**2 + sd**2) / (s * sd) ** 2 * (c_skip * x + c_out * f - y) ** 2).mean(1)
    np.testing.assert_allclose(value, errors.mean(), rtol=1e-9)
    noisy = s[:, 0] > 1
    assert 5 < noisy.sum() < 40
    np.testing.assert_allclose(aux.metrics["loss_noisy"], errors[noisy].mean(), rtol=1e-9)
    np.testing.assert_allclose(aux.metrics["loss_clean"], errors[~noisy].mean(), rtol=1e-9)


DRAWS = {
    "uniform": (jd.sde.VP(), times.uniform()),
    "low_discrepancy": (jd.sde.Flow(), times.low_discrepancy()),
    "lognormal": (jd.sde.EDM(), times.lognormal()),
    "logit_normal": (jd.sde.Flow(), times.logit_normal()),
    "discrete": (ROWS["Discrete"].path, times.discrete()),
}


def test_draws_follow_the_global_index():
    """One batch, two halves, a permutation, single examples: the same losses, with labels dropped alike."""
    rng = np.random.default_rng(1)
    batch = {
        "x": jnp.asarray(rng.standard_normal((8, 3)), jnp.float32),
        "label": jnp.arange(8, dtype=jnp.int32),
        "index": jnp.arange(40, 48, dtype=jnp.int32),
    }

    def network(p, x, c, cond):
        return x * 0.5 + jnp.sin(c)[:, None] + 0.1 * cond["label"][:, None]

    def losses(path, draw):
        drop = jd.conditioning.drop(0.5, 10)
        return jd.losses.denoising(network, path, jd.parameterizations.v(), draw, draw_cond=drop)

    run = jax.jit(lambda key, b: jnp.stack([losses(*pair)(params(), None, key, b, 0)[0] for pair in DRAWS.values()]))
    take = lambda *rows: {k: v[np.array(rows)] for k, v in batch.items()}
    alone = np.stack([run(KEY, take(*[i] * 8)) for i in range(8)])  # eight times the same example is that example
    assert all(len(np.unique(column.round(6))) == 8 for column in alone.T)
    np.testing.assert_allclose(run(KEY, batch), alone.mean(0), rtol=1e-6)
    np.testing.assert_allclose(run(KEY, take(5, 0, 7, 2, 1, 6, 3, 4)), alone.mean(0), rtol=1e-6)
    np.testing.assert_allclose(run(KEY, take(0, 1, 2, 3)), alone[:4].mean(0), rtol=1e-6)
    np.testing.assert_allclose(run(KEY, take(4, 5, 6, 7)), alone[4:].mean(0), rtol=1e-6)
    assert (abs(run(jax.random.key(4), batch) - alone.mean(0)) > 1e-4).all()


def test_a_batch_without_index_is_the_whole_global_batch():
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(8, 3)}
    loss = jd.losses.denoising(lambda p, x, c, cond: 0.3 * x, jd.sde.VP(), jd.parameterizations.x0())
    jitted = jax.jit(lambda b: loss(params(), None, KEY, b, 0)[0])
    run = lambda **extra: float(jitted(batch | extra))
    assert run() == run(index=jnp.arange(8)) != run(index=jnp.arange(8) + 8)


def joint_batch():
    rng = np.random.default_rng(2)
    return {"x": {"x": jnp.asarray(rng.standard_normal((16, 4))), "y": jnp.asarray(rng.standard_normal((16, 2)))}}


def joint_network(p, net_x, c, cond):
    return {"x": p["w"] * net_x["x"] + net_x["y"].sum(1, keepdims=True), "y": p["w"] * net_x["y"] ** 2}


def test_joint_likelihood_weights_are_each_variables_own_g2(x64):
    """CMDE: the mean over all dimensions of diag(g_x^2, g_y^2) times the squared score error (Batzolis et al. 2021)."""
    path, batch = {"x": jd.sde.VE(0.01, 50.0), "y": jd.sde.VE(0.01, 1.0)}, joint_batch()
    parameterization = jd.parameterizations.eps()
    loss = jd.losses.denoising(joint_network, path, parameterization, weighting=weightings.likelihood())
    value = jax.jit(loss)(params(w=jnp.asarray(0.7)), None, KEY, batch, 0)[0]
    drawn = noised(path, times.uniform(), KEY, batch)
    t = np.asarray(drawn.t)[:, None]
    sigma = {"x": 0.01 * 5000.0**t, "y": 0.01 * 100.0**t}
    g2 = {"x": 2 * np.log(5000.0) * sigma["x"] ** 2, "y": 2 * np.log(100.0) * sigma["y"] ** 2}
    noise = {k: np.asarray(drawn.eps[k]) for k in path}
    assert abs(np.corrcoef(noise["x"][:, 0], noise["y"][:, 0])[0, 1]) < 0.6  # independent noises on one clock
    x_t = {k: np.asarray(drawn.x0[k]) + sigma[k] * noise[k] for k in path}
    seen = {k: x_t[k] / np.sqrt(0.25 + sigma[k] ** 2) for k in path}
    guess = {"x": 0.7 * seen["x"] + seen["y"].sum(1, keepdims=True), "y": 0.7 * seen["y"] ** 2}
    score_error = {k: (-guess[k] / sigma[k] + noise[k] / sigma[k]) ** 2 for k in path}
    expected = np.concatenate([g2[k] * score_error[k] for k in path], axis=1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_one_variable_alone_or_in_a_dict_is_the_same():
    path, batch = jd.sde.VP(), {"x": jnp.linspace(-1, 1, 24).reshape(8, 3)}
    network = lambda p, x, c, cond: jax.tree.map(lambda v: 0.3 * v, x)
    run = lambda path, batch: jax.jit(jd.losses.denoising(network, path, jd.parameterizations.x0()))(
        params(), None, KEY, batch, 0
    )[0]
    np.testing.assert_allclose(run(path, batch), run({"x": path}, {"x": {"x": batch["x"]}}), rtol=1e-6)


def test_a_path_that_changes_while_training():
    """VS-CMDE: `path_at(step)` is traced once, and at each step it is the path of that step."""
    traces = []

    def path_at(step):
        traces.append(step)
        return {"x": jd.sde.VE(0.01, 50.0), "y": jd.sde.VE(0.01, 10.0 * 0.5**step)}

    batch, weights = joint_batch(), params(w=jnp.asarray(0.7))
    options = {"parameterization": jd.parameterizations.x0(), "weighting": weightings.edm()}
    moving = jax.jit(jax.value_and_grad(jd.losses.denoising(joint_network, path_at, **options), has_aux=True))
    seen = []
    for step in range(4):
        (value, _), gradient = moving(weights, None, KEY, batch, jnp.int32(step))
        seen.append(float(value))
        assert np.isfinite(gradient["denoiser"]["w"])
    assert len(traces) == 1 and len(set(seen)) == 4
    for step in (0, 3):
        fixed = {"x": jd.sde.VE(0.01, 50.0), "y": jd.sde.VE(0.01, 10.0 * 0.5**step)}
        still = jax.jit(jd.losses.denoising(joint_network, fixed, **options))(weights, None, KEY, batch, 0)[0]
        np.testing.assert_allclose(seen[step], still, rtol=2e-5)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_bfloat16_network_trains_in_float32(name):
    """The loss and its gradient are float32 and finite at both ends of the path, the network's numbers are bfloat16."""
    batch = {"x": jnp.linspace(-1, 1, 24).reshape(8, 3)}

    def network(p, x, c, cond):
        return p["w"].astype(jnp.bfloat16) * x.astype(jnp.bfloat16)

    path = jd.sde.VP()
    ends = lambda path, key, index: jnp.where(index % 2 == 0, path.t_min, path.t_max)
    loss = jd.losses.denoising(network, path, getattr(jd.parameterizations, name)(), ends)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, aux), gradient = run(params(w=jnp.float32(0.5)), None, KEY, batch, 0)
    assert value.dtype == jnp.float32 and all(m.dtype == jnp.float32 for m in aux.metrics.values())
    assert gradient["denoiser"]["w"].dtype == jnp.float32
    assert np.isfinite(value) and np.isfinite(gradient["denoiser"]["w"])


def test_stochastic_network_gets_a_key_and_state_passes_through():
    """An error of exactly z = N(0, 1) drawn from the key, whose first index tells micro-batches apart."""

    def network(p, x, c, cond, key):
        return jax.random.normal(key, (8, 1)) + x * 0

    loss = jd.losses.denoising(network, jd.sde.VP(), jd.parameterizations.x0(), stochastic=True)
    run = jax.jit(lambda start: loss(params(), {"n": 1}, KEY, {"x": jnp.zeros((8, 3)), "index": start + jnp.arange(8)}, 0))
    (first, aux), (second, _) = run(0), run(8)
    assert aux.state == {"n": 1} and run(0)[0] == first != second and 0.2 < first < 3


def test_adam_finds_the_true_denoiser():
    """A chain of 8 betas, one slope and one offset a step, 400 Adam steps: the exact eps of every step within 3 %."""
    path = jd.sde.Discrete(np.linspace(0.05, 0.6, 8))

    def network(p, x, c, cond):
        index = c.astype(jnp.int32)
        return p["a"][index][:, None] * x + p["b"][index][:, None]

    loss = jd.losses.denoising(
        network, path, jd.parameterizations.eps(scale_input=False), times.discrete(), network="net"
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 400))

    @jax.jit
    def train(key):
        def step(carry, n):
            weights, state = carry
            k_data, k_loss = jax.random.split(jax.random.fold_in(key, n))
            batch = {"x": MEAN + STD * jax.random.normal(k_data, (512, 8))}
            gradient, _ = jax.grad(loss, has_aux=True)({"net": weights}, None, k_loss, batch, n)
            updates, state = optimizer.update(gradient["net"], state)
            return (optax.apply_updates(weights, updates), state), None

        weights = {"a": jnp.zeros(8), "b": jnp.zeros(8)}
        return jax.lax.scan(step, (weights, optimizer.init(weights)), jnp.arange(400))[0][0]

    found = train(KEY)
    t = jnp.arange(1.0, 9.0)
    alpha, sigma = np.asarray(path.alpha(t)), np.asarray(path.sigma(t))
    slope = sigma / (alpha**2 * STD**2 + sigma**2)
    np.testing.assert_allclose(found["a"], slope, rtol=0.03)
    np.testing.assert_allclose(found["b"], -slope * alpha * MEAN, atol=0.02)
