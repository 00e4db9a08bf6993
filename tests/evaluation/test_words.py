"""Whether text steers: against counts by hand, exact permutations, and the binomial error of known hits."""

import itertools

import numpy as np
import pytest

from jaxdiff.evaluation import word_report, words_of

REAL = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], float)
REAL_CAPTIONS = ["red cat", "Red dog", "a blue dog", "the car"]
SAMPLES = np.array([[2, 0.1, 0], [0.1, 0, 5], [3, 3, 0.1], [0, 0.01, 0.001], [1, 1, 1]])  # nearest: 0, 2, 3, 1
CAPTIONS = ["red cat", "red dog", "blue car", "blue unicorn", ""]


def figures(report):
    return {name: value for name, value in report.items() if name != "word_lift_standard_error"}


@pytest.mark.parametrize(("caption", "words"), [
    ("Couple with Heart: woman, woman, medium-dark skin tone", "couple heart woman medium dark skin tone"),
    ("rescue worker’s helmet", "rescue worker helmet"),
    ("keycap 10 of the ON! sign", "keycap 10 sign"),
    ("São Tomé & Príncipe Flag", "são tomé príncipe flag"),
    ("Re\u0301union_FLAG", "réunion flag"),  # an accent of its own is one letter with its vowel
    ("no up-left", "no up left"),
    ("the of & --", ""),
    ("", ""),
])  # fmt: skip
def test_words_of_a_caption(caption, words):
    assert words_of(caption) == frozenset(words.split())


def test_words_left_out_by_the_caller():
    assert words_of("Cat face", ["FACE"]) == {"cat"}


def test_counts_by_hand():
    found = word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS)
    assert found["word_table"] == {
        "blue": (2, 0.0, 0.25), "red": (2, 0.5, 0.5), "car": (1, 1.0, 0.25), "cat": (1, 1.0, 0.25), "dog": (1, 1.0, 0.5)
    }  # fmt: skip
    assert list(found["word_table"]) == ["blue", "red", "car", "cat", "dog"]
    assert found["word_hits"] == pytest.approx(0.7)
    assert found["word_chance"] == pytest.approx(0.35)
    assert found["word_lift"] == pytest.approx(2)
    assert found["word_shuffled"] == pytest.approx(0.35)  # each picture is somebody's nearest, as in `chance`
    assert (found["word_count"], found["word_unknown"], found["word_n"], found["word_k"]) == (5, 1, 4, 1)
    often = word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS, min_asked=2)
    assert (often["word_table"], often["word_unknown"]) == ({"blue": (2, 0.0, 0.25), "red": (2, 0.5, 0.5)}, 0)
    assert often["word_lift"] == pytest.approx(0.25 / 0.375)
    assert set(word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS, exclude=("Red", "cat"))["word_table"]) == {
        "blue", "car", "dog"
    }  # fmt: skip


def test_more_neighbours_share_a_hit():
    found = word_report(SAMPLES[:1], ["red cat"], REAL, REAL_CAPTIONS, k=2)["word_table"]  # "red cat", then "the car"
    assert found == {"cat": (1, 0.5, 0.25), "red": (1, 0.5, 0.5)}
    every = word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS, k=4)
    assert every["word_lift"] == pytest.approx(1)  # all of the real pictures are anybody's neighbours


def test_real_pictures_with_their_own_captions_always_hit():
    rng = np.random.default_rng(0)
    features, captions = rng.normal(size=(60, 8)), [f"thing number{i % 7} place{i % 5}" for i in range(60)]
    strength = rng.uniform(0.1, 10, (60, 1))  # the cosine does not see it
    found = word_report(strength * features, captions, features, captions, block=7)
    assert found["word_hits"] == 1
    assert found["word_chance"] == pytest.approx((1 + 7 * 1 / 7 + 5 * 1 / 5) / 13)
    assert found["word_lift"] == pytest.approx(13 / 3)
    assert found["word_table"]["thing"] == (60, 1.0, 1.0)


def test_shuffled_is_the_mean_over_all_permutations():
    rng = np.random.default_rng(1)
    real, samples = rng.normal(size=(9, 4)), rng.normal(size=(5, 4))
    of_real, asked = [f"a{i % 3} b{i % 4}" for i in range(9)], ["a0", "a0 b1", "a1 b3", "a2", "b1 b2"]
    found = word_report(samples, asked, real, of_real, resamples=2)
    every = [word_report(samples, dealt, real, of_real, resamples=2)["word_hits"] for dealt in itertools.permutations(asked)]
    assert np.std(every) > 0.1
    assert found["word_shuffled"] == pytest.approx(np.mean(every))


