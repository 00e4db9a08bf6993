"""The launch scripts as a user calls them, on smoke runs: `sweep.py` and `few_step.py`, rows, resuming, pictures."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import build, configfile, data, objective, score, training
from jaxdiff.run import load_run

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def launch():
    """A script by its name, imported as it imports its neighbours; called from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "launch"))
        patch.chdir(ROOT)
        yield importlib.import_module


@pytest.fixture(scope="module")
def sweep(launch):
    return launch("sweep")


@pytest.fixture(scope="module")
def swept(sweep, points_run, tmp_path_factory):
    """Rows of guidance 0 and 2, at 2 steps, 50 samples."""
    file = tmp_path_factory.mktemp("sweep") / "rows" / "guidance.jsonl"
    words = ["run", str(file), f"--workdir={points_run}", "--num=50", "--steps=2", "--guidance"]
    sweep.main([*words, "0", "2"])
    return file, words


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_row_says_what_was_measured(sweep, swept, points_run):
    """Its figures are those of `score.score` at that value, and the spread of the very samples."""
    run = load_run(points_run)
    for row, scale in zip(rows(swept[0]), (0.0, 2.0), strict=True):
        named = {"config": "gaussians25_edm", "overrides": {"steps": 2}, "option": "guidance", "value": scale, "n": 50,
                 "seed": 0, "steps": 4, "sampler": "heun, 2 steps"}
        assert named.items() <= row.items()
        assert set(row["versions"]) == {"jaxdiff", "jax", "python"} and row["hardware"] and "commit" in row
        figures, samples = score.score(run, points_run, 50, guidance=scale, num_steps=2)
        spread = samples.x.reshape(2, 25, 2).std(0, ddof=1).mean()  # balanced labels: 0, 1, ..., 24, 0, 1, ...
        assert row["figures"]["energy"] == pytest.approx(figures["energy"], rel=1e-4)
        assert row["figures"]["class_diversity"] == pytest.approx(spread, rel=1e-4)
        assert row["figures"]["class_diversity_n"] == 50 and row["figures"]["class_diversity_real_n"] == 250_000
        std = data.gaussians25_std(dict(run.config.data.options)["scale"])
        assert row["figures"]["class_diversity_real"] == pytest.approx(std, rel=0.01)


def test_the_same_command_goes_on(sweep, swept, capsys):
    file, words = swept
    before = file.read_text()
    sweep.main([*words, "0", "2"])
    assert file.read_text() == before and capsys.readouterr().out.count("already measured") == 2
    sweep.main([*words, "1", "2"])
    assert file.read_text().startswith(before) and [row["value"] for row in rows(file)] == [0, 2, 1]


def test_diversity_within_a_class(sweep):
    """Two classes of two samples: 1 apart and 3 apart, so (1 + 3) / 2 / sqrt 2. Between classes nothing counts."""
    x, label = np.array([[0.0], [7.0], [1.0], [10.0]]), np.array([3, 5, 3, 5])
    assert sweep.class_diversity(x, label) == pytest.approx(np.sqrt(2))
    pictures = np.array([-1.0, 1.0, -5.0, 5.0]).reshape(4, 1, 1, 1)
    assert sweep.class_diversity(pictures, np.array([0, 0, 1, 1])) == pytest.approx(np.sqrt(2))  # as files clip them


def test_correlation_up_to_saturation(sweep):
    """Beyond the judge's own accuracy agreement may waver."""
    made = [{"option": "guidance", "value": value, "figures": {"agreement": agreement, "classifier_accuracy": 0.99}}
            for value, agreement in ((0, 0.1), (1, 0.9), (2, 0.995), (3, 0.993), (4, 0.991))]
    assert sweep.trend(made).endswith("guidance and agreement: 0.600 over 5 values, 1.000 over 3 values up to saturation")
    assert "0.600 over 5 values, 0.600 over 5 values" in sweep.trend(
        [{**row, "figures": {**row["figures"], "classifier_accuracy": 1.0}} for row in made])


