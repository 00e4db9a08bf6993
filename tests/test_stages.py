"""A stage as an ordinary run: what its network is told in training and in sampling, and which runs chain."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, configfile, objective, stages
from jaxdiff.cascade import sample_cascade
from jaxdiff.facts import Facts
from jaxdiff.run import Run
from jaxdiff.sde.parameterizations import c_noise

CONFIG = Path(__file__).parent.parent / "configs" / "cascade.py"
BASE, SR = Facts((4, 4, 1), 10, 17, "image"), Facts((8, 8, 1), 10, 17, "image", (), (4, 4, 1))


def load(stage="sr1", words="", **overrides):
    spec = f"{CONFIG}:stage={stage},data=mnist5k,sides=4+8,smoke{words}"
    return configfile.load(spec, [(key.replace("__", "."), str(value)) for key, value in overrides.items()])


def run_of(config, known):
    return Run(config, None, build.path(config), known, build.network(config, known), 0)


class Spy:
    """A network that notes what it is told and answers nothing."""

    def __init__(self):
        self.told = {}

    def apply(self, variables, x, t, cond=None, **how):
        self.told = cond
        return variables["params"] * x


def told_in_training(words, num=4000, **overrides):
    """What the loss of a stage tells its network of pictures of one grey, and that grey."""
    config, spy = load(words=words, **overrides), Spy()
    loss = objective.loss(config, spy, SR).losses["denoiser"]
    grey = jnp.linspace(-1, 1, num)
    batch = {"x": jnp.zeros((num, 8, 8, 1)), "index": jnp.arange(num), "label": jnp.zeros(num, jnp.int32),
             "image": jnp.broadcast_to(grey[:, None, None, None], (num, 4, 4, 1))}
    loss({"denoiser": jnp.zeros(())}, {}, jax.random.key(0), batch, 0)
    return config, spy.told, grey


def test_training_tells_the_noised_picture_and_its_time():
    config, told, grey = told_in_training("", condition__drop=0.3)
    path = build.augmentation(config).path
    s = np.linspace(0, path.t_max, 2001)
    noise_of = np.asarray(c_noise(path, jnp.asarray(s)))
    assert (np.diff(noise_of) > 0).all()
    s = np.interp(told["low_res_t"], noise_of, s)  # what the network can read off low_res_t
    residual = (told["low_res"][..., 0] - path.alpha(s)[:, None, None] * grey[:, None, None]) / path.sigma(s)[:, None, None]
    assert abs(float(residual.mean())) < 0.02 and abs(float(residual.std()) - 1) < 0.01  # 64,000 normal numbers
    u = np.sort(s) / path.t_max
    assert np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max() < 0.03  # uniform: Kolmogorov's .0215 at one in 20
    gone = np.asarray(told["label"]) == 10
    assert 0.27 < gone.mean() < 0.33
    assert abs(np.corrcoef(gone, s)[0, 1]) < 0.05  # the label's draw is none of s


def test_without_augmentation_the_picture_arrives_as_it_is():
    _, told, grey = told_in_training(",augmentation=none", num=8)
    np.testing.assert_array_equal(told["low_res"][:, 0, 0, 0], grey)
    assert set(told) == {"label", "low_res"}
    _, told, grey = told_in_training(",augmentation=blur", num=8)
    np.testing.assert_allclose(told["low_res"][:, 1, 2, 0], grey, atol=1e-6)  # a blur leaves one grey alone
    assert set(told) == {"label", "low_res"}


@pytest.mark.parametrize("augmentation", ["gaussian", "blur"])
def test_the_network_reads_what_it_is_told(augmentation):
    """Every element of the small picture, and s where it is told, moves the answer of a network that is no longer fresh."""
    config = load(words=f",augmentation={augmentation}")
    net = build.network(config, SR)
    params = build.init_params(config, net, SR, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])
    x, low = jax.random.normal(jax.random.key(2), (1, 8, 8, 1)), jax.random.normal(jax.random.key(3), (1, 4, 4, 1))
    call = build.apply(config, net, SR)

    def answer(low, s):
        cond = build.augmentation(config).tell(low, s) | {"label": jnp.zeros(1, jnp.int32)}
        return call(params, x, jnp.ones(1), cond).sum()

    slopes = jax.jit(jax.grad(answer, (0, 1)))(low, 0.3)
    assert (jnp.abs(slopes[0]) > 1e-6).all()
    assert (abs(slopes[1]) > 1e-6) == (augmentation == "gaussian")


def test_sampling_tells_a_picture_noised_to_s():
    config = load()
    spy = Spy()
    run = run_of(config, SR)._replace(network=spy)
    low = jnp.full((500, 4, 4, 1), 0.5)
    for s in (0.0, 0.4):
        run.sampler(num_steps=1, s=s)(jnp.zeros(()), jax.random.key(0), {"image": low}, 500)
        path = build.augmentation(config).path
        assert spy.told["low_res_t"] == pytest.approx(float(c_noise(path, s)))
        mean, std = float(spy.told["low_res"].mean()), float(spy.told["low_res"].std())
        assert mean == pytest.approx(0.5 * float(path.alpha(s)), abs=0.03)
        assert std == pytest.approx(float(path.sigma(s)), abs=0.02)
    for wrong in (-0.1, 2.0):
        with pytest.raises(ValueError, match=rf"^s is {wrong:g}; allowed: 0 to 0.999"):
            run.sampler(s=wrong)
    with pytest.raises(ValueError, match=r"allowed: 0 to 0\.5, the times"):
        run_of(load(words=",s_max=0.5"), SR).sampler(s=0.6)
    with pytest.raises(ValueError, match=r"s is 0.1; allowed: 0 to 0, the times of .* \(it has none\)"):
        run_of(load("base"), BASE).sampler(s=0.1)


def test_runs_that_do_not_chain_get_one_line():
    base, sr = run_of(load("base"), BASE), run_of(load(), SR)
    stages.check_linked([base, sr])
    wide = sr._replace(facts=SR._replace(condition=(2, 2, 1)))
    few, other = (base._replace(facts=BASE._replace(num_classes=n, class_names=names)) for n, names in
                  ((4, ()), (10, ("a", "b"))))
    named = sr._replace(facts=SR._replace(class_names=("a", "c")))
    for runs, message in [
        ([], "no stages; allowed: one run or more"),
        ([sr, base], "needs a 4 x 4 with 1 channel picture itself; mend: .* up"),
        ([base, base], "takes no low-resolution picture; mend"), ([base, wide], "takes pictures of 2 x 2 .* given 4 x 4"),
        ([few, sr], "it has 10 classes, the one before 4 classes"), ([other, named], r"\(a, c, ...\), .* \(a, b, ...\)"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            stages.check_linked(runs)
        assert "\n" not in str(caught.value)


def test_a_stage_is_sampled_as_its_run_is():
    """The run's own options, its guidance and its threshold; refused where the run is none of a cascade."""
    config = load("base", sampler__threshold=1.0)
    run = run_of(config, BASE)
    stage = stages.stage_of(run, num_steps=2, sampler="ddim")
    assert (stage.shape, stage.num_steps, stage.path) == ((4, 4, 1), 2, build.path(config))
    spy = Spy()
    run = run._replace(network=spy)
    clipped = stages.stage_of(run).guidance(run.denoiser(jnp.asarray(1000.0)))
    assert float(jnp.abs(clipped(jax.random.key(0), jnp.ones((2, 4, 4, 1)), jnp.asarray(1.0)).x0).max()) == 1
    with pytest.raises(ValueError, match="sampler"):
        stages.stage_of(run, sampler="no such")
    joint = configfile.load(f"{CONFIG.parent}/inverse.py:smoke")
    with pytest.raises(ValueError, match="is no stage of a cascade"):
        stages.stage_of(run_of(joint, Facts((28, 28, 1), 0, 256, "image", (), (28, 28, 1), True)))


def test_a_few_step_generator_is_a_base_that_is_never_truncated():
    """Its network was trained at its own times only."""
    config = configfile.load(f"{CONFIG.parent}/digits_gan.py:smoke")
    run = run_of(config, Facts((4, 4, 1), 10, 17, "image"))
    stage, after = stages.stage_of(run), stages.stage_of(run_of(load(), SR))
    with pytest.raises(ValueError, match=r"few-step generator, .* mend: truncated=False"):
        sample_cascade(jax.random.key(0), [stage, after], [None, None], num=1, s=0.3, truncated=True)


def test_what_reads_no_small_picture_is_refused():
    records = build.source(load(), "test")
    with pytest.raises(ValueError, match=r"whose small picture only a denoising U-Net reads"):
        build.facts(load(estimator__kind="cmde"), records)
    with pytest.raises(ValueError, match=r"augmentation.kind is 'gaussian' without a low-resolution input"):
        build.facts(load("base", augmentation__kind="gaussian"), records)
    with pytest.raises(ValueError, match=r"stage is 'sr2'; allowed with sides 4\+8: base, sr1"):
        load("sr2")
