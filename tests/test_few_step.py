"""Few-step generators as a user meets them: configs, training, sampling, scores, and what they are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import build, fit, objective, score, tables, training
from jaxdiff.cli import main
from jaxdiff.facts import Facts
from tests.test_configs import CONFIGS, FEW_STEPS, load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")


@pytest.mark.parametrize("size", ["full", "smoke"])
@pytest.mark.parametrize("name", FEW_STEPS)
def test_objects(name, size):
    """Both networks, both losses and the sampler of every config fit together, without a number being computed."""
    known, steps = FEW_STEPS[name]
    config = load(name, "smoke" if size == "smoke" else "")
    if size == "smoke" and config.data.size == 16:
        known = Facts((16, 16, 3), 10 if known.num_classes else 0, 17, "image")
    net, path = build.network(config, known), build.path(config)
    judge = build.discriminator(config, known)
    assert path.num_steps == config.sampler.num_steps == steps
    made = objective.loss(config, net, known)
    assert list(made.losses) == ["discriminator", "generator"]
    heads = ({"denoise"} if judge.denoise else set()) | ({"regress"} if judge.regress else set())
    assert heads == ({"denoise", "regress"} if config.loss.kind == "siddm" else set())
    if size == "full" or name in ("mnist5k_gan", "cifar10_siddm", "cifar10_ddgan", "celebahq256_siddm"):
        return  # tracing takes seconds, and the others show the same
    keys = {k: v for k, v in build.batch_keys(config, known).items() if k != "mask"}
    whole = ("label", "index")
    batch = {k: jax.ShapeDtypeStruct((4, *v), jnp.int32 if k in whole else jnp.float32) for k, v in keys.items()}
    params = {
        "generator": jax.eval_shape(lambda key: build.init_params(config, net, known, key), jax.random.key(0)),
        "discriminator": jax.eval_shape(lambda key: build.init_discriminator(config, judge, known, key), jax.random.key(0)),
    }
    shared = jax.eval_shape(made.forward, params, jax.random.key(0), batch, 0)
    assert shared.shape == (4, *known.shape)
    for loss in made.losses.values():
        value = jax.eval_shape(lambda p, b, loss=loss: loss(p, {}, jax.random.key(0), b, 0)[0], params, batch)
        assert value.shape == () and value.dtype == jnp.float32


def test_recipes():
    """What a slip of the pen would change (Xiao et al. 2022, appendix C)."""
    cifar, celeba = load("cifar10_ddgan"), load("celebahq256_ddgan")
    np.testing.assert_allclose(build.path(cifar).betas, (0.478255, 0.849206, 0.956418, 0.987404), atol=1e-5)
    assert (cifar.loss.r1, cifar.loss.r1_every, celeba.loss.r1, celeba.loss.r1_every) == (0.02, 15, 2.0, 10)
    assert (cifar.optimizer.learning_rate, cifar.discriminator_optimizer.learning_rate) == (1.6e-4, 1.25e-4)
    assert cifar.network.latent_dim == 100 and cifar.data.batch_size == 256 and cifar.ema.decay == 0.9999
    made = tables.call(training.optimizer, cifar.optimizer, "optimizer", total_steps=cifar.train.steps)
    schedule = made.schedule
    assert float(schedule(0)) == pytest.approx(1.6e-4) and float(schedule(cifar.train.steps)) == pytest.approx(1e-5)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """gaussians25 by SIDDM in two steps, trained and scored on its smoke setting."""
    workdir = tmp_path_factory.mktemp("points")
    words = [f"--config={CONFIGS}/gaussians25.py:method=siddm,steps=2,smoke", f"--workdir={workdir}", "--quiet"]
    assert main(["train", *words]) == 0
    return workdir


def test_it_is_a_run_like_any_other(points, tmp_path, capsys):
    run = jd.load_run(points)
    assert set(run.params) and run.path.num_steps == 2
    draw = jax.jit(run.sampler(), static_argnums=3)
    a, b = (draw(run.params, jax.random.key(k), None, 6) for k in (0, 1))
    assert a.shape == (6, 2) and a.dtype == jnp.float32 and bool(jnp.isfinite(a).all())
    assert not np.allclose(a, b) and np.array_equal(a, draw(run.params, jax.random.key(0), None, 6))
    keys = jax.random.split(jax.random.key(3), 4)
    many = jax.vmap(lambda key: run.sampler()(run.params, key, None, 2))(keys)
    np.testing.assert_allclose(many[1], draw(run.params, keys[1], None, 2), atol=1e-5)
    assert main(["sample", f"--workdir={points}", "--num=5", f"--out={tmp_path}/a.npz"]) == 0
    assert np.load(tmp_path / "a.npz")["samples"].shape == (5, 2)
    assert main(["evaluate", f"--workdir={points}", "--num=50"]) == 0
    assert "network_calls          2" in capsys.readouterr().out


def test_the_latent_matters_and_can_be_given(points):
    """z is drawn from the key, or is cond["z"], at every call of the generator."""
    run = jd.load_run(points)
    wide = jax.tree.map(lambda v: v + 0.1 * jax.random.normal(jax.random.key(1), v.shape), run.params)  # past zero heads
    denoise = run.denoiser(wide)
    x, t = jnp.ones((3, 2)), jnp.asarray(2.0)
    at = lambda key, cond=None: np.asarray(denoise(jax.random.key(key), x, t, cond).x0)
    assert not np.allclose(at(0), at(1)) and not np.allclose(at(0)[0], at(0)[1])
    z = {"z": jnp.zeros((3, 2))}
    assert np.array_equal(at(0, z), at(1, z)) and np.allclose(at(0, z)[0], at(0, z)[1])
    draw = run.sampler()
    assert draw(run.params, jax.random.key(0), z, 3).shape == (3, 2)
    with pytest.raises(ValueError, match=r"cond\['z'\] has shape \(3, 5\); allowed: \(3, 2\)"):
        draw(run.params, jax.random.key(0), {"z": jnp.zeros((3, 5))}, 3)


REFUSED = {
    "another T": (["--steps=3"], ["trained for 2 steps", "asked for 3", "num_steps=2"]),
    "a many-step sampler": (["--sampler=heun"], ["few-step generator", "ancestral"]),
    "guidance": (["--guidance=classifier_free:scale=2"], ["guidance"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_sampling(points, case, tmp_path, capsys):
    words, told = REFUSED[case]
    assert main(["sample", f"--workdir={points}", f"--out={tmp_path}/a.png", *words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in told), line
    assert not (tmp_path / "a.png").exists()


def test_no_likelihood(points, capsys):
    assert main(["likelihood", f"--workdir={points}"]) == 2
    assert "no likelihood" in capsys.readouterr().err


WRONG = {
    "lambda below zero": (["loss.weight=-1"], ["loss.weight is -1", "0 or more"]),
    "form": (["loss.form=kll"], ["loss.form is 'kll'", "kl, printed"]),
    "no latent": (["network.latent_dim=0"], ["latent_dim is 0"]),
    "no discriminator": (["discriminator.kind=none"], ["discriminator.kind 'none'", "mlp"]),
    "a discriminator of pictures": (["discriminator.kind=conv", "discriminator.width=None"], ["'points'", "mlp for points"]),
    "a path of many kinds": (["path.kind=vp", "path.schedule=None", "path.num_steps=None"], ["Discrete"]),
    "a warm-up longer than the training": (["loss.form=kl", "loss.warmup=4"], ["loss.warmup is 4 of 4 steps"]),
    "an option of the other method": (["loss.kind=ddgan"], ["loss.form", "ddgan"]),
    "a path of no step": (["path.num_steps=0"], ["num_steps=0"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_training(case, tmp_path, capsys):
    overrides, told = WRONG[case]
    words = [f"--config={CONFIGS}/gaussians25.py:method=siddm,steps=2,smoke", f"--workdir={tmp_path}/run"]
    assert main(["train", *words, *(f"--config.{text}" for text in overrides)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in told), line
    assert not (tmp_path / "run").exists()


def test_a_discriminator_without_an_adversary_is_refused(tmp_path, capsys):
    words = [f"--config={CONFIGS}/gaussians25.py:smoke", f"--workdir={tmp_path}/run", "--config.discriminator.kind=mlp"]
    assert main(["train", *words]) == 2
    assert "discriminator.kind 'mlp'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
def test_pictures_train(method, tmp_path):
    """U-Net against convolutions, class-conditional; two discriminator steps for one of the generator; R1 on both."""
    config = load("digits_gan", f"method={method},steps=2,smoke", loss__r1="0.1", loss__r1_every="2", train__preview="0",
                  train__generator_every="2", evaluate__metrics="frechet")
    outcome = fit.train(config, tmp_path, progress=False)
    assert outcome.step == 4
    told = outcome.metrics
    assert np.isfinite([told["discriminator/loss"], told["discriminator/r1"]]).all()
    run = jd.load_run(tmp_path)
    samples = score.draw(run, 12, batch_size=12)
    assert samples.x.shape == (12, 8, 8, 1) and np.abs(samples.x).max() <= 1  # tanh, and no noise in the last step


def _flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_nothing_is_computed_twice():
    """One step's work against its needed passes, counted in the compiled programs: at most 1.1 x (measured: 1.01).

    Needed: G forward and backward; D's two passes forward and backward in its parameters; the new D forward and backward
    in x'. The batch is large enough for the optimizers' own work to be small beside it.
    """
    config = load("digits_gan", "smoke", data__batch_size="64")
    records = build.source(config, "train")
    known = build.facts(config, records)
    net, judge = build.network(config, known), build.discriminator(config, known)
    parts = objective.train_step(config, net, known)
    drawn = build.pipeline(config, records).batch(0)
    batch = {name: jnp.asarray(drawn[name]) for name in build.batch_keys(config, known)}
    params, x, t, label = parts.state.params, batch["x"], jnp.ones(64), {"label": batch["label"]}
    total = lambda out, without: sum(v.sum() for key, v in out.items() if key != without)
    ask = lambda p, x: judge.apply({"params": p}, x, t, label)

    def generate(p, cotangent):
        told = {**label, "z": jnp.zeros((64, config.network.latent_dim))}
        out, pull = jax.vjp(lambda p: net.apply({"params": p}, x, t, told), p)
        return out, pull(cotangent)

    needed = (
        _flops(generate, params["generator"], x)
        + _flops(jax.grad(lambda p: total(ask(p, x), "residual") + total(ask(p, 0.5 * x), "x0")), params["discriminator"])
        + _flops(jax.grad(lambda x: total(ask(params["discriminator"], x), "x0")), x)
    )
    assert _flops(parts.step, parts.state, batch) <= 1.1 * needed
