"""Where a config comes from: words, overrides and their types, suggestions, and the way back from a run directory."""

import json

import pytest
from ml_collections import ConfigDict

from jaxdiff import configfile, tables

CONFIG = """
from ml_collections import ConfigDict
from beside import WIDTH
from jaxdiff.configfile import words
from jaxdiff.tables import base

def get_config(arg=""):
    arg = words(arg, steps=10, rate=0.5, method="edm", smoke=False, sizes=(1, 2))
    config = base()
    config.train.steps = 1 if arg.smoke else arg.steps
    config.condition.drop = arg.rate
    config.name = arg.method
    with config.ignore_type():
        config.network.update({"kind": "unet", "channels": WIDTH, "channel_mult": arg.sizes, "scale_shift": True})
    return config
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 24\n")
    path = tmp_path / "own.py"
    path.write_text(CONFIG)
    return str(path)


def refused(call, *parts):
    """One line that holds every one of `parts`."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_words():
    defaults = {"steps": 4, "rate": 0.1, "method": "ddpm", "smoke": False, "sizes": (1,), "free": None}
    read = lambda text: vars(configfile.words(text, **defaults))
    assert read("") == read(None) == defaults
    assert read("smoke") == defaults | {"smoke": True}
    assert read("smoke=false,steps=8") == defaults | {"steps": 8}
    assert read("method=edm,rate=1") == defaults | {"method": "edm", "rate": 1.0}
    assert isinstance(read("rate=1")["rate"], float)
    assert read("free=3")["free"] == 3 and read("free=word")["free"] == "word"
    assert read("sizes=1+2")["sizes"] == (1, 2)
    assert read("method=3")["method"] == "3"  # a word stays a word
    refused(lambda: read("smok"), "'smok'", "steps, rate, method, smoke")
    refused(lambda: read("method"), "'method' needs a value", "method=ddpm")
    refused(lambda: read("steps=many"), "steps is 'many'", "int")
    refused(lambda: read("steps=1.5"), "steps is '1.5'", "int")


def test_load(file, tmp_path):
    config = configfile.load(file)
    assert (config.train.steps, config.network.channels, config.network.channel_mult) == (10, 24, (1, 2))
    assert config.is_locked
    assert configfile.load(f"{file}:smoke,method=flow").name == "flow"
    assert configfile.load(f"{file}:steps=7", [("train.steps", "9")]).train.steps == 9  # flags come last
    refused(lambda: configfile.load(str(tmp_path / "none.py")), "none.py", "configs/digits.py")
    refused(lambda: configfile.load(str(tmp_path)), "no config")
    (tmp_path / "bare.py").write_text("x = 1\n")
    refused(lambda: configfile.load(str(tmp_path / "bare.py")), "has no get_config", "def get_config")


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("train.steps", "1_000", 1000),
        ("condition.drop", "0", 0.0),
        ("condition.drop", "1e-2", 0.01),
        ("condition.label", "false", False),
        ("condition.label", "True", True),
        ("data.source", "folder:a/b=c", "folder:a/b=c"),
        ("data.source", "7", "7"),
        ("data.size", "16", 16),  # a placeholder: None until now, but known to be a whole number
        ("data.size", "None", None),
        ("train.best_metric", "eval/loss", "eval/loss"),
        ("network.channel_mult", "1,2,4", (1, 2, 4)),
        ("network.channel_mult", "(1, 2)", (1, 2)),
        ("network.channel_mult", "3", (3,)),
        ("network.scale_shift", "none", None),  # back to the network's own default
        ("network.dropout", "0.5", 0.5),  # None until now: any literal
        ("evaluate.metrics", "kid,frechet", ("kid", "frechet")),
        ("evaluate.metrics", "kid", ("kid",)),
        ("ema.decay", "None", None),
        ("data.options.scale", "unit2", "unit2"),  # the source's own options are free
        ("data.options.validation", "0.1", 0.1),
        ("name", "a name", "a name"),
    ],
)
def test_override(file, key, text, value):
    config = configfile.load(file, [(key, text)])
    found = configfile.flat(config)[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "key, text, parts",
    [
        ("train.step", "3", ("no key 'train.step'", "train.steps")),
        ("learning_rate", "3", ("optimizer.learning_rate",)),
        ("trian.steps", "3", ("train.steps",)),
        ("sampler.nmu_steps", "3", ("sampler.num_steps",)),
        ("zzz", "3", ("allowed sections: ", "sampler",)),
        ("train", "3", ("no key 'train'",)),
        ("train.steps.more", "3", ("no key",)),
        ("", "3", ("no key",)),
        ("train.steps", "many", ("train.steps is 'many'", "int", "10")),
        ("train.steps", "1.5", ("int",)),
        ("train.steps", "True", ("int",)),
        ("train.steps", "None", ("train.steps is None", "10")),
        ("data.source", "None", ("data.source is None",)),
        ("condition.label", "1", ("bool",)),
        ("condition.drop", "much", ("float",)),
        ("data.size", "wide", ("data.size is 'wide'", "int")),
    ],
)
def test_wrong_overrides(file, key, text, parts):
    refused(lambda: configfile.load(file, [(key, text)]), *parts)


