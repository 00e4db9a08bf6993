"""The classification accuracy score: real pictures in place of samples reach the ceiling, and each fault costs its class."""

import json

import jax
import numpy as np
import pytest

from jaxdiff import build, cas, cli, configfile, data, score, tables, training
from jaxdiff.judge import classifier_config
from jaxdiff.run import Run
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")


@pytest.fixture(scope="module")
def classifier():
    """A classifier of 8x8 digits that learns in 100 steps of 64."""
    config = classifier_config(tables.base().data, 8, steps=100)
    config.data.batch_size = 64
    config.network.update({"channels": 16, "channel_mult": (1,), "dropout": 0.0})
    with config.ignore_type():
        config.network.patch_size = 2
        config.optimizer.learning_rate = 1e-2
    return config.lock()


@pytest.fixture(scope="module")
def digits(classifier):
    """The real training split, in another order than its own: 1,438 pictures and labels."""
    known = build.facts(classifier, build.source(classifier, "train"))
    found = build.examples(classifier, known, "train")
    order = np.random.default_rng(0).permutation(len(found["x"]))
    return found["x"][order], found["label"][order]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("cas")


@pytest.fixture(scope="module")
def of_real(classifier, digits, workdir):
    """The scores of real pictures as samples, after a first call that a signal stopped before its first step."""
    stopped = training.Outcome(None, 0, 15, {})  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdiff.fit.train", lambda *_: stopped)
        with pytest.raises(KeyboardInterrupt, match="call again to go on"):
            cas.classification_accuracy(classifier, *digits, workdir, progress=False)
    assert len(list(workdir.glob("cas/samples-*/pictures.npz"))) == 1
    return cas.classification_accuracy(classifier, *digits, workdir, progress=False)


def test_real_pictures_as_samples_reach_the_ceiling(of_real):
    assert of_real["cas_real"] > 0.85 and of_real["cas"] == pytest.approx(of_real["cas_real"], abs=0.07)
    assert (of_real["cas_n"], of_real["cas_trained_on"], of_real["cas_real_trained_on"]) == (359, 1438, 1438)


def test_faults_cost_their_classes(classifier, digits, of_real, workdir):
    """Samples of 0 and 1 drawn for each other, and no 9, in as many samples: those classes are never read, others are."""
    x, label = digits
    rows = np.resize(np.flatnonzero(label != 9), len(label))
    asked = np.array([1, 0, 2, 3, 4, 5, 6, 7, 8])[label[rows]]
    found = cas.classification_accuracy(classifier, x[rows], asked, workdir, progress=False)
    of_class = found["cas_per_class"]
    assert of_class[0] < 0.05 and of_class[1] < 0.2 and of_class[9] == 0
    assert all(of_class[c] > 0.6 for c in range(2, 9))
    assert list(of_class) == list(range(10)) and min(found["cas_real_per_class"].values()) > 0.6
    # the whole is the mean over test pictures, and the classifier of real ones was not trained anew
    test_label = build.examples(classifier, build.facts(classifier, build.source(classifier, "train")), "test")["label"]
    assert found["cas"] == pytest.approx(np.mean([of_class[c] for c in test_label]))
    assert found["cas_real"] == of_real["cas_real"] and len(list(workdir.glob("cas/real-*"))) == 1


def test_only_the_same_samples_find_their_classifier(classifier, digits, of_real, workdir, monkeypatch):
    """The same again, as 8 bits too, trains nothing; another pixel, label or classifier does. No picture is left behind."""

    def refuse(config, home, *_):
        raise ArithmeticError(f"asked to train in {home.name}")

    monkeypatch.setattr("jaxdiff.fit.train", refuse)
    x, label = digits
    pixels = np.rint((x + 1) * 127.5).astype(np.uint8)
    assert cas.classification_accuracy(classifier, x, label, workdir) == of_real
    assert cas.classification_accuracy(classifier, pixels, label, workdir) == of_real
    assert not list(workdir.glob("cas/*/pictures.npz"))
    other_x, other_label, other_seed = pixels.copy(), label.copy(), classifier.copy_and_resolve_references().unlock()
    other_x[7, 3, 3] ^= 1
    other_label[7] = (label[7] + 1) % 10
    other_seed.seed = 1
    for change in ((classifier, other_x, label), (classifier, x, other_label), (other_seed, x, label)):
        with pytest.raises(ArithmeticError, match="asked to train in samples-"):
            cas.classification_accuracy(*change, workdir, progress=False)