@pytest.mark.parametrize("values", [(0.5, 1, 2), ("heun", "ddim", "unipc")], ids=["numbers", "words"])
def test_the_plot(sweep, tmp_path, capsys, values):
    """A panel for each figure, one curve a setting; words have their places too."""
    made = [{"config": "c", "overrides": held, "option": "o", "value": value, "n": 9, "sampler": "s", "figures": {
        "agreement": 0.1 * i, "agreement_n": 9, "classifier_accuracy": 0.9, "psnr": 20 + i, "psnr_se": 0.1, "frechet": 1.0}}
        for held in ({}, {"steps": 3}) for i, value in enumerate(values)]
    file, out = tmp_path / "rows.jsonl", tmp_path / "new" / "curves.png"
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    sweep.main(["plot", str(file), f"--out={out}"])
    pixels = np.asarray(Image.open(out).convert("L"))
    assert pixels.shape[1] > 1000 and (pixels < 200).any()
    told = capsys.readouterr().out
    assert ("c, s, n = 9: Spearman" in told and "c, steps 3, n = 9: Spearman" in told) == (values[0] == 0.5)


@pytest.mark.parametrize("words, says", [
    (["--guidance", "1"], "0 options have several values"),
    (["--guidance", "1", "2", "--steps", "3", "4"], "2 options have several values"),
    (["--guidance", "1", "2", "--num=40"], "--num is 40; allowed: two samples of each of 25 classes"),
    (["--sampler", "heun", "hein", "--num=50"], "hein"),
], ids=["no values", "two options", "too few", "a wrong word"])
def test_wrong_words_are_one_line(sweep, points_run, tmp_path, words, says):
    with pytest.raises(SystemExit) as left:
        sweep.main(["run", str(tmp_path / "rows.jsonl"), f"--workdir={points_run}", *words])
    assert says in str(left.value) and "\n" not in str(left.value)
    with pytest.raises(SystemExit, match="has 0 rows"):
        sweep.main(["plot", str(tmp_path / "none.jsonl"), "--out=x.png"])


@pytest.fixture(scope="module")
def few_step(launch):
    return launch("few_step")


@pytest.fixture(scope="module")
def trained(few_step, tmp_path_factory):
    """A row of one variant at T = 2 on seed 0, and where its run is."""
    folder = tmp_path_factory.mktemp("few_step")
    file = folder / "rows" / "few_step.jsonl"
    words = ["run", str(file), f"--root={folder}", "--smoke", "--config.train.preview=0", "--steps", "2", "--seeds", "0"]
    few_step.main([*words, "--variants", "siddm_no_afd"])
    return file, words, folder


def test_a_few_step_row_says_what_was_measured(trained):
    file, _, folder = trained
    (row,) = rows(file)
    assert {"variant": "siddm_no_afd", "T": 2, "seed": 0, "steps": 4, "sampler": "ancestral, 2 steps",
            "config": "configs/gaussians25.py:method=siddm,steps=2,smoke",
            "overrides": {"seed": "0", "loss.form": "kl", "loss.weight": "0", "train.preview": "0"}}.items() <= row.items()
    assert row["figures"]["network_calls"] == 2 and row["train_cpu_seconds"] > 0 and row["versions"]
    workdir = folder / "gaussians25_siddm_2_seed=0_loss.form=kl_loss.weight=0_train.preview=0"
    figures, samples = score.score(load_run(workdir), workdir)
    assert row["figures"]["energy"] == pytest.approx(figures["energy"], rel=1e-4)
    kept = np.load(workdir / "samples.npz")["samples"]
    assert np.allclose(kept, data.gaussians25_to_raw(samples.x, "unit2"), atol=1e-3)  # raw, and the scored ones


