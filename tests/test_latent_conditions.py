"""Latents and a picture of x's size beside them: folded without loss, the same in training and sampling, and it counts."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import build, codec, facts, fit, inverse, objective
from jaxdiff.cascade import sample_cascade
from jaxdiff.cli import main
from jaxdiff.facts import Facts
from jaxdiff.latents import Latents
from jaxdiff.networks.layers import depth_to_space, space_to_depth
from jaxdiff.run import Run, load_run
from jaxdiff.stages import check_linked, stage_of
from tests.conftest import ROOT, load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")
IDENTITY = Latents(lambda x: x, lambda keys, x: x, lambda z: z, "identity", 1.0)
KNOWN = Facts((4, 4, 4), 0, 0, "image", condition=(8, 8, 1), masked=True, picture=(8, 8, 1), codec="c")
HELD = {"train__preview": 0, "condition__mask": True}


@pytest.fixture(scope="module")
def inpaints(coder, tmp_path_factory):
    """A run of inpainting on latents by the command line, its network told the mask, with a preview and its scores."""
    workdir = tmp_path_factory.mktemp("inpaint") / "run"
    assert main(["train", f"--config={ROOT}/configs/latent.py:data=digits,task=inpaint,smoke", f"--workdir={workdir}",
                 f"--config.codec.run={coder}", "--config.condition.mask=True", "--config.sampler.kind=ddim", "--quiet",
                 "--config.evaluate.metrics=psnr,consistency,diversity", "--config.train.preview=8"]) == 0
    return workdir


def pictures(num, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num, *shape)).astype(np.float32)


def test_the_fold_loses_nothing():
    """It is space_to_depth by pixels a latent, whose inverse gives y back; a pixel of y is read at its latent only."""
    y, mask, label = pictures(3), (pictures(3, seed=1) > 0).astype(np.float32), np.arange(3)
    told = facts.folded(KNOWN, {"image": y, "mask": mask, "label": label})
    assert KNOWN.fold == 2 and told["label"] is label
    for name, given in (("image", y), ("mask", mask)):
        assert told[name].shape == (3, 4, 4, 4)
        np.testing.assert_array_equal(told[name], space_to_depth(given, 2))
        np.testing.assert_array_equal(depth_to_space(told[name], 2), given)
    np.testing.assert_array_equal(told["image"][1, 2, 3], y[1, 4:6, 6:8, 0].reshape(-1))
    pixels = KNOWN._replace(shape=(8, 8, 1), picture=())
    assert pixels.fold == 1 and facts.folded(pixels, {"image": y})["image"] is y


@pytest.mark.parametrize("shape", [(3, 3, 4), (4, 2, 4), (16, 16, 4), (3, 4, 4)])
def test_places_that_are_no_squares_are_refused(shape):
    with pytest.raises(ValueError, match=r"picture of 8 x 8 for latents of .*; mend: data.size") as error:
        facts.folded(KNOWN._replace(shape=shape), {"image": pictures(1)})
    assert "\n" not in str(error.value)


def test_training_and_sampling_tell_the_same():
    """The network of a loss and of a sampler is given one and the same y and mask, folded, where its pixels are given."""
    config = load("latent", "data=digits,task=inpaint,cond=none,smoke", **HELD)
    seen = []

    def network(params, x, t, cond, **how):
        seen.append(cond)
        return jnp.zeros_like(x)

    stub, y = SimpleNamespace(apply=network), pictures(8)
    mask = (pictures(8, seed=1) > 0).astype(np.float32)
    batch = {"x": jnp.zeros((8, 4, 4, 4)), "index": jnp.arange(8), "image": jnp.asarray(y), "mask": jnp.asarray(mask)}
    assert {name: value.shape[1:] for name, value in batch.items()} == build.batch_keys(config, KNOWN)
    objective.loss(config, stub, KNOWN).losses["denoiser"]({"denoiser": {}}, {}, jax.random.key(0), batch, 0)
    run = Run(config, {}, build.path(config), KNOWN, stub, 0, IDENTITY)
    with jax.disable_jit():
        run.sampler(num_steps=1, sampler="ddim")({}, jax.random.key(0), {"image": y, "mask": mask}, 8)
    assert len(seen) > 1
    for cond in seen:
        assert set(cond) == {"image", "mask"}
        np.testing.assert_array_equal(cond["image"], space_to_depth(y, 2))
        np.testing.assert_array_equal(cond["mask"], space_to_depth(mask, 2))


def test_an_identity_codec_is_conditional_pixel_diffusion(tmp_path, monkeypatch):
    """Bit for bit: the same parameters and the same draws of the same holes."""
    for where in ("codec", "run"):
        monkeypatch.setattr(f"jaxdiff.{where}.open_latents", lambda *given: IDENTITY)
    for name, place in (("latent", "somewhere"), ("pixel", "None")):
        config = load("latent", "data=digits,task=inpaint,smoke", codec__run=place, codec__scale=1.0, **HELD)
        fit.train(config, tmp_path / name, progress=False)
    one, two = (load_run(tmp_path / name) for name in ("latent", "pixel"))
    assert one.latents is IDENTITY and two.latents is None and one.facts.fold == 1
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    given = inverse.examples(one, 3)
    cond = {name: given[name] for name in ("image", "mask", "label")}
    a, b = (run.sampler(sampler="ddim", num_steps=2)(run.params, jax.random.key(1), cond, 3) for run in (one, two))
    np.testing.assert_array_equal(a, b)


def test_the_condition_counts(inpaints):
    """Another y, another hole and another latent's place of y each give other pictures."""
    run = load_run(inpaints)
    assert run.facts.shape == (4, 4, 4) and run.facts.condition == (8, 8, 1) and run.facts.masked
    params = jax.tree.map(lambda p: p + 0.1 * np.random.default_rng(1).normal(size=p.shape).astype(p.dtype), run.params)
    draw = jax.jit(run.sampler(num_steps=2), static_argnums=3)
    given = inverse.examples(run, 2)
    cond = {name: given[name] for name in ("image", "mask")}
    first = draw(params, jax.random.key(0), cond, 2)
    assert first.shape == (2, 8, 8, 1)
    dot = cond["image"].copy()
    dot[:, 5, 5] *= -1
    dot[:, 5, 5] += 0.5
    for other in ({"image": cond["image"][::-1]}, {"mask": cond["mask"][::-1]}, {"image": np.clip(dot, -1, 1)}):
        assert np.abs(draw(params, jax.random.key(0), {**cond, **other}, 2) - first).max() > 1e-4


