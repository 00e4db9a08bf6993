"""`load_run`: a run directory as pure functions, called from other JAX code in every way that JAX has."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxdiff as jd
from jaxdiff.sde import grids

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

LABELS = {"label": jnp.array([0, 3, 24, 7])}
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def run(points_run):
    return jd.load_run(points_run)


@pytest.fixture(scope="module")
def draw(run):
    return run.sampler(num_steps=3)


@pytest.fixture(scope="module")
def images(run, draw):
    return jax.jit(draw, static_argnums=3)(run.params, KEY, LABELS, 4)


def same(a, b):
    np.testing.assert_array_equal(a, b)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_a_run_holds(run):
    assert run.step == 4 and run.config.name == "gaussians25_edm"
    assert run.facts.shape == (2,) and run.facts.num_classes == 25 and run.facts.kind == "points"
    assert run.path == jd.sde.EDM()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.params))


def test_samples(run, draw, images):
    """[num, *shape] in float32; the label tells, the key too; eager is jit."""
    assert images.shape == (4, 2) and images.dtype == jnp.float32 and bool(jnp.isfinite(images).all())
    close(draw(run.params, KEY, LABELS, 4), images)
    jitted = jax.jit(draw, static_argnums=3)
    same(jitted(run.params, KEY, LABELS, 4), images)
    assert not np.array_equal(jitted(run.params, jax.random.key(6), LABELS, 4), images)
    others = jitted(run.params, KEY, {"label": jnp.array([0, 4, 24, 7])}, 4)
    assert np.flatnonzero((others != images).any(1)).tolist() == [1]


def test_number_or_shape(run, draw, images):
    jitted = jax.jit(draw, static_argnums=3)
    same(jitted(run.params, KEY, LABELS, (4, 2)), images)
    same(draw(run.params, KEY, LABELS, np.int64(4)), draw(run.params, KEY, LABELS, 4))


def test_vmap_over_keys(run, draw):
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(lambda key: draw(run.params, key, LABELS, 4)))(keys)
    one = jax.jit(draw, static_argnums=3)
    close(many, jnp.stack([one(run.params, key, LABELS, 4) for key in keys]))


def test_gradient(run, draw):
    """By the parameters; checked against a difference quotient along the gradient."""
    loss = jax.jit(lambda params: (draw(params, KEY, LABELS, 4) ** 2).mean())
    grads = jax.jit(jax.grad(loss))(run.params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    norm2 = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
    assert norm2 > 0
    h = 1e-2 / norm2**0.5
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * h / norm2**0.5 * g, run.params, grads)
    quotient = float(loss(moved(1)) - loss(moved(-1))) / (2 * h)
    assert quotient == pytest.approx(norm2**0.5, rel=0.05)


def test_inside_other_programs(run, draw, images):
    """In a scan that chains draws, inside the caller's jit, and with the sampler built in there as well."""

    @jax.jit
    def program(params):
        def body(total, key):
            x = draw(params, key, LABELS, 4)
            return total + x, x

        return jax.lax.scan(body, jnp.zeros((4, 2)), jnp.stack([KEY, jax.random.key(6)]))

    total, each = program(run.params)
    close(each[0], images)
    close(total, each.sum(0))
    close(jax.jit(lambda params: run.sampler(num_steps=3)(params, KEY, LABELS, 4))(run.params), images)


def test_no_retrace(run, draw):
    traced = []

    @jax.jit
    def program(params, key, label):
        traced.append(1)
        return draw(params, key, {"label": label}, 4)

    for i in range(2):
        program(run.params, jax.random.key(i), LABELS["label"] + i * 0)
    assert len(traced) == 1


def test_pmap_and_shard_map(run, draw):
    """Four virtual devices, each with its own key and labels, against one device in turn."""
    keys, labels = jax.random.split(KEY, 4), jnp.arange(8).reshape(4, 2)
    one = jax.jit(draw, static_argnums=3)
    want = jnp.stack([one(run.params, keys[i], {"label": labels[i]}, 2) for i in range(4)])
    pmapped = jax.pmap(lambda params, key, label: draw(params, key, {"label": label}, 2), in_axes=(None, 0, 0))
    close(pmapped(run.params, keys, labels), want)

    def shard(params, key, label):
        return draw(params, key[0], {"label": label[0]}, 2)[None]

    mesh, each = Mesh(np.array(jax.devices()), ("i",)), PartitionSpec("i")
    sharded = jax.shard_map(shard, mesh=mesh, in_specs=(PartitionSpec(), each, each), out_specs=each, check_vma=False)
    close(jax.jit(sharded)(run.params, keys, labels), want)


@pytest.fixture(scope="module")
def loud(run):
    """The run with large random parameters: four steps of training hardly tell one class from another."""
    rng = np.random.default_rng(0)
    return run._replace(params=jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype), run.params))


def by_hand(run, cond):
    """The plain conditional model, put together from the library's own parts."""
    heun = jd.samplers.heun()
    grid = heun.grid(run.path, 3)

    @jax.jit
    def program(params, key, cond):
        k_prior, k_steps = jax.random.split(key)
        x_T = jd.sde.prior(run.path, k_prior, jnp.zeros((4, 2)))
        return jd.samplers.sample(heun, run.denoiser(params), run.path, grid, k_steps, x_T, cond)

    return program(run.params, KEY, cond)


