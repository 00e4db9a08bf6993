"""Latent diffusion: exact where a codec is linear or the identity, linked to its autoencoder's run, refused elsewhere."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import build, configfile, fit, score, training
from jaxdiff.cascade import Codec, Stage, sample_cascade
from jaxdiff.cli import main
from jaxdiff.latents import Latents, of_network, shape_of, unit_scale
from jaxdiff.run import load_run, open_latents
from jaxdiff.trees import fingerprint
from tests.conftest import load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")
IDENTITY = Latents(lambda x: x, lambda keys, x: x, lambda z: z, "identity", 1.0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("judge")
    fit.train(load("classifier", "smoke"), workdir, progress=False)
    return workdir


def latent(coder, **overrides):
    return load("latent", "data=digits,smoke", codec__run=coder, **overrides)


@pytest.fixture(scope="module")
def trained(coder, judge, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latent")
    fit.train(latent(coder, evaluate__classifier=judge), workdir, progress=False)
    return workdir


def test_a_linear_codec_of_gaussian_data_gives_its_covariance():
    """z = s A x for an orthonormal A, sampled by the exact denoiser of its law and decoded: x's covariance within 2 %."""
    rng, num, scale = np.random.default_rng(0), 100_000, 2.5
    basis = np.linalg.qr(rng.standard_normal((4, 4)))[0][:, :2]  # [4 pixels, 2 latents]
    root = basis @ np.array([[0.5, 0.0], [0.3, 0.2]])
    cov, cov_z = root @ root.T, scale**2 * basis.T @ root @ root.T @ basis
    path = jd.sde.EDM(sigma_min=0.002, sigma_max=80.0)

    def denoise(key, z, t, cond=None):
        flat, sigma = z.reshape(len(z), -1), path.sigma(t)
        solved = flat @ jnp.linalg.inv(cov_z + sigma**2 * jnp.eye(2))
        return jd.Prediction((solved @ cov_z).reshape(z.shape), (sigma * solved).reshape(z.shape))

    codec = Codec(lambda params, key, x: scale * x.reshape(-1, 1, 4) @ basis,
                  lambda params, z: (z.reshape(-1, 2) / scale @ basis.T).reshape(-1, 2, 2, 1))
    stage = Stage((1, 1, 2), path, lambda params, cond: denoise, jd.samplers.heun(), 60, codec=codec)
    x = np.asarray(sample_cascade(jax.random.key(0), [stage], [None], num=num)[0]).reshape(num, 4)
    size = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    assert (np.abs(np.cov(x.T) - cov) / size).max() < 0.02
    wrong = np.asarray(sample_cascade(jax.random.key(0), [replace(stage, codec=codec._replace(
        decode=lambda params, z: codec.decode(params, z * scale)))], [None], num=num)[0]).reshape(num, 4)
    assert (np.abs(np.cov(wrong.T) - cov) / size).max() > 1  # the factor left out would show


def test_an_identity_codec_is_pixel_diffusion(tmp_path, monkeypatch):
    """Bit for bit: the same parameters, the same samples."""
    held = {"condition__drop": 0.1, "train__preview": 0}
    config = load("latent", "data=digits,smoke", codec__run="somewhere", codec__scale=1.0, **held)
    for where in ("codec", "run"):
        monkeypatch.setattr(f"jaxdiff.{where}.open_latents", lambda *given: IDENTITY)
    fit.train(config, tmp_path / "latent", progress=False)
    fit.train(load("latent", "data=digits,smoke", codec__run="None", **held), tmp_path / "pixel", progress=False)
    one, two = load_run(tmp_path / "latent"), load_run(tmp_path / "pixel")
    assert one.latents is IDENTITY and two.latents is None and one.facts.picture == two.facts.shape == (8, 8, 1)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    a, b = (run.sampler()(run.params, jax.random.key(1), None, 3) for run in (one, two))
    np.testing.assert_array_equal(a, b)


def test_the_scale_gives_unit_deviation(coder):
    """Within 1 % of numpy's own, over all numbers of the latents, a draw of each; and a second measurement says 1."""
    run = load_run(coder)
    plain = of_network(run.network, run.params)
    x = build.examples(run.config, run.facts, "train", 300)["x"]
    z = np.asarray(plain.encode(jax.random.split(jax.random.key(5), 300), x))
    scale = unit_scale(plain, x)
    assert scale == pytest.approx(1 / z.std(), rel=0.01) and abs(scale - 1) > 0.02
    assert unit_scale(of_network(run.network, run.params, scale), x) == pytest.approx(scale, rel=0.01)
    scaled = of_network(run.network, run.params, scale)
    mean = run.network.apply({"params": run.params}, x[:4], method="encode")[..., :4]
    np.testing.assert_allclose(scaled.decode(scale * mean), plain.decode(mean), atol=1e-5)
    assert shape_of(scaled, (8, 8, 1)) == (4, 4, 4) and scaled.name == fingerprint(run.params)


