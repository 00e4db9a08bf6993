"""Tasks: operators against independent formulas, masks that cover their share everywhere, the same for any processes."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data
from jaxdiff.data.preprocess import Preprocess, uniform_bits
from jaxdiff.data.tasks import edges, given, inpainting, low_resolution, super_resolution


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def bits(num, start=0):
    return uniform_bits(0, 3, start, num, 4)


TASKS = [super_resolution(2), super_resolution(4, "bicubic"), inpainting(), inpainting(0.4, "center"), edges()]
NAMES = [f"{i}-{task.name}" for i, task in enumerate(TASKS)]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
@pytest.mark.parametrize("shape", [(8, 12, 3), (12, 8, 1)])
def test_every_task_keeps_the_contract(task, shape):
    x = pictures(5, *shape)
    before = x.copy()
    made = task.make(x, bits(5))
    y, mask = made["image"], made.get("mask")
    assert y.shape == (5, *task.condition_shape(shape)) and y.dtype == np.float32
    assert y.shape[1:3] == shape[:2] and np.abs(y).max() <= 1
    assert (mask is not None) == (task.name == "inpainting")
    np.testing.assert_array_equal(task.operator(x, mask), y)
    np.testing.assert_array_equal(x, before)
    again = task.make(x, bits(5))
    assert made.keys() == again.keys()
    for key in made:
        np.testing.assert_array_equal(made[key], again[key])
    empty = task.make(x[:0], bits(1)[:0])
    assert {key: value.shape for key, value in empty.items()} == {key: (0, *v.shape[1:]) for key, v in made.items()}
    # draws come as [K, N, H, W, C]
    draws = pictures(2, 5, *shape, seed=1)
    stacked = np.stack([task.operator(draw, mask) for draw in draws])
    np.testing.assert_array_equal(task.operator(draws, mask), stacked)


def test_box_super_resolution_is_the_block_mean_repeated():
    x = pictures(3, 8, 16, 3)
    want = np.zeros_like(x)
    for top, left in itertools.product(range(0, 8, 4), range(0, 16, 4)):
        block = x[:, top : top + 4, left : left + 4].astype(np.float64)
        want[:, top : top + 4, left : left + 4] = block.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(super_resolution(4).make(x, bits(3))["image"], want, atol=1e-6)


@pytest.mark.parametrize("kernel", ["box", "bicubic"])
def test_low_resolution_is_super_resolution_s_picture_before_it_is_blown_up(kernel):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 2)).astype(np.float32)
    low = low_resolution(4, kernel)
    y = low.make(x, bits(3))["image"]
    assert low.condition_shape((8, 12, 2)) == y.shape[1:] == (4, 6, 2)
    np.testing.assert_array_equal(y.repeat(2, 1).repeat(2, 2), super_resolution(2, kernel).make(x, bits(3))["image"])
    np.testing.assert_array_equal(low.operator(x[None])[0], y)


def test_low_resolution_sees_the_flip_of_its_picture(mnist):
    """Made after the flip: the small picture is that of the very picture beside it."""
    pipe = data.pipeline(mnist, 32, preprocess=Preprocess((28, 28, 1), flip=True), task=low_resolution(7))
    batch, plain = pipe.batch(0), data.pipeline(mnist, 32, preprocess=Preprocess((28, 28, 1))).batch(0)
    flipped = (batch["x"] != plain["x"]).any((1, 2, 3))
    assert 4 < flipped.sum() < 28
    np.testing.assert_allclose(batch["image"], batch["x"].reshape(32, 7, 4, 7, 4, 1).mean((2, 4)), atol=1e-6)


def test_bicubic_super_resolution_is_pillow_s_downscale():
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    y = super_resolution(4, "bicubic").make(data.scale_exact(levels, 256)[None], bits(1))["image"][0]
    small = Image.fromarray(levels).resize((4, 4), Image.Resampling.BICUBIC)
    large = np.asarray(small.resize((16, 16), Image.Resampling.NEAREST))
    assert np.abs((y + 1) * 127.5 - large).max() <= 1  # Pillow rounds 8-bit rows, then columns
    step = np.full((1, 16, 16, 1), -1, np.float32)
    step[:, :, 6:] = 1
    assert np.abs(super_resolution(2, "bicubic").make(step, bits(1))["image"]).max() == 1  # the overshoot is clipped


@pytest.mark.parametrize("share, height, width", [(0.25, 28, 28), (0.25, 64, 64), (0.1, 9, 17), (0.5, 16, 12)])
def test_masks_cover_the_share_within_rounding(share, height, width):
    mask = inpainting(share).make(pictures(64, height, width, 3), bits(64))["mask"]
    side = np.sqrt(share * height * width)
    area = mask.sum((1, 2, 3))
    assert set(np.unique(mask)) == {0, 1} and (area == area[0]).all()
    assert (side - 0.5) ** 2 <= area[0] <= (side + 0.5) ** 2
    for one in mask[:8, ..., 0]:  # a square: its bounding box is full
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert len(rows) == len(columns) and one[np.ix_(rows, columns)].all()


def test_hidden_pixels_are_zero_and_known_ones_untouched():
    x = pictures(6, 8, 8, 3)
    made = inpainting().make(x, bits(6))
    hidden = np.broadcast_to(made["mask"] == 1, x.shape)
    assert (made["image"][hidden] == 0).all() and hidden.mean() == 0.25
    np.testing.assert_array_equal(made["image"][~hidden], x[~hidden])


def test_every_place_occurs_equally_often():
    x = np.ones((6400, 8, 6, 1), np.float32)  # a square of side 3: 6 x 4 places
    mask = inpainting(9 / 48).make(x, bits(6400))["mask"][..., 0]
    corners = [tuple(np.argwhere(one)[0]) for one in mask]
    counts = np.array([corners.count(place) for place in itertools.product(range(6), range(4))])
    assert counts.sum() == 6400
    assert np.abs(counts - 6400 / 24).max() < 4.5 * np.sqrt(6400 / 24)
    center = inpainting(0.25, "center").make(x[:3], bits(3))["mask"]
    assert (center == center[0]).all() and center[0, 2:5, 1:4].all() and center[0].sum() == 9


def test_edges_of_a_step():
    x = np.full((1, 16, 16, 3), -1, np.float32)
    x[:, :, 8:] = 1
    y = edges().make(x, bits(1))["image"]
    assert set(np.unique(y)) == {-1, 1}
    inner = y[0, 2:-2, :, 0]
    assert (inner == inner[0]).all()  # the step is the same in every row
    found = np.flatnonzero(inner[0] == 1)
    assert len(found) >= 1 and set(found) <= {7, 8}  # one thin line, on the step
    flat = edges().make(np.full((1, 16, 16, 1), 0.3, np.float32), bits(1))["image"]
    assert (flat == -1).all()
    faint = np.where(x > 0, 0.02, -0.02).astype(np.float32)  # a step of .02 in grey
    assert (edges().make(faint, bits(1))["image"] == -1).all()
    assert (edges(low=0.001, high=0.002).make(faint, bits(1))["image"] == 1).any()


def test_edges_see_grey_as_the_eye_does():
    colours = np.full((1, 16, 16, 3), -1, np.float32)  # blue against a red of the same luma
    colours[:, :, :8, 2], colours[:, :, 8:, 0] = 1, 2 * 0.114 / 0.299 - 1
    assert (edges().make(colours, bits(1))["image"] == -1).all()


@pytest.fixture(scope="module")
def mnist():
    return data.open_source("mnist5k", "test")


def batches(source, count, num=3, start=0, **options):
    shares = [
        data.pipeline(source, 24, 7, process_index=i, process_count=count, **options).batches(start) for i in range(count)
    ]
    steps = [list(itertools.islice(share, num)) for share in shares]
    return [{key: np.concatenate([one[key] for one in step]) for key in step[0]} for step in zip(*steps, strict=True)]


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 3}])
def test_masks_are_the_same_on_one_process_and_on_two(mnist, options):
    how = Preprocess((28, 28, 1), flip=True)
    whole, halves = (batches(mnist, n, preprocess=how, task=inpainting(), **options) for n in (1, 2))
    for a, b in zip(whole, halves, strict=True):
        assert {key: (value.shape, value.dtype.name) for key, value in a.items()} == {
            "index": ((24,), "int32"),
            "x": ((24, 28, 28, 1), "float32"),
            "image": ((24, 28, 28, 1), "float32"),
            "mask": ((24, 28, 28, 1), "float32"),
            "label": ((24,), "int32"),
        }
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a["image"], inpainting().operator(a["x"], a["mask"]))
    resumed = batches(mnist, 1, 1, 2, preprocess=how, task=inpainting(), **options)
    np.testing.assert_array_equal(resumed[0]["mask"], whole[2]["mask"])


def test_a_task_changes_nothing_else(mnist):
    plain, with_task = batches(mnist, 1), batches(mnist, 1, task=super_resolution(4))
    for a, b in zip(plain, with_task, strict=True):
        assert a.keys() == {"x", "index", "label"} and b.keys() == a.keys() | {"image"}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_training_masks_differ_from_epoch_to_epoch_and_test_masks_do_not(mnist):
    numbered = data.arrays(np.broadcast_to(np.arange(100)[:, None, None], (100, 16, 16)))
    epochs = [data.pipeline(numbered, 100, task=inpainting()).batch(step) for step in (0, 1)]
    first, second = (epoch["mask"][np.argsort(epoch["x"][:, 0, 0, 0])] for epoch in epochs)
    assert (first != second).any((1, 2, 3)).mean() > 0.9  # of 81 places
    # one mask a test record: whatever the seed, the batch size, the processes, the augmentation
    want = np.concatenate([b["mask"] for b in data.pipeline(mnist, 100, task=inpainting()).epoch()])
    assert len(np.unique(want.reshape(1000, -1), axis=0)) > 190  # of 225 places
    how = Preprocess(flip=True)
    for count, size in [(1, 64), (2, 150)]:
        pipes = [
            data.pipeline(mnist, size, 9, preprocess=how, task=inpainting(), process_index=i, process_count=count)
            for i in range(count)
        ]
        steps = zip(*[list(pipe.epoch()) for pipe in pipes], strict=True)
        got = np.concatenate([one["mask"] for step in steps for one in step])
        np.testing.assert_array_equal(got, want)
    shown = data.preview(mnist, 50, seed=4, task=inpainting())
    whole = np.concatenate([b["x"] for b in data.pipeline(mnist, 100).epoch()])
    numbers = [int(np.flatnonzero((whole == x).all((1, 2, 3)))[0]) for x in shown["x"]]
    np.testing.assert_array_equal(shown["mask"], want[numbers])


def test_an_empty_share_of_the_last_batch_has_the_fields():
    tiny = data.arrays(np.zeros((5, 8, 8), np.uint8))
    *_, last = data.pipeline(tiny, 4, task=inpainting(), process_index=1, process_count=2).epoch()
    assert {key: value.shape for key, value in last.items()} == {
        "index": (0,), "x": (0, 8, 8, 1), "image": (0, 8, 8, 1), "mask": (0, 8, 8, 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: super_resolution(1), "factor=1, kernel='box'; allowed: a whole factor of 2"),
        (lambda: super_resolution(2, "lanczos"), "allowed: .*box or bicubic"),
        (lambda: inpainting(0.0), "share=0.0, place='random'; allowed: 0 < share < 1"),
        (lambda: inpainting(1.0), "share=1.0"),
        (lambda: inpainting(0.3, "left"), "random or center"),
        (lambda: edges(sigma=0), "sigma=0"),
        (lambda: edges(low=0.3), r"low=0.3, high=0.2; allowed: .* 0 <= low <= high"),
        (lambda: super_resolution(4).condition_shape((28, 30, 1)), "by 4 of pictures 28 x 30; allowed: a factor"),
        (lambda: inpainting(0.99).condition_shape((8, 8, 1)), "hides everything of a picture 8 x 8; allowed: .* 1 to 7"),
        (lambda: inpainting(0.001).condition_shape((8, 8, 1)), "hides nothing"),
        (lambda: inpainting(0.9).condition_shape((8, 16, 1)), "more than fits of a picture 8 x 16; allowed: .* 1 to 8"),
        (lambda: inpainting().operator(np.zeros((1, 8, 8, 1))), "needs the mask"),
        (lambda: super_resolution(2).operator(np.zeros((1, 8, 7, 1))), "pictures 8 x 7"),
        (lambda: low_resolution(0), "side=0, kernel='box'; allowed: 1 or more"),
        (lambda: low_resolution(4, "lanczos"), "allowed: .*box or bicubic"),
        (lambda: low_resolution(8).condition_shape((8, 8, 1)), "of side 8 from pictures 8 x 8; allowed: .* 2 or more"),
        (lambda: low_resolution(5).condition_shape((28, 28, 1)), "of side 5 from pictures 28 x 28"),
        (lambda: low_resolution(4).condition_shape((8, 9, 1)), "of side 4 from pictures 8 x 9"),
    ],
)
def test_wrong_words_get_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_tasks_that_do_not_fit_the_source_are_refused_before_the_first_batch(mnist):
    for make in (lambda **words: data.pipeline(mnist, 8, **words), lambda **words: data.preview(mnist, 8, **words)):
        with pytest.raises(ValueError, match="by 8 of pictures 28 x 28"):
            make(task=super_resolution(8))
        with pytest.raises(ValueError, match=r"task given needs records that hold .* pairs:FOLDER .* got mnist5k"):
            make(task=given())
        make(task=super_resolution(8), preprocess=Preprocess((32, 32, 1)))
    with pytest.raises(ValueError, match="gaussians25 holds points, and task edges needs pictures"):
        data.pipeline(data.open_source("gaussians25", "test"), 8, task=edges())


def test_builders_are_cached_and_scikit_image_is_named_where_it_is_missing(monkeypatch):
    assert super_resolution(4) is super_resolution(4) and inpainting() is inpainting()
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ImportError, match=r"^edges needs scikit-image: pip install 'jaxdiff\[demo\]'$"):
        edges(sigma=1.25)