def test_guidance(loud):
    """1 is the conditional model, bit for bit; 0 and no condition are the null label; 3 is neither."""
    at = lambda scale: jax.jit(loud.sampler(num_steps=3, guidance=scale), static_argnums=3)
    plain, null, strong = (at(scale)(loud.params, KEY, LABELS, 4) for scale in (1.0, 0.0, 3.0))
    same(plain, by_hand(loud, LABELS))
    same(plain, jax.jit(loud.sampler(num_steps=3), static_argnums=3)(loud.params, KEY, LABELS, 4))  # the config's scale
    close(null, by_hand(loud, {"label": jnp.full(4, 25)}))
    close(null, at(1.0)(loud.params, KEY, None, 4))
    assert min(float(jnp.abs(a - b).max()) for a, b in ((null, plain), (strong, plain), (strong, null))) > 0.1
    own = loud.sampler(num_steps=3, guidance=jd.guidance.classifier_free(3.0, 25))
    same(jax.jit(own, static_argnums=3)(loud.params, KEY, LABELS, 4), strong)


def test_samplers_and_grids(run, images):
    """A sampler by name, by value, and on another grid; the config's own by default."""
    default = run.sampler()(run.params, KEY, LABELS, 4)  # smoke takes three steps
    close(default, images)
    named = run.sampler(num_steps=3, sampler="ddim")(run.params, KEY, LABELS, 4)
    close(named, run.sampler(num_steps=3, sampler=jd.samplers.ddim())(run.params, KEY, LABELS, 4))
    assert not np.allclose(named, images)
    other = run.sampler(num_steps=3, grid=lambda path, n: grids.log_snr(path, n, 0.01))(run.params, KEY, LABELS, 4)
    assert not np.allclose(other, images)


def test_raw_and_averaged_parameters(points_run, run):
    """`ema=False` gives the parameters as trained; an older step gives older ones."""
    raw, older = jd.load_run(points_run, ema=False), jd.load_run(points_run, step=2)
    assert (raw.step, older.step) == (4, 2)
    for other in (raw, older):
        assert jax.tree.structure(other.params) == jax.tree.structure(run.params)
        leaves = zip(jax.tree.leaves(other.params), jax.tree.leaves(run.params), strict=True)
        assert any(not np.array_equal(a, b) for a, b in leaves)


def test_denoiser(loud):
    """A pair that makes up x_t; the condition given when it was bound is what it is told unless told otherwise."""
    x, t, null = jax.random.normal(KEY, (4, 2)), jnp.full(4, 0.7), {"label": jnp.full(4, 25)}
    bound, free = loud.denoiser(loud.params, LABELS), loud.denoiser(loud.params)
    x0, eps, _ = bound(KEY, x, t)
    np.testing.assert_allclose(x0 + 0.7 * eps, x, atol=1e-4)  # EDM: alpha is 1, sigma is t
    close(x0, free(KEY, x, t, LABELS).x0)
    close(bound(KEY, x, t, null).x0, free(KEY, x, t).x0)
    assert float(jnp.abs(x0 - free(KEY, x, t).x0).max()) > 0.01


def test_a_run_moves(points_run, run, draw, tmp_path):
    """Nothing in a run directory knows where it lies."""
    moved = jd.load_run(shutil.copytree(points_run, tmp_path / "elsewhere"))
    same(moved.sampler(num_steps=3)(moved.params, KEY, LABELS, 4), draw(run.params, KEY, LABELS, 4))


def test_exported(run, draw, images):
    """Serialised with its parameters and called again without this package."""
    exported = jax.export.export(jax.jit(lambda params, label: draw(params, KEY, {"label": label}, 4)))
    blob = exported(run.params, LABELS["label"]).serialize()
    close(jax.export.deserialize(blob).call(run.params, LABELS["label"]), images)


@pytest.mark.parametrize(
    "call, parts",
    [
        (lambda run: run.sampler(sampler="huen"), ("sampler.kind is 'huen'", "heun")),
        (lambda run: run.sampler(num_steps=0), ("num_steps is 0",)),
        (lambda run: run.sampler(guidance=float("nan")), ("guidance scale is nan",)),
        (lambda run: run.sampler()(run.params, KEY, LABELS, 5), ("(4,)", "(5,)")),
        (lambda run: run.sampler()(run.params, KEY, {"label": 3}, 4), ("()", "(4,)")),
        (lambda run: run.sampler()(run.params, KEY, {"label": jnp.array([0, 26])}, 2), ("26", "0 to 24")),
        (lambda run: run.sampler()(run.params, KEY, {"label": jnp.array([-1, 2])}, 2), ("-1", "0 to 24")),
        (lambda run: run.sampler()(run.params, KEY, {"lable": jnp.array([1, 2])}, 2), ("lable",)),
    ],
)
def test_refusals(run, call, parts):
    with pytest.raises(ValueError) as caught:
        call(run)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_unconditional_runs_take_no_condition(run):
    plain = run._replace(facts=run.facts._replace(num_classes=0))
    with pytest.raises(ValueError, match="towards a class or a text, and this run has none"):
        plain.sampler(guidance=2.0)
    with pytest.raises(ValueError, match="no classes"):
        plain.sampler()(run.params, KEY, LABELS, 4)


def test_missing_runs(points_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run at"):
        jd.load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"step 3 .* it has 2, 4"):
        jd.load_run(points_run, step=3)
    copied = shutil.copytree(points_run, tmp_path / "copied")
    (copied / "data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.json; mend"):
        jd.load_run(copied)
    (copied / "data.json").write_text("{")
    with pytest.raises(ValueError, match="not the facts"):
        jd.load_run(copied)
