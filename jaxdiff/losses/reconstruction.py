"""The losses of an autoencoder that is the first stage of latent diffusion (Esser et al. 2021; Rombach et al. 2022).

    rec   = mean |x - x_hat| + w_p perceptual(x, x_hat)
    A     rec + sum of w_c cost_c + lambda gan,   gan = -mean D(x_hat),     w_c: kl 1e-6, codebook 1, commitment .25
    D     (mean relu(1 - D(x)) + mean relu(1 + D(x_hat))) / 2                          the hinge loss (Lim & Ye 2017)
    lambda = w_d clip(|d rec / d L| / (|d gan / d L| + 1e-6), 0, 1e4)                  L the last kernel (Esser, eq. 7)

|x - x_hat| is a mean over pixels and channels and the KL a sum over the latent, in nats an example. Up to step
`disc_start` D is neither asked nor taught.

lambda needs d rec / d x_hat and d gan / d x_hat anyway, and D and the perceptual network are the dear part of it: so both
are computed once, at the value of x_hat, and the loss goes on as value + <d rec + lambda d gan, x_hat - value of x_hat>,
whose gradient is that of rec + lambda gan with lambda held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxdiff.losses.denoising import split_batch
from jaxdiff.trees import example_keys
from jaxdiff.types import Array, Aux, Batch, Key, LossFn, Params, Tree


class Reconstruction(NamedTuple):
    """The losses of two Updates of one step, the discriminator's first and None where there is none, and their shared
    forward pass of the autoencoder:

    Update("discriminator", r.discriminator, ...), Update("autoencoder", r.generator, ..., forward=r.forward)
    """

    discriminator: LossFn | None
    generator: LossFn
    forward: Callable[[Params, Key, Batch, Any], Any]


def hinge(real: Array, fake: Array) -> Array:
    """D's loss, a scalar, of logits of any shapes: 0 where every real one is above 1 and every fake one below -1."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def autoencoder(
    code: Callable[[Params, Array, Key], Any],
    paint: Callable[[Params, Array], Array],
    discriminate: Callable[[Params, Array], Array] | None = None,
    perceptual: Callable[[Array, Array], Array] | None = None,
    track: Callable[[Any, Key, dict[str, Array]], tuple[Any, dict[str, Array]]] | None = None,
    perceptual_weight: float = 1.0,
    kl_weight: float = 1e-6,
    codebook_weight: float = 1.0,
    commitment_weight: float = 0.25,
    disc_weight: float = 0.5,
    disc_start: int = 50_000,
    last_layer: Sequence[str] = ("head", "conv", "kernel"),
) -> Reconstruction:
    """Losses on `batch["x"]` [B, H, W, C]; parameters under "autoencoder" and "discriminator".

    Args:
      code: `(params, x, keys [B]) -> coded`, with `coded.features`, which `paint` turns into x_hat; `coded.costs`, a dict
        of [B] named "kl", "codebook" or "commitment"; and `coded.told`, a dict of arrays for `track`.
      paint: `(params, features) -> x_hat` [B, H, W, C], the last layer.
      discriminate: `(params, x) -> logits`, of any shape; None or `disc_weight=0` trains without.
      perceptual: `(x, x_hat) -> distance`, a scalar or [B]; None is off.
      track: `(state, key, told) -> (state, metrics)`, for the autoencoder's mutable state; None has none.
      disc_start: the first step (0, 1, ...) at which D is taught and heard.
      last_layer: the path of the last kernel in the autoencoder's parameters, which `paint` must read.

    lambda is that of the batch a loss sees: micro-batches, and the devices of `pmap`, each have their own.
    Metrics: l1, perceptual, the costs by name, gan and adaptive (lambda), which are 0 before `disc_start`, what `track`
    reports, and loss. Raises ValueError for a weight or a start below 0.
    """
    weights = {"kl": kl_weight, "codebook": codebook_weight, "commitment": commitment_weight}
    numbers = {f"{name}_weight": value for name, value in weights.items()}
    for name, value in {**numbers, "perceptual_weight": perceptual_weight, "disc_weight": disc_weight,
                        "disc_start": disc_start}.items():
        if value < 0:
            raise ValueError(f"loss.{name} is {value}; allowed: 0 or more")

    adversarial, ask = discriminate is not None and disc_weight > 0, cast(Callable[[Params, Array], Array], discriminate)

    def forward(params: Params, key: Key, batch: Batch, step: Any) -> Any:
        del step
        x, _, index = split_batch(batch)
        return code(params["autoencoder"], x, example_keys(jax.random.split(key)[0], index))

    def coded_of(params: Params, key: Key, batch: Batch) -> Any:
        return batch["shared"] if "shared" in batch else forward(params, key, batch, None)

    def error(x: Array, x_hat: Array) -> tuple[Array, dict[str, Array]]:
        metrics = {"l1": jnp.abs(x - x_hat).mean()}
        value = metrics["l1"]
        if perceptual is not None and perceptual_weight:
            metrics["perceptual"] = jnp.mean(perceptual(x, x_hat))
            value = value + perceptual_weight * metrics["perceptual"]
        return value, metrics

    def judged(params: Params, x: Array, features: Array, step: Any) -> tuple[Array, dict[str, Array]]:
        """rec + lambda gan."""
        x_hat = paint(params["autoencoder"], features)
        mine, features, seen = jax.lax.stop_gradient((params["autoencoder"], features, x_hat))
        (value, metrics), toward = jax.value_and_grad(lambda v: error(x, v), has_aux=True)(seen)

        def live() -> tuple[Array, Array, Array]:
            gan, away = jax.value_and_grad(lambda v: -ask(params["discriminator"], v).mean().astype(v.dtype))(seen)
            pull = jax.vjp(lambda kernel: paint(_put(mine, last_layer, kernel), features), _take(mine, last_layer))[1]
            size = lambda slope: jnp.linalg.norm(pull(slope)[0].astype(seen.dtype).ravel())
            weight = disc_weight * jnp.clip(size(toward) / (size(away) + 1e-6), 0, 1e4)
            return gan, weight, toward + weight * away

        def silent() -> tuple[Array, Array, Array]:
            return jnp.zeros((), seen.dtype), jnp.zeros((), seen.dtype), toward

        gan, weight, slope = jax.lax.cond(jnp.asarray(step) >= disc_start, live, silent)
        value = value + weight * gan + jnp.sum(slope * (x_hat - seen))
        return value, {**metrics, "gan": gan, "adaptive": weight}

    def generator(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        coded, x = coded_of(params, key, batch), batch["x"]
        if adversarial:
            value, metrics = judged(params, x, coded.features, step)
        else:
            value, metrics = error(x, paint(params["autoencoder"], coded.features))
        for name, cost in coded.costs.items():
            metrics[name] = cost.mean()
            value = value + weights[name] * metrics[name]
        if track is not None:
            own, seen = track(state["autoencoder"], jax.random.split(key)[1], coded.told)
            state, metrics = {**state, "autoencoder": own}, {**metrics, **seen}
        return value, Aux({**metrics, "loss": value}, state)

    def discriminator(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        x = batch["x"]

        def live(mine: Params) -> tuple[Array, Array, Array]:
            x_hat = jax.lax.stop_gradient(paint(params["autoencoder"], coded_of(params, key, batch).features))
            real, fake = ask(mine, x), ask(mine, x_hat)
            return hinge(real, fake).astype(x.dtype), real.mean().astype(x.dtype), fake.mean().astype(x.dtype)

        silent = lambda mine: (jnp.zeros((), x.dtype),) * 3
        value, real, fake = jax.lax.cond(jnp.asarray(step) >= disc_start, live, silent, params["discriminator"])
        return value, Aux({"real": real, "fake": fake, "loss": value}, state)

    return Reconstruction(discriminator if adversarial else None, generator, forward)


def revival(reset: Callable[[Key, Array, Array, Array], Array]) -> LossFn:
    """Dead codes start anew: |codebook - sg[reset codebook]|^2 / 2, of which one step of gradient descent at rate 1 is
    the reset itself.

    Update("autoencoder", revival(reset), plain gradient descent of rate 1, every=100), after the autoencoder's own.

    reset: `(key, codebook [K, D], counts [K], pool [N, D]) -> codebook`; the last two are the autoencoder's state, which
    is left as it is: a revived code has until the next revival to earn its count. Metric: revived, the number of codes.
    """

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        own, book = state["autoencoder"], params["autoencoder"]["codebook"]
        gap = book - jax.lax.stop_gradient(reset(key, book, own["counts"], own["pool"]))
        value = 0.5 * jnp.sum(gap**2)
        return value, Aux({"revived": (gap != 0).any(axis=-1).sum(), "loss": value}, state)

    return loss


def _take(params: Params, path: Sequence[str]) -> Array:
    """The leaf of nested dicts at `path`."""
    for name in path:
        params = params[name]
    return params


def _put(params: Params, path: Sequence[str], leaf: Array) -> Tree:
    """Nested dicts with another leaf at `path`."""
    first, *rest = path
    return {**params, first: _put(params[first], rest, leaf) if rest else leaf}
