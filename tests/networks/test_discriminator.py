"""The discriminators: what they answer, who sees whom, where gradients go, against numpy, torch and a known optimum."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxdiff.networks import Discriminator, PointDiscriminator
from jaxdiff.networks.discriminator import DiscriminatorBlock, minibatch_std
from tests.networks.table import normal, quick, random_params

TIMES = jnp.array([0.0, 1.0, 2.0, 3.0])
LABELS = jnp.array([0, 1, 2, 2])
HEADS = {"denoise": True, "regress": True, "variance": True}
IMAGE = Discriminator(out_channels=3, channels=4, channel_mult=(1, 2), num_classes=3, minibatch_std=2, **HEADS)
POINT = PointDiscriminator(width=8, depth=1, num_classes=3, minibatch_std=2, **HEADS)
X = {"image": normal(0, 4, 8, 8, 6), "point": normal(1, 4, 4)}  # joint: x_s beside x_t


def call_of(net):
    return quick(lambda p, x, t, label: net.apply({"params": p}, x, t, {"label": label}))


class Ready:
    """A discriminator with random parameters and jitted calls that the tests share."""

    def __init__(self, net, x):
        self.net, self.x = net, x
        self.params = random_params(net, x, TIMES)
        self.call = call_of(net)
        self.y = self.call(self.params, x, TIMES, LABELS)

    def moved(self, **changed):
        """Per output, which examples' answers change with these inputs."""
        args = {"x": self.x, "t": TIMES, "label": LABELS} | changed
        y = self.call(self.params, args["x"], args["t"], args["label"])
        gap = {k: np.abs(np.asarray(y[k] - self.y[k])).reshape(4, -1).max(axis=1) for k in y}
        return {k: (v > 1e-4 * np.abs(self.y[k]).max()).tolist() for k, v in gap.items()}


@pytest.fixture(scope="module", params=["image", "point"])
def ready(request):
    return Ready({"image": IMAGE, "point": POINT}[request.param], X[request.param])


def shapes(net, x, t=TIMES, cond=None):
    """The shapes of outputs and parameters, without computing anything."""
    y, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t, cond)
    return y, flatten_dict(variables["params"], sep="/")


@pytest.mark.parametrize("denoise, regress, variance", product((False, True), repeat=3))
def test_outputs_by_field(denoise, regress, variance):
    """Each head only where it is asked for, float32 whatever the arithmetic; and no decoder where there is none."""
    heads = ["log_variance"] * variance + ["residual"] * regress + ["x0"] * denoise  # as jax sorts the keys of a dict
    asked = {"denoise": denoise, "regress": regress, "variance": variance}
    for patch, dtype in product((1, 2), (jnp.float32, jnp.bfloat16)):
        net = Discriminator(2, 8, (1, 2, 2), **asked, patch_size=patch, dtype=dtype)
        y, params = shapes(net, jnp.zeros((4, 8, 16, 6)))
        assert sorted(y) == sorted(["logit", *heads]) == list(y)
        assert [y[name].shape for name in ("logit", *heads)] == [(4,)] + [(4, 8, 16, 2)] * len(heads)
        assert {v.dtype for v in y.values()} == {jnp.dtype("float32")}
        assert any(name.startswith(("up_", "heads")) for name in params) == bool(heads)
        if heads:
            assert params["heads/kernel"].shape == (3, 3, 8, 2 * patch**2 * len(heads))
        point = PointDiscriminator(3, 8, **asked, dtype=dtype)
        y, params = shapes(point, jnp.zeros((4, 6)))
        assert list(y) == sorted(["logit", *heads]) and {v.dtype for v in y.values()} == {jnp.dtype("float32")}
        assert [y[name].shape for name in ("logit", *heads)] == [(4,)] + [(4, 3)] * len(heads)
        assert ("heads/kernel" in params) == bool(heads)