def test_few_step_goes_on_seed_by_seed(few_step, trained, monkeypatch, tmp_path, capsys):
    """What has a row is passed over, and every variant of a seed comes before the next seed."""
    file, words, _ = trained
    before = file.read_text()
    few_step.main([*words, "--variants", "siddm_no_afd"])
    assert file.read_text() == before and "siddm_no_afd, T = 2, seed 0: already measured" in capsys.readouterr().out
    made = lambda one, root: {**one, "steps": 4, "train_cpu_seconds": 1.0, "figures": {}}
    monkeypatch.setattr(few_step, "measured", made)
    file = tmp_path / "rows.jsonl"
    file.write_text(before)
    few_step.main([words[0], str(file), *words[2:], "--steps", "4", "2", "--seeds", "1", "0", "--variants", "ddgan",
                   "siddm_no_afd"])
    order = [(row["seed"], row["T"], row["variant"]) for row in rows(file)]
    both = lambda *where: [(*where, "ddgan"), (*where, "siddm_no_afd")]
    assert order == [(0, 2, "siddm_no_afd"), *both(1, 4), *both(1, 2), *both(0, 4), (0, 2, "ddgan")]


def test_what_diverges_has_a_row(few_step, monkeypatch, tmp_path):
    def fails(*_):
        raise training.NonFiniteLoss(3, None, tmp_path)

    monkeypatch.setattr(few_step, "measure", fails)
    file = tmp_path / "rows.jsonl"
    few_step.main(["run", str(file), "--smoke", "--variants", "ddgan", "--steps", "2", "--seeds", "0"])
    assert {"variant": "ddgan", "T": 2, "steps": 3, "diverged": True, "figures": {}}.items() <= rows(file)[0].items()
    with pytest.raises(SystemExit, match="1 rows, none with figures"):
        few_step.main(["table", str(file)])


def reported(one):
    """The names of what the training of a few-step run reports, and "anchor" where its loss has one."""
    config = configfile.load(one["config"], list(one["overrides"].items()))
    known = build.facts(config, data.open_source("gaussians25", "test"))

    def metrics(batch):
        made = objective.train_step(config, build.network(config, known), known)
        return made.step(made.state, batch)[1]

    names = jax.eval_shape(metrics, {"x": jnp.ones((8, 2)), "index": jnp.arange(8)})
    parts = {name for name in names if name != "finite" and not name.endswith("_norm")}
    return parts | ({"anchor"} if config.loss.kind == "siddm" and config.loss.anchor != 0 else set())


def test_each_variant_is_the_loss_that_it_says(few_step):
    parts = {name: reported(few_step.asked(name, 4, 0, [], smoke=True)) for name in few_step.VARIANTS}
    gan = {"discriminator/gan", "discriminator/real", "discriminator/fake", "discriminator/loss", "generator/loss"}
    decoder, afd = gan | {"generator/gan", "discriminator/denoise", "anchor"}, {"generator/near", "generator/afd",
                                                                                "generator/entropy"}
    assert parts == {
        "ddgan": gan, "ddgan_r1": gan | {"discriminator/r1"}, "ddgan_denoise": gan | {"discriminator/denoise"},
        "siddm": decoder | afd | {"generator/kl", "discriminator/regress"},
        "siddm_printed": decoder | afd | {"discriminator/regress"}, "siddm_no_c": decoder | afd | {"generator/kl"},
        "siddm_no_anchor": (decoder - {"anchor"}) | afd | {"generator/kl", "discriminator/regress"},
        "siddm_no_afd": decoder,
    }


def few_step_rows():
    """Three seeds of SIDDM at T = 2 and 4, one of which diverged, and one of DDGAN."""
    figures = {"modes": 25, "modes_of": 25, "high_quality": 0.9, "kl": 0.01, "std_ratio": 1.0, "energy": 0.02,
               "energy_floor": 0.001, "frechet_floor": 0.002, "n_fake": 50_000, "n_real": 12_500, "n_energy": 5000}
    made = [{"variant": variant, "T": steps, "seed": seed, "config": "c", "steps": 9, "train_cpu_seconds": 30.0 + seed,
             "hardware": "h", "overrides": {"seed": str(seed), **own, "train.steps": "9"},
             "figures": {**figures, "frechet": value}}
            for variant, own, steps, seed, value in (
                ("siddm", {"loss.form": "kl"}, 4, 0, 0.5), ("siddm", {"loss.form": "kl"}, 4, 1, 0.1),
                ("siddm", {"loss.form": "kl"}, 4, 2, 0.2), ("siddm", {"loss.form": "kl"}, 2, 0, 3.0),
                ("ddgan", {"loss.r1": "0"}, 4, 0, 7.0))]
    return [*made, {**made[1], "T": 2, "train_cpu_seconds": None, "figures": {}}]


