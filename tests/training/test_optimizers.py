"""The chain against the papers' update rules written out, and the schedule at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import learning_rate_schedule, optimizer
from jaxdiff.training.optimizers import KINDS


def test_adamw_by_hand(x64):
    """Clipped gradient, Adam with bias correction, decoupled decay on the matrix alone, warm-up over 4 updates."""
    rng = np.random.default_rng(0)
    p = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=(2,))}
    tx = optimizer("adamw", 1e-2, warmup_steps=4, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, clip=1.0).transform
    ours = {k: jnp.asarray(v) for k, v in p.items()}
    opt = tx.init(ours)
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for n in range(6):
        g = {k: rng.normal(size=x.shape) * (3.0 if n % 2 else 0.1) for k, x in p.items()}
        change, opt = tx.update({k: jnp.asarray(x) for k, x in g.items()}, opt, ours)
        ours = optax.apply_updates(ours, change)
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        lr = 1e-2 * min(1.0, (n + 1) / 4)
        for k in p:
            c = g[k] * min(1.0, 1.0 / norm)
            m[k], v[k] = 0.8 * m[k] + 0.2 * c, 0.95 * v[k] + 0.05 * c**2
            u = (m[k] / (1 - 0.8 ** (n + 1))) / (np.sqrt(v[k] / (1 - 0.95 ** (n + 1))) + 1e-6)
            p[k] = p[k] - lr * (u + (0.1 * p[k] if k == "w" else 0.0))
    # The schedule is float32 by design, the rest float64.
    for k in p:
        np.testing.assert_allclose(ours[k], p[k], rtol=1e-6)


def test_adam_is_optax_adam():
    p, g = {"w": jnp.ones((4, 4))}, {"w": jnp.arange(16.0).reshape(4, 4) - 8}
    a, b = optimizer("adam", 3e-4).transform, optax.adam(3e-4)
    sa, sb = a.init(p), b.init(p)
    for _ in range(3):
        (ca, sa), (cb, sb) = a.update(g, sa, p), b.update(g, sb, p)
        np.testing.assert_allclose(ca["w"], cb["w"], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_descends(kind):
    tx = optimizer(kind, 0.1, weight_decay=1e-4, clip=10.0).transform

    def descend(carry, _):
        p, opt = carry
        change, opt = tx.update(p, opt, p)  # the gradient of |w|^2 / 2
        return (optax.apply_updates(p, change), opt), None

    p = {"w": jnp.full((2, 2), 2.0)}
    (p, _), _ = jax.jit(lambda c: jax.lax.scan(descend, c, length=200))((p, tx.init(p)))
    assert float(jnp.abs(p["w"]).max()) < 0.5


def test_schedule_corners():
    lr = learning_rate_schedule(1.0, 10, "cosine", 110, 0.1)
    got = [float(lr(n)) for n in (0, 4, 9, 10, 60, 110, 500)]
    np.testing.assert_allclose(got, [0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)
    line = learning_rate_schedule(2.0, 0, "linear", 100)
    np.testing.assert_allclose([float(line(n)) for n in (0, 25, 100)], [2.0, 1.5, 0.0], rtol=1e-6)
    root = learning_rate_schedule(1.0, 10, "rsqrt", decay_start=100)
    np.testing.assert_allclose([float(root(n)) for n in (4, 99, 399)], [0.5, 1.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(float(optimizer("adam", 3e-4).schedule(10**6)), 3e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"kind": "adma"}, "allowed: adam, adamw"),
        ({"decay": "cosin"}, "allowed: constant, cosine"),
        ({"decay": "cosine"}, "total_steps"),
        ({"clip": 0.0}, "None for no clipping"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"weight_decay": -1.0}, "0 or more"),
    ],
)
def test_wrong_words(words, says):
    with pytest.raises(ValueError, match=says):
        optimizer(**words)
