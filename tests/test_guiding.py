"""Words of guidance: what they mean, what they read from other runs, and one line for whatever is wrong."""

import inspect
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import build, configfile, guiding, judge, score, tables
from jaxdiff.benchmark import comparisons
from jaxdiff.cli import main
from jaxdiff.flags import WAYS_OF_GUIDANCE
from jaxdiff.run import Run
from tests.conftest import less_optimized

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIGS = Path(__file__).parent.parent / "configs"
LABELS = {"label": jnp.array([0, 3, 24, 7])}
KEY = jax.random.key(5)
LOAD = lambda *args, **how: pytest.fail("no other run is needed")


def lively(run, seed=0, size=0.12):
    """A run with random parameters: a few steps of training hardly tell one class, or one run, from another. Larger ones
    would be chaotic: three steps would turn a last bit into a digit."""
    rng = np.random.default_rng(seed)
    return run._replace(params=jax.tree.map(lambda p: jnp.asarray(rng.normal(0, size, p.shape), p.dtype), run.params))


def fresh(name, words="smoke", overrides=()):
    """A run of a config, with random parameters and without a directory."""
    config = configfile.load(f"{CONFIGS}/{name}.py:{words}", overrides)
    known = build.facts(config, build.source(config, "train"))
    net = build.network(config, known)
    path = None if config.path.kind == "none" else build.path(config)
    shapes = jax.eval_shape(lambda key: build.init_params(config, net, known, key), KEY)
    return lively(Run(config, shapes, path, known, net, 4), size=0.4)


@pytest.fixture(scope="module")
def run(points_run):
    return lively(jd.load_run(points_run))


@pytest.fixture(scope="module")
def digits():
    return fresh("digits")


@pytest.fixture(scope="module")
def noisy(digits):
    """A classifier of noisy digits with random parameters, and a loader that hands it out."""
    other = fresh("noisy_classifier")
    return other, lambda directory, **how: other


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory, points_run):
    """The directory of a classifier of noisy digits, trained by the command line, and what that printed."""
    workdir = tmp_path_factory.mktemp("runs") / "noisy"
    with less_optimized(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.device_count", lambda: 1)
        assert main(["train", f"--config={CONFIGS}/noisy_classifier.py:smoke", f"--workdir={workdir}", "--quiet"]) == 0
    return workdir


def draws(run, guidance, cond=LABELS, **how):
    return jax.jit(run.sampler(num_steps=3, guidance=guidance, **how), static_argnums=3)(run.params, KEY, cond, 4)


def by_hand(run, wrap, cond=LABELS):
    """The same draws with a Guidance made of the library's own parts."""
    heun = jd.samplers.heun()

    @jax.jit
    def program(params):
        k_prior, k_steps = jax.random.split(KEY)
        x_T = jd.sde.prior(run.path, k_prior, jnp.zeros((4, *run.facts.shape)))
        return jd.samplers.sample(heun, wrap(run.denoiser(params)), run.path, heun.grid(run.path, 3), k_steps, x_T, cond)

    return program(run.params)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def differ(a, b):
    assert float(jnp.abs(a - b).max()) > 0.05


# --- what words mean ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["3", 3, np.float32(3), "classifier_free:scale=3", "classifier_free:scale=3e0,rescale=0",
                                   "classifier_free:scale=3,interval=none", " 3 "])
def test_a_scale_in_every_spelling(run, words):
    (guide,) = guiding.guides(words, run, LOAD)
    x, t = jax.random.normal(KEY, (4, 2)), jnp.float32(0.7)
    want = jd.guidance.classifier_free(3.0, 25)(run.denoiser(run.params))(KEY, x, t, LABELS)
    np.testing.assert_array_equal(guide.wrap(run.denoiser(run.params))(KEY, x, t, LABELS).x0, want.x0)
    assert guide.asks


@pytest.mark.parametrize("words", [None, 1, 1.0, np.float64(1), "1", "1.0", "none"])
def test_the_plain_model(run, words):
    assert guiding.guides(words, run, LOAD) == ()


