"""The linear generator and the quadratic discriminator as networks, and the library's losses of them.

Two ways to take a loss's expectation: the mean over many draws of the library's own with its standard error, and draws
whose moments are exact, on which a quadratic term is its expectation.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.losses import adversarial
from tests.adversarial.gaussian import BLOCKS


def generate(params, x_t, c_noise, cond, key):
    """The linear generator as a network: raw = A x_t + b + L z, in the x0 parameterisation."""
    at, params = c_noise.astype(jnp.int32), jax.tree.map(jnp.asarray, params)
    return jnp.einsum("bij,bj->bi", params["A"][at], x_t) + params["b"][at] + jnp.einsum(
        "bij,bj->bi", params["L"][at], cond["z"].astype(x_t.dtype))


def discriminate(params, x, c_noise, cond):
    """The quadratic logit and the linear heads as a network; `x` is x_s, or (x_s, x_t) on the last axis.

    c_noise tells it t - 1, where its numbers stand.
    """
    at, params = c_noise.astype(jnp.int32), jax.tree.map(jnp.asarray, params)
    d = params["w"].shape[1]
    linear = lambda gain, offset: jnp.einsum("bij,bj->bi", params[gain][at], x[:, :d]) + params[offset][at]
    logit = 0.5 * jnp.einsum("bi,bij,bj->b", x, params["Q"][at], x) + (params["l"][at] * x).sum(1) + params["k"][at]
    outputs = {"logit": logit, "x0": linear("H", "h"), "residual": linear("W", "w")}
    return outputs | ({"log_variance": params["u"][at]} if "u" in params else {})


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def silent(phi, names="Qlk"):
    """The same discriminator with these parameters at 0: without a logit the GAN term for G is log 2, whatever G does."""
    return phi | {name: 0 * phi[name] for name in names}


@cache
def losses(world, kind, scaled=0.0, **options):
    """The library's pair of losses in a world; `scaled` is sigma_data of the networks' scaled inputs."""
    parameterization = jd.parameterizations.x0(scaled or 1.0, scale_input=scaled > 0)
    parts = (generate, discriminate, jd.sde.Discrete(world.betas), parameterization, world.d)
    if kind == "ddgan":
        return jd.losses.ddgan(*parts, **options)
    return jd.losses.siddm(*parts, **{"total_steps": 100, "warmup": 10, **options})


@partial(jax.jit, static_argnames=("world", "asked", "chunks", "size"))
def _draws(world, asked, questions, chunks, size):
    def one(key):
        k_data, k_loss = jax.random.split(key)
        batch = {"x": world.mean + jax.random.normal(k_data, (size, world.d)) @ world.root.T}

        def answer(loss, which, question):
            params, step = question
            value = lambda own: loss({**params, which: own}, None, k_loss, batch, step)
            (total, _), grad = jax.value_and_grad(value, has_aux=True)(params[which])
            return {"value": total, **grad}

        return [jax.lax.map(partial(answer, *pair), own) for pair, own in zip(asked, questions, strict=True)]

    return jax.lax.map(one, jax.random.split(jax.random.key(7), chunks))


def sampled(world, which, questions, chunks=64, size=2048):
    """Library losses and their gradients for the network `which` over many fresh batches, means and standard errors.

    `questions` are lists of `(theta, phi, step)` by loss; so are the answers, pairs of dicts. All come from one program, on
    the same draws.
    """
    stack = lambda asked: jax.tree.map(lambda *v: jnp.stack([jnp.asarray(x) for x in v]), *[
        ({"generator": theta, "discriminator": phi}, step) for theta, phi, step in asked])
    asked = tuple((loss, which) for loss in questions)
    answers = _draws(world, asked, [stack(own) for own in questions.values()], chunks, size)
    found = {}
    for (loss, own), answer in zip(questions.items(), answers, strict=True):
        pick = lambda i, answer=answer: [np.asarray(v)[:, i] for v in answer.values()]
        found[loss] = [tuple({k: f(v) for k, v in zip(answer, pick(i), strict=True)} for f in (
            lambda v: v.mean(0), lambda v: v.std(0, ddof=1) / np.sqrt(chunks))) for i in range(len(own))]
    return found


def balanced(world, times=None, each=64):
    """Draws whose normals have mean 0 and covariance 1 exactly, `each` for every t, in the form of the library's own.

    Every quadratic part of a loss takes its exact expectation on them, and so does its gradient.
    """
    rng, columns = np.random.default_rng(11), []
    for t in times or range(1, world.steps + 1):
        normals = rng.normal(size=(each, len(BLOCKS) * world.d))
        normals -= normals.mean(0)
        normals = normals @ np.linalg.inv(np.linalg.cholesky(normals.T @ normals / each)).T
        laws = (*world.real(t), *(world.normal(name) for name in "zwe"))
        columns.append([law.offset + normals @ law.matrix.T for law in laws] + [np.full(each, float(t))])
    x0, x_s, x_t, z, noise, fresh, t = (jnp.asarray(np.concatenate(v)) for v in zip(*columns, strict=True))
    return adversarial.Drawn(x0, x_s, x_t, t, {}, z, noise, fresh, jax.random.key(0))