def test_random_features_and_strangers_captions_hit_by_chance():
    rng = np.random.default_rng(2)
    of_real = [f"u{rng.integers(8)} v{rng.integers(4)}" for _ in range(1500)]
    real = rng.normal(size=(1500, 3))  # few dimensions: no picture is the nearest of very many
    asked = [of_real[i] for i in rng.integers(1500, size=1000)]
    chance = word_report(rng.normal(size=(1000, 3)), asked, real, of_real)
    # 1,000 hits with probability 1/8 and as many with 1/4, in means of 8 and of 4 words
    error = np.hypot(8 * np.sqrt(1 / 8 * 7 / 8 / 1000), 4 * np.sqrt(1 / 4 * 3 / 4 / 1000)) / 12 / (2 / 12)
    assert chance["word_lift"] == pytest.approx(1, abs=4 * error)
    steered = np.flatnonzero(rng.uniform(size=1500) < 0.5)
    own = word_report(real[steered], [of_real[i] for i in steered], real, of_real)
    dealt = word_report(real[steered], [of_real[i] for i in rng.permutation(steered)], real, of_real)
    assert own["word_hits"] == 1
    assert own["word_lift"] == pytest.approx(6, rel=0.03)  # 12 words, of which a caption has two
    assert dealt["word_lift"] == pytest.approx(1, abs=4 * error * np.sqrt(1000 / len(steered)))


def test_ties_count_alike_in_any_order():
    """Copies of a picture share the hit, though float32 features of copies differ in their last bits."""
    real = np.concatenate([np.float32([[0.3, 0.1, 0.7]] * 3), np.eye(3, dtype=np.float32)])
    real[1] *= np.float32(1 + 2e-7)
    captions = ["flag france", "flag here", "flag there", "x", "y", "z"]
    for order in (np.arange(6), np.arange(6)[::-1], np.array([3, 1, 4, 0, 5, 2])):
        found = word_report(real[:1], ["flag france"], real[order], [captions[i] for i in order])
        assert found["word_table"] == {"flag": (1, 1.0, 0.5), "france": (1, pytest.approx(1 / 3), pytest.approx(1 / 6))}
    for blind in (np.ones((5, 2)), np.zeros((5, 2))):  # features that tell nothing apart are worth nothing
        found = word_report(blind, CAPTIONS, np.repeat(blind[:1], 4, 0), REAL_CAPTIONS)
        assert found["word_lift"] == pytest.approx(1)


def test_standard_error_is_binomial_and_counts_captions_not_draws():
    rng = np.random.default_rng(3)
    number = np.arange(400) % 5
    seen = np.where(rng.uniform(size=400) < 0.5, number, (number + 1) % 5)  # half show the next word's picture
    captions = [f"word{w} only{i}" for i, w in enumerate(number)]  # all different; no real caption has the second word
    real = [f"word{w}" for w in range(5)]
    found = word_report(np.eye(5)[seen], captions, np.eye(5), real)
    assert (found["word_count"], found["word_unknown"], found["word_n"]) == (5, 400, 400)
    expected = np.sqrt(0.5 * 0.5 / 400) / 0.2
    assert found["word_lift"] == pytest.approx(2.5, abs=4 * expected)
    assert found["word_lift_standard_error"] == pytest.approx(expected, rel=0.12)
    again = word_report(np.eye(5)[seen].repeat(4, 0), np.repeat(captions, 4), np.eye(5), real)
    assert again["word_lift_standard_error"] == pytest.approx(found["word_lift_standard_error"], rel=0.12)
    assert again["word_lift"] == pytest.approx(found["word_lift"])
    assert np.isnan(word_report(np.eye(5), ["word1"] * 5, np.eye(5), real)["word_lift_standard_error"])


@pytest.mark.parametrize("block", [1, 3, 5])
def test_blocks_change_nothing(block):
    whole = figures(word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS))
    assert figures(word_report(SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS, block=block)) == whole


def test_what_does_not_fit_is_refused():
    given = (SAMPLES, CAPTIONS, REAL, REAL_CAPTIONS)
    for at, value, words in (
        (1, CAPTIONS[:3], r"sample features have shape \(5, 3\), with 3 captions; allowed: \[N, D\] and N captions"),
        (1, "red dog", "with one text; allowed"),
        (1, [*CAPTIONS[:4], None], "a sample caption is None, a NoneType; allowed: str"),
        (3, ["red", "red", "red", b"red"], "a real caption is b'red', a bytes"),
        (2, REAL[0], r"real features have shape \(3,\)"),
        (2, REAL[:, :2], "real has 2 features, samples 3; use one feature function"),
        (2, REAL + np.array([[0], [np.nan], [0], [np.inf]]), "2 of 4 real feature vectors hold NaN or inf"),
        (1, [""] * 5, "no word is asked for by 1 samples and in a real caption: 0 words asked for, 5 in real captions"),
        (3, ["", "moon", "the", "sun"], "6 words asked for, 2 in real captions; mend: more captions"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            word_report(*given[:at], value, *given[at + 1 :])
        assert "\n" not in str(caught.value)
    for wrong in ({"k": 0}, {"k": 5}, {"min_asked": 0}, {"block": 0}, {"resamples": 1}):
        with pytest.raises(ValueError, match="allowed: k 1 to 4, min_asked and block from 1"):
            word_report(*given, **wrong)
