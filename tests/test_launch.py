"""The launch scripts as a user calls them: `sweep.py` on a smoke run, its rows, its resuming and its plot."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data, score
from jaxdiff.run import load_run

pytestmark = pytest.mark.usefixtures("quick_compile")

LAUNCH = Path(__file__).parent.parent / "launch"


@pytest.fixture(scope="module")
def sweep():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LAUNCH))
        yield importlib.import_module("sweep")


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
