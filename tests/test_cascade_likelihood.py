"""The bound of a cascade against Gaussian data at three resolutions, where its exact value is known, slack and all."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import build, cascade_likelihood, configfile, score
from jaxdiff.augmentation import blur, gaussian
from jaxdiff.cascade import Codec, Stage
from jaxdiff.cascade_likelihood import cascade_bound
from jaxdiff.cli import main
from jaxdiff.losses import truncated_bound, variational_bound
from jaxdiff.run import Run
from jaxdiff.trees import expand

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
NUM = 1000
RNG = np.random.default_rng(0)
# 4 x 4 pictures x, their 2 x 2 block means and the mean of those; correlated, off centre, of differing variances
BLOCKS = np.kron(np.kron(np.eye(2), np.full((1, 2), 0.5)), np.kron(np.eye(2), np.full((1, 2), 0.5)))  # [4, 16]
TOPS = np.full((1, 4), 0.25)  # [1, 4]
MEAN = RNG.normal(size=16) * 0.1 + 0.1
ROOT = 0.01 * RNG.normal(size=(16, 16)) + 0.06 * RNG.normal(size=(16, 4)) @ np.eye(4, 16) + 0.03 * np.eye(16)
COV = ROOT @ ROOT.T
PIXELS = MEAN + RNG.normal(size=(NUM, 16)) @ ROOT.T
TO = {4: np.eye(16), 2: BLOCKS, 1: TOPS @ BLOCKS}  # from x to the pictures of each side
SHOWN = {side: (PIXELS @ TO[side].T).reshape(NUM, side, side, 1) for side in TO}
AUGMENT = gaussian(jd.sde.VP())


def logdet(cov):
    return np.linalg.slogdet(cov)[1]


def nll(x, mean, cov):
    """-log N(x; mean, cov) in nats, [B]."""
    centred = x - mean
    return 0.5 * ((centred @ np.linalg.inv(cov) * centred).sum(1) + logdet(2 * np.pi * cov))


def affine(path, mean, cov):
    """The exact denoiser of N(mean [1 or B, D], cov [D, D]), t a scalar or [B]."""
    values, basis = np.linalg.eigh(cov)

    def predict(x_t, t):
        flat = x_t.reshape(len(x_t), -1)
        alpha, sigma = expand(path.alpha(t), flat), expand(path.sigma(t), flat)
        solved = ((flat - alpha * mean) @ basis) / (alpha**2 * values + sigma**2)
        x0, eps = mean + (alpha * values * solved) @ basis.T, (sigma * solved) @ basis.T
        return jd.Prediction(x0.reshape(x_t.shape), eps.reshape(x_t.shape))

    return predict


def level(s):
    """alpha and variance of the augmentation at s (VP)."""
    kept = math.exp(-(0.1 * s + 9.95 * s**2))
    return kept**0.5, 1 - kept


def stage(side, path, before=None, s=None, augmentation=AUGMENT):
    """The exact model of the pictures of a side; given those of the side `before` it at s, which it must be told."""
    mean, cov = TO[side] @ MEAN, TO[side] @ COV @ TO[side].T

    def denoise(key, x, t, cond=None):
        if before is None:
            return affine(path, mean, cov)(x, t)
        (a, v), cross = level(s), TO[side] @ COV @ TO[before].T
        gain = a * cross @ np.linalg.inv(a**2 * TO[before] @ COV @ TO[before].T + v * np.eye(before**2))
        z = jnp.where(jnp.abs(cond["low_res_t"] - 1000 * s) < 1e-2, cond["low_res"].reshape(len(x), -1).T, jnp.nan).T
        return affine(path, mean + (z - a * (TO[before] @ MEAN)) @ gain.T, cov - a * gain @ cross.T)(x, t)

    return Stage((side, side, 1), path, lambda params, cond: denoise, jd.samplers.heun(), 20, augmentation=augmentation)


def information(y, mean, cov, snr):
    """KL(q(z | y) || q(z)) in nats, [B], at a signal-to-noise ratio: what z tells of each picture y [B, D]."""
    c = snr * cov + np.eye(len(cov))
    within = ((y - mean) @ np.linalg.inv(c) * (y - mean)).sum(1)
    return 0.5 * (logdet(c) + np.trace(np.linalg.inv(c)) - len(c) + snr * within)


def prior_gap(path, y, mean, cov):
    """E over q(x_T | y) of log q(x_T) - log N(x_T; 0, sigma_T^2), [B]: what the bound of an exact model has too much."""
    snr = float(path.alpha(path.t_max) / path.sigma(path.t_max)) ** 2
    return 0.5 * snr * (y**2).sum(1) - information(y, mean, cov, snr)


def bits(nats, dim=16):
    return nats / (dim * math.log(2))


def compare(found, want, within):
    """The means of found and want, [B] each, agree to 4 standard errors, which are much less than `within`."""
    gap = np.asarray(found) - want
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert error < within / 3 and abs(gap.mean()) < 4 * error + within / 20, (gap.mean(), error)


def flat(side, times=1):
    return np.tile(SHOWN[side].reshape(NUM, -1), (times, 1))


def bound(stages, s, num=NUM, key=0, **how):
    pictures = [jnp.asarray(SHOWN[one.shape[0]][:num]) for one in stages]
    run = jax.jit(lambda key, pictures: cascade_bound(key, stages, [None] * len(stages), pictures, s=s, **how))
    return np.asarray(run(jax.random.key(key), pictures))


# --- one stage, down to t -------------------------------------------------------------------------------------------------

ROUGH = {"rtol": 1e-5, "atol": 1e-5}
LOW = BLOCKS @ MEAN, BLOCKS @ COV @ BLOCKS.T  # of the 2 x 2 pictures
PATHS = [(jd.sde.VP(), 1.0), (jd.sde.EDM(), 5.0), (jd.sde.Cosine(), 5.0), (jd.sde.Flow(t_max=1.0), 5.0),
         (jd.sde.VE(sigma_max=0.5), 3.0), (jd.sde.VP(beta_max=4.0), 5.0)]  # the last two end far from their prior


def simple(path):
    predict = affine(path, *LOW)
    return lambda key, x, t, cond=None: predict(x, t)


@pytest.mark.parametrize("path, log_snr", PATHS, ids=lambda v: repr(v))
def test_the_bound_down_to_t_is_the_information_in_x_t(x64, path, log_snr):
    """On every path, at any log-SNR: KL(q(x_t | x_0) || q(x_t)), and the gap at the prior, which is not to be forgotten."""
    t, y = float(jd.sde.time_at(path, log_snr)), flat(2, 10)
    run = jax.jit(lambda y, key: truncated_bound(simple(path), path, y, key, t, num_times=8))
    found = run(jnp.asarray(y).reshape(-1, 2, 2, 1), jax.random.key(1))
    compare(found, information(y, *LOW, np.exp(log_snr)) + prior_gap(path, y, *LOW), 0.04)


CHAIN = jd.sde.Discrete(jd.sde.linear_betas(40))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("t", [0.4, 4.7])
def test_a_chain_down_to_any_time_is_its_sum(x64, variance, t):
    """Sum over T -> ... -> t of 1/2 (SNR_s - SNR_t) mmse(t) where the variances agree (VDM, eq. 13): never below what x_t
    tells of x_0, and the last step, from a whole time to t, is one of them."""
    y = flat(2, 12)
    run = jax.jit(lambda y, key: truncated_bound(simple(CHAIN), CHAIN, y, key, t, variance=variance))
    found = run(jnp.asarray(y).reshape(-1, 2, 2, 1), jax.random.key(2))
    snr = lambda t: float(CHAIN.alpha(t) / CHAIN.sigma(t)) ** 2
    want = 0.5 * snr(40.0) * (y**2).sum(1).mean()
    for k in range(40, math.floor(t), -1):
        s = max(k - 1, t)
        d = 2 * math.log(float(CHAIN.sigma(float(k)) / CHAIN.sigma(s))) if variance == "large" else 0.0
        missed = np.trace(LOW[1] @ np.linalg.inv(np.eye(4) + snr(float(k)) * LOW[1]))
        want += 0.5 * (4 * (d - 1 + math.exp(-d)) + math.exp(-d) * (snr(s) - snr(float(k))) * missed)
    compare(found, want, 0.03 * want)
    assert want > 0.5 * logdet(np.eye(4) + snr(t) * LOW[1])


def test_a_chain_down_to_1_is_the_variational_bound_without_its_decoder(x64):
    """The same draws, another formula: equal but for rounding, for every variance."""
    denoise = lambda key, x, t, cond=None: simple(CHAIN)(key, x, t)._replace(var_mix=jnp.full_like(x, 0.3))

    @jax.jit
    def both(y, key):
        found = []
        for variance in ("small", "large", "learned"):
            whole = variational_bound(denoise, CHAIN, y, key, 256, variance)
            found.append((truncated_bound(denoise, CHAIN, y, key, 1.0, variance=variance), whole.total - whole.terms[0]))
        return found

    for ours, peers in both(jnp.asarray(SHOWN[2][:8]), jax.random.key(3)):
        np.testing.assert_allclose(bits(ours, 4), peers, rtol=1e-9)


# --- cascades -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("base, last, s", [(jd.sde.VP(), jd.sde.Flow(), 0.3), (jd.sde.EDM(), jd.sde.VP(), 0.03)])
def test_two_exact_stages_are_tight(x64, base, last, s):
    """Whatever the processes and s: the bound is the true negative log-likelihood, in expectation over z_s."""
    terms = bound([stage(2, base), stage(4, last, 2, s)], s, **ROUGH)
    want = bits(nll(PIXELS, MEAN, COV))
    compare(terms.sum(0), want, 0.02 * abs(want.mean()))
    compare(terms[0], bits(information(flat(2), *LOW, level(s)[0] ** 2 / level(s)[1])), 0.02)


def test_three_exact_stages_lose_what_only_the_first_knows(x64):
    """Each stage sees the one before it alone: the bound is above the truth by I(x; z_1 | z_2)."""
    s = 0.004, 0.3
    terms = bound([stage(1, jd.sde.VP()), stage(2, jd.sde.EDM(), 1, s[0]), stage(4, jd.sde.Flow(), 2, s[1])], s, **ROUGH)
    a, v = zip(*map(level, s), strict=True)
    cross = a[0] * a[1] * TOPS @ LOW[1]
    of_first, of_second = a[0] ** 2 * TOPS @ LOW[1] @ TOPS.T + v[0], a[1] ** 2 * LOW[1] + v[1] * np.eye(4)
    left = of_first - cross @ np.linalg.inv(of_second) @ cross.T  # the variance of z_1 given z_2
    lost = 0.5 * math.log(left.item() / v[0])
    want = bits(nll(PIXELS, MEAN, COV))
    compare(terms.sum(0), want + bits(lost), 0.02 * abs(want.mean()))
    assert bits(lost) > 0.025


def test_chains_on_grey_levels(x64):
    """Discrete stages on 256 grey levels: above the levels' entropy, and as good as the same chain without a cascade."""
    levels, num = 256, 300
    x = np.rint((PIXELS[:num] + 1) / 2 * (levels - 1)) * 2 / (levels - 1) - 1
    pictures = [jnp.asarray(x @ BLOCKS.T).reshape(num, 2, 2, 1), jnp.asarray(x).reshape(num, 4, 4, 1)]
    kept = 1 / (1 + np.exp(-np.append(np.inf, np.linspace(11, -9, 60))))  # alpha-bar: equal steps in log-SNR
    chain = jd.sde.Discrete(1 - kept[1:] / kept[:-1])

    @jax.jit
    def both(key, x):
        cascade = cascade_bound(key, [stage(2, chain), stage(4, chain, 2, 0.1)], [None] * 2, x, s=0.1, levels=levels)
        return cascade, cascade_bound(key, [stage(4, chain)], [None], x[1:], levels=levels)

    terms, alone = both(jax.random.key(4), pictures)
    entropy = bits(nll(x, MEAN, COV)) - math.log2(2 / (levels - 1))  # a bin is 2 / (levels - 1) wide
    assert terms.sum(0).mean() > entropy.mean() + 0.1
    compare(terms.sum(0), alone[0], 0.03 * alone.mean())


