"""Runs that are given a picture, from config to command line: smoke runs on 8x8 digits, and every wrong word."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff import build, configfile, inverse, objective, score
from jaxdiff.benchmark import comparisons
from jaxdiff.cli import main
from jaxdiff.feed import open_feed

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = ["--config.network.channel_mult=1,", "--config.network.attention_resolutions=()", "--config.train.preview=0",
         "--no_evaluate", "--quiet"]  # one level: a second to compile, not ten


def load(estimator="cmde", task="inpaint", path="edm", more=""):
    return configfile.load(f"{CONFIGS}/inverse.py:data=digits,side=8,factor=2,estimator={estimator},task={task},path={path},"
                           f"smoke{more}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Smoke runs of CMDE (inpainting, two variables) and CDE (super-resolution, y in the input)."""
    root = tmp_path_factory.mktemp("inverse")
    words = "data=digits,side=8,factor=2,smoke"
    for estimator, task in (("cmde", "inpaint"), ("cde", "sr")):
        spec = f"{CONFIGS}/inverse.py:estimator={estimator},task={task},{words}"
        assert main(["train", f"--config={spec}", f"--workdir={root / estimator}", *SMALL]) == 0
    return root


@pytest.mark.parametrize("estimator", ["cde", "cdiffe", "cmde", "vs_cmde"])
@pytest.mark.parametrize("task, path", [("sr", "edm"), ("inpaint", "ve"), ("edges", "vp"), ("sr", "subvp")])
def test_every_estimator_trains_on_every_task_and_path(estimator, task, path):
    config = load(estimator, task, path)
    known = build.facts(config, build.source(config, "train"))
    assert known.condition == ((8, 8, 1)) and known.masked is (task == "inpaint")
    parts = objective.train_step(config, build.network(config, known), known)
    keys = build.batch_keys(config, known)
    batch = {name: jax.ShapeDtypeStruct((8, *shape), jnp.int32 if name == "index" else jnp.float32)
             for name, shape in keys.items()}
    state, metrics = jax.eval_shape(parts.step, parts.state, batch)
    assert "denoiser/loss" in metrics and jax.tree.structure(state) == jax.tree.structure(parts.state)
    assert isinstance(build.path(config), dict) is (estimator != "cde")


def test_the_papers_recipes_can_be_built():
    for task, side in (("sr", 160), ("inpaint", 160), ("pairs", 64)):
        config = configfile.load(f"{CONFIGS}/cmde.py:task={task},data=npz:x")
        assert config.path.sigma_max == pytest.approx(2 * (3 * side * side) ** 0.5) and config.train.steps == 500_000
        known = jd.score.Facts((side, side, 3), 0, 256, "image", (), (side, side, 3), task == "inpaint")
        shapes = jax.eval_shape(lambda key, c=config, k=known: build.init_params(c, build.network(c, k), k, key),
                                jax.random.key(0))
        assert 30e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 90e6