def test_real_pictures_are_drawn_evenly():
    """Of 60, 30, 6 and 4 records every class gives one in turn for as long as it has any."""
    label = np.random.default_rng(1).permutation(np.repeat(np.arange(4), (60, 30, 6, 4)))
    records = data.open_source("arrays", "train", x=np.zeros((100, 2, 2, 1), np.uint8), label=label, test=0.0)
    for num, counts in {12: [3, 3, 3, 3], 19: [5, 5, 5, 4], 24: [7, 7, 6, 4], 50: [20, 20, 6, 4]}.items():
        chosen = cas._even(records, num)
        assert np.bincount(label[chosen]).tolist() == counts and len(np.unique(chosen)) == num
    assert cas._even(records, 200).tolist() == list(range(100))


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda x, y: (x[:, :4], y), ("(5, 4, 8, 1)", "(N, 8, 8, 1)")),
        (lambda x, y: (x[:0], y[:0]), ("at least one",)),
        (lambda x, y: (x.astype(np.int32), y), ("int32", "uint8")),
        (lambda x, y: (x * np.nan, y), ("NaN",)),
        (lambda x, y: (x, y[:4]), ("(4,)", "(5,)")),
        (lambda x, y: (x, y.astype(np.float32)), ("float32", "integers")),
        (lambda x, y: (x, y + 10), ("10", "0 to 9")),
    ],
)
def test_refused_samples(classifier, digits, tmp_path, change, parts):
    with pytest.raises(ValueError) as caught:
        cas.classification_accuracy(classifier, *change(digits[0][:5], np.zeros(5, np.int32)), tmp_path)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run():
    """A smoke run of class-conditional digits with fresh parameters: its samples are noise."""
    config = configfile.load(f"{ROOT}/configs/digits.py:smoke")
    known = build.facts(config, build.source(config, "train"))
    network = build.network(config, known)
    params = build.init_params(config, network, known, jax.random.key(0))
    return Run(config, params, build.path(config), known, network, 4)


def test_the_command_prints_it(run, tmp_path, monkeypatch, capsys):
    """Whole, per class and the ceiling, by smoke classifiers of a smoke run; nothing else is trained for it."""
    monkeypatch.setattr("jaxdiff.run.load_run", lambda *_, **__: run)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--metrics=cas", "--num=20"]) == 0
    printed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("cas"))
    assert {"cas", "cas_real", "cas_per_class", "cas_real_per_class"} <= set(printed)
    assert (printed["cas_n"], printed["cas_trained_on"], printed["cas_real_trained_on"]) == ("359", "20", "20")
    assert printed["cas_per_class"].startswith("0 ") and printed["cas_per_class"].count(",") == 9
    held = json.loads((tmp_path / "evaluation" / "step_000004.json").read_text())
    assert float(printed["cas"]) == pytest.approx(held["cas"], abs=1e-4) and len(held["cas_per_class"]) == 10
    assert "classifier_accuracy" not in held and not (tmp_path / "classifier").exists()
    (trained,) = (tmp_path / "cas").glob("samples-*")
    assert training.steps(trained) == [4] and configfile.from_run(trained).data.source.startswith("npz:")


def test_only_when_asked_for_and_only_with_classes(run, tmp_path):
    assert "cas" not in score.check_metrics(run.config, run.facts)
    assert score.check_metrics(run.config, run.facts, ("cas",)) == ("cas",)
    plain = run._replace(facts=run.facts._replace(num_classes=0))
    with pytest.raises(ValueError, match="metric is 'cas', which needs classes"):
        score.score(plain, tmp_path, 4, ("cas",))
    with pytest.raises(ValueError, match="class-conditional"):
        cas.of_run(plain, np.zeros((4, 8, 8, 1)), None, tmp_path)
    stage = run._replace(facts=run.facts._replace(condition=(4, 4, 1)))
    with pytest.raises(ValueError, match="stage alone would train on"):
        score.score(stage, tmp_path, 4, ("cas",))
    assert not list(tmp_path.iterdir())
