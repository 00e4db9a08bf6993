"""`jaxdiff cascade` on two smoke runs: pictures, parts, scores, a sweep over s, going on after a stop, and wrong words."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import build, cascading, evaluation, realism, stream
from jaxdiff.cascade import sample_cascade
from jaxdiff.cli import main
from jaxdiff.judge import Judge
from jaxdiff.run import load_run
from tests.conftest import less_optimized

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

CONFIGS = Path(__file__).parent.parent / "configs"
WORDS = "data=digits,sides=4+8,smoke"
# one level, a second to compile; a large step, so that four of them leave the network no longer silent
SMALL = ["--config.network.channel_mult=1,", "--config.network.attention_resolutions=()", "--config.train.preview=0",
         "--config.optimizer.learning_rate=0.03", "--config.ema.decay=0.1", "--no_evaluate", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base of 4x4 digits and a super-resolution run to 8x8, with Gaussian augmentation."""
    root = tmp_path_factory.mktemp("cascade")
    with less_optimized(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.device_count", lambda: 1)
        for stage in ("base", "sr1"):
            spec = f"{CONFIGS}/cascade.py:stage={stage},{WORDS}"
            assert main(["train", f"--config={spec}", f"--workdir={root / stage}", *SMALL]) == 0
    return root


@pytest.fixture(scope="module")
def opened(runs):
    """The cascade of the two runs, as `call` asks for it."""
    return cascading.open_cascade([runs / "base", runs / "sr1"], [{"num_steps": 2, "sampler": "ddim"}] * 2)


@pytest.fixture
def judged(monkeypatch):
    """A judge that costs nothing: pixels are its features, and it reads a class off the brightest of ten."""
    made = Judge(lambda x: evaluation.pixels(jnp.asarray(x))[:, :10], evaluation.pixels, 0.9, 100, "pixels")
    monkeypatch.setattr(realism, "judge_of", lambda run, workdir, progress: made)


@pytest.fixture
def call(call, runs):
    """`call(*words) -> (exit code, stdout, stderr)` of `jaxdiff cascade` on the two runs, two steps each."""
    return lambda *words, stages=("base", "sr1"): call("cascade", *(f"--stage={runs / stage}" for stage in stages),
                                                       "--steps=2", "--sampler=ddim", *words)


def arrays(folder):
    """All parts of a folder, side by side."""
    found = list(stream.parts(folder))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def bytes_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.npz"))}


def differ(a, b):
    """Share of pixels that are not the same level, or the next one, which rounding may make of it."""
    return float((np.abs(a.astype(int) - b.astype(int)) > 1).mean())


def test_parts_are_the_cascade(call, opened, tmp_path):
    code, out, err = call(f"--out={tmp_path / 'a'}", "--s=0.3", "--num=10", "--batch_size=4", "--label=3,5,8", "--seed=7")
    assert (code, err) == (0, "") and "10 of 10" in out
    found = arrays(tmp_path / "a")
    assert found["label"].tolist() == [3, 5, 8] * 3 + [3]
    assert (found["stage_0"].shape, found["stage_1"].shape) == ((10, 4, 4, 1), (10, 8, 8, 1))
    key = jax.random.fold_in(jax.random.key(7), 1)
    draw = jax.jit(lambda params, key, cond: sample_cascade(key, opened.stages, params, cond, 4, (0.3,), False))
    want = draw(opened.params, key, {"label": jnp.array([5, 8, 3, 5])})
    for k, x in enumerate(want):
        assert differ(found[f"stage_{k}"][4:8], evaluation.to_uint8(x)) == 0
    held = json.loads((tmp_path / "a" / "cascade.json").read_text())
    assert held["stage_1"]["step"] == 4 and held["stage_1"]["num_steps"] == 2 and held["s"] == [0.3] and held["seed"] == 7


def test_what_is_drawn_follows_its_words(call, tmp_path):
    """The seed changes everything, s the last stage alone, or when truncated both; num and nothing else cuts."""
    draw = lambda name, *words: (call(f"--out={tmp_path / name}", "--batch_size=4", *words), arrays(tmp_path / name))[1]
    first = draw("a", "--num=6", "--s=0.3")
    assert differ(first["stage_0"], draw("seed", "--num=6", "--s=0.3", "--seed=1")["stage_0"]) > 0.5
    other = draw("s", "--num=6", "--s=0")
    assert differ(first["stage_0"], other["stage_0"]) == 0 and differ(first["stage_1"], other["stage_1"]) > 0.2
    short = draw("t", "--num=6", "--s=0.3", "--truncated")
    assert differ(first["stage_0"], short["stage_0"]) > 0.2 and differ(first["stage_1"], short["stage_1"]) > 0.2
    more = draw("n", "--num=9", "--s=0.3")
    np.testing.assert_array_equal(more["stage_1"][:6], first["stage_1"])
    np.testing.assert_array_equal(first["label"], np.arange(6))


def test_killed_and_started_again(call, tmp_path, monkeypatch):
    words = ("--s=0.3", "--num=10", "--batch_size=4", "--quiet")
    assert call(f"--out={tmp_path / 'whole'}", *words)[0] == 0
    save, saved = evaluation.save_npz, []

    def stopping(path, **held):
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt
        return save(path, **held)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "save_npz", stopping)
        assert call(f"--out={tmp_path / 'again'}", *words)[0] == 130
    assert list(bytes_of(tmp_path / "again")) == ["part_00000.npz"]
    first = (tmp_path / "again" / "part_00000.npz").stat().st_mtime_ns
    assert call(f"--out={tmp_path / 'again'}", *words) == (0, f"10 samples: {tmp_path / 'again'}\n", "")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")
    assert (tmp_path / "again" / "part_00000.npz").stat().st_mtime_ns == first


