"""jaxdiff plan: on virtual CPU devices what it says is what XLA says, and what it compiles is what training runs."""

import json

import jax
import pytest

from jaxdiff import fit, planning, training
from jaxdiff.hardware import compiling, roofline
from jaxdiff.hardware.chips import V5E
from jaxdiff.hardware.topologies import Topology, open_topology
from jaxdiff.planning import Told
from tests.conftest import ROOT, load

pytestmark = pytest.mark.usefixtures("quick_compile", "elsewhere")
POINTS = f"--config={ROOT}/configs/gaussians25.py:smoke"


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """What is found here is kept nowhere that another run of the tests looks."""
    assert jax.device_count() == 4  # and the backend runs, so that no plan changes how many devices the tests have
    folder = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "folder", lambda: folder)
        yield folder


def points(**overrides):
    """A small network of points, wide enough to be split."""
    small = {"network__width": 64, "data__batch_size": 16, "parallel__min_size": 1}
    return load("gaussians25", "smoke", **{**small, **overrides})


def planned(count=4, sampler=False, **overrides):
    return planning.plan(points(**overrides), open_topology(f"cpu:{count}"), sampler=sampler, progress=False)


@pytest.fixture(scope="module")
def plain(elsewhere):
    return planned()


def test_memory_by_part_adds_up_to_what_xla_says(plain):
    config = points()
    known, _ = planning.facts(config)
    work = planning.training_work(config, known, planning.mesh_of(config, open_topology("cpu:4").devices))
    stats = work.call.lower(*work.args).compile().memory_analysis()
    assert plain.total == (stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
                           + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)
    assert plain.memory["parameters"] == plain.memory["averages (EMA)"] == 4 * plain.parameters
    assert plain.memory["optimizer"] == 8 * plain.parameters + 8  # Adam's two moments, its count and the schedule's
    assert plain.memory["batch"] == 16 / 4 * (2 * 4 + 4)  # two coordinates and a number of each example
    assert plain.memory["padding, less arguments not read"] == 0
    # the state comes back in its own place; the metrics do not
    assert plain.memory["outputs not in place"] == stats.output_size_in_bytes - stats.alias_size_in_bytes < 1000


def test_a_data_parallel_step_sends_its_gradients_and_metrics_and_no_more(plain):
    assert set(plain.messages) == {"all-reduce"}
    scalars = plain.messages["all-reduce"].bytes / 4 - plain.parameters
    assert 1 <= scalars <= 8 and scalars == int(scalars)  # the loss and what else it reports


@pytest.mark.parametrize("ways", [2, 4])
def test_fsdp_splits_the_state(plain, ways):
    split = planned(parallel__fsdp=ways) if ways == 4 else None
    config = points(parallel__fsdp=ways)
    known, _ = planning.facts(config)
    work = planning.training_work(config, known, planning.mesh_of(config, open_topology("cpu:4").devices))
    sizes = {name: planning.bytes_of(tree) for name, tree in work.parts.items()}
    whole = 4 * 2  # the last layer's two biases, which 4 does not divide
    for name, copies in (("parameters", 1), ("averages (EMA)", 1), ("optimizer", 2)):
        rest = copies * whole * (ways == 4) + 8 * (name == "optimizer")
        assert sizes[name] == (plain.memory[name] - rest) / ways + rest
    if split is not None:
        assert {name: split.memory[name] for name in sizes} == sizes  # XLA's arguments have these sizes: nothing is padded
        assert split.memory["padding, less arguments not read"] == 0
        assert {"all-gather", "all-reduce"} & set(split.messages) and split.mesh == {"data": 1, "fsdp": 4}


def test_work_is_counted_for_one_step_of_one_device(plain):
    assert plain.flops == sum(plain.products.values())
    many = planned(train__steps_per_dispatch=2, train__accumulate=2)
    assert many.flops == plain.flops == sum(many.products.values()) and many.unknown_loops == 0
    assert many.memory["batch"] == 2 * plain.memory["batch"] and set(many.messages) == {"all-reduce"}


def test_what_is_planned_is_what_training_compiles(tmp_path):
    config, found = points(train__preview=0), []
    make = training.compiled_step

    def watched(step, state, layout, steps):
        call = make(step, state, layout, steps)

        def run(state, batch):
            found or found.append(call.lower(state, batch).as_text())
            return call(state, batch)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdiff.training.loop.compiled_step", watched)
        fit.train(config, tmp_path, progress=False)
    known, _ = planning.facts(config)
    work = planning.training_work(config, known, planning.mesh_of(config, open_topology("cpu:4").devices))
    assert found == [work.call.lower(*work.args).as_text()]