def test_options_reach_the_function(run, monkeypatch):
    """Every option of every row, typed as the function has it."""
    seen = {}
    for kind, row in guiding.GUIDANCE.items():
        record = lambda kind: lambda *args, **how: seen.setdefault(kind, how)
        spy = record(kind)
        spy.__signature__ = inspect.signature(row)
        monkeypatch.setitem(guiding.GUIDANCE, kind, spy)
    guiding.guides("classifier_free:scale=-2,interval=1e-3-5e+1,rescale=.7+classifier:run=3,scale=4+"
                   "autoguidance:run=a/b-c.d,scale=2,interval=0-inf,step=20,raw=true+dynamic_threshold:percentile=0.9,"
                   "bound=2+static_threshold", run, LOAD)
    guided = {"path": run.path, "num_classes": 25, "guided": run, "load": LOAD}
    words = {kind: {k: v for k, v in how.items() if k not in guided} for kind, how in seen.items()}
    assert words == {
        "classifier_free": {"scale": -2, "interval": (1e-3, 50.0), "rescale": 0.7},
        "classifier": {"run": "3", "scale": 4},
        "autoguidance": {"run": "a/b-c.d", "scale": 2, "interval": (0.0, float("inf")), "step": 20, "raw": True},
        "dynamic_threshold": {"percentile": 0.9, "bound": 2},
        "static_threshold": {},
    }
    for how in seen.values():
        assert all(value is guided[name] for name, value in how.items() if name in guided and name != "num_classes")


def test_a_stack_goes_from_left_to_right(run):
    """The first is nearest the network, in one call; the order matters; --threshold comes after all of it."""
    free, clip = jd.guidance.classifier_free(6.0, 25), jd.guidance.static_threshold(run.path, 0.5)
    words = ["classifier_free:scale=6", "static_threshold:bound=0.5"]
    plain, x = lively(run, size=0.4).denoiser(lively(run, size=0.4).params), jax.random.normal(KEY, (4, 2))

    def once(text):
        denoise = plain
        for guide in guiding.guides(text, run, LOAD):
            denoise = guide.wrap(denoise)
        return denoise(KEY, x, jnp.float32(0.7), LABELS).x0

    clipped, guided = once("+".join(words)), once("+".join(words[::-1]))
    np.testing.assert_array_equal(clipped, clip(free(plain))(KEY, x, jnp.float32(0.7), LABELS).x0)
    np.testing.assert_array_equal(guided, free(clip(plain))(KEY, x, jnp.float32(0.7), LABELS).x0)
    assert float(jnp.abs(clipped).max()) == 0.5 and float(jnp.abs(guided).max()) > 0.6
    close(draws(run, "6", threshold=15.0), draws(run, "6+static_threshold:bound=15"))
    differ(draws(run, "6", threshold=15.0), draws(run, "6"))
    counts = [len(guiding.guides(words, run, LOAD)) for words in ("classifier_free:scale=1e+1", "2e+0+static_threshold")]
    assert counts == [1, 2]  # the + of an exponent joins nothing


def test_the_config_says_it(run):
    """`sampler.guidance` takes a number or words; what is asked for in Python comes before it."""
    base = tables.base()
    for text, held in (("2.5", 2.5), ("classifier_free:scale=2.5", "classifier_free:scale=2.5"), ("none", None)):
        configfile.override(base, "sampler.guidance", text)
        assert base.sampler.guidance == held
        with base.ignore_type():
            base.sampler.guidance = None
    config = run.config.copy_and_resolve_references().unlock()
    config.sampler.guidance = "classifier_free:scale=4"
    told = run._replace(config=config)
    np.testing.assert_array_equal(draws(told, None), draws(run, 4.0))
    np.testing.assert_array_equal(draws(told, 1), draws(run, None))
    differ(draws(told, None), draws(run, None))