def test_from_the_command_line(inpaints, tmp_path, capsys):
    """What people give and see are pixels: condition | draws | truth, scores of decoded pictures, one line for a fault."""
    assert list(inpaints.rglob("*.png"))  # of the preview and the scores
    found = json.loads(next((inpaints / "evaluation").glob("*.json")).read_text())
    assert {"psnr", "consistency", "diversity"} < set(found) and (found["n"], found["k"]) == (20, 3)
    words = ["sample", f"--workdir={inpaints}", "--num=2", "--draws=3", "--batch_size=6"]
    assert main([*words, f"--out={tmp_path}/x.npz"]) == 0
    held = np.load(tmp_path / "x.npz")
    assert held["samples"].shape == (6, 8, 8, 1) and held["x"].shape == (2, 8, 8, 1) and np.abs(held["samples"]).max() <= 1
    np.testing.assert_array_equal(held["image"][:2], np.where(held["mask"][:2] > 0, 0, held["x"]))
    assert main([*words, f"--out={tmp_path}/x.png"]) == 0
    assert Image.open(tmp_path / "x.png").width > 5 * 64
    run = load_run(inpaints)
    y = np.zeros((2, 8, 8, 1), np.float32)
    for cond, line in (({"image": y[:, :4, :4], "mask": y}, r"\(2, 4, 4, 1\); allowed: \(2, 8, 8, 1\)"),
                       ({"image": y, "mask": y[:, :4, :4]}, r"\(2, 4, 4, 1\); allowed: \(2, 8, 8, 1\)"),
                       (None, "needs a condition picture"), ({"image": y}, r"needs cond\['mask'\]")):
        with pytest.raises(ValueError, match=line):
            run.sampler()(run.params, jax.random.key(0), cond, 2)
    unmasked = run._replace(facts=run.facts._replace(masked=False))
    with pytest.raises(ValueError, match="in which no pixel can be held"):
        unmasked.sampler()(run.params, jax.random.key(0), {"image": y, "mask": y}, 2)
    capsys.readouterr()
    assert main(["train", f"--config={ROOT}/configs/latent.py:task=blur", f"--workdir={tmp_path}/no"]) == 2
    assert "allowed: none, sr, inpaint, edges, pairs" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["sr", "edges", "pairs"])