def test_vs_cmde_falls_without_a_retrace():
    """sigma_max of y: x's own at step 0, the paper's formula between, its target from the horizon on; one trace."""
    config = load("vs_cmde")
    path_at, final = build.process(config).training, build.path(config)["y"]
    traces = []

    @jax.jit
    def level(step):
        traces.append(step)
        path = path_at(step)
        return jd.sde.noise_level(path["y"], path["y"].t_max)

    horizon, target, first = config.estimator.horizon, 2.0, 80.0
    at = lambda n: horizon * target * first / (n * (first - target) + horizon * target)
    for n in (0, 1, horizon // 3, horizon, 2 * horizon):
        np.testing.assert_allclose(level(n), at(min(n, horizon)), rtol=1e-5)
    assert len(traces) == 1 and final.sigma_max == target
    np.testing.assert_allclose((at(0), at(horizon)), (first, target))


def test_one_loss_for_one_variable_or_two():
    """The joint loss is the mean over all dimensions of both variables, each with its own weight g^2 / sigma^2."""
    path = {"x": jd.sde.VE(0.01, 50.0), "y": jd.sde.Slower(jd.sde.VE(0.01, 50.0), 2.0)}
    nothing = lambda params, x, t, cond: jax.tree.map(jnp.zeros_like, x)
    fixed = lambda p, key, index: jnp.full(index.shape, 0.6)
    loss = jd.losses.jointly(jd.losses.denoising(nothing, path, jd.parameterizations.eps(), fixed,
                                                 jd.losses.weightings.likelihood()))
    batch = {"x": jnp.zeros((4000, 3)), "image": jnp.zeros((4000, 1)), "index": jnp.arange(4000)}
    value, _ = loss({"denoiser": {}}, {}, jax.random.key(0), batch, 0)
    weights = [2 * np.log(50 / 0.01), 2 * np.log(2.0 / 0.01)]  # of VE: 2 log(sigma_max / sigma_min), at any t
    np.testing.assert_allclose(value, (3 * weights[0] + weights[1]) / 4, rtol=0.03)  # E eps^2 = 1


def test_sampling_from_the_command_line(runs, tmp_path):
    for name in ("cmde", "cde"):
        out = tmp_path / f"{name}.npz"
        words = ["sample", f"--workdir={runs / name}", "--num=3", "--draws=2", "--batch_size=6", "--sampler=ddim",
                 "--steps=2"]
        assert main([*words, f"--out={out}"]) == 0
        held = np.load(out)
        assert held["samples"].shape == (6, 8, 8, 1) and held["x"].shape == (3, 8, 8, 1)
        np.testing.assert_array_equal(held["image"][:3], held["image"][3:])
        if name == "cmde":  # the mask is the one that hid the truth
            np.testing.assert_array_equal(held["image"][:3], np.where(held["mask"][:3] > 0, 0, held["x"]))
        assert main([*words, f"--out={tmp_path / name}.png", "--y_draws=one_noise"]) == 0
        assert Image.open(tmp_path / f"{name}.png").width > 4 * 64
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "a.png")
    assert main(["sample", f"--workdir={runs / 'cde'}", f"--image={folder}", "--draws=2", f"--out={tmp_path / 'b.npz'}",
                 "--sampler=ddim", "--steps=2"]) == 0
    assert np.load(tmp_path / "b.npz")["samples"].shape == (2, 8, 8, 1)
    assert "x" not in np.load(tmp_path / "b.npz").files
    wide = ["--size=8x16", "--draws=1", "--sampler=ddim", "--steps=2"]  # the condition grows with the picture
    for name, given in (("cde", [f"--image={folder}"]), ("cmde", ["--num=2"])):
        assert main(["sample", f"--workdir={runs / name}", *given, *wide, f"--out={tmp_path / 'w.npz'}"]) == 0
        held = np.load(tmp_path / "w.npz")
        assert held["samples"].shape[1:] == held["image"].shape[1:] == (8, 16, 1)


def test_scores_and_likelihood(runs, capsys):
    assert main(["evaluate", f"--workdir={runs / 'cmde'}", "--num=6", "--metrics=psnr,consistency,diversity",
                 "--sampler=ddim", "--steps=2"]) == 0
    found = json.loads(next((runs / "cmde" / "evaluation").glob("*.json")).read_text())
    assert {"psnr", "consistency", "diversity"} < set(found) and (found["n"], found["k"]) == (6, 3)
    assert main(["likelihood", f"--workdir={runs / 'cmde'}", "--num=2"]) == 0
    assert "bits/dim" in capsys.readouterr().out