def test_pure():
    """The same under vmap over keys as one by one."""
    stages = [stage(1, jd.sde.VP()), stage(2, CHAIN, 1, 0.3)]
    pictures = [jnp.asarray(SHOWN[side][:2], jnp.float32) for side in (1, 2)]
    keys = jax.random.split(jax.random.key(5), 2)
    draw = lambda key: cascade_bound(key, stages, [None] * 2, pictures, s=0.3, num_times=4, levels=16)
    many, one = jax.jit(lambda: (jax.vmap(draw)(keys), draw(keys[1])))()
    np.testing.assert_allclose(many[1], one, rtol=1e-4)
    assert not np.allclose(many[0], one, rtol=1e-2)


def test_every_stage_is_told_the_label_and_the_one_before_it():
    seen = []

    def watching(side, before=None):
        def denoise(key, x, t, cond=None):
            seen.append((side, *sorted(cond), *(cond["low_res"].shape[1:2] if before else ())))
            return jd.Prediction(x, x)

        return replace(stage(side, CHAIN), denoiser=lambda params, cond: denoise)

    pictures = [jnp.zeros((2, side, side, 1)) for side in TO][::-1]
    stages = [watching(1), watching(2, 1), watching(4, 2)]
    cond = {"label": jnp.arange(2)}
    jax.eval_shape(lambda: cascade_bound(jax.random.key(0), stages, [None] * 3, pictures, cond, s=(0.1, 0.2), levels=16))
    assert set(seen) == {(1, "label"), (2, "label", "low_res", "low_res_t", 1), (4, "label", "low_res", "low_res_t", 2)}