def test_a_picture(call, runs, tmp_path):
    """A row a sample; the last column holds training pictures, and the nearest one to a training picture is itself."""
    code, out, err = call(f"--out={tmp_path / 'a.png'}", "--num=3", "--s=0.3", "--guidance=1", "--guidance=2")
    assert (code, err) == (0, "") and "3 samples" in out
    width, height = Image.open(tmp_path / "a.png").size
    assert width > 3 * 64 and 3 * 64 < height < 4 * 72
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]
    run = load_run(runs / "sr1")
    real = realism.real_examples(run, "train", 20)["x"]
    np.testing.assert_allclose(realism.nearest_real(run, real + 0.02), real, atol=1e-6)


def test_scores_of_every_stage(call, runs, tmp_path, judged):
    """Those of all pictures at once, though they are read part by part."""
    folder = tmp_path / "a"
    code, out, err = call(f"--out={folder}", "--s=0.3", "--num=30", "--batch_size=4", "--metrics=all")
    assert (code, err) == (0, "") and "stage_0" in out and "frechet_floor" in out
    held, all_ = json.loads((folder / "scores.json").read_text()), arrays(folder)
    assert held["num"] == 30 and held["stage_0"]["config"] == "digits_base_4" and held["stage_0"]["network_calls"] == 2
    for k, name in enumerate(("base", "sr1")):
        run, x = load_run(runs / name), stream.to_float(all_[f"stage_{k}"])
        wanted = ("agreement", "frechet", "kid", "precision_recall", "inception_score")
        want = realism.score_pictures(run, runs / name, [(x, all_["label"])], wanted)
        for figure, value in want.items():
            if isinstance(value, float):
                assert held[f"stage_{k}"][figure] == pytest.approx(value, rel=1e-6), figure
        real = evaluation.pixels(realism.real_examples(run, "train")["x"])
        exact = evaluation.frechet_distance(evaluation.moments_of(real), evaluation.moments_of(evaluation.pixels(x))).value
        alone = realism.score_pictures(run, runs / name, [(x[:7], None), (x[7:], None)], ("frechet",))  # moments only
        assert held[f"stage_{k}"]["frechet"] == pytest.approx(exact, rel=1e-6) == pytest.approx(alone["frechet"], rel=1e-6)
    assert held["stage_0"]["frechet"] != held["stage_1"]["frechet"]
    assert call(f"--out={folder}", "--s=0.3", "--num=30", "--batch_size=4", "--metrics=frechet")[0] == 0
    assert json.loads((folder / "scores.json").read_text()) == held  # another metric's are kept


def test_a_sweep_noises_one_stored_picture(call, tmp_path, judged):
    """At every s the samples are those of the whole cascade; the base is drawn once; more values only add rows."""
    folder, words = tmp_path / "sweep", ("--num=10", "--batch_size=4")
    code, out, err = call(f"--out={folder}", "--sweep_s=0.3,0", *words)
    assert (code, err) == (0, "") and out.splitlines()[-4].split() == ["s", "stage_1", "frechet"]
    before = bytes_of(folder)
    assert {Path(name).parent.name for name in before} == {"before", "s_0", "s_0.3"}
    assert Image.open(folder / "sweep.png").width > 300
    for s in ("0", "0.3"):
        call(f"--out={tmp_path / s}", f"--s={s}", *words)
        whole = arrays(tmp_path / s)
        ours = arrays(folder / f"s_{s}")["stage_1"]
        assert differ(ours, whole["stage_1"]) == 0 and (ours != whole["stage_1"]).mean() < 0.03  # of z_0 unrounded
        assert differ(arrays(folder / "before")["stage_0"], whole["stage_0"]) == 0
    assert arrays(folder / "before")["handed"].dtype == np.float32
    rows = (folder / "sweep.jsonl").read_text().splitlines()
    assert [json.loads(row)["s"] for row in rows] == [0, 0.3] and "frechet" in json.loads(rows[0])["figures"]["stage_1"]
    code, out, _ = call(f"--out={folder}", "--sweep_s=0,0.3,0.6", *words)
    assert code == 0 and "before" not in out and "s_0:" not in out and out.count("samples/s") == 3
    assert (folder / "sweep.jsonl").read_text().splitlines()[:2] == rows
    assert before.items() < bytes_of(folder).items()