def test_every_task_is_read_at_the_latents(task, coder, tmp_path):
    """One step of each is traced, its y in pixels: a stem that reads the latents' 4 channels and y's 4 pixels a place."""
    more = {}
    if task == "pairs":
        rng = np.random.default_rng(0)
        for part in ("train", "test"):
            (tmp_path / part).mkdir()
            for i in range(8):
                Image.fromarray(rng.integers(0, 256, (8, 16), np.uint8)).save(tmp_path / part / f"{i}.png")
        more = {"data__channels": 1, "data__size": 8, "network__patch_size": 1}
    source = f"pairs:{tmp_path}" if task == "pairs" else "digits"
    config = load("latent", f"data={source},task={task},smoke", codec__run=coder, codec__scale=1.0,
                  network__channel_mult="1,", **more)
    records = build.source(config, "train")
    known, _ = codec.linked(config, build.facts(config, records), tmp_path / "none")
    assert known.shape == (4, 4, 4) and known.condition == (8, 8, 1)
    parts = objective.train_step(config, build.network(config, known), known)
    drawn, keys = build.pipeline(config, records).batch(0), build.batch_keys(config, known)
    batch = {name: drawn[name] for name in keys} | {"x": np.zeros((8, 4, 4, 4), np.float32)}
    assert {name: value.shape[1:] for name, value in batch.items()} == keys
    state, metrics = jax.eval_shape(parts.step, parts.state, batch)
    stem = parts.state.params["denoiser"]["encoder"]["stem"]["kernel"]
    assert stem.shape[2] == 4 + 4 and "denoiser/loss" in metrics
    assert jax.tree.structure(state) == jax.tree.structure(parts.state)


def test_a_cascade_may_end_on_latents(coder, tmp_path):
    """A base of 4x4 pixels, then a stage on the latents of 8x8 pictures, which reads what the base drew."""
    runs = []
    for stage, more in (("base", {}), ("sr1", {"codec__run": coder, "codec__scale": 1.0})):
        config = load("cascade", f"data=digits,sides=4+8,stage={stage},smoke", **more)
        known, latents = codec.linked(config, build.facts(config, build.source(config, "train")), tmp_path / "none")
        net, rng = build.network(config, known), np.random.default_rng(1)
        fresh = build.init_params(config, net, known, jax.random.key(0))
        params = jax.tree.map(lambda p, rng=rng: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), fresh)
        runs.append(Run(config, params, build.path(config), known, net, 0, latents))
    assert runs[1].facts.low_res and runs[1].facts.shape == (4, 4, 4) and runs[1].facts.picture == (8, 8, 1)
    check_linked(runs)
    stages = [stage_of(run, num_steps=1, sampler="ddim") for run in runs]
    label = {"label": jnp.arange(3)}
    draw = jax.jit(lambda base, key: sample_cascade(key, stages, [base, runs[1].params], label, s=0.2))
    one, two = (draw(jax.tree.map(lambda p, k=k: k * p, runs[0].params), jax.random.key(0)) for k in (1.0, 0.5))
    assert [x.shape for x in one] == [(3, 4, 4, 1), (3, 8, 8, 1)] and np.abs(one[1]).max() <= 1
    for a, b in zip(one, two, strict=True):
        assert np.abs(a - b).max() > 1e-4
