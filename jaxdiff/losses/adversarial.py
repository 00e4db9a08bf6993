"""Few-step adversarial diffusion: DDGAN (Xiao et al. 2022) and SIDDM (Xu et al. 2023), each a pair of losses.

A chain of T large steps, s = t - 1. The generator G draws x_0 instead of predicting its mean, and a fake pair is made by
the chain's own posterior; a discriminator D compares it with a real one:

    real   x_s ~ q(x_s | x_0),   x_t ~ q(x_t | x_s)        fake   x'_s ~ q(x_s | x_t, x_0 = G(x_t, z, t))
    D      softplus(-D(real)) + softplus(D(fake))          G      softplus(-D(fake))

DDGAN's D sees the pair (x_s, x_t). SIDDM's sees x_s alone, and a regression ties x'_s to its x_t ("auxiliary forward
diffusion", AFD). With r = (x_t - sqrt(1 - beta) x'_s) / sqrt(beta) and a head c of D, in residual form
C(x') = sqrt(1 - beta) x' + sqrt(beta) c(x'):

    kl        G adds |r|^2 - |r - c(x'_s)|^2, cross entropy less entropy, and c minimises |r - c(x'_s)|^2: a bound from below
              of 2 KL(p(x_t | x'_s) || q(x_t | x'_s)). While it is young an anchor helps, a (1 - beta) / beta |x'_s - x_s|^2,
              alone for `warmup` steps, then with a falling linearly to 0 at the end
    printed   as the paper prints it: a (1 - beta) / beta |x'_s - x_s|^2 - |e - c(x'_s)|^2, where
              x'_t = sqrt(1 - beta) x'_s + sqrt(beta) e is drawn afresh: the best c is 0, and the second term tells G nothing

Both losses of a step draw the same noise, so that one forward pass of G serves both: `Adversarial.forward` makes x'_s, and
the losses take it from `batch["shared"]` where it is there. Errors are means over dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import denoiser
from jaxdiff.losses.denoising import CondDraw, mean_per_example, split_batch
from jaxdiff.sde import times
from jaxdiff.sde.kernels import perturb, posterior, transition, transition_coefficients
from jaxdiff.sde.parameterizations import Parameterization, c_noise
from jaxdiff.trees import example_keys, expand, noise_per_example
from jaxdiff.types import Array, Aux, Batch, Key, LossFn, Params

FORMS = ("kl", "printed")
Discriminate = Callable[..., dict[str, Array]]
Regress = Callable[["Drawn", Array, dict[str, Array]], Array]  # (drawn, x'_s, D's outputs there) -> scalar


class Adversarial(NamedTuple):
    """Two losses for two Updates of one step, the discriminator's first, and what they share of the generator's work:

    Update("discriminator", a.discriminator, ...), Update("generator", a.generator, ..., forward=a.forward)
    """

    discriminator: LossFn
    generator: LossFn
    forward: Callable[[Params, Key, Batch, Any], Array]


class Drawn(NamedTuple):
    """The real triple of each example, `[B, ...]`, its time `[B]`, what both networks are told, and all noise."""

    x0: Array
    x_s: Array
    x_t: Array
    t: Array
    cond: dict[str, Any]
    z: Array
    noise: Array
    fresh: Array
    k_network: Key


def draw_chain(path: Any, key: Key, batch: Batch, latent_dim: int, draw_cond: CondDraw | None = None) -> Drawn:
    """x_0 -> x_s -> x_t for t uniform on 1..T, z and noise; example i's draws depend on the key and its number only."""
    x0, cond, index = split_batch(batch)
    k_time, k_s, k_t, k_z, k_noise, k_fresh, k_cond, k_network = jax.random.split(key, 8)
    draws = lambda k, like: noise_per_example(example_keys(k, index), like)
    t = times.discrete()(path, k_time, index)
    x_s = perturb(path, x0, draws(k_s, x0), t - 1)
    mean, std = transition(path, x_s, t - 1, t)
    x_t = mean + std * draws(k_t, x0)
    if draw_cond is not None:
        cond = draw_cond(example_keys(k_cond, index), cond)
    z = draws(k_z, jnp.zeros((len(index), latent_dim), x0.dtype))
    return Drawn(x0, x_s, x_t, t, cond, z, draws(k_noise, x0), draws(k_fresh, x0), jax.random.fold_in(k_network, index[0]))


class _Parts(NamedTuple):
    """What both losses share: how to draw, how to fake, how to ask D."""

    draw: Callable[[Key, Batch], Drawn]
    fake: Callable[[Params, Drawn, Batch], Array]
    ask: Callable[[Params, Array, Drawn], dict[str, Array]]

    def forward(self, params: Params, key: Key, batch: Batch, step: Any) -> Array:
        """x'_s for every example of the batch."""
        del step
        return self.fake(params, self.draw(key, batch), {})