@pytest.mark.parametrize("batch, group, size", [(12, 4, 4), (6, 4, 3), (3, 8, 3), (7, 4, 1)])
def test_minibatch_std_is_numpys(batch, group, size):
    """Neighbours form groups; a batch that the group does not divide takes the largest divisor below."""
    x = np.random.default_rng(0).standard_normal((batch, 2, 3, 5)).astype(np.float32)
    groups = x.reshape(batch // size, size, -1)
    np.testing.assert_allclose(minibatch_std(x, group), np.repeat(groups.std(axis=1).mean(-1), size), atol=1.1e-4)


def test_minibatch_std_of_a_collapsed_batch():
    """No spread, no signal, and still a finite gradient, also of a gradient's length (R1)."""
    x = jnp.full((4, 3), 7.3)
    np.testing.assert_allclose(minibatch_std(x, 4), np.zeros(4), atol=1.1e-4)
    length = lambda v: (jax.grad(lambda u: minibatch_std(u, 4).sum())(v) ** 2).sum()
    assert bool(jnp.isfinite(jax.grad(length)(x)).all())


def test_who_sees_whom(ready):
    """An example's score looks at its group of two; the heads at nothing but their own example."""
    seen = ready.moved(x=ready.x.at[3].add(1.0))
    assert seen["logit"] == [False, False, True, True]
    assert seen["x0"] == seen["residual"] == seen["log_variance"] == [False, False, False, True]
    alone = ready.net.clone(minibatch_std=0)
    params = random_params(alone, ready.x, TIMES)
    a, b = (call_of(alone)(params, x, TIMES, LABELS)["logit"] for x in (ready.x, ready.x.at[3].add(1.0)))
    np.testing.assert_allclose(a[:3], b[:3], rtol=1e-5)


def test_every_output_reads_time_and_label(ready):
    for inputs in ({"t": TIMES + 1}, {"label": (LABELS + 1) % 3}, {"label": None}):
        assert set(map(tuple, ready.moved(**inputs).values())) == {(True,) * 4}, inputs


def test_where_gradients_go(ready):
    """Every output reaches the whole trunk; the decoder learns from the heads alone, the score's layers from it alone."""
    names = ("logit", "x0", "residual", "log_variance")

    def weighted(p, weights):
        y = ready.net.apply({"params": p}, ready.x, TIMES, {"label": LABELS})
        return sum(w * y[k].sum() for w, k in zip(weights, names, strict=True))

    grads = quick(jax.vmap(jax.grad(weighted), in_axes=(None, 0)))(ready.params, jnp.eye(4))
    for name, g in flatten_dict(grads, sep="/").items():
        assert bool(jnp.isfinite(g).all()), name
        for k, row in zip(names, np.abs(np.asarray(g)), strict=True):
            ours = name.startswith(("logit", "last", "compare")) if k == "logit" else name.startswith(("up_", "heads"))
            others = name.startswith(("logit", "last", "compare", "up_", "heads")) and not ours
            assert (row.max() > 1e-6) != others, (name, k)
    bias = np.asarray(grads["heads"]["bias"])[1:].reshape(3, 3, -1) > 0
    assert (bias.all(-1) == np.eye(3, dtype=bool)).all() and (bias.any(-1) == np.eye(3, dtype=bool)).all()


def test_at_initialisation(ready):
    """The residual is exactly 0, scores are near it, and yet the first step moves the stem."""
    params = quick(lambda k: ready.net.init(k, ready.x, TIMES)["params"])(jax.random.key(0, impl="rbg"))
    y = ready.call(params, ready.x, TIMES, LABELS)
    np.testing.assert_array_equal(y["residual"], np.zeros_like(y["residual"]))
    assert 1e-4 < float(jnp.abs(y["logit"]).max()) < 1 and float(y["x0"].std()) > 0.05
    far = ready.call(params, ready.x * 1.5, TIMES, LABELS)["logit"]
    assert float(jnp.abs(far - y["logit"]).min()) > 1e-5


def test_block_is_ddgans():
    """Against torch, with our parameters: LeakyReLU .2, conv, + embedding, LeakyReLU, halve, conv; (skip + h) / sqrt 2."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x, emb = normal(2, 2, 6, 4, 3), normal(3, 2, 5)
    for down, features in ((True, 4), (False, 3)):
        block = DiscriminatorBlock(features, down)
        params = random_params(block, x, emb)
        ours = quick(lambda p, block=block: block.apply({"params": p}, x, emb))(params)
        p = jax.tree.map(lambda v: torch.from_numpy(np.array(v)), params)
        conv = lambda v, name, p=p: F.conv2d(v, p[name]["kernel"].permute(3, 2, 0, 1), p[name]["bias"], padding=1)
        v = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
        told = torch.from_numpy(np.array(emb)) @ p["emb"]["kernel"] + p["emb"]["bias"]
        h = F.leaky_relu(conv(F.leaky_relu(v, 0.2), "conv_in") + told[:, :, None, None], 0.2)
        h = conv(F.avg_pool2d(h, 2) if down else h, "conv_out")
        if down:
            v = F.conv2d(F.avg_pool2d(v, 2), p["skip"]["kernel"].T[:, :, None, None], p["skip"]["bias"])
        theirs = ((v + h) / 2**0.5).permute(0, 2, 3, 1).numpy()
        assert ("skip" in params) == down
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_decoder_answers_where_it_was_asked():
    """Full resolution with a patch stem, and every pixel's answer lies over the pixels that it came from."""
    net = Discriminator(channels=4, channel_mult=(1, 2), patch_size=2, denoise=True)
    x, t = normal(4, 1, 4, 64, 1), jnp.zeros(1)
    params = random_params(net, x, t)
    run = quick(lambda v: net.apply({"params": params}, v, t)["x0"])
    y = run(x)
    gap = np.abs(np.asarray(run(x.at[0, 0, 20, 0].add(1.0)) - y))[0, ..., 0]
    assert y.shape == (1, 4, 64, 1)
    assert gap[:, 18:23].min() > 1e-4 * gap.max() and gap[:, 48:].max() < 1e-6 * gap.max()
    patches = np.asarray(y).reshape(2, 2, 32, 2)
    assert np.ptp(patches, axis=1).min() > 0 and np.ptp(patches, axis=3).min() > 0


def test_remat_changes_nothing():
    plain = Discriminator(channels=4, channel_mult=(1,))
    x = X["image"]
    params = random_params(plain, x, TIMES)

    def value_and_grad(net):
        return quick(jax.value_and_grad(lambda p: (net.apply({"params": p}, x, TIMES)["logit"] ** 2).mean()))(params)

    a, b = value_and_grad(plain), value_and_grad(plain.clone(remat=True))
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-5 * float(a[0])), a, b)


