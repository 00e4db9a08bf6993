"""Distances against closed forms, scipy, brute force and their limits."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxdiff.evaluation import (
    Moments,
    cubic_mmd2,
    energy_distance,
    frechet_distance,
    inception_score,
    kid,
    merge_moments,
    moments_of,
    precision_recall,
    streaming_moments,
)

N = 1000


def exact(mean, cov, n=N):
    """Moments whose mean and covariance are given, not sampled."""
    return Moments(n, np.asarray(mean, float), np.asarray(cov, float) * (n - 1))


def test_streaming_moments_are_numpys_whatever_the_batches(rng=np.random.default_rng(0)):
    x = rng.normal(size=(1003, 7)) @ rng.normal(size=(7, 7)) + 1e3  # a far mean, where E x^2 - m^2 would lose digits
    cuts = [x[:1], x[1:400], x[400:402], x[402:]]
    whole, parts = moments_of(x), streaming_moments(cuts)
    merged = merge_moments(streaming_moments(cuts[2:]), streaming_moments(cuts[:2]))
    for m in (whole, parts, merged):
        assert m.n == 1003
        np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(m.cov, np.cov(x.T), rtol=1e-9, atol=1e-9)


def test_frechet_closed_forms():
    # one dimension: (m - n)^2 + (s - t)^2
    assert frechet_distance(exact([1.0], [[4.0]]), exact([-2.0], [[0.25]])).value == pytest.approx(9 + 1.5**2)
    # diagonal: the sum over axes
    s, t = np.array([1.0, 2, 3]), np.array([2.0, 2, 0.5])
    got = frechet_distance(exact([0, 0, 0], np.diag(s**2)), exact([1, 0, -1], np.diag(t**2)))
    assert got.value == pytest.approx(2 + np.sum((s - t) ** 2))
    assert (got.n_real, got.n_fake) == (N, N)
    # commuting: the same in the shared eigenbasis
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    got = frechet_distance(exact([0, 0, 0], q @ np.diag(s**2) @ q.T), exact([0, 0, 0], q @ np.diag(t**2) @ q.T, 77))
    assert got.value == pytest.approx(np.sum((s - t) ** 2))
    assert got.n_fake == 77


def test_frechet_equals_scipy_sqrtm_and_is_symmetric(rng=np.random.default_rng(2)):
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(200, 12)) + 0.3
    m, n = moments_of(a), moments_of(b)
    root = scipy.linalg.sqrtm(m.cov @ n.cov).real
    expected = np.sum((m.mean - n.mean) ** 2) + np.trace(m.cov + n.cov - 2 * root)
    assert frechet_distance(m, n).value == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(n, m).value == pytest.approx(expected, rel=1e-9)


def test_frechet_is_exact_without_full_rank(rng=np.random.default_rng(3)):
    a, b = rng.normal(size=(2, 200))
    # rank one: C = a a^T, D = b b^T, tr (C^{1/2} D C^{1/2})^{1/2} = |a.b|
    got = frechet_distance(exact(np.zeros(200), np.outer(a, a)), exact(np.zeros(200), np.outer(b, b))).value
    assert got == pytest.approx(a @ a + b @ b - 2 * abs(a @ b), rel=1e-12)
    few = moments_of(rng.normal(size=(20, 200)))  # fewer images than features
    assert frechet_distance(few, few).value < 1e-11
    assert frechet_distance(few, exact(few.mean, np.zeros((200, 200)))).value == pytest.approx(np.trace(few.cov))


def test_cubic_mmd2_equals_a_double_loop(rng=np.random.default_rng(4)):
    x, y = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)) + 0.5

    def k(a, b):
        return (sum(a * b) / 5 + 1) ** 3

    xx = np.mean([k(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert cubic_mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_is_unbiased_and_sees_a_shift(rng=np.random.default_rng(5)):
    draws = np.array([cubic_mmd2(rng.normal(size=(20, 8)), rng.normal(size=(20, 8))) for _ in range(2000)])
    error = draws.std() / np.sqrt(len(draws))
    assert abs(draws.mean()) < 4 * error
    assert (draws < 0).mean() > 0.3  # an unbiased estimate of zero falls on both sides
    # E k(x, y) for independent x, y ~ N(m, I): the third moments of x.y / D + 1 give MMD^2 of a shift by m in closed form
    d, m = 8, 0.5
    a = m**2  # per axis; x.y / d has mean 0 (or a if both are shifted) and the variances below
    same0, both, cross = (1 + 3 / d), _cube(a, (1 + 2 * a) / d, 6 * a / d**2), (1 + 3 * (1 + a) / d)
    shifted = np.array([cubic_mmd2(rng.normal(size=(50, d)), rng.normal(size=(50, d)) + m) for _ in range(2000)])
    assert shifted.mean() == pytest.approx(same0 + both - 2 * cross, abs=4 * shifted.std() / np.sqrt(2000))
    found = kid(rng.normal(size=(400, d)), rng.normal(size=(300, d)) + m, subsets=20)
    assert (found.subset_size, found.n_real, found.n_fake) == (150, 400, 300)
    assert found.std > 0
    assert found.mean > 3 * found.std


def _cube(mean, variance, third):
    """E (1 + u)^3 for u of this mean, variance and third central moment."""
    return (1 + mean) ** 3 + 3 * (1 + mean) * variance + third


def brute_force(support, points, k):
    inside = 0
    for p in points:
        for s in support:
            radius = sorted(np.linalg.norm(support - s, axis=1))[k]
            if np.linalg.norm(p - s) <= radius:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_equals_brute_force(k):
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(41, 4)), 1.4 * rng.normal(size=(33, 4)) + 0.4
    got = precision_recall(real, fake, k=k, block=10)
    assert got.precision == pytest.approx(brute_force(real, fake, k))
    assert got.recall == pytest.approx(brute_force(fake, real, k))
    assert 0.1 < got.precision < got.recall < 1
    assert (got.k, got.n_real, got.n_fake) == (k, 41, 33)


def test_precision_recall_limits(rng=np.random.default_rng(7)):
    real = rng.normal(size=(200, 16)) + 1e3
    assert precision_recall(real, real)[:2] == (1, 1)
    assert precision_recall(real, real + 1e3)[:2] == (0, 0)
    thrice = np.repeat(real[:50], 4, 0)  # duplicates leave no radius at all, yet a copy is inside
    assert precision_recall(thrice, real[:50])[:2] == (1, pytest.approx(1))
    modes = np.concatenate([real, real + 100])  # the fakes know one of two modes
    got = precision_recall(modes, real + 0.01 * rng.normal(size=real.shape))
    assert got.precision > 0.95
    assert got.recall == pytest.approx(0.5, abs=0.03)


def test_inception_score_closed_forms(rng=np.random.default_rng(8)):
    assert inception_score(np.zeros((100, 7))).mean == pytest.approx(1)
    one_hot = np.tile(50 * np.eye(7), (40, 1))
    assert inception_score(one_hot, splits=1).mean == pytest.approx(7)
    assert inception_score(np.tile(50 * np.eye(7)[2], (40, 1))).mean == pytest.approx(1)  # sure, and all the same
    logits = rng.normal(size=(60, 5))
    p = scipy.special.softmax(logits, 1)
    expected = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    got = inception_score(logits, splits=1)
    assert got.mean == pytest.approx(expected)
    assert (got.splits, got.n_fake, got.std) == (1, 60, 0)
    ordered = np.repeat(50 * np.eye(4), 500, 0)  # sorted by class, as class-conditional samples come
    assert inception_score(ordered).mean > 3.9


def test_energy_distance_equals_scipy_and_falls_with_n(rng=np.random.default_rng(9)):
    a, b = rng.normal(size=300), rng.exponential(size=200)
    got = energy_distance(a[:, None], b[:, None], block=64)
    assert got.value == pytest.approx(scipy.stats.energy_distance(a, b) ** 2, rel=1e-6)
    assert (got.n_real, got.n_fake) == (300, 200)
    small, large = (energy_distance(*rng.normal(size=(2, n, 2))).value for n in (100, 2000))
    assert 0 <= large < small
    assert energy_distance(a[:, None], a[:, None]).value < 1e-6


def test_wrong_features_are_named():
    x = np.zeros((5, 3))
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 5 fake feature vectors hold NaN"):
        kid(np.zeros((5, 3)), x)
    with pytest.raises(ValueError, match="real has 3 features, fake 4"):
        precision_recall(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="real has 3 features, fake 4"):
        frechet_distance(moments_of(np.zeros((5, 3))), moments_of(np.zeros((5, 4))))
    with pytest.raises(ValueError, match="allowed: at least 1 subset, of 2 to 5"):
        kid(np.zeros((5, 3)), np.zeros((6, 3)), subset_size=6)
    with pytest.raises(ValueError, match="N at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="covariance of 1 sample"):
        frechet_distance(moments_of(np.zeros((1, 3))), moments_of(np.zeros((4, 3))))
    with pytest.raises(ValueError, match="no batches"):
        streaming_moments([])