def test_a_latent_run_is_a_run_of_pictures(trained, coder, judge, capsys, tmp_path):
    run = load_run(trained)
    assert run.facts.shape == (4, 4, 4) and run.facts.picture == run.facts.pixels == (8, 8, 1)
    assert run.facts.codec == fingerprint(load_run(coder).params) and run.latents.scale == run.facts.scale != 1
    found, samples = score.score(run, trained, 20, progress=False)
    assert samples.x.shape == (20, 8, 8, 1) and np.abs(samples.x).max() <= 1
    assert {"agreement", "frechet", "frechet_floor", "precision"} <= set(found)
    # pictures are decoded latents: the same draw, stopped before the decoder
    draw = run._replace(latents=None).sampler()
    z = draw(run.params, jax.random.key(2), {"label": jnp.arange(3)}, 3)
    x = run.sampler(guidance=1.0)(run.params, jax.random.key(2), {"label": jnp.arange(3)}, 3)
    np.testing.assert_array_equal(x, run.latents.decode(z))
    assert main(["sample", f"--workdir={trained}", "--num=4", "--guidance=2", f"--out={tmp_path}/x.npz"]) == 0
    assert np.load(tmp_path / "x.npz")["samples"].shape == (4, 8, 8, 1)
    assert main(["sample", f"--workdir={trained}", "--num=2", "--size=8x16", f"--out={tmp_path}/w.npz"]) == 0
    assert np.load(tmp_path / "w.npz")["samples"].shape == (2, 8, 16, 1)
    assert main(["likelihood", f"--workdir={trained}"]) == 2
    assert "diffuses latents" in capsys.readouterr().err
    assert main(["sample", f"--workdir={trained}", "--task=inpaint", "--num=2", f"--out={tmp_path}/y.npz"]) == 2
    assert "in which no pixel can be held" in capsys.readouterr().err


def test_two_runs_may_move_together(trained, coder, tmp_path):
    for source, name in ((trained, "latent"), (coder, "kl")):
        shutil.copytree(source, tmp_path / name)
    config = tmp_path / "latent" / "config.json"
    config.write_text(config.read_text().replace(str(coder), "somewhere/kl"))
    assert load_run(tmp_path / "latent").latents.name == load_run(trained).latents.name
    shutil.rmtree(tmp_path / "kl")
    with pytest.raises(FileNotFoundError, match="or the autoencoder's run beside this one"):
        load_run(tmp_path / "latent")


def test_another_size_keeps_attention_where_it_was(trained, capsys):
    run = load_run(trained)
    wide = run.at(16, 8)
    assert wide.facts.shape == (8, 4, 4) and wide.facts.pixels == (16, 8, 1)
    assert run.network.attention_resolutions == (4,) and wide.network.attention_resolutions == (8,)
    assert run.at(8, 8) == run
    told, key = {"label": jnp.arange(2)}, jax.random.key(0)
    draw = wide.sampler()
    mute = jax.tree_util.tree_map_with_path(lambda path, p: 0 * p if "attention" in str(path) else p, run.params)
    assert float(jnp.abs(draw(run.params, key, told, 2) - draw(mute, key, told, 2)).max()) > 0
    with pytest.raises(ValueError, match="allowed: whole multiples of 8x8"):
        run.at(9, 8)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", f"--workdir={trained}", "--size=big", "--out=x.png"])
    assert "is not a side, as 128" in capsys.readouterr().err


def test_a_stop_changes_nothing(coder, tmp_path):
    """Two steps, a stop, two more: the latents drawn at a step are those of the whole run, and the scale stays."""
    held = {"optimizer__decay": "constant", "train__preview": 0, "train__eval_every": 2, "train__checkpoint_every": 2}
    for workdir, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            fit.train(latent(coder, train__steps=steps, **held), tmp_path / workdir, progress=False)
    whole, parts = (training.restore(tmp_path / name, 4, what="params").tree for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    facts = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("whole", "parts")]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("overrides, line", [
    ({"codec__run": "nowhere"}, "codec.run is 'nowhere', where no trained run is; mend: train"),
    ({"loss__kind": "hybrid", "path__kind": "discrete", "parameterization__learned_variance": True}, "latents have none"),
    ({"data__channels": 3}, "with 1 channels, and these have 3"),
    ({"data__size": 9}, "multiples of 2"),
    ({"estimator__kind": "cdiffe", "task__kind": "sr"}, "whose condition is not diffused"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(coder, overrides, line, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        fit.train(load("latent", "data=digits,smoke", **{"codec__run": coder, **overrides}), tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_pixels_and_latents_do_not_change_places(trained, coder, judge, tmp_path):
    """`codec.run` may change, as an autoencoder's run may move; whether there is one may not."""
    with pytest.raises(ValueError, match=r"diffuses latents; mend: codec.run as it was"):
        fit.train(latent("None", evaluate__classifier=judge), trained, progress=False)
    fit.train(latent("None", train__preview=0), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"diffuses pixels; mend: codec.run as it was"):
        fit.train(latent(coder, train__preview=0), tmp_path, progress=False)


def test_a_codec_must_stay_what_it_was(trained, judge, tmp_path):
    """An autoencoder that was trained on, or another kind of run in its place, is told by its parameters."""
    other = tmp_path / "other"
    fit.train(load("autoencoder", "data=digits,smoke", train__preview=0, seed=1), other, progress=False)
    for place, line in ((other, "whose parameters are .* and were"), (judge, "of a classifier; allowed: an autoencoder's")):
        held = configfile.from_run(trained).copy_and_resolve_references()
        with held.unlocked():
            held.codec.run = str(place)
        with pytest.raises(ValueError, match=line):
            open_latents(held, load_run(trained).facts)
