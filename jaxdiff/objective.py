"""From a config to what is minimised: the losses, the optimizers, the averages, and the train step that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxdiff import build, codec, conditioning, losses, tables, training
from jaxdiff.facts import Facts, folded
from jaxdiff.networks import quantizer
from jaxdiff.sde import Discrete
from jaxdiff.types import Key, LossFn


class Objective(NamedTuple):
    """A loss for each network that is trained, by its name, in the order of the updates, and what they share of the last
    one's forward pass (`training.Update.forward`); the networks' mutable state; a loss on the last one, descended plainly at
    rate 1 every so many steps; and `make_train_step`'s `drawn`, names in that state."""

    losses: dict[str, LossFn]
    forward: Callable[..., Any] | None = None
    state: dict[str, Any] | None = None
    revive: tuple[LossFn, int] | None = None
    drawn: tuple[str, ...] = ()


def loss(config: ConfigDict, net: Any, known: Facts) -> Objective:
    """What is minimised."""
    judge = build.discriminator(config, known)
    if config.loss.kind == "autoencoder":
        return _autoencoder(config, net, judge)
    extra: dict[str, Any] = {"apply_fn": build.apply(config, net, known, train=True)}
    if config.loss.kind == "classification":
        clean = config.path.kind == "none"
        extra |= {"apply_fn": lambda p, x, t, cond, key: net.apply(
            {"params": p}, x, t, train=True, rngs={"dropout": key})}
        extra |= {"path": None if clean else build.path(config), "draw_times": None if clean else draw_times(config)}
        return Objective({"classifier": tables.make(tables.LOSSES, config.loss, "loss", "loss", stochastic=True, **extra)})
    extra |= {"path": build.process(config).training, "parameterization": build.parameterization(config)}
    draws = []
    if (known.num_classes or known.text) and config.condition.drop > 0:
        draws.append(conditioning.drop(config.condition.drop, known.num_classes))
    if known.low_res:
        draws.append(_draw_low_res(config))
    elif known.condition and known.picture:
        draws.append(lambda keys, cond: folded(known, cond))
    if draws:
        extra["draw_cond"] = conditioning.chain(*draws)
    if judge is not None:
        return _adversarial(config, judge, extra)
    extra |= {"draw_times": draw_times(config), "stochastic": True}
    if config.loss.kind == "hybrid":
        if not isinstance(extra["path"], Discrete) or not config.parameterization.learned_variance:
            raise ValueError("loss.kind 'hybrid' learns the variance of a Discrete chain; mend: path.kind=discrete and "
                             "parameterization.learned_variance=True, or loss.kind=denoising")
        extra["levels"] = known.levels or 256
    else:
        extra["weighting"] = tables.make(tables.WEIGHTINGS, config.weighting, "weighting")
    made = tables.make(tables.LOSSES, config.loss, "loss", "loss", **extra)
    return Objective({"denoiser": losses.jointly(made) if build.joint(config) else made})


def _adversarial(config: ConfigDict, judge: Any, extra: dict[str, Any]) -> Objective:
    """The discriminator's loss, then the generator's."""
    if build.joint(config) or config.parameterization.learned_variance:
        raise ValueError(f"loss.kind {config.loss.kind!r} draws x alone and has no variance to learn; mend: "
                         "estimator.kind=cde and parameterization.learned_variance=False")
    if config.loss.kind == "siddm":
        extra["total_steps"] = config.train.steps
    made = tables.make(
        tables.LOSSES, config.loss, "loss", "loss", latent_dim=config.network.latent_dim or 0,
        discriminate=lambda params, x, t, cond: judge.apply({"params": params}, x, t, cond), **extra,
    )
    return Objective({"discriminator": made.discriminator, "generator": made.generator}, made.forward)


def _autoencoder(config: ConfigDict, net: Any, judge: Any) -> Objective:
    """The loss of reconstructions, after the discriminator's where there is one, and a codebook's revival."""

    def call(method: str) -> Callable[..., Any]:
        return lambda params, *given: net.apply({"params": params}, *given, method=method)

    extra: dict[str, Any] = {"code": call("code"), "paint": call("paint"), "last_layer": net.last_layer,
                             "perceptual": codec.perceptual(config)}
    if judge is not None:
        extra["discriminate"] = lambda params, x: judge.apply({"params": params}, x)
    state, revive = None, None
    if net.num_codes:
        part = config.codebook
        extra["track"] = quantizer.track(part.decay, part.threshold)
        state = {"autoencoder": quantizer.fresh_use(net.num_codes, net.latent_channels)}
        reset = losses.revival(partial(quantizer.reset_dead, threshold=part.threshold))
        revive = (reset, part.revive_every) if part.revive_every else None
    made = tables.make(tables.LOSSES, config.loss, "loss", "loss", **extra)
    found = {} if made.discriminator is None else {"discriminator": made.discriminator}
    return Objective({**found, "autoencoder": made.generator}, made.forward, state, revive, ("pool",))


def _draw_low_res(config: ConfigDict) -> Callable[[Key, Mapping[str, Any]], dict[str, Any]]:
    """`(keys [B], cond) -> cond` of a stage in training: the batch's picture y, spoilt, where its network reads it."""
    augment = build.augmentation(config)

    def draw(keys: Key, cond: Mapping[str, Any]) -> dict[str, Any]:
        return augment.draw(keys, {"low_res" if name == "image" else name: value for name, value in cond.items()})

    return draw


def draw_times(config: ConfigDict) -> Any:
    """The training-time draw."""
    return tables.make(tables.TIMES, config.times, "times")


class Training(NamedTuple):
    """What the loop needs, and the optimizers' schedules for its log."""

    step: training.TrainStep
    state: training.TrainState
    schedules: dict[str, Callable[[int], Any]]


def train_step(config: ConfigDict, net: Any, known: Facts, layout: training.Layout | None = None) -> Training:
    """The train step, as it runs on the devices of `layout`, and its first state: an update for each loss, averages of the
    network that is sampled."""
    made, name = loss(config, net, known), build.trains(config)
    found, forward = made.losses, made.forward
    rates = {"discriminator": "discriminator_optimizer"}
    optimizers = {key: tables.call(training.optimizer, config[rates.get(key, "optimizer")], rates.get(key, "optimizer"),
                                   total_steps=config.train.steps) for key in found}
    every = {"generator": config.train.generator_every}
    updates = [training.Update(key, fn, optimizers[key].transform, every.get(key, 1), forward if key == name else None)
               for key, fn in found.items()]
    if made.revive is not None:
        plain = training.optimizer("sgd", learning_rate=1.0, b1=0.0)
        updates.append(training.Update(name, made.revive[0], plain.transform, made.revive[1]))
    ema = tables.call(training.Ema, config.ema, "ema", examples_per_step=config.data.batch_size)
    k_params, k_run = jax.random.split(jax.random.key(config.seed))
    params = {name: build.init_params(config, net, known, k_params)}
    if "discriminator" in found:
        k_judge = jax.random.fold_in(k_params, 1)
        params["discriminator"] = build.init_discriminator(config, build.discriminator(config, known), known, k_judge)
    averages = {name: {"ema": ema}}
    axis_name = None if layout is None else layout.axis_name
    step = training.make_train_step(
        training.gathered(updates, layout), averages, axis_name, config.train.accumulate, made.drawn)
    schedules = {key: optimizer.schedule for key, optimizer in optimizers.items()}
    return Training(step, training.init_state(params, updates, averages, k_run, made.state), schedules)