def test_the_table_of_few_steps(few_step, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in few_step_rows()))
    few_step.main(["table", str(file)])
    told = capsys.readouterr().out
    for line in (
        "| DDGAN | - | 7 / 25 / 0.900 / 0.010 / 1.00 | 0-1 | 9 | 30 |",
        "| SIDDM | 3 / 25 / 0.900 / 0.010 / 1.00, 1 diverged | 0.2 / 25 / 0.900 / 0.010 / 1.00 | 2-3 | 9 | 30-32 |",
        "| real against real | 0.002 | 0.002 |  |  |  |", "| SIDDM, published FD | 0.14 | 1.21 |  |  |  |",
        "| energy distance | T = 2 | T = 4 |", "| SIDDM | 0.02, 1 diverged | 0.02 |",
        "| real against real | 0.001 | 0.001 |",
    ):
        assert line in told.splitlines()
    assert "50000 samples and 12500 real points, 5000 for energy; h; train.steps=9." in told


def test_runs_told_otherwise_have_their_own_line(few_step):
    more = [{**row, "overrides": {**row["overrides"], "train.steps": "20"}} for row in few_step_rows()]
    told = few_step.lines([*few_step_rows(), *more])
    assert list(told) == [f"{name}, train.steps={n}" for name in ("DDGAN", "SIDDM") for n in (9, 20)]


def test_the_picture_of_few_steps(few_step, trained, tmp_path):
    file, _, folder = trained
    out = tmp_path / "new" / "few.png"
    few_step.main(["picture", str(file), f"--root={folder}", f"--out={out}"])
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] > 400 and (pixels[..., 2] - pixels[..., 0] > 40).sum() > 500  # the real points
    with pytest.raises(SystemExit, match=r"1 rows of seed 0 in .*few_step.jsonl and no samples"):
        few_step.main(["picture", str(file), f"--root={tmp_path}", f"--out={out}"])


@pytest.mark.parametrize("words, says", [
    (["--variants", "sidm"], "sidm"), (["--stepz=3"], "--stepz=3 is not known"),
    (["--smoke", "--config.train.stepz=3"], "config has no key 'train.stepz'"), (["--steps", "0"], "num_steps=0"),
], ids=["variant", "flag", "config key", "T"])
def test_wrong_words_of_few_step_are_one_line(few_step, tmp_path, words, says, capsys):
    with pytest.raises(SystemExit) as left:
        few_step.main(["run", str(tmp_path / "rows.jsonl"), f"--root={tmp_path}", *words])
    assert says in capsys.readouterr().err + str(left.value) and "\n" not in str(left.value)
    assert not list(tmp_path.iterdir())


def test_host_work_by_the_number_of_devices(launch, monkeypatch, tmp_path, capsys):
    """A row for a count, of what this process measures on its own four; the words that the child of each count is given."""
    scaling = launch("scaling")
    row = scaling.measure("configs/gaussians25.py:smoke", "mesh", 8, 1)
    many = scaling.measure("configs/gaussians25.py:smoke", "mesh", 8, 1, 4)
    assert set(row) == set(many) == set(scaling.COLUMNS) and all(value > 0 for value in (*row.values(), *many.values()))
    monkeypatch.setattr(scaling, "child", lambda count, args: dict.fromkeys(scaling.COLUMNS, float(count)))
    scaling.main(["--devices=1,4", f"--out={tmp_path / 'rows.jsonl'}"])
    assert capsys.readouterr().out.splitlines()[2].split() == ["4", *["4.000"] * 4]
    held = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(one["devices"], one["ms"]["data"], one["kind"]) for one in held] == [(1, 1.0, "mesh"), (4, 4.0, "mesh")]
