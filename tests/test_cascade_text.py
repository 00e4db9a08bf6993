"""Cascades of runs that read captions: each stage by its own vocabulary, the command line, scores, and wrong words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import cascade_likelihood, cascading, evaluation, realism, stages, stream
from jaxdiff.cascade import sample_cascade
from jaxdiff.cli import main
from jaxdiff.evaluation import captioned_rows, columns_picture
from jaxdiff.judge import Judge
from tests.conftest import ROOT, less_optimized

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

SMALL = ["--config.data.options.captions=True", "--config.data.channels=3", "--config.network.channel_mult=1,",
         "--config.network.attention_resolutions=4,8", "--config.train.preview=0", "--config.optimizer.learning_rate=0.03",
         "--config.ema.decay=0.1", "--config.text.width=16", "--config.text.layers=1", "--config.text.heads=2",
         "--no_evaluate", "--quiet"]
TEXTS = ["a red square", "a blue square"]


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A base of 4x4 squares and a stage to 8x8 that read up to 8 and up to 6 tokens."""
    root = tmp_path_factory.mktemp("cascade")
    with less_optimized(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.device_count", lambda: 1)
        for stage, length in (("base", 8), ("sr1", 6)):
            spec = f"{ROOT}/configs/cascade.py:stage={stage},data=folder:{pictures},sides=4+8,cond=text,smoke"
            # the judge is replaced below; that it is there at all lets pictures without classes be scored
            words = [f"--config.text.length={length}", f"--config.evaluate.classifier={pictures}"]
            assert main(["train", f"--config={spec}", f"--workdir={root / stage}", *SMALL, *words]) == 0
    return root


@pytest.fixture(scope="module")
def opened(runs):
    return cascading.open_cascade([runs / "base", runs / "sr1"], [{"num_steps": 2, "sampler": "ddim"}] * 2)


def test_every_stage_reads_by_its_own_encoder(opened):
    """The drawer's batch is `sample_cascade` of conditions made by each run alone, and every stage listens."""
    asked = cascading.order(opened, (0.1,), False, 4, None, 3, 4, TEXTS)
    drawn = cascading.drawer(opened, asked)(0)
    assert drawn["prompt"].tolist() == TEXTS * 2
    conds = [run.read(TEXTS * 2) for run in opened.runs]
    assert [cond["text"].shape[1] for cond in conds] == [8, 6]
    call = jax.jit(lambda conds: sample_cascade(asked.key(0), opened.stages, opened.params, conds, 4, 0.1))
    same = call(conds)
    for k, x in enumerate(same):
        assert np.abs(drawn[f"stage_{k}"].astype(int) - evaluation.to_uint8(x)).max() <= 1
    other = call([conds[0], opened.runs[1].read(["a white square"] * 4)])
    np.testing.assert_array_equal(other[0], same[0])
    assert np.abs(other[1] - same[1]).max() > 1e-3
    other = call([opened.runs[0].read(["a white square"] * 4), conds[1]])
    assert np.abs(other[0] - same[0]).max() > 1e-3


def test_a_stage_without_captions_is_told_none(opened):
    base, deaf = stages.told([opened.runs[0], opened.runs[1]._replace(reader=None)],
                             {"prompt": TEXTS, "label": np.arange(2)})
    assert set(base) == {"text", "text_mask", "label"} and set(deaf) == {"label"}


def test_captions_are_asked_for_where_no_prompt_is_given(opened):
    asked = cascading.order(opened, (0.1,), False, 7, None, 0, 4)
    assert len(asked.prompt) == 7 and all(text.endswith("square") for text in asked.prompt)
    assert asked.asked(1)["prompt"].tolist() == [*asked.prompt[4:], asked.prompt[0]]


def test_the_bound_is_of_the_captions(opened):
    """It is that of the conditions made by hand, and another text's is another."""
    pictures, given, num = cascade_likelihood._examples(opened.runs, 8, 0, dequantise=True)
    assert num == 8 and len(given["prompt"]) == 8
    bound = jax.jit(lambda conds: cascade_likelihood.cascade_bound(
        jax.random.fold_in(jax.random.key(0), 0), opened.stages, opened.params, [jnp.asarray(x) for x in pictures], conds,
        0.1, 256, num_times=2, trace="hutchinson", num_probes=1, rtol=0.1, atol=0.1).sum(0).mean())
    right = bound(stages.told(opened.runs, given))
    wrong = bound(stages.told(opened.runs, {"prompt": ["a white square a white"] * 8}))
    assert np.isfinite(right) and abs(right - wrong) > 1e-3


def test_commands(runs, tmp_path, capsys, monkeypatch):
    made = Judge(lambda x: evaluation.pixels(jnp.asarray(x))[:, :10], evaluation.pixels, 0.9, 100, "pixels")
    monkeypatch.setattr(realism, "judge_of", lambda run, workdir, progress: made)
    call = ["cascade", f"--stage={runs / 'base'}", f"--stage={runs / 'sr1'}", "--steps=2", "--sampler=ddim", "--quiet"]
    told = [f"--text={text}" for text in TEXTS]
    assert main([*call, *told, f"--out={tmp_path / 'drawn.png'}"]) == 0
    assert "2 samples" in capsys.readouterr().out
    assert main([*call, *told, "--num=3", "--batch_size=2", "--metrics=words,frechet", f"--out={tmp_path / 'parts'}"]) == 0
    said = capsys.readouterr().out
    assert "word_hits" in said and "frechet" in said
    held = list(stream.parts(tmp_path / "parts"))
    assert np.concatenate([part["prompt"] for part in held]).tolist() == [*TEXTS, TEXTS[0]]
    assert main([*call, "--text=a red square by the sea of squares", "--num=2", f"--out={tmp_path / 'long.png'}"]) == 0
    assert "cut to 6, the run's text.length" in capsys.readouterr().err
    assert main([*call, *told, "--sweep_s=0.1", "--num=2", f"--out={tmp_path / 'sweep'}"]) == 0


def test_wrong_words(opened):
    bare = opened._replace(runs=tuple(run._replace(reader=None) for run in opened.runs))
    with pytest.raises(ValueError, match="no run of the cascade was trained with captions; mend"):
        cascading.order(bare, (0.1,), False, 4, None, 0, 4, TEXTS)
    with pytest.raises(ValueError, match=r"size is 16x16 for the run .*; allowed: .* no super-resolution stage"):
        opened.runs[1].at(16, 16)
    with pytest.raises(ValueError, match="3 conditions for 2 stages; allowed: one for all, or one for each"):
        sample_cascade(jax.random.key(0), opened.stages, opened.params, [None] * 3, 4, 0.1)


def test_captions_before_rows():
    """The picture is that of the columns alone, with words before every row and nothing where there are none."""
    columns = {"4 x 4": np.zeros((2, 4, 4, 3), np.float32), "8 x 8": np.ones((2, 8, 8, 3), np.float32)}
    plain = columns_picture(columns)
    page = captioned_rows(columns, ["a very long caption that needs more than one line to be read", ""])
    np.testing.assert_array_equal(page[:, -plain.shape[1] :], plain)
    beside = page[:, : -plain.shape[1]]
    first, second = beside[: page.shape[0] // 2 + 10], beside[page.shape[0] // 2 + 12 :]
    assert first.min() < 100 and (second == second[0, 0]).all()
    with pytest.raises(ValueError, match="1 captions for 2 rows"):
        captioned_rows(columns, ["a"])
