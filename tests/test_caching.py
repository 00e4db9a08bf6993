"""Cached latents: moments and not a draw, the same run with and without, made in parts, refused where they do not fit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, caching, codec, data, fit, training
from jaxdiff.facts import Facts
from jaxdiff.latents import of_network
from jaxdiff.run import load_run
from jaxdiff.trees import example_keys
from tests.conftest import load

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")


@pytest.fixture(scope="module")
def latents(coder):
    run = load_run(coder)
    return of_network(run.network, run.params, 1.5)


def latent(coder, **overrides):
    return load("latent", "data=digits,smoke", codec__run=coder, train__preview=0, **overrides)


def opened(config, latents, progress=False):
    """The batches of a config's cache, and its training records."""
    records = build.source(config, "train")
    known = build.facts(config, records)._replace(picture=(8, 8, 1))
    return caching.pipeline(config, records, known, latents, progress=progress), records


@pytest.fixture(scope="module")
def made(coder, latents, tmp_path_factory):
    """A whole cache with both sides, in two parts."""
    folder = tmp_path_factory.mktemp("cache") / "both"
    opened(latent(coder, codec__cache=folder, data__flip=True), latents)
    return folder


def test_what_is_kept_is_the_encoders_answer(made, latents, coder):
    """Of each picture and of its mirror, in the order of the source, within rounding; two draws of it differ."""
    config = latent(coder, codec__cache=made, data__flip=True)
    cached, records = opened(config, latents)
    held = json.loads((made / "cache.json").read_text())
    assert held["parts"] == 2 and held["sides"] == 2 and held["autoencoder"] == latents.name
    assert sorted(path.name for path in made.iterdir()) == ["cache.json", "part-00000-of-00002.arrayrecord",
                                                            "part-00001-of-00002.arrayrecord"]
    numbers = np.array([0, 1, 700, 1023, 1024, len(records) - 1])
    rows = cached.pipe.source.records.take(numbers)
    pictures = records.records.take(numbers)
    x = data.scale_exact(pictures["image"], records.levels)
    assert rows["x"].dtype == np.float32 and rows["x"].shape == (6, 2, 4, 4, 8) and len(cached.pipe.source) == len(records)
    np.testing.assert_array_equal(rows["label"], pictures["label"])
    moments = jax.jit(latents.moments)
    for side, seen in enumerate((x, x[:, :, ::-1])):
        np.testing.assert_allclose(rows["x"][:, side], moments(seen), atol=1e-5)
    assert np.abs(rows["x"][:, 0] - rows["x"][:, 1]).max() > 0.01  # the encoder is not symmetric
    one, two = (latents.draw(jax.random.split(jax.random.key(seed), 6), rows["x"][:, 0]) for seed in (0, 1))
    assert float(jnp.abs(one - two).max()) > 0.1


