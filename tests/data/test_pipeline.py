"""The pipeline's order: deterministic, resumable at any step, the same for any number of processes."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxdiff.data as data
from jaxdiff.data.preprocess import Preprocess
from jaxdiff.data.records import Columns, Source

AUGMENT = Preprocess(flip=True, scale="dequantise")


@pytest.fixture(scope="module")
def digits():
    return data.open_source("digits", "train")


@pytest.fixture(scope="module")
def numbered():
    """103 points whose first coordinate is their number: which record came is seen from outside."""
    x = np.stack([np.arange(103), np.zeros(103)], -1).astype(np.float32)
    return data.arrays(x, np.arange(103) % 7)


def first(pipeline, num, start=0):
    return list(itertools.islice(pipeline.batches(start), num))


def assert_equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_contract_s_fields(digits):
    batch = next(data.pipeline(digits, 16).batches())
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "x": ((16, 8, 8, 1), "float32"),
        "label": ((16,), "int32"),
        "index": ((16,), "int32"),
    }
    np.testing.assert_array_equal(batch["index"], np.arange(16))
    assert batch["x"].min() == -1 and batch["x"].max() == 1


@pytest.mark.parametrize("num_threads", [0, 3])
def test_same_seed_same_batches_whatever_reads_them(digits, num_threads):
    want = first(data.pipeline(digits, 32, 5, preprocess=AUGMENT, num_threads=1), 6)
    assert_equal(first(data.pipeline(digits, 32, 5, preprocess=AUGMENT, num_threads=num_threads), 6), want)


def test_seeds_and_neighbouring_seeds_epochs_differ(numbered):
    def order(seed, epoch):
        return tuple(first(data.pipeline(numbered, 103, seed), 1, epoch)[0]["x"][:, 0])

    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 9  # seed 0's second epoch is not seed 1's first


def test_resume_from_any_step(digits):
    pipeline = data.pipeline(digits, 100, 1, preprocess=AUGMENT)
    whole = first(pipeline, 32)  # 1438 records: over two ends of epochs
    for step in (1, 14, 15, 29):
        assert_equal(first(pipeline, 32 - step, step), whole[step:])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_each_global_batch_in_order(digits, process_count):
    whole = first(data.pipeline(digits, 48, 2, preprocess=AUGMENT), 5, 28)
    shares = [
        first(data.pipeline(digits, 48, 2, preprocess=AUGMENT, process_index=i, process_count=process_count), 5, 28)
        for i in range(process_count)
    ]
    joined = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*shares, strict=True)]
    assert_equal(joined, whole)


def test_every_record_once_an_epoch_and_the_remainder_dropped(numbered):
    pipeline = data.pipeline(numbered, 10, num_epochs=3)
    assert pipeline.num_steps == 30
    batches = list(pipeline.batches())
    order = np.concatenate([batch["x"][:, 0] for batch in batches]).astype(int)
    assert len(order) == 300  # of 309
    for epoch in range(2):
        np.testing.assert_array_equal(np.sort(order[epoch * 103 : (epoch + 1) * 103]), np.arange(103))
    assert len(set(order[206:])) == 94
    assert (order[:103] != order[103:206]).any()
    assert list(pipeline.batches(30)) == []
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], batch["x"][:, 0].astype(int) % 7)


def test_a_batch_may_be_larger_than_the_source(numbered):
    order = next(data.pipeline(numbered, 250).batches())["x"][:, 0]
    assert np.bincount(order.astype(int), minlength=103).min() == 2


def test_the_same_record_is_augmented_afresh_every_epoch(digits):
    small = data.arrays(np.full((8, 4, 4), 3), levels=17)
    a, b = (batch["x"] for batch in first(data.pipeline(small, 8, preprocess=AUGMENT), 2))
    assert len(np.unique(np.concatenate([a, b]).reshape(16, -1), axis=0)) == 16


@pytest.mark.parametrize("process_count", [1, 2])
def test_epoch_is_ordered_whole_and_without_augmentation(process_count):
    pixels = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3))
    source = data.arrays(pixels, np.arange(23) % 2)
    how = Preprocess(flip=True, crop="random")
    shares = [
        list(data.pipeline(source, 10, preprocess=how, process_index=i, process_count=process_count).epoch())
        for i in range(process_count)
    ]
    assert {len(share) for share in shares} == {3}
    steps = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*shares, strict=True)]
    np.testing.assert_array_equal(np.concatenate([step["x"] for step in steps]), data.scale_exact(pixels, 256))
    np.testing.assert_array_equal(np.concatenate([step["label"] for step in steps]), np.arange(23) % 2)
    assert [len(step["x"]) for step in steps] == [10, 10, 3]


def test_dequantised_epochs_repeat(digits):
    pipeline = data.pipeline(digits, 500, preprocess=AUGMENT)
    assert_equal(list(pipeline.epoch()), list(pipeline.epoch()))


def test_batches_on_device_are_sharded_in_order_and_the_same(digits):
    mesh = jax.make_mesh((4,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    pipeline = data.pipeline(digits, 16, num_epochs=1)
    want = list(pipeline.batches())
    for placed in (data.on_device(pipeline.batches()), data.on_device(pipeline.batches(), sharding, ahead=3)):
        placed = list(placed)
        assert_equal([{k: np.asarray(v) for k, v in batch.items()} for batch in placed], want)
    assert placed[0]["x"].sharding == sharding


def test_on_device_stays_ahead_by_so_many():
    pulled = []

    def counted():
        for i in range(6):
            pulled.append(i)
            yield {"x": np.full(2, i)}

    batches = data.on_device(counted(), ahead=2)
    assert int(next(batches)["x"][0]) == 0 and pulled == [0, 1, 2]


def test_preview_draws_from_the_whole_source():
    batch = data.preview(data.open_source("mnist5k", "train"), 200)
    assert len(batch["x"]) == 200 and set(batch["label"]) == set(range(10))
    for num in (5000, 20_000):
        points = data.preview(data.open_source("gaussians25", "test"), num)
        # the modes come in turn: a stride of 5 would show 5 of the 25, one of 1.25 some modes twice as often
        counts = np.bincount(points["label"], minlength=25)
        assert counts.sum() == num and np.abs(counts / (num / 25) - 1).max() < 0.3 * np.sqrt(5000 / num)
    assert data.preview(data.open_source("gaussians25", "test"), 9)["x"].shape == (9, 2)


def test_a_label_out_of_range_or_an_odd_shape_stops_the_run_by_name():
    records = [{"image": np.zeros((2, 2, 1), np.uint8), "label": -1 if i == 3 else 0} for i in range(5)]
    source = Source("mine", "train", records, (2, 2, 1), 256, 2)
    with pytest.raises(ValueError, match=r"record 3 of mine \(train\) has label -1; allowed: 0..1"):
        first(data.pipeline(source, 5), 1)
    records = [{"image": np.zeros((2, 2 + (i == 3), 1), np.uint8)} for i in range(5)]
    with pytest.raises(ValueError, match=r"has shape .* ask for a shape"):
        first(data.pipeline(Source("mine", "train", records, (2, 2, 1), 256), 5), 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 10, "process_count": 4}, "batch_size=10 must be a multiple of the 4 processes"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8, "process_index": 2, "process_count": 2}, r"process_index=2; allowed: 0..1"),
        ({"batch_size": 8, "seed": -1}, "seed=-1; allowed"),
        ({"batch_size": 80, "num_epochs": 1}, "1 epochs of 20 records do not fill one batch of 80"),
        ({"batch_size": 8, "preprocess": Preprocess(flip=True)}, "points, which take no Preprocess"),
    ],
)
def test_wrong_words(options, message):
    source = Source("p", "train", Columns({"x": np.zeros((20, 2), np.float32)}), (2,), kind="points")
    with pytest.raises(ValueError, match=message):
        data.pipeline(source, **options)
    with pytest.raises(ValueError, match="nothing to dequantise"):
        data.pipeline(data.arrays(np.zeros((9, 2, 2, 1), np.float32)), 3, preprocess=AUGMENT)
    with pytest.raises(ValueError, match="start_step=-1"):
        data.pipeline(source, 5).batches(-1)