def test_a_truncated_sweep_draws_every_stage_anew(call, tmp_path, judged):
    code, _, err = call(f"--out={tmp_path / 'a'}", "--sweep_s=0.3,0.6", "--truncated", "--num=6", "--batch_size=4")
    assert (code, err) == (0, "") and not (tmp_path / "a" / "before").exists()
    low, high = (arrays(tmp_path / "a" / f"s_{s}") for s in (0.3, 0.6))
    assert differ(low["stage_0"], high["stage_0"]) > 0.1
    rows = [json.loads(row) for row in (tmp_path / "a" / "sweep.jsonl").read_text().splitlines()]
    assert [sorted(row["figures"]) for row in rows] == [["stage_0", "stage_1"]] * 2


def test_one_value_or_one_for_each_stage():
    assert cascading.levels(None, 2) == (0.0, 0.0) and cascading.levels((0.3,), 2) == (0.3, 0.3)
    assert cascading.levels((0.3, 0.1), 2) == (0.3, 0.1) and cascading.levels(None, 0) == ()
    how = cascading.for_stages({"num_steps": [4, 2], "sampler": ["ddim"], "guidance": None}, 2)
    assert how == [{"num_steps": 4, "sampler": "ddim"}, {"num_steps": 2, "sampler": "ddim"}]


WRONG = {
    "no stage": ((), ("--out={new}",), ("--stage",)),
    "missing run": (("base", "none"), ("--out={new}",), ("no run at",)),
    "wrong order": (("sr1", "base"), ("--out={new}",), ("first stage", "base first")),
    "not chained": (("base", "base"), ("--out={new}",), ("takes no low-resolution picture",)),
    "s for no stage": (("base",), ("--out={new}", "--s=0.1"), ("s has 1 values for 0",)),
    "s of too many": (("base", "sr1"), ("--out={new}", "--s=0.1,0.2"), ("s has 2 values for 1",)),
    "s out of range": (("base", "sr1"), ("--out={new}", "--s=1.5"), ("s is 1.5; allowed: 0 to",)),
    "s below 0": (("base", "sr1"), ("--out={new}.png", "--s=-0.1"), ("s is -0.1; allowed: 0 to",)),
    "s is no number": (("base", "sr1"), ("--out={new}", "--s=much"), ("--s", "'much'")),
    "s of a sweep": (("base", "sr1"), ("--out={new}", "--s=0.1", "--sweep_s=0.1"), ("s has 1 values for 0",)),
    "sweep out of range": (("base", "sr1"), ("--out={new}", "--sweep_s=0,2"), ("s is 2; allowed: 0 to",)),
    "sweep of one stage": (("base",), ("--out={new}", "--sweep_s=0"), ("needs a super-resolution stage",)),
    "sweep in a picture": (("base", "sr1"), ("--out={new}.png", "--sweep_s=0"), ("--sweep_s", ".png", "--out=DIR")),
    "metrics of a picture": (("base", "sr1"), ("--out={new}.png", "--metrics=all"), ("--metrics", ".png", "--out=DIR")),
    "metric": (("base", "sr1"), ("--out={new}", "--metrics=fidd"), ("'fidd'", "frechet")),
    "suffix": (("base", "sr1"), ("--out={new}.npz",), (".npz", "a directory")),
    "label": (("base", "sr1"), ("--out={new}", "--label=11"), ("label '11'", "0 to 9")),
    "steps of three": (("base", "sr1"), ("--out={new}", "--steps=3", "--steps=4"), ("--steps came 3 times for 2",)),
    "sampler": (("base", "sr1"), ("--out={new}", "--sampler=ddim", "--sampler=x"), ("--sampler came 3 times",)),
    "a file": (("base", "sr1"), ("--out={file}",), ("is a file",)),
    "a full folder": (("base", "sr1"), ("--out={runs}",), ("holds other files",)),
    "other words": (("base", "sr1"), ("--out={started}", "--s=0.2"), ("started with s=[0.1]", "asks for [0.2]")),
    "a sweep in a started folder": (("base", "sr1"), ("--out={started}", "--sweep_s=0.2"), ("was started with",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(name, call, runs, opened, tmp_path):
    """Exit code 2, one line that says what came and what is allowed, and no file written."""
    stages, words, told = WRONG[name]
    started = tmp_path / "started"
    stream.claim(started, cascading.words(opened, cascading.order(opened, (0.1,), False, None, None, 0, 250)))
    (tmp_path / "file").write_text("mine")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    places = {"new": tmp_path / "new", "runs": runs, "file": tmp_path / "file", "started": started}
    code, out, err = call(*(word.format(**places) for word in words), stages=stages)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    for part in told:
        assert part in err, err
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert build.augmentation(opened.runs[1].config).s_max > 0.9  # what 1.5 and 2 are above