def test_encode_is_a_draw_of_the_moments(latents):
    """The drawn latents are scale (mean + std noise) by each example's key, written out here."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    keys = example_keys(jax.random.key(3), jnp.arange(3))
    mean, log_var = jnp.split(latents.moments(x), 2, -1)
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 4)))(keys)
    by_hand = 1.5 * (mean + jnp.exp(0.5 * jnp.clip(log_var, -30, 20)) * noise)
    np.testing.assert_allclose(latents.encode(keys, x), by_hand, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_without_a_cache(made, latents, coder, flip):
    """The same records, order, labels, flips and draws, from a step far in (over the end of an epoch)."""
    config = latent(coder, codec__cache=made, data__flip=flip)
    cached, records = opened(config, latents)  # both sides also serve a run without flips
    plain, kept = (codec.encoder(latents, config.seed, told)(pipe.batches(21), 21)
                   for pipe, told in ((build.pipeline(config, records), False), (cached, True)))
    for a, b, _ in zip(plain, kept, range(3), strict=False):
        assert a.keys() == b.keys() == {"x", "label", "index"}
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_allclose(a["x"], b["x"], atol=1e-5)


def test_streams_share_one_program(latents):
    """A feed that begins again, as every validation does, compiles nothing."""
    traced = []
    told = latents._replace(draw=lambda keys, found: traced.append(found.shape) or latents.draw(keys, found))
    encoded = codec.encoder(told, 0)
    batch = {"x": np.zeros((2, 8, 8, 1), np.float32), "index": np.arange(2)}
    first, second, again = (next(encoded(iter([batch]), start))["x"] for start in (0, 1, 0))
    assert len(traced) == 1
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - second).max()) > 0.1


def test_each_process_reads_its_share(made, latents, coder):
    cached, _ = opened(latent(coder, codec__cache=made, data__flip=True), latents)
    whole = next(cached.batches(2))["x"]
    half = cached.pipe.batch_size // 2
    shares = [next(cached._replace(pipe=data.pipeline(cached.pipe.source, 2 * half, cached.pipe.seed, process_index=i,
                                                      process_count=2)).batches(2))["x"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_a_cache_that_was_stopped_goes_on(made, latents, coder, tmp_path, monkeypatch, capsys):
    """Stopped in its second part: the first is kept as it is, the second is made, and both are the whole cache's."""
    folder = tmp_path / "cache"
    config = latent(coder, codec__cache=folder, data__flip=True)
    write, written = data.write_part, []

    def killed(path, *given):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *given)

    monkeypatch.setattr(data, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(config, latents)
    monkeypatch.undo()
    assert [path.exists() for path in (written[0], folder / "part-00001-of-00002.arrayrecord")] == [True, False]
    before = written[0].stat().st_mtime_ns
    opened(config, latents, progress=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{folder}: part 2 of 2, 414 pictures, ")
    assert written[0].stat().st_mtime_ns == before
    for path in sorted(made.iterdir()):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    opened(config, latents, progress=True)
    assert capsys.readouterr().out == ""


def test_a_codebooks_latents_are_kept_as_they_are(tmp_path, latents, coder):
    """What has no moments: a draw of it is the latent itself."""
    flat = latents._replace(moments=lambda x: x[:, ::2, ::2] * 3, draw=lambda keys, found: 2 * found)
    config = latent(coder, codec__cache=tmp_path / "cache")
    cached, records = opened(config, flat)
    z = next(codec.encoder(flat, 0, cached=True)(cached.batches(0), 0))["x"]
    np.testing.assert_allclose(z, 6 * build.pipeline(config, records).batch(0)["x"][:, ::2, ::2], atol=1e-5)


def test_captions_are_kept(tmp_path, latents, coder):
    rows = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1)).astype(np.uint8)
    texts = np.array([f"number {i}" for i in range(5)], object)
    records = data.Source("told", "train", data.Columns({"image": rows, "caption": texts}), (8, 8, 1), 256)
    known = Facts((8, 8, 1), 0, 256, "image", picture=(8, 8, 1))
    cached = caching.pipeline(latent(coder, codec__cache=tmp_path), records, known, latents, progress=False)
    kept = cached.pipe.source.records.take(np.array([4, 2]))
    assert list(kept["caption"]) == ["number 4", "number 2"] and "label" not in kept


