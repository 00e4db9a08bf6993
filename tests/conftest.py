"""Test house rules: four virtual CPU devices, a shared compilation cache, strict ranks, and no silent skips in CI."""

import contextlib
import os
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxdiff-test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (240, 240, 240)}


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def call(capsys):
    """The command line: `call(*words) -> (exit code, stdout, stderr)`."""
    from jaxdiff.cli import main

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:  # argparse leaves by itself
            code = left.code
        return code, *capsys.readouterr()

    return run


@contextlib.contextmanager
def less_optimized():
    """Programs compiled here take less time to compile, and more to run: right for ones that run a few times."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # the same small ones again in every test
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def quick_compile():
    """`less_optimized` for a module of tests."""
    with less_optimized():
        yield


@pytest.fixture(scope="module")
def one_device():
    """Training on one device, which compiles less than on the four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        yield


def load(name, words="", **overrides):
    """The config of configs/NAME.py:WORDS; `train__steps=3` sets train.steps."""
    from jaxdiff import configfile

    given = [(key.replace("__", "."), str(value)) for key, value in overrides.items()]
    return configfile.load(f"{ROOT}/configs/{name}.py:{words}", given)


@pytest.fixture(scope="module")
def coder(quick_compile, one_device, tmp_path_factory):
    """The run of a KL autoencoder of 8x8 digits to 4x4x4 latents, four steps old."""
    from jaxdiff import fit

    workdir = tmp_path_factory.mktemp("kl")
    fit.train(load("autoencoder", "data=digits,smoke", train__preview=0), workdir, progress=False)
    return workdir


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """160 plain squares of four colours, 8x8, and what they are."""
    from PIL import Image

    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for i in range(160):
        name = list(COLOURS)[i % 4]
        noisy = np.array(COLOURS[name]) + rng.normal(0, 12, (8, 8, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / f"{i:03d}.png")
        (root / f"{i:03d}.txt").write_text(f"a {name} square")
    return root


@pytest.fixture(scope="session")
def points_run(tmp_path_factory):
    """The directory of a tiny class-conditional run on the 25 Gaussians, trained by the command line; do not write to it."""
    from jaxdiff.cli import main

    workdir = tmp_path_factory.mktemp("runs") / "points"
    with less_optimized():
        code = main(["train", f"--config={ROOT}/configs/gaussians25.py:smoke", f"--workdir={workdir}", "--no_evaluate",
                     "--quiet", "--config.condition.label=True", "--config.train.checkpoint_every=2"])
    assert code == 0
    return workdir


def pytest_collection_modifyitems(items):
    """The notebooks first: begun last, they would keep one worker at work alone for minutes."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """On CI nothing may skip: a parity or TFDS test without its peer is a hole, not a pass. The one exception is the emoji
    font, a system package that pip cannot bring."""
    outcome = yield
    report = outcome.get_result()
    font = "fonts-noto-color-emoji" in str(report.longrepr)
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail") and not font:
        report.outcome = "failed"
        report.longrepr = f"skipped on CI, where every extra must be installed: {report.longrepr}"