def test_the_condition_reaches_the_network(runs):
    """Another y gives another picture, for a y in the input and for a y in the state."""
    for name in ("cde", "cmde"):
        run = jd.load_run(runs / name)
        params = jax.tree.map(lambda p: p + 0.1 * np.random.default_rng(1).normal(size=p.shape).astype(p.dtype), run.params)
        draw = jax.jit(run.sampler(num_steps=2, sampler="ddim"), static_argnums=3)
        y = jnp.asarray(inverse.examples(run, 2)["image"])
        one, other = (draw(params, jax.random.key(0), {"image": cond}, 2) for cond in (y, y[::-1]))
        assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("change, words", [
    (lambda y: {"image": y[:, :4]}, "has shape"), (lambda y: {"image": 3 * y}, "allowed: -1 to 1"),
    (lambda y: {}, "needs a condition picture"), (lambda y: None, "needs a condition picture"),
    (lambda y: {"image": y, "mask": np.ones((2, 8, 8, 1))}, "hides everything"),
    (lambda y: {"image": y, "low": y}, "cond has 'low'"), (lambda y: {"image": y, "label": np.zeros(2)}, "no classes"),
    (lambda y: {"image": np.full_like(y, np.nan)}, "nan"),
])
def test_a_wrong_condition_is_refused(runs, change, words):
    run = jd.load_run(runs / "cmde")
    y = np.ones((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=words) as error:
        run.sampler()(run.params, jax.random.key(0), change(y), 2)
    assert "\n" not in str(error.value)


def test_wrong_words(runs, points_run, tmp_path, capsys):
    """Exit code 2 and one line each; nothing is written."""
    out, cde, cmde = f"--out={tmp_path / 'x.png'}", f"--workdir={runs / 'cde'}", f"--workdir={runs / 'cmde'}"
    spec = f"--config={CONFIGS}/inverse.py:data=digits,side=8,smoke"
    train = lambda *more: ["train", f"{spec},{','.join(more)}", f"--workdir={tmp_path / 'run'}", "--quiet"]
    for argv, word in [
        (["sample", cde, "--image=/nowhere.png", out], "no picture at"),
        (["sample", cde, "--task=inpaint", out], "trained for 'sr'"),
        (["sample", f"--workdir={points_run}", "--task=sr", out], "allowed: inpaint"),
        (["sample", cmde, "--sampler=repaint", "--steps=2", "--y_draws=redraw", "--guidance=abc", out], "abc"),
        (["evaluate", cde, "--metrics=lpips"], "--lpips=FILE"), (["evaluate", cde, "--metrics=ssim"], "11 pixels"),
        (["evaluate", cde, "--metrics=agreement"], "allowed for this run"),
        (train("estimator=best"), "cde, cdiffe, cmde, vs_cmde"), (train("task=blur"), "sr, inpaint, edges, pairs"),
        (train("task=sr", "factor=3"), "a factor of both sides"), (train("task=pairs"), "pairs"),
        ([*train("task=inpaint"), "--config.task.share=0.999"], "everything"),
        ([*train("estimator=cmde"), "--config.estimator.sigma_max=-1"], "sigma_max=-1"),
        ([*train("estimator=cmde"), "--config.parameterization.learned_variance=True"], "learned_variance"),
        ([*train("estimator=vs_cmde"), "--config.estimator.horizon=0"], "horizon is 0"),
        ([*train(), "--config.task.kind=none"], "without a condition"),
    ]:
        assert main(argv) == 2, argv
        line = capsys.readouterr().err
        assert word in line and line.count("\n") == 1, (argv, line)
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "run").exists()


def test_an_unconditional_run_fills_in_pictures(tmp_path):
    """Replacement inpainting from the command line: known pixels come out as they went in, the hidden ones drawn."""
    spec = f"{CONFIGS}/digits.py:smoke"
    workdir = tmp_path / "run"
    assert main(["train", f"--config={spec}", f"--workdir={workdir}", *SMALL]) == 0
    out = tmp_path / "filled.npz"
    assert main(["sample", f"--workdir={workdir}", "--task=inpaint", "--num=2", "--draws=1", "--sampler=repaint",
                 "--steps=2", f"--out={out}"]) == 0
    held = np.load(out)
    known = held["mask"] < 0.5
    np.testing.assert_allclose(held["samples"][known], held["x"][known], atol=1e-6)  # EDM's last time is noise-free
    assert np.abs(held["samples"] - held["x"])[~known].max() > 0.05


def test_draws_are_scored_with_their_own_condition(runs):
    run = jd.load_run(runs / "cmde")
    given = inverse.examples(run, 3)
    cond = inverse.repeat({"image": given["image"]}, 2)
    np.testing.assert_array_equal(cond["image"][3:], given["image"])
    truth = np.stack([given["x"], given["x"]])
    found = inverse.report(run, None, given, truth, ("psnr", "consistency", "diversity"), False)
    assert found["psnr"] == found["consistency"] == 100.0 and found["diversity"] == 0.0
    assert score.check_metrics(run.config, run.facts)[0] == "psnr"


def test_bench_measures_a_run_of_two_variables(runs):
    """Its sampler beside the denoiser's calls, and its training step beside CDE's."""
    run = jd.load_run(runs / "cmde")
    assert "evaluations, 2 samples" in next(comparisons.sampling(run, 2, 0.0)).text
    line = comparisons.estimating(open_feed(run.config, "nowhere"), 0.0)
    assert "a training step of cmde" in line.text and "of cde" in line.text and line.figures["kind"] == "cmde"


def test_metrics_of_features_need_features():
    """Pictures without classes: by default left out, asked for by name refused."""
    config = load("cde", "sr").copy_and_resolve_references().unlock()
    config.data.source = "arrays"
    with config.ignore_type():
        config.data.options = {"x": np.zeros((20, 16, 16, 1), np.uint8)}
    found = inverse.check_metrics(config, (16, 16, 1), ())
    assert found == ("psnr", "ssim", "consistency", "diversity")
    with pytest.raises(ValueError, match="--inception=FILE"):
        inverse.check_metrics(config, (16, 16, 1), ("frechet",))