def test_a_run_does_not_depend_on_its_cache(coder, tmp_path):
    """Four steps without it and with it: the same parameters within rounding; with it, and stopped: bit for bit."""
    held = {"optimizer__decay": "constant", "train__eval_every": 2, "train__checkpoint_every": 2, "data__flip": True,
            "network__num_blocks": 1, "network__channels": 16, "network__head_channels": 16}
    cache, found = tmp_path / "cache", {}
    for name, stops, place in (("without", (4,), None), ("whole", (4,), cache), ("parts", (2, 4), cache)):
        for steps in stops:
            config = latent(coder, train__steps=steps, codec__cache=place, **held)
            fit.train(config, tmp_path / name, progress=False)
        found[name] = training.restore(tmp_path / name, 4, what="params").tree
    jax.tree.map(np.testing.assert_array_equal, found["whole"], found["parts"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found["whole"], found["without"])
    assert len({(tmp_path / name / "data.json").read_text() for name in found}) == 1
    training.check_config(tmp_path / "without", config.to_dict(), fit.MAY_CHANGE)  # it may take the cache up


@pytest.mark.parametrize("overrides, line", [
    ({"data__crop": "random"}, "data.crop 'random', which is another picture at every step; mend: data.crop=center"),
    ({"data__scale": "dequantise"}, "data.scale 'dequantise', whose noise is another at every step; mend: data.scale=exact"),
    ({"task__kind": "low_res", "task__side": 4}, "task.kind 'low_res', whose condition picture is not kept; mend: task"),
    ({"codec__run": "None"}, "codec.run None, so that there are no latents; mend: codec.run, or codec.cache=None"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(coder, latents, overrides, line, tmp_path):
    config = load("latent", "data=digits,smoke", **{"codec__run": coder, "codec__cache": tmp_path / "cache", **overrides})
    with pytest.raises(ValueError, match=line) as told:
        opened(config, latents if config.codec.run else None)
    assert "\n" not in str(told.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key, value, line", [
    ("version", 9, "of format 9, and this version reads 1; mend: codec.cache=ANOTHER, or delete it"),
    ("autoencoder", "0123456789ab", "latents of the autoencoder 0123456789ab, and codec.run is now [0-9a-f]{12}; mend"),
    ("data.source", "mnist5k", "latents of data.source 'mnist5k', and here it is 'digits'; mend"),
    ("data.options", {"validation": 0.1}, r"latents of data.options {'validation': 0.1}, and here it is {}; mend"),
    ("data.resize", 12, "latents of data.resize 12, and here it is None; mend"),
    ("picture", [16, 16, 1], "latents of pictures of 16x16x1, and these are 8x8x1; mend"),
    ("records", 12, "latents of 12 pictures, and these are 1438; mend"),
    ("pictures", [[0.5, 1]] * 8, "latents of other pictures than its source holds now; mend"),
    ("sides", 1, "latents of pictures alone, and data.flip needs those of their mirrors; mend"),
    ("arrays", [["x", "float32", [2, 4, 4, 6]]], r"moments of shape \[4, 4, 6\], and codec.run gives \[4, 4, 8\]; mend"),
    ("split", None, "cache.json is not the description of cached latents; mend"),
])  # fmt: skip
def test_another_cache_is_refused_and_kept(made, latents, coder, key, value, line, tmp_path):
    shutil.copytree(made, tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    held = json.loads(path.read_text())
    if value is None:
        del held[key]
    path.write_text(json.dumps({**held, **({} if value is None else {key: value})}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=line) as told:
        opened(latent(coder, codec__cache=tmp_path / "cache", data__flip=True), latents)
    assert "\n" not in str(told.value) and path.read_bytes() == before


def test_another_autoencoder_is_refused(made, latents, coder):
    with pytest.raises(ValueError, match=f"latents of the autoencoder {latents.name}, and codec.run is now other"):
        opened(latent(coder, codec__cache=made, data__flip=True), latents._replace(name="other"))


def test_what_lies_there_is_not_touched(latents, coder, tmp_path, made):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="which holds other things; mend: a new directory"):
        opened(latent(coder, codec__cache=tmp_path), latents)
    with pytest.raises(NotADirectoryError, match="a file; allowed: a directory"):
        opened(latent(coder, codec__cache=tmp_path / "file"), latents)
    shutil.copytree(made, tmp_path / "cache")
    part = tmp_path / "cache" / "part-00001-of-00002.arrayrecord"
    part.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is damaged .*; mend: delete it, and it is made again"):
        opened(latent(coder, codec__cache=tmp_path / "cache", data__flip=True), latents)
    part.unlink()
    opened(latent(coder, codec__cache=tmp_path / "cache", data__flip=True), latents)
    assert part.read_bytes() == (made / part.name).read_bytes()