def test_flat():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "f": 3}
    assert configfile.flat(nested) == configfile.flat(ConfigDict(nested)) == {"a.b": 1, "a.c.d": 2, "f": 3}
    assert configfile.flat({"a": {}}) == {"a": {}}


def test_a_run_gives_its_config_back(file, tmp_path):
    own = {"network.channel_mult": "1,2,4", "data.options.scale": "unit2", "data.size": "8", "ema.decay": "None"}
    config = configfile.load(file, list(own.items()))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    back = configfile.from_run(tmp_path)
    assert back.to_dict() == config.to_dict()
    assert back.network.channel_mult == (1, 2, 4)  # JSON has no tuples
    assert back.is_locked


def test_a_run_of_another_version(tmp_path):
    older = tables.base().to_dict()
    del older["train"]["preview"]  # a key that came later takes its default
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert configfile.from_run(tmp_path).to_dict() == tables.base().to_dict()
    older["train"]["gone"] = 3
    (tmp_path / "config.json").write_text(json.dumps(older))
    refused(lambda: configfile.from_run(tmp_path), "'train.gone'", "versions.json")
    for text in ("{", "[1, 2]"):
        (tmp_path / "config.json").write_text(text)
        refused(lambda: configfile.from_run(tmp_path), "config.json")
    refused(lambda: configfile.from_run(tmp_path / "none"), "no run at", "--workdir")


def test_sections_refuse_what_their_kind_does_not_take():
    config = tables.base()
    with config.ignore_type():
        config.sampler.update({"kind": "ddim", "variance": "small"})
    part = {key: value for key, value in config.sampler.items() if key not in tables.SAMPLING}
    refused(lambda: tables.make(tables.SAMPLERS, part, "sampler"), "sampler.variance", "'ddim'", "eta", "variance=None")
    refused(lambda: tables.make(tables.SAMPLERS, {"kind": "dimm"}, "sampler"), "sampler.kind is 'dimm'", "ddim", "unipc")


@pytest.mark.parametrize(
    "table, kind, key, value, allowed",
    [
        ("NETWORKS", "unet", "channels", "wide", "a whole number"),
        ("NETWORKS", "unet", "channels", True, "a whole number"),
        ("NETWORKS", "unet", "channels", 1.5, "a whole number"),
        ("NETWORKS", "unet", "channel_mult", 2, "whole numbers"),
        ("NETWORKS", "unet", "channel_mult", (1, "b"), "whole numbers"),
        ("NETWORKS", "unet", "scale_shift", 1, "True or False"),
        ("NETWORKS", "unet", "level_order", 3, "a word"),
        ("PATHS", "vp", "beta_max", "big", "a number"),
        ("GRIDS", "uniform", "t_end", "late", "a number or None"),
        ("NETWORKS", "unet", "num_blocks", "two", "a whole number or whole numbers"),
    ],
)
def test_option_types(table, kind, key, value, allowed):
    make = lambda v: tables.make(getattr(tables, table), {"kind": kind, key: v}, "part")
    refused(lambda: make(value), f"part.{key} is {value!r}", allowed)


def test_option_types_that_fit():
    for value in (2, (1, 2), [1, 2]):
        assert tables.make(tables.NETWORKS, {"kind": "unet", "num_blocks": value}, "network").num_blocks in (2, (1, 2))
    assert tables.make(tables.PATHS, {"kind": "vp", "beta_max": 10}, "path").beta_max == 10