def test_without_a_class(run, points_run):
    """Where no class is asked for, what leads to one is left out and the rest stays; so it is for a run without classes."""
    plain = draws(run, None, None)
    np.testing.assert_array_equal(draws(run, 5.0, None), plain)
    cost = lambda words: jax.jit(run.sampler(num_steps=3, guidance=words), static_argnums=3).lower(
        run.params, KEY, None, 4).cost_analysis()["flops"]
    assert cost(5.0) == cost(1.0)
    clip = jd.guidance.static_threshold(run.path, 0.5)
    null = {"label": jnp.full(4, 25)}
    close(draws(run, "classifier_free:scale=5+static_threshold:bound=0.5", None), by_hand(run, clip, null))
    own = draws(run, clip, None)  # a Guidance of one's own is always there
    close(own, by_hand(run, clip, null))
    differ(own, plain)
    unlabelled = run._replace(facts=run.facts._replace(num_classes=0))
    weak = lambda directory, **how: lively(unlabelled, 1)
    assert [guide.asks for guide in guiding.guides("autoguidance:run=x,scale=2+dynamic_threshold", unlabelled, weak)] == [
        False, False]
    for words in (2.0, "2", "classifier_free:scale=1.5", "classifier:run=x,scale=2"):
        with pytest.raises(ValueError, match="leads towards a class or a text, and this run has none; mend"):
            guiding.guides(words, unlabelled, LOAD)


# --- other runs ---------------------------------------------------------------------------------------------------------


def test_autoguidance_by_an_earlier_step(run, points_run):
    """From its directory, averaged or raw; as constants, so that the sampler is a pure function of its own parameters."""
    made = []
    for words, how in (("", {}), (",step=2", {"step": 2}), (",step=2,raw=true", {"step": 2, "ema": False})):
        weak = jd.load_run(points_run, **how)
        made.append(draws(run, f"autoguidance:run={points_run},scale=3{words}"))
        close(made[-1], by_hand(run, jd.guidance.autoguidance(weak.denoiser(weak.params), 3.0)))
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])
    differ(made[0], draws(run, None))


def test_it_is_still_a_pure_function(run, points_run):
    """jit = eager; built inside another program; vmapped, differentiated and exported."""
    words = f"autoguidance:run={points_run},scale=2,interval=0.1-10+classifier_free:scale=2"
    draw = run.sampler(num_steps=3, guidance=words)
    want = jax.jit(draw, static_argnums=3)(run.params, KEY, LABELS, 4)
    close(draw(run.params, KEY, LABELS, 4), want)
    close(jax.jit(lambda params: run.sampler(num_steps=3, guidance=words)(params, KEY, LABELS, 4))(run.params), want)
    keys = jnp.stack([jax.random.key(1), KEY])
    close(jax.jit(jax.vmap(lambda key: draw(run.params, key, LABELS, 4)))(keys)[1], want)
    slope = jax.jit(jax.grad(lambda params: (draw(params, KEY, LABELS, 4) ** 2).mean()))(run.params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))
    exported = jax.export.export(jax.jit(lambda params: draw(params, KEY, LABELS, 4)))(run.params)
    close(jax.export.deserialize(exported.serialize()).call(run.params), want)


def test_classifier_of_a_run(digits, noisy):
    """Words and the library's own parts make one step; the null label is not led anywhere."""
    other, load = noisy
    (guide,) = guiding.guides("classifier:run=x,scale=30", digits, load)
    logits = lambda p, x, t, cond: other.network.apply({"params": p}, x, t)
    log_prob = jd.guidance.classifier_log_prob(logits, other.params, other.path)
    want = jd.guidance.classifier(log_prob, 30.0, digits.path)
    cond = {"label": jnp.array([3, 9, 10])}
    x, t = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.float32(0.8)
    plain = digits.denoiser(digits.params)
    made, by_parts, before = (jax.jit(lambda x, d=d: d(KEY, x, t, cond).x0)(x)
                              for d in (guide.wrap(plain), want(plain), plain))
    close(made, by_parts)
    differ(made[:2], before[:2])
    close(made[2], before[2])
    ahead, behind = (log_prob(x, t, cond)[:2] for x in (x + 1e-2 * (made - before), x))
    assert guide.asks and bool((ahead > behind).all())  # the gradient points to where the class is likelier