@pytest.mark.parametrize("how, told", [
    ({}, "s is 0 for stage 2"), ({"s": 1.5}, "s is 1.5; allowed: 0 to 1"), ({"s": (0.1, 0.2)}, "s has 2 values for 2"),
    ({"augmentation": blur()}, "trained without Gaussian"), ({"params": [None]}, "2 stages, 1 params"),
    ({"codec": Codec(None, None)}, "a stage with a codec"), ({"sides": (1, 4)}, "a stage of \\(2, 2, 1\\)"),
    ({"last": CHAIN}, "levels is 0"), ({"base": jd.sde.EDM(sigma_max=0.1)}, "noisier than the stage before"),
    ({"num_times": 0}, "num_times is 0"), ({"base": CHAIN, "variance": "some"}, "variance is 'some'"),
    ({"base": CHAIN, "variance": "learned"}, "without var_mix"),
])
def test_wrong_words(how, told):
    how = {"s": 0.0 if not how else 0.3, **how}
    stages = [stage(2, how.pop("base", jd.sde.VP())),
              stage(4, how.pop("last", jd.sde.VP()), 2, 0.3, how.pop("augmentation", AUGMENT))]
    stages[0] = replace(stages[0], codec=how.pop("codec", stages[0].codec))
    pictures = [jnp.zeros((2, side, side, 1)) for side in how.pop("sides", (2, 4))]
    with pytest.raises(ValueError, match=told):
        cascade_bound(jax.random.key(0), stages, how.pop("params", [None] * 2), pictures, **how)


