"""Every config in every method builds its objects; the published sizes; and `:smoke` trains and scores, end to end."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import build, fit, objective, score, tables, training
from jaxdiff.cli import main
from jaxdiff.facts import Facts
from jaxdiff.run import load_run
from jaxdiff.trees import clock
from tests.conftest import load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
METHODS = ("ddpm", "iddpm", "score_vp", "score_ve", "subvp", "edm", "flow")
DIGITS = Facts((8, 8, 1), 10, 17, "image")
# what each config's data says of itself: shape, classes told to the network, grey levels
FULL = {
    "digits": DIGITS,
    "mnist5k": Facts((28, 28, 1), 10, 256, "image"),
    "cifar10": Facts((32, 32, 3), 0, 256, "image"),
    "imagenet64": Facts((64, 64, 3), 1000, 256, "image"),
    "gaussians25": Facts((2,), 0, 0, "points"),
}
# few-step generators: facts at full size, steps
FEW_STEPS = {
    "digits_gan": (DIGITS, 4), "mnist5k_gan": (FULL["mnist5k"], 4), "cifar10_ddgan": (FULL["cifar10"], 4),
    "cifar10_siddm": (FULL["cifar10"], 4), "celebahq256_ddgan": (Facts((256, 256, 3), 0, 256, "image"), 2),
    "celebahq256_siddm": (Facts((256, 256, 3), 0, 256, "image"), 2), "imagenet64_siddm": (FULL["imagenet64"], 4),
}
SMOKE = FULL | {"cifar10": Facts((16, 16, 3), 0, 17, "image"), "imagenet64": Facts((16, 16, 3), 10, 17, "image")}


def test_every_config_is_here():
    found = {path.stem for path in CONFIGS.glob("*.py")} - {"common", "gan"}
    assert found == {*FULL, "classifier", "noisy_classifier", "autoencoder", "latent", "latent_published", "inverse", "cmde",
                     "cascade", "imagenet_cascade", *FEW_STEPS}
    for name in found:  # a config says what it is and how it is run
        assert f"--config=configs/{name}.py" in (CONFIGS / f"{name}.py").read_text()


@pytest.mark.parametrize("size", ["full", "smoke"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FULL)
def test_objects(name, method, size):
    """Everything that a config names can be built, and fits together."""
    known = (FULL if size == "full" else SMOKE)[name]
    config = load(name, f"method={method}" + (",smoke" if size == "smoke" else ""))
    path = build.path(config)
    sampler = build.sampler(config)
    grid = sampler.grid(path, config.sampler.num_steps)
    assert grid.shape == (config.sampler.num_steps + 1,)
    assert bool((jnp.diff(grid) < 0).all()) and float(grid[0]) == pytest.approx(clock(path).t_max)
    parameterization = build.parameterization(config)
    x = jnp.zeros((4, *known.shape))
    net_x, net_t = parameterization.inputs(path, x, jnp.full(4, path.t_max))
    assert net_x.shape == x.shape and bool(jnp.isfinite(net_t).all())
    t = objective.draw_times(config)(path, jax.random.key(0), jnp.arange(4))
    assert t.shape == (4,) and bool(((t >= path.t_min) & (t <= path.t_max)).all())
    tables.make(tables.WEIGHTINGS, config.weighting, "weighting")
    assert list(objective.loss(config, build.network(config, known), known).losses) == ["denoiser"]
    tables.call(training.optimizer, config.optimizer, "optimizer", total_steps=config.train.steps)
    tables.call(training.Ema, config.ema, "ema", examples_per_step=config.data.batch_size)
    part = config.train
    per = part.steps_per_dispatch
    assert all(n % per == 0 for n in (part.steps, part.log_every, part.eval_every, part.checkpoint_every))
    if size == "smoke":
        assert part.steps <= 4 and config.data.source in ("digits", "mnist5k", "gaussians25")
    else:
        assert config.optimizer.warmup_steps < part.steps
        assert (known.shape, known.num_classes) == (FULL[name].shape, FULL[name].num_classes)


def parameters(config, known):
    """How many numbers the network learns, counted without making one."""
    net = build.network(config, known)
    spec = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    cond = {"label": spec(1, dtype=jnp.int32)} if known.num_classes else None
    shapes = jax.eval_shape(lambda k, x, t, c: net.init(k, x, t, c), jax.random.key(0), spec(1, *known.shape), spec(1), cond)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    "name, method, millions, within",
    [
        ("cifar10", "ddpm", 35.7, 0.01),  # Ho et al. 2020, appendix B
        ("cifar10", "iddpm", 52.5, 0.01),  # Nichol & Dhariwal 2021
        ("cifar10", "score_vp", 61.8, 0.02),  # Song et al. 2021, DDPM++
        ("cifar10", "edm", 55.7, 0.02),  # Karras et al. 2022, table 7: DDPM++
        ("imagenet64", "edm", 295.9, 0.005),  # Karras et al. 2022, table 7: ADM
        ("imagenet64", "iddpm", 270.0, 0.02),  # Nichol & Dhariwal 2021, table 6
    ],
)
def test_published_sizes(name, method, millions, within):
    assert parameters(load(name, f"method={method}"), FULL[name]) / 1e6 == pytest.approx(millions, rel=within)


@pytest.mark.parametrize("recipe, theirs", [
    ("class256", {"block_out_channels": (128, 256, 512), "latent_channels": 3, "num_vq_embeddings": 8192}),
    ("text512", {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}),
])
def test_latent_diffusion_s_recipes(recipe, theirs):
    """The autoencoder has as many parameters as the public one's network; the denoiser and its loss fit its latents."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    codec, config = load("latent_published", f"recipe={recipe},stage=codec"), load("latent_published", f"recipe={recipe}")
    side, levels = config.data.size, len(theirs["block_out_channels"])
    net = build.network(codec, Facts((side, side, 3), 0, 256, "image"))
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: net.init(key, x), jax.random.key(0), x)["params"]
    peer = diffusers.VQModel if "num_vq_embeddings" in theirs else diffusers.AutoencoderKL
    with torch.device("meta"):
        public = peer(down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
                      layers_per_block=2, **theirs)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in public.parameters())
    place = (side // 2 ** (levels - 1),) * 2
    known = Facts((*place, theirs["latent_channels"]), 0 if config.text.encoder else 1000, 0, "image",
                  picture=(side, side, 3), text=(77, 768) if config.text.encoder else ())
    assert parameters(config, known) > 2e8
    assert list(objective.loss(config, build.network(config, known), known).losses) == ["denoiser"]
    path = build.path(config)
    assert path.num_steps == 1000 and build.sampler(config).grid(path, config.sampler.num_steps).shape == (
        config.sampler.num_steps + 1,)


@pytest.mark.parametrize("stage, side, given", [("base", 32, 0), ("sr64", 64, 32), ("sr128", 128, 64), ("sr256", 256, 64)])
def test_cdm_s_stages(stage, side, given):
    """Each is told what its place in the cascade asks for, its pipeline and its loss fit, and so does its sampler."""
    config = load("imagenet_cascade", f"stage={stage}")
    known = Facts((side, side, 3), 1000, 256, "image", (), (given, given, 3) if given else ())
    net, path = build.network(config, known), build.path(config)
    assert net.cond_keys == {"label"} | ({"low_res"} if given else set()) | ({"low_res_t"} if stage == "sr64" else set())
    assert list(objective.loss(config, net, known).losses) == ["denoiser"]
    assert config.data.batch_size * config.train.steps >= 500e6
    chain = config.sampler.num_steps
    assert chain == (4000 if side <= 64 else 100) and build.sampler(config).grid(path, chain).shape == (chain + 1,)
    small = load("imagenet_cascade", f"stage={stage},smoke")
    facts = build.facts(small, build.source(small, "train"))
    assert facts.shape == (side // 4, side // 4, 3) and facts.condition == ((given // 4, given // 4, 3) if given else ())


def test_recipes():
    """Figures of the papers that a slip of the pen would change: images seen, steps of the chain, network calls."""
    images = lambda config: config.train.steps * config.data.batch_size / 1e6
    ddpm = load("cifar10", "method=ddpm")
    assert images(ddpm) == pytest.approx(102.4) and len(build.path(ddpm).betas) == 1000
    assert images(load("cifar10", "method=edm")) == pytest.approx(200, rel=1e-3)
    edm = load("imagenet64", "method=edm")
    assert images(edm) == pytest.approx(2500, rel=1e-3)
    assert build.sampler(edm).evaluations(edm.sampler.num_steps) == 511
    iddpm = load("imagenet64", "method=iddpm")
    assert len(build.path(iddpm).betas) == 4000 and iddpm.sampler.num_steps == 250


def train(workdir, config):
    """Train, and what a run directory must hold afterwards."""
    outcome = fit.train(config, workdir, progress=False)
    assert outcome.step == config.train.steps and outcome.signal is None
    assert np.isfinite([v for k, v in outcome.metrics.items() if k.endswith("/loss")]).all()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert (workdir / "checkpoints" / "4").is_dir() and (workdir / "config.json").exists()
    return load_run(workdir)


def train_and_score(workdir, config):
    run = train(workdir, config)
    if config.train.preview:
        assert min(Image.open(workdir / "samples" / "step_000004.png").size) >= 64
    found, samples = score.score(run, workdir, progress=False)
    assert samples.x.shape == (20, *run.facts.shape) and np.isfinite(samples.x).all()
    assert np.isfinite([v for k, v in found.items() if k.startswith("frechet")]).all()
    return run, found, samples


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    preview = 20 if method == "flow" else 0  # one program less to compile for the others
    run, found, _ = train_and_score(tmp_path, load("gaussians25", f"method={method},smoke", train__preview=preview))
    assert run.facts == Facts((2,), 0, 0, "points", run.facts.class_names)
    assert found["modes_of"] == 25 and found["n_fake"] == 20


@pytest.fixture(scope="module")
def grey_judge(tmp_path_factory, one_device):
    """A classifier of 8x8 digits, by its own config."""
    workdir = tmp_path_factory.mktemp("judge")
    config = load("classifier", "smoke", train__log_every=2)
    run = train(workdir, config)
    assert run.facts == DIGITS._replace(class_names=run.facts.class_names) and run.path is None
    with pytest.raises(ValueError, match="is a classifier"):
        run.sampler()
    return workdir


def test_a_classifier_tells_its_accuracy(grey_judge, capsys):
    """The command that trained it, again: no step more, and the share of held-out pictures that it reads right."""
    words = [f"--config={CONFIGS}/classifier.py:smoke", f"--workdir={grey_judge}", "--config.train.log_every=2"]
    assert main(["train", *words]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("trained to step 4")
    accuracy = float(last.removeprefix("accuracy ").removesuffix(" on 359 held-out pictures"))
    assert 0 <= accuracy <= 1 and accuracy == pytest.approx(round(accuracy * 359) / 359, abs=1e-4)


def test_digits_train(tmp_path, grey_judge):
    """`evaluate.classifier` names who judges; every metric is there with its sample size."""
    run, found, samples = train_and_score(tmp_path, load("digits", "smoke", evaluate__classifier=grey_judge))
    assert run.facts._replace(class_names=()) == DIGITS
    assert {"agreement", "frechet", "frechet_floor", "kid", "precision", "recall", "inception_score"} <= set(found)
    assert (found["classifier_n"], found["agreement_n"], found["n_fake"]) == (359, 20, 20)
    assert (found["n_real"], found["frechet_floor_n"]) == (1438, 359)
    assert np.bincount(samples.cond["label"]).tolist() == [2] * 10
    assert not (tmp_path / "classifier").exists()


def test_mnist5k_trains(tmp_path, one_device):
    """Its judge is trained beside it."""
    run, found, _ = train_and_score(tmp_path, load("mnist5k", "smoke", evaluate__metrics="agreement", train__preview=0))
    assert run.facts._replace(class_names=()) == SMOKE["mnist5k"]
    assert (found["classifier_n"], found["agreement_n"]) == (1000, 20) and "frechet" not in found
    assert (tmp_path / "classifier" / "config.json").exists()


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory, one_device):
    """cifar10:smoke, scored by a classifier that it trains beside itself."""
    workdir = tmp_path_factory.mktemp("cifar10")
    return workdir, *train_and_score(workdir, load("cifar10", "smoke"))


def test_unconditional_pictures_train(cifar10):
    """No agreement without classes, but the data's labels still train the judge."""
    workdir, run, found, samples = cifar10
    assert run.facts._replace(class_names=()) == SMOKE["cifar10"]
    assert "label" not in samples.cond and "agreement" not in found
    assert found["features"].startswith("classifier ") and (workdir / "classifier" / "config.json").exists()


def test_enlarged_pictures_train(cifar10, tmp_path):
    """imagenet64:smoke, class-conditional, under the other run's judge."""
    judge = {"evaluate__classifier": cifar10[0] / "classifier", "evaluate__metrics": "frechet"}
    config = load("imagenet64", "smoke", train__preview=0, **judge)
    run, found, _ = train_and_score(tmp_path, config)
    assert run.facts._replace(class_names=()) == SMOKE["imagenet64"]
    assert "kid" not in found and "agreement" not in found


def test_reference_statistics_are_saved_once(cifar10):
    """Written by the first scores, read by the next, and named after the very classifier that saw the images."""
    workdir, run, found, _ = cifar10
    reference = workdir / "reference.npz"
    before = reference.stat().st_mtime_ns
    again, _ = score.score(run, workdir, metrics=("frechet",), progress=False)
    assert again["frechet"] == found["frechet"] and reference.stat().st_mtime_ns == before
    with np.load(reference) as held:
        assert found["features"] in str(held["feature"])
