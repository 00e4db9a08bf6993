"""Autoencoder runs: trained from their config, scored, refused where a sampler is asked for, seen by a perceptual loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import autoencoding, build, codec, configfile, evaluation, fit, objective, training
from jaxdiff.cli import main
from jaxdiff.facts import Facts
from jaxdiff.networks import quantizer
from jaxdiff.run import load_run
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")
CONFIG = f"{ROOT}/configs/autoencoder.py"
KNOWN = Facts((28, 28, 1), 10, 256, "image")


def load(words="", **overrides):
    return configfile.load(f"{CONFIG}:{words}", [(key.replace("__", "."), str(value)) for key, value in overrides.items()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four steps of a codebook with a discriminator from the second step on, revived every second step."""
    workdir = tmp_path_factory.mktemp("vq")
    config = load("kind=vq,adversarial,smoke", codebook__revive_every=2, train__log_every=1, evaluate__num=20)
    fit.train(config, workdir, progress=False)
    return workdir


def test_both_networks_and_the_codebook_train(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    heard = [row["autoencoder/adaptive"] > 0 for row in rows]
    assert heard == [False, False, True, True] == [row["discriminator/loss"] > 0 for row in rows]
    assert 256 < rows[0]["autoencoder:2/revived"] < 512  # all but those that the first batch took
    assert "autoencoder:2/revived" not in rows[1] and "autoencoder:2/revived" in rows[2]  # every second step
    assert 0 < rows[-1]["autoencoder/usage"] <= 1 <= rows[-1]["autoencoder/perplexity"] <= 512
    assert min(Image.open(trained / "samples" / "step_000004.png").size) >= 28


def test_the_score_is_that_of_the_reconstructions(trained):
    run = load_run(trained)
    found, x, x_hat = autoencoding.score(run, trained, 30, ("psnr", "codebook"), progress=False)
    mean_square = ((x - x_hat) ** 2).mean((1, 2, 3))
    assert found["psnr"] == pytest.approx(float((10 * np.log10(4 / mean_square)).mean()), rel=1e-4)
    assert found["n"] == 30 and "frechet" not in found
    codes = quantizer.nearest(run.params["codebook"], run.network.apply({"params": run.params}, x, method="encode"))
    assert found["codebook_usage"] == pytest.approx(len(np.unique(codes)) / 512)
    real = build.examples(run.config, run.facts, "test", 30)["x"]
    np.testing.assert_array_equal(x, real)


def test_commands(trained, tmp_path, capsys):
    """`evaluate` scores and draws; `sample`, `likelihood` and options of sampling have nothing to work on."""
    assert main(["evaluate", f"--workdir={trained}", "--num=12", "--metrics=psnr,ssim"]) == 0
    assert "psnr" in capsys.readouterr().out
    height, width = Image.open(trained / "evaluation" / "step_000004.png").size[::-1]
    assert height > 12 * 28 / 2 and width >= 2 * 28
    for words, line in (
        (["sample", "--num=2", f"--out={tmp_path}/x.png"], "is an autoencoder, with nothing to sample"),
        (["likelihood"], "is an autoencoder, with nothing to sample"),
        (["evaluate", "--steps=3"], "an autoencoder, which is not sampled"),
        (["evaluate", "--metrics=agreement"], "allowed for this run: psnr, ssim, lpips, feature"),
        (["evaluate", "--metrics=lpips"], "mend: --lpips=FILE"),
    ):
        assert main([words[0], f"--workdir={trained}", *words[1:]]) == 2, words
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "words, overrides, line",
    [
        ("", {"network__kind": "unet"}, "allowed: autoencoder for both"),
        ("", {"discriminator__kind": "conv"}, "allowed with this loss: none, patch"),
        ("", {"task__kind": "sr"}, "an autoencoder got task.kind 'sr'"),
        ("", {"loss__kl_weight": -1}, "loss.kl_weight is -1"),
        ("", {"perceptual__weights": "a", "perceptual__classifier": "b"}, "allowed: one of them"),
        ("", {"data__source": "gaussians25", "data__size": "None"}, "data of the kind 'points'"),
    ],
)
def test_wrong_words(words, overrides, line, tmp_path):
    config = load(f"smoke{words}", **overrides)
    with pytest.raises(ValueError, match=line):
        fit.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words, line", [("latent=5", "latent map that is the size halved"), ("kind=ae", "allowed: kl, vq")])