def test_a_diffused_condition_beside_the_picture(digits, noisy):
    """The classifier reads x alone, by x's path."""
    load = noisy[1]
    joint = digits._replace(path={"x": digits.path, "y": jd.sde.VE()})
    (guide,) = guiding.guides("classifier:run=x,scale=5", joint, load)
    (alone,) = guiding.guides("classifier:run=x,scale=5", digits, load)
    x = {"x": jax.random.normal(KEY, (2, 8, 8, 1)), "y": jnp.ones((2, 8, 8, 1))}
    same = lambda key, x_t, t, cond=None: jd.Prediction(x_t, x_t)
    cond, t = {"label": jnp.array([3, 9])}, jnp.float32(0.5)
    out = guide.wrap(same)(KEY, x, t, cond)
    close(out.x0["x"], alone.wrap(same)(KEY, x["x"], t, cond).x0)
    np.testing.assert_array_equal(out.x0["y"], x["y"])


def changed(run, **facts):
    return run._replace(facts=run.facts._replace(**facts))


NAMES = tuple("abcdefghij")
MISFITS = {
    "a denoiser as classifier": ("classifier", lambda run, noisy: run, ("is a denoiser", "configs/noisy_classifier.py")),
    "clean classifier": ("classifier", lambda run, noisy: noisy._replace(path=None),
                         ("is a classifier of clean data", "noisy")),
    "classifier of another path": ("classifier", lambda run, noisy: fresh("noisy_classifier", "smoke,method=flow"),
                                   ("other noise levels: with path.kind=flow and this run with edm", "this run's method")),
    "classifier of other classes": ("classifier", lambda run, noisy: changed(noisy, num_classes=7),
                                    ("classes 7, and", "10")),
    "classifier of another shape": ("classifier", lambda run, noisy: changed(noisy, shape=(16, 16, 1)),
                                    ("shape (16, 16, 1), and", "(8, 8, 1)")),
    "classifier of other names": ("classifier", lambda run, noisy: changed(noisy, class_names=NAMES),
                                  ("other classes (a, b, c, ...)", "than this run (0, 1, 2")),
    "a classifier as weak model": ("autoguidance", lambda run, noisy: noisy,
                                   ("is a classifier; allowed: the run of a denoiser",)),
    "weak model of another path": ("autoguidance", lambda run, noisy: run._replace(
        path=jd.sde.EDM(sigma_max=20.0), config=fresh("digits", overrides=[("path.sigma_max", "20.")]).config),
        ("path.sigma_max=20.0 and this run with None", "weaker run")),
    "weak model of another shape": ("autoguidance", lambda run, noisy: changed(run, shape=(8, 8, 3)), ("(8, 8, 3), and",)),
    "weak model without classes": ("autoguidance", lambda run, noisy: changed(run, num_classes=0), ("classes 0, and", "10")),
    "weak model of another condition": ("autoguidance", lambda run, noisy: changed(run, condition=(8, 8, 1)),
                                        ("condition (8, 8, 1), and",)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_runs_that_do_not_fit(name, digits, noisy):
    kind, other, parts = MISFITS[name]
    found = other(digits, noisy[0])
    with pytest.raises(ValueError) as error:
        guiding.guides(f"{kind}:run=runs/other,scale=2", digits, lambda directory, **how: found)
    message = str(error.value)
    assert "\n" not in message and f"guidance {kind}:run=runs/other " in message
    assert all(part in message for part in parts), message


# --- wrong words --------------------------------------------------------------------------------------------------------

WRONG = {
    "strong": ("guidance is 'strong'; allowed: a number, or one of classifier_free, classifier, autoguidance",),
    "": ("guidance is ''; allowed: a number",),
    "2+": ("guidance is '2+'; allowed",),
    "classifer_free:scale=2": ("guidance is 'classifer_free:scale=2'", "--guidance=classifier_free:scale=2"),
    "classifier_free:scale=2+clip:bound=1": ("guidance is 'clip:bound=1'", "dynamic_threshold"),
    "classifier_free": ("guidance classifier_free has no scale; mend: classifier_free:scale=",),
    "classifier_free:": ("has no scale",),
    "classifier_free:2": ("guidance classifier_free has '2'; allowed, each once: scale=..., interval=..., rescale=...",),
    "classifier_free:scale=2,scal=3": ("has 'scal=3'; allowed", "scale=..., interval=..., rescale=..."),
    "classifier_free:scale=2,scale=3": ("has 'scale=3' again", "each once"),
    "classifier_free:scale=2,path=vp": ("has 'path=vp'; allowed",),
    "classifier_free:scale=": ("has no scale",),
    "classifier_free:scale=none": ("has no scale",),
    "classifier_free:scale=abc": ("guidance classifier_free.scale is 'abc'; allowed: a number",),
    "classifier_free:scale=true": ("scale is True; allowed: a number",),
    "classifier_free:scale=nan": ("guidance scale is nan; allowed: a finite number",),
    "inf": ("guidance scale is inf; allowed: a finite number",),
    "true": ("scale is True; allowed",),
    "classifier_free:scale=2,interval=3": ("interval=3; allowed: LOW-HIGH", "interval=0.3-5"),
    "classifier_free:scale=2,interval=0.3.1-5": ("interval=0.3.1-5; allowed",),
    "classifier_free:scale=2,interval=5-0.3": ("interval is (5.0, 0.3)", "low <= high"),
    "classifier_free:scale=2,rescale=2": ("rescale is 2; allowed: a number from 0",),
    "classifier:scale=2": ("guidance classifier has no run; mend: classifier:run=",),
    "classifier:run=,scale=2": ("guidance classifier has no run",),
    "autoguidance:run=somewhere": ("guidance autoguidance has no scale",),
    "autoguidance:run=somewhere,scale=2,step=ten": ("autoguidance.step is 'ten'; allowed: a whole number",),
    "autoguidance:run=somewhere,scale=2,raw=yes": ("autoguidance.raw is 'yes'; allowed: True or False",),
    "dynamic_threshold:percentile=99.5": ("percentile is 99.5; allowed: a share above 0, up to 1",),
    "static_threshold:bound=-1": ("threshold is -1; allowed: a number above 0",),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, run):
    with pytest.raises(ValueError) as error:
        run.sampler(guidance=words)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in WRONG[words]), message


@pytest.mark.parametrize("guidance", [True, [2.0], {"scale": 2}])
def test_what_is_no_word(run, guidance):
    with pytest.raises(ValueError, match=r"scale is .*allowed: a number"):
        run.sampler(guidance=guidance)


def test_no_run_there(run, tmp_path, points_run):
    with pytest.raises(FileNotFoundError, match="no run at"):
        run.sampler(guidance=f"classifier:run={tmp_path},scale=2")
    with pytest.raises(FileNotFoundError, match=r"step 3 .* it has 2, 4"):
        run.sampler(guidance=f"autoguidance:run={points_run},scale=2,step=3")


# --- the command line ---------------------------------------------------------------------------------------------------


def test_the_help_names_every_way_and_option():
    for kind, row in guiding.GUIDANCE.items():
        about = WAYS_OF_GUIDANCE.split(f"\n  {kind} ")[1].split("\n  " + next(
            (other for other in tuple(guiding.GUIDANCE)[tuple(guiding.GUIDANCE).index(kind) + 1 :]), "for example"))[0]
        for option in set(inspect.signature(row).parameters) - set(guiding.DERIVED):
            assert f"{option}" in about, f"{kind}:{option}"


def test_its_examples_are_words(run, noisy):
    """Each line of the help's examples is read, its runs apart."""
    lines = [line.strip() for line in WAYS_OF_GUIDANCE.split("for example\n")[1].splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert guiding.guides(line.removeprefix("--guidance="), run, lambda directory, **how: run)


def test_sample_and_evaluate(points_run, tmp_path, capsys):
    workdir = shutil.copytree(points_run, tmp_path / "run")
    words = f"--guidance=autoguidance:run={points_run},step=2,scale=2+dynamic_threshold:bound=4"
    assert main(["sample", f"--workdir={workdir}", "--num=4", f"--out={tmp_path}/a.npz", words]) == 0
    assert np.isfinite(np.load(tmp_path / "a.npz")["samples"]).all()
    for given, held in (("classifier_free:scale=2,interval=0.1-3", "classifier_free:scale=2,interval=0.1-3"), ("2", 2.0)):
        assert main(["evaluate", f"--workdir={workdir}", "--num=25", f"--guidance={given}"]) == 0
        assert json.loads((workdir / "evaluation" / "step_000004.json").read_text())["guidance"] == held
    capsys.readouterr()
    for wrong in ("abc", f"classifier:run={tmp_path},scale=2", f"classifier:run={points_run},scale=2"):
        assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path}/b.npz", f"--guidance={wrong}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("jaxdiff: ") and len(err.splitlines()) == 1, err
    assert not (tmp_path / "b.npz").exists()


def test_a_noisy_classifier_trains(noisy_run, tmp_path, capsys):
    """It tells its accuracy by noise level, guides a run of its method, and is no judge of clean pictures."""
    other = jd.load_run(noisy_run)
    assert other.path == jd.sde.EDM() and other.facts.num_classes == 10 and other.config.loss.smoothing is None
    capsys.readouterr()
    again = ["train", f"--config={CONFIGS}/noisy_classifier.py:smoke", f"--workdir={noisy_run}", "--quiet"]
    assert main(again) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 6 and all(line.startswith("accuracy ") and "on 359 held-out pictures at noise level" in line
                                   for line in lines)
    assert [float(line.split("noise level ")[1].split()[0]) for line in lines] == [0.002, 0.1, 0.5, 1, 2, 5]
    with pytest.raises(ValueError, match="classifier of noisy pictures, for guidance, and no judge of clean ones; mend"):
        judge.from_run(other)
    with pytest.raises(ValueError, match="is a classifier"):
        other.sampler()


def test_accuracy_by_noise_level(noisy):
    """A network that reads its noise level is right as often as the label it names there is held out; levels that the
    path never meets are left out."""
    other, _ = noisy
    labels = score.real_examples(other, "test")["label"]
    share = np.bincount(labels) / len(labels)
    few, many = share.argmin(), share.argmax()

    class Reads:
        def apply(self, params, x, t):
            return jax.nn.one_hot(jnp.where(t < np.log(0.9) / 4, few, many), 10)

    found, n = judge.noisy_accuracy(other._replace(network=Reads()), (0.001, 0.5, 1.0, 100.0))
    assert n == 359 and list(found) == pytest.approx([0.002, 0.5, 1.0])
    assert list(found.values()) == pytest.approx([share[few], share[few], share[many]]) and share[few] < share[many]


@pytest.mark.parametrize("method", ["ddpm", "iddpm", "score_vp", "score_ve", "subvp", "edm", "flow"])
def test_the_config_has_the_path_of_the_method(method):
    ours = configfile.load(f"{CONFIGS}/noisy_classifier.py:data=mnist5k,side=28,method={method}")
    theirs = configfile.load(f"{CONFIGS}/mnist5k.py:method={method}")
    assert build.path(ours) == build.path(theirs) and ours.times.to_dict() == theirs.times.to_dict()
    assert ours.data.source == "mnist5k" and ours.loss.kind == "classification" and ours.network.patch_size == 2


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is 'emd'; allowed: ddpm, iddpm"):
        configfile.load(f"{CONFIGS}/noisy_classifier.py:method=emd")


def test_bench_compares_a_guided_call_with_a_plain_one_of_twice_the_batch(run):
    words = str(comparisons.guided(run, 4, 0.0)).split()
    assert words[0] == "guidance" and words[2] == "x" and 0.2 < float(words[1]) < 5
    assert "guided call of 4:" in " ".join(words) and "plain one of 8:" in " ".join(words)