def _parts(
    apply_fn: Callable[..., Array],
    discriminate: Discriminate,
    path: Any,
    parameterization: Parameterization,
    latent_dim: int,
    draw_cond: CondDraw | None,
    pair: bool,
) -> _Parts:
    if not hasattr(path, "num_steps"):
        raise ValueError(f"an adversarial loss got {path}; allowed: a Discrete path of few steps, such as "
                         "jd.sde.Discrete(jd.sde.vp_betas(4))")
    if latent_dim < 1:
        raise ValueError(f"latent_dim is {latent_dim}; allowed: 1 or more, the size of the generator's z "
                         "(network.latent_dim)")

    def fake(params: Params, drawn: Drawn, batch: Batch) -> Array:
        if "shared" in batch:
            return batch["shared"]
        generate = denoiser(apply_fn, params["generator"], path, parameterization, stochastic=True)
        x0 = generate(drawn.k_network, drawn.x_t, drawn.t, {**drawn.cond, "z": drawn.z}).x0
        mean, std = posterior(path, drawn.x_t, x0, drawn.t, drawn.t - 1)
        return mean + std * drawn.noise

    def ask(params: Params, x_s: Array, drawn: Drawn) -> dict[str, Array]:
        seen = parameterization.inputs(path, x_s, drawn.t - 1)[0]
        if pair:
            seen = jnp.concatenate([seen, parameterization.inputs(path, drawn.x_t, drawn.t)[0]], axis=-1)
        told = c_noise(path, drawn.t).astype(jnp.float32)
        return discriminate(params, seen, told, drawn.cond or None)

    return _Parts(lambda key, batch: draw_chain(path, key, batch, latent_dim, draw_cond), fake, ask)


def _square(x: Array) -> Array:
    return mean_per_example(x**2).mean()


def _penalty(ask: Callable[..., dict[str, Array]], params: Params, drawn: Drawn) -> Array:
    """R1 (Mescheder et al. 2018), |grad of D(x_s)|^2 / 2 at real x_s, summed over dimensions; x_t is held."""
    grad = jax.grad(lambda x: ask(params, x, drawn)["logit"].sum())(drawn.x_s)
    return 0.5 * mean_per_example(grad**2).mean() * (grad.size / len(grad))


def _check(**values: float) -> None:
    for name, value in values.items():
        if value < 0 or (name == "r1_every" and value < 1):
            raise ValueError(f"loss.{name} is {value}; allowed: {1 if name == 'r1_every' else 0} or more")