@pytest.mark.parametrize("t", [0.0, 1.0, -0.5])
def test_down_to_a_time_of_the_path(t):
    with pytest.raises(ValueError, match="allowed: above 0 and below t_max = 1"):
        truncated_bound(simple(jd.sde.VP()), jd.sde.VP(), jnp.zeros((1, 2, 2, 1)), jax.random.key(0), t)


# --- runs and the command line --------------------------------------------------------------------------------------------

def run_of(name, method):
    """A run of digits as configs/cascade.py makes it, its network's parameters at random."""
    spec = f"{CONFIGS}/cascade.py:stage={name},data=digits,sides=2+4+8,method={method},smoke"
    less = [("network.channel_mult", "1,"), ("network.attention_resolutions", "()")]
    config = configfile.load(spec, less + [("path.num_steps", "8")] * (method == "iddpm"))
    known = build.facts(config, build.source(config, "test"))
    network = build.network(config, known)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build.init_params(config, network, known, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return Run(config, params, build.path(config), known, network, 1)


@pytest.fixture(scope="module")
def runs():
    return {"base": run_of("base", "edm"), "sr1": run_of("sr1", "iddpm"), "sr2": run_of("sr2", "edm")}


def test_pictures_of_three_runs_are_each_others_block_means(runs, monkeypatch):
    """What each stage is given, seen through the mean of its upper left quarter; digits are dequantised for an ODE."""
    def quarter(key, stages, params, pictures, cond, s, levels, variance, num_times, **ode):
        asked = [one["label"].shape for one in cond]
        assert (asked, s, levels, variance) == ([(20,)] * 3, [0.1, 0.2], 17, ["small", "learned", "small"])
        return jnp.stack([x[:, : x.shape[1] // 2, : x.shape[2] // 2].mean((1, 2, 3)) for x in pictures])

    monkeypatch.setattr(cascade_likelihood, "cascade_bound", quarter)
    found = cascade_likelihood.likelihood(list(runs.values()), s=[0.1, 0.2], num=50)
    values = [part["value"] for part in found["terms"]]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    real = score.real_examples(runs["sr2"], "test")["x"]  # 17 levels: the middle of a dequantised one is 16/17 as far out
    first = score.data.preview(build.source(runs["sr2"].config, "test"), 50)["x"]
    assert real.shape[1:] == (8, 8, 1)
    assert values[0] == pytest.approx(first[:, :4, :4].mean() * 16 / 17, abs=0.003)
    assert [part["shape"] for part in found["terms"]] == [(2, 2, 1), (4, 4, 1), (8, 8, 1)]


def test_the_command(runs, monkeypatch, capsys):
    """Parts that add up, of a cascade; a single stage has the likelihood that it has as a run; wrong words in one line."""
    monkeypatch.setattr("jaxdiff.run.load_run", lambda workdir, *_, **__: runs[workdir])
    words = "likelihood", "--stage=base", "--stage=sr1"
    assert main([*words, "--s=0.3", "--num=4", "--times=3"]) == 0
    head, *parts = capsys.readouterr().out.splitlines()
    assert "bits/dim (bound of a cascade, n = 4, test split)" in head
    assert "2 x 2 (variational bound down to s = 0.3)" in parts[0]
    assert "4 x 4 (variational bound)" in parts[1]
    assert float(head.split()[0]) == pytest.approx(sum(float(part.split()[0]) for part in parts), abs=2e-4)
    assert main(["likelihood", "--stage=base", "--num=4"]) == 0 == main(["likelihood", "--workdir=base", "--num=4"])
    ours, _, plain = capsys.readouterr().out.splitlines()
    assert ours.split()[:4] == plain.split()[:4]
    for wrong, told in {
        ("--stage=base", "--stage=sr1"): "s is 0 for stage 2", ("--stage=sr1", "--stage=base", "--s=0.1"): "base first",
        ("--stage=base", "--stage=sr1", "--s=2"): "s is 2; allowed: 0 to", ("--workdir=base", "--s=0.1"): "--s came without",
        ("--stage=base", "--step=3"): "--step came without", ("--stage=base", "--s=0.1"): "s has 1 values for 0",
        ("--stage=base", "--stage=sr2", "--s=0.1"): "is given 2 x 2",
    }.items():
        assert main(["likelihood", *wrong]) == 2
        out, err = capsys.readouterr()
        assert told in err and err.count("\n") == 1 and not out
    for both in ((), ("--workdir=base", "--stage=base")):
        with pytest.raises(SystemExit):
            main(["likelihood", *both])
        assert capsys.readouterr().err.count("\n") == 1
