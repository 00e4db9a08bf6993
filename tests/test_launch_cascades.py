"""`launch/cascades.py`: what it measures, what has a row is passed over, and the tables that it makes of rows."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cascades():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "launch"))
        patch.chdir(ROOT)
        yield importlib.import_module("cascades")


@pytest.fixture
def measured(cascades, monkeypatch, tmp_path):
    """Rows of two seeds at s = 0, .2 and .4, from a model whose Frechet distances are known, and how often it was asked."""
    asked = []

    class Known:
        def __init__(self, args, seed, held):
            self.seed = seed

        def figures(self, *words, value):
            asked.append((self.seed, *words))
            return {"frechet": value + self.seed / 100, "frechet_floor": 0.01, "n_fake": 9}

        def whole(self):
            return self.figures("whole", value=0.2)

        def given_real(self, augmentation, s):
            return self.figures("real", augmentation, s, value=0.1 + s)

        def swept(self, augmentation, s, truncated):
            base = {"none": 0.6, "blur": 0.5, "gaussian": 0.4}[augmentation]
            return self.figures(augmentation, s, truncated, value=base - s + 3 * max(0.0, s - 0.2) - truncated * 0.05)

    monkeypatch.setattr(cascades, "Lab", Known)
    file = tmp_path / "rows.jsonl"
    words = ["run", str(file), "--s", "0", "0.2", "0.4", "--seeds"]
    cascades.main([*words, "0"])
    cascades.main([*words, "0", "1"])
    return file, asked


def test_every_seed_is_measured_once(measured):
    file, asked = measured
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    # no cascade; none, blur and gaussian at 0, generated and real; noised, truncated and real at .2 and .4
    assert len(rows) == len(asked) == len(set(asked)) == 2 * (1 + 3 * 2 + 2 * 3)
    assert {row["seed"] for row in rows} == {0, 1} and all(row["versions"] for row in rows)


def test_the_table_names_the_best_s_of_all_seeds(cascades, measured, capsys):
    cascades.main(["table", str(measured[0])])
    told = capsys.readouterr().out.splitlines()
    for line in (
        "| no cascade | 0.205 (0.200 to 0.210) |",
        "| cascade, trained with none, s = 0 | 0.605 (0.600 to 0.610) |",
        "| cascade, gaussian, generated low-res, noised to s = 0.2 (the best) | 0.205 (0.200 to 0.210) |",
        "| cascade, gaussian, base truncated at s = 0.2 (the best) | 0.155 (0.150 to 0.160) |",
        "| its last stage alone, trained with blur, real low-res | 0.105 (0.100 to 0.110) |",
        "| real test pictures | 0.010 |",
        "| 0.4 | 0.605 (0.600 to 0.610) | 0.555 (0.550 to 0.560) | 0.505 (0.500 to 0.510) |",
    ):
        assert line in told, (line, told)


def test_the_curves_are_drawn(cascades, measured, tmp_path):
    out = tmp_path / "new" / "curves.png"
    cascades.main(["plot", str(measured[0]), f"--out={out}"])
    assert np.asarray(Image.open(out)).std() > 5


def test_wrong_words_are_one_line(cascades, tmp_path, capsys):
    with pytest.raises(SystemExit, match="no rows; allowed"):
        cascades.main(["table", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit):
        cascades.main(["run", str(tmp_path / "rows.jsonl"), "--stepz=3"])
    assert "--stepz=3 is not known" in capsys.readouterr().err