def test_a_sampler_is_planned(plain):
    drawn = planned(sampler=True, evaluate__batch_size=20, sampler__num_steps=3)
    config = points(sampler__num_steps=3)
    assert drawn.what == "draw" and drawn.examples == 20 and drawn.memory["parameters"] == 4 * plain.parameters
    forward = plain.flops / (16 / 4) / 3 * 5  # of an example; backward is dearer, and Heun makes five calls in three steps
    assert 0.5 * forward < drawn.flops / 5 < 2 * forward and config.sampler.kind == "heun"
    assert drawn.unknown_loops == 0 and drawn.flops == pytest.approx(sum(drawn.products.values()))
    assert "optimizer" not in drawn.memory


def test_what_was_found_is_kept(plain, capsys):
    again = planning.plan(points(), open_topology("cpu:4"))
    assert again == plain and "kept" in capsys.readouterr().err
    for file in compiling.folder().iterdir():
        file.write_bytes(file.read_bytes()[:-20])  # a full disk
        assert compiling._read(file) is None


def on_chips(plan, **given):
    return plan._replace(chip=V5E, topology="v5e:2x2", **given)


def test_the_longest_of_three_times_bounds_a_step(plain):
    plan = on_chips(plain, products={"bf16": 197e12, "f32": 197e12}, traffic=819e9, messages={}, examples=64)
    assert plan.times == {"compute": 2.0, "HBM": 1.0, "links": 0.0} and plan.examples_per_second == 32
    text = "\n".join(roofline.lines(plan))
    assert "at most 32 examples/s" in text and "fits" in text and "2000.000  <- bounds it" in text
    assert roofline.suggest(plan, {}) == () and not plain.times and plain.fits is None


def test_what_does_not_fit_is_told_how_to(plain):
    heavy = on_chips(plain, memory={"parameters": 10 * 2**30, roofline.TEMPORARIES: 8 * 2**30}, examples=64)
    assert heavy.fits is False
    words = {"network.kind": "unet", "network.remat": False, "network.dtype": None, "train.accumulate": 1}
    mended = " ".join(roofline.suggest(heavy, words))
    for word in ("parallel.fsdp=4", "network.remat=True", "network.dtype=bfloat16", "train.accumulate=2"):
        assert word in mended
    light = roofline.suggest(on_chips(plain, memory={"parameters": 2**20, roofline.TEMPORARIES: 2**35}, examples=64), words)
    assert "fsdp" not in " ".join(light) and "train.accumulate=4" in " ".join(light)  # 8 GiB at once
    done = roofline.suggest(heavy, words | {"network.remat": True, "network.dtype": "bfloat16"})
    assert "remat" not in " ".join(done) and "bfloat16" not in " ".join(done)


class Refusing:
    """A lowered program that libtpu finds too large, in its words."""

    def __init__(self, words):
        self.words = words

    def compiler_ir(self, _):
        return self

    operation = property(lambda self: self)

    def get_asm(self, **_):
        return self.words

    def compile(self):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {self.words}")


@pytest.mark.parametrize(("words", "of"), [
    ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm "
     "capacity by 4.75G.", "all"),
    ("E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds "
     "available HBM (15.75G). HLO module: jit_train_step.", "temporaries"),
])  # fmt: skip
def test_a_refused_program_is_a_plan_that_does_not_fit(plain, words, of):
    found = compiling.compiled(Refusing(words), "v5e:2x2", progress=False)
    assert found.refused == {of: 20.5 * 2**30} and compiling.compiled(Refusing(words), "v5e:2x2", progress=False) == found
    config = points()
    known, _ = planning.facts(config)
    devices = open_topology("cpu:4").devices
    mesh = planning.mesh_of(config, devices)
    work = planning.training_work(config, known, mesh)
    plan = planning._made(config, Topology("v5e:2x2", devices, V5E), mesh, known, work, 1.0, found)
    held = sum(planning.bytes_of(tree) for tree in work.parts.values())
    assert plan.fits is False and plan.total == 20.5 * 2**30 + held * (of == "temporaries")
    assert plan.memory["parameters"] == plain.memory["parameters"]
    assert "does not fit" in "\n".join(roofline.lines(plan)) and json.dumps(roofline.as_json(plan))


def test_a_program_that_fails_otherwise_says_why():
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of ideas"):
        compiling.compiled(Refusing("the compiler is out of ideas"), "v5e:2x2", progress=False)