REFUSALS = [
    (Discriminator(), (2, 12, 16, 1), None, "multiples of 8"),
    (Discriminator(patch_size=2, channel_mult=(1, 2)), (2, 8, 6, 1), None, "multiples of 4"),
    (Discriminator(), (2, 16), None, r"allowed: \(B, H, W, C\)"),
    (Discriminator(num_blocks=0), (2, 8, 8, 1), None, "at least 1 block"),
    (Discriminator(channel_mult=(1,), minibatch_std=-1), (2, 8, 8, 1), None, "minibatch_std=-1"),
    (Discriminator(), (2, 8, 8, 1), {"label": jnp.zeros(2, int)}, "set num_classes, or leave it out"),
    (Discriminator(image=True), (2, 8, 8, 1), None, r"needs cond\['image'\]"),
    (Discriminator(), (2, 8, 8, 1), {"z": jnp.zeros((2, 3))}, "never reads"),
    (PointDiscriminator(), (2, 8, 8, 1), None, "use Discriminator for images"),
    (PointDiscriminator(), (2, 2), {"colour": 1}, "allowed keys"),
    (PointDiscriminator(image=True), (2, 2), None, r"needs cond\['image'\]"),
]


@pytest.mark.parametrize("net, shape, cond, message", REFUSALS)
def test_refusals_are_one_line(net, shape, cond, message):
    with pytest.raises(ValueError, match=message) as caught:
        shapes(net, jnp.zeros(shape), jnp.zeros(2), cond)
    assert "\n" not in str(caught.value)


def test_it_learns_the_log_ratio_of_two_gaussians():
    """N(m, I) against N(-m, I), real and fake swapped at t = 1: the loss nears that of the best score, +-2 m.x."""
    net = PointDiscriminator(width=32, depth=1)
    m, optimizer = jnp.array([0.8, -0.4]), optax.adam(1e-2)

    def batch(key, size):
        real = jax.random.normal(key, (size, 2)) + m
        t = jnp.arange(size) % 2.0
        return real, real - 2 * m, t

    def loss(params, key):
        real, fake, t = batch(key, 128)
        sign = 1 - 2 * t[:, None]
        score = lambda x: net.apply({"params": params}, x, t)["logit"]
        return jnp.mean(jax.nn.softplus(-score(sign * real)) + jax.nn.softplus(score(sign * fake)))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @quick
    def train(key):
        params = net.init(key, jnp.zeros((2, 2)), jnp.zeros(2))["params"]
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 150))
        real, fake, t = batch(jax.random.key(1), 4000)
        best = jnp.mean(jax.nn.softplus(-2 * real @ m) + jax.nn.softplus(2 * fake @ m))
        sign = 1 - 2 * t[:, None]
        score = lambda x: net.apply({"params": params}, x, t)["logit"]
        return best, jnp.mean(jax.nn.softplus(-score(sign * real)) + jax.nn.softplus(score(sign * fake)))

    best, reached = train(jax.random.key(0))
    assert best < 1.0 and abs(float(reached) - float(best)) < 0.05, (best, reached)