def test_wrong_arguments(words, line):
    with pytest.raises(ValueError, match=line):
        load(words)


@pytest.mark.parametrize(
    "words, shape, latent, publish",
    [
        ("", (28, 28, 1), (7, 7, 4), None),
        ("data=emoji,adversarial", (64, 64, 3), (16, 16, 4), None),
        ("data=emoji,latent=8,kind=vq", (64, 64, 3), (8, 8, 4), None),
        ("data=tfds:imagenet2012,size=256,latent=64,kind=vq", (256, 256, 3), (64, 64, 4), 55e6),
    ],
)
def test_latents_have_the_size_that_was_asked_for(words, shape, latent, publish):
    """And the published network, its size: 55 million numbers (Rombach et al. 2022, f = 4)."""
    config = load(words)
    net = build.network(config, KNOWN._replace(shape=shape))
    key, x = jax.random.key(0), jnp.zeros((1, *shape))
    made = jax.eval_shape(lambda k, x: net.init_with_output(k, x, method="encode"), key, x)
    assert made[0].shape == (1, *latent[:2], latent[2] * (1 if "vq" in words else 2))
    if publish:
        params = jax.eval_shape(lambda k, x: net.init(k, x)["params"], key, x)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(publish, rel=0.02)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("judge")
    fit.train(configfile.load(f"{ROOT}/configs/classifier.py:smoke", [("data.source", "mnist5k")]), workdir, progress=False)
    return workdir


def test_a_classifier_s_eye(judge, trained):
    """2 - 2 cos of its features, as `evaluation.feature_distance` has it; with a gradient; in the loss, by its weight."""
    distance = codec.perceptual(load("smoke", perceptual__classifier=judge))
    x, y = (jax.random.uniform(jax.random.key(i), (6, 28, 28, 1), minval=-1) for i in (0, 1))
    run = load_run(judge)
    features = lambda images: run.network.apply({"params": run.params}, images, method="features")
    np.testing.assert_allclose(distance(x, y), evaluation.feature_distance(features, x, y), rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(jax.grad(lambda v: distance(x, v).sum())(y)).max()) > 0
    with pytest.raises(ValueError, match="allowed: a classifier of clean pictures"):
        codec.perceptual(load("smoke", perceptual__classifier=trained))

    def loss(weight):
        config = load("smoke", perceptual__classifier=judge, loss__perceptual_weight=weight)
        net = build.network(config, KNOWN)
        made = objective.loss(config, net, KNOWN)
        params = {"autoencoder": build.init_params(config, net, KNOWN, jax.random.key(0))}
        metrics = made.losses["autoencoder"](params, {}, jax.random.key(1), {"x": x, "index": jnp.arange(6)}, 0)[1].metrics
        return float(metrics["loss"]), float(metrics["perceptual"])

    (once, seen), (twice, _) = loss(1.0), loss(2.0)
    assert twice - once == pytest.approx(seen, rel=1e-4) and seen > 0


def test_a_codebook_s_use_outlives_a_stop(trained, tmp_path):
    """The moving counts are in the checkpoint: two steps, a stop, two more are four."""
    held = {"codebook__revive_every": 2, "optimizer__decay": "constant", "train__log_every": 1, "train__preview": 0,
            "train__eval_every": 2, "train__checkpoint_every": 2}
    for workdir, stops in ((tmp_path / "whole", (4,)), (tmp_path / "parts", (2, 4))):
        for steps in stops:
            fit.train(load("kind=vq,smoke", train__steps=steps, **held), workdir, progress=False)
    whole, parts = (training.restore(tmp_path / name, 4, what="params").tree for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