def _discriminator(
    parts: _Parts, r1: float, r1_every: int, denoise: float, regress: Regress | None
) -> LossFn:
    """D's loss; `regress` is that of its head c."""

    def loss(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        drawn = parts.draw(key, batch)
        x_fake = jax.lax.stop_gradient(parts.fake(params, drawn, batch))
        mine = params["discriminator"]
        real, fake = parts.ask(mine, drawn.x_s, drawn), parts.ask(mine, x_fake, drawn)
        value = jax.nn.softplus(-real["logit"]).mean() + jax.nn.softplus(fake["logit"]).mean()
        metrics = {"gan": value, "real": real["logit"].mean(), "fake": fake["logit"].mean()}
        if denoise:
            metrics["denoise"] = _square(real["x0"] - drawn.x0)
            value += denoise * metrics["denoise"]
        if regress is not None:
            metrics["regress"] = regress(drawn, x_fake, fake)
            value += metrics["regress"]
        if r1:
            due = jnp.asarray(step) % r1_every == 0
            none = lambda p: jnp.zeros((), value.dtype)
            metrics["r1"] = jax.lax.cond(due, lambda p: _penalty(parts.ask, p, drawn).astype(value.dtype), none, mine)
            value += r1 * metrics["r1"]
        return value, Aux({**metrics, "loss": value}, state)

    return loss


def ddgan(
    apply_fn: Callable[..., Array],
    discriminate: Discriminate,
    path: Any,
    parameterization: Parameterization,
    latent_dim: int,
    r1: float = 0.05,
    r1_every: int = 15,
    denoise: float = 0.0,
    draw_cond: CondDraw | None = None,
) -> Adversarial:
    """DDGAN: a discriminator of the pair (x_s, x_t).

    Args:
      apply_fn: the generator, `(params, net_x, c_noise, cond, key) -> raw`; cond holds `z` `[B, latent_dim]`.
      discriminate: `(params, net_x, c_noise, cond) -> {"logit": [B], ...}`; net_x is x_s and x_t, channels side by side,
        each scaled as the parameterisation scales its inputs.
      path: a Discrete path of few steps (`jd.sde.vp_betas`).
      r1: weight of the gradient penalty on real x_s, every `r1_every` steps, not multiplied by them; 0 is off.
      denoise: weight of the discriminator's error in telling x_0 (SIDDM's regulariser); needs its head "x0".
      draw_cond: changes the conditions per example, e.g. `jd.conditioning.drop`.

    Parameters are looked up under "generator" and "discriminator". Raises ValueError for numbers out of range.
    """
    _check(r1=r1, r1_every=r1_every, denoise=denoise)
    parts = _parts(apply_fn, discriminate, path, parameterization, latent_dim, draw_cond, pair=True)

    def generator(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        drawn = parts.draw(key, batch)
        judged = parts.ask(params["discriminator"], parts.fake(params, drawn, batch), drawn)
        value = jax.nn.softplus(-judged["logit"]).mean()
        return value, Aux({"loss": value}, state)

    return Adversarial(_discriminator(parts, r1, r1_every, denoise, None), generator, parts.forward)


def siddm(
    apply_fn: Callable[..., Array],
    discriminate: Discriminate,
    path: Any,
    parameterization: Parameterization,
    latent_dim: int,
    total_steps: int,
    form: str = "kl",
    weight: float = 1.0,
    entropy: bool = True,
    variance: bool = False,
    anchor: float = 1.0,
    warmup: int = 400,
    denoise: float = 1.0,
    r1: float = 0.0,
    r1_every: int = 15,
    draw_cond: CondDraw | None = None,
) -> Adversarial:
    """SIDDM: a discriminator of x_s alone, and auxiliary forward diffusion; arguments as in `ddgan`, and

    Args:
      total_steps: of the training; the anchor of "kl" reaches 0 there.
      form: "kl" or "printed" (see the module's head).
      weight: lambda, the weight of AFD in G's loss; 0 leaves it out.
      entropy: False leaves out the head c (needs "residual") and its terms.
      variance: c predicts a variance v beside its mean (needs "log_variance"), and |r - c|^2 becomes |r - c|^2 / v + ln v:
        without it the bound is loose by v - 1 - ln v, and a generator that ignores z pays nothing for its small v.
      anchor: a; without one "kl" has no warm-up.
      warmup: steps of the anchor alone.
    """
    _check(weight=weight, anchor=anchor, warmup=warmup, denoise=denoise, r1=r1, r1_every=r1_every)
    if form not in FORMS:
        raise ValueError(f"loss.form is {form!r}; allowed: {', '.join(FORMS)}")
    if form == "kl" and anchor and total_steps <= warmup:
        raise ValueError(f"loss.warmup is {warmup} of {total_steps} steps; allowed: fewer than train.steps")
    if variance and form == "printed":
        raise ValueError("loss.variance is True, and the printed form regresses fresh noise, whose variance is known; mend: "
                         "loss.form=kl")
    parts = _parts(apply_fn, discriminate, path, parameterization, latent_dim, draw_cond, pair=False)

    def residual(drawn: Drawn, x_fake: Array) -> Array:
        if form == "printed":
            return drawn.fresh
        a, v = transition_coefficients(path, drawn.t - 1, drawn.t)
        return (drawn.x_t - expand(a, x_fake) * x_fake) / expand(jnp.sqrt(v), x_fake)

    def regress(drawn: Drawn, x_fake: Array, judged: dict[str, Array]) -> Array:
        error = (residual(drawn, x_fake) - judged["residual"]) ** 2
        if variance:
            log_v = 5 * jnp.tanh(judged["log_variance"] / 5)  # bounded, or one certain guess would outweigh a batch
            error = error * jnp.exp(-log_v) + log_v
        return mean_per_example(error).mean()

    def afd(drawn: Drawn, x_fake: Array, judged: dict[str, Array], step: Any) -> tuple[Array, dict[str, Array]]:
        a, v = transition_coefficients(path, drawn.t - 1, drawn.t)
        r = residual(drawn, x_fake)
        gain = regress(drawn, x_fake, judged) if entropy else jnp.zeros(())
        near = (mean_per_example((x_fake - drawn.x_s) ** 2) * a**2 / v).mean()
        if form == "printed":
            return anchor * near - gain, {"near": near, "entropy": gain}
        young = jnp.asarray(step) < warmup if anchor else jnp.asarray(False)
        left = jnp.where(young, 1.0, jnp.clip((total_steps - step) / max(total_steps - warmup, 1), 0, 1))
        bracket = _square(r) - gain
        return jnp.where(young, 0.0, bracket) + anchor * left * near, {"near": near, "entropy": gain, "kl": bracket}

    def generator(params: Params, state: Any, key: Key, batch: Batch, step: Any) -> tuple[Array, Aux]:
        drawn = parts.draw(key, batch)
        x_fake = parts.fake(params, drawn, batch)
        judged = parts.ask(params["discriminator"], x_fake, drawn)
        value = jax.nn.softplus(-judged["logit"]).mean()
        metrics = {"gan": value}
        if weight:
            added, told = afd(drawn, x_fake, judged, step)
            value, metrics = value + weight * added, {**metrics, **told, "afd": added}
        return value, Aux({**metrics, "loss": value}, state)

    head = regress if entropy and weight else None
    return Adversarial(_discriminator(parts, r1, r1_every, denoise, head), generator, parts.forward)