def test_facts_come_from_words_where_data_are_not():
    config = load("imagenet64")
    with pytest.raises(FileNotFoundError, match="--num_classes=N"):
        planning.facts(config)
    known, _ = planning.facts(config, Told(num_classes=1000))
    assert known.shape == (64, 64, 3) and known.num_classes == 1000
    stage, _ = planning.facts(load("imagenet_cascade", "stage=sr256"), Told(1000))
    assert stage.condition == (64, 64, 3) and stage.shape == (256, 256, 3)
    text = load("latent_published", "recipe=text512")
    with pytest.raises(FileNotFoundError, match="--text_width=D"):
        planning.facts(text)
    with pytest.raises(FileNotFoundError, match="--latents=HxWxC"):
        planning.facts(text, Told(text_width=768))
    known, coder = planning.facts(text, Told(text_width=768, latents=(64, 64, 4)))
    assert known.shape == (64, 64, 4) and known.pixels == (512, 512, 3) and known.text == (77, 768) and coder is None


def test_tfds_is_asked_for_what_it_declares(monkeypatch):
    asked = {"cifar10": ((32, 32, 3), 10), "imagenet2012": ((None, None, 3), 1000)}
    monkeypatch.setattr("jaxdiff.data.sources.describe_tfds", asked.get)
    config = load("cifar10", data__options__data_dir="/nowhere")
    known, _ = planning.facts(config)
    assert known.shape == (32, 32, 3) and known.num_classes == 0  # the config asks for no labels
    config = load("cifar10", data__options__data_dir="/nowhere", data__source="tfds:imagenet2012")
    with pytest.raises(FileNotFoundError, match=r"--config.data.size=SIDE$"):
        planning.facts(config)


def test_parameters_of_the_published_imagenet_network_are_counted_and_not_made():
    config = load("imagenet64", data__batch_size=16)
    known, _ = planning.facts(config, Told(1000))
    work = planning.training_work(config, known, planning.mesh_of(config, open_topology("cpu:4").devices))
    assert work.parameters == pytest.approx(295.9e6, rel=0.01)  # EDM's ADM network, Karras et al. 2022: 295.9M
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(work.args))
    assert planning.bytes_of(work.parts["parameters"]) == 4 * work.parameters


def test_the_command_prints_text_and_json(call, plain, tmp_path):
    sizes = ("--config.network.width=64", "--config.parallel.min_size=1", "--batch_size=16")
    code, out, err = call("plan", POINTS, "--topology=cpu:4", *sizes, f"--json={tmp_path}/plan.json")
    assert code == 0 and f"{plain.parameters:,} parameters" in out and "all-reduce" in out and "kept" in err
    held = json.loads((tmp_path / "plan.json").read_text())
    assert held["total"] == plain.total and held["messages"]["all-reduce"]["bytes"] == plain.messages["all-reduce"].bytes
    code, out, err = call("plan", POINTS, "--topology=cpu:4", *sizes, "--json", "--quiet")
    assert code == 0 and json.loads(out) == held and err == ""


@pytest.mark.parametrize(("words", "say"), [
    (("--topology=banana",), "allowed: a name such as"), (("--topology=v5e:4",), "allowed: a name such as"),
    (("--topology=cpu:0",), "allowed: a name such as"), (("--topology=cpu:99",), "runs with 4 CPU devices"),
    (("--topology=cpu:4", "--batch_size=6"), "allowed: a multiple of 4 (4 devices x accumulate 1)"),
    (("--topology=cpu:4", "--sampler", "--batch_size=6"), "the number of samples is 6; allowed: a multiple of 4"),
    (("--topology=cpu:4", "--config.parallel.fsdp=3"), "parallel.fsdp is 3"),
    (("--topology=cpu:4", "--config.parallel.kind=pmap"), "allowed in a plan: mesh"),
    (("--topology=cpu:4", "--latents=64x64"), "height x width x channels"),
    (("--topology=cpu:4", "--num_classes=-1"), "not a whole number from 0"),
    (("--topology=cpu:4", "--config.data.source=folder:nowhere"), "--num_classes=N"), ((), "--topology"),
])  # fmt: skip
def test_wrong_words_are_a_line(call, words, say):
    config = f"--config={ROOT}/configs/imagenet64.py:smoke" if "folder" in str(words) else POINTS
    code, out, err = call("plan", config, *words)
    assert code == 2 and out == "" and say in err and len(err.strip().splitlines()) == 1


def test_a_tpu_without_libtpu_is_a_line(call, monkeypatch):
    monkeypatch.setattr("jaxdiff.hardware.topologies.importlib.util.find_spec", lambda _: None)
    code, _, err = call("plan", POINTS, "--topology=v5e:2x2")
    assert code == 2 and "pip install 'jaxdiff[plan]'" in err and len(err.strip().splitlines()) == 1
