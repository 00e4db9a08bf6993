"""One training step: a pure function (TrainState, Batch) -> (TrainState, metrics), made from a list of updates.

    key_n = fold_in(key, n)                                      one key for every update of step n
    for each update u, in order:
        g_u   = d/d params[u.network]  u.loss(params, state, key_n, batch, n)
        params[u.network], opt[u] <- u.optimizer(g_u)            later updates see the new parameters
    ema  <- ema + rate_n (params - ema)
    step <- n + 1

A GAN is two updates. What several losses need of one network's forward pass is computed once, before the first update
(`Update.forward`), given to all of them as `batch["shared"]`, and the gradient of that network's own loss is pulled back
through it. Noise is drawn per example, from key_n and `batch["index"]`, so that micro-batches, devices and `pmap` all see
the noise of the plain step.

If a loss, a gradient or an optimizer's step is not finite, the whole step is undone: parameters, optimizers, averages
and mutable state keep their old values, only `step` advances, and the metric `finite` is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.training.state import Ema, TrainState
from jaxdiff.types import Array, Batch, Key, LossFn, Params, Tree

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Update(NamedTuple):
    """Descend `loss` with respect to `network` alone, at steps 0, every, 2 every, ...

    `forward`, `(params, key, batch, step) -> tree`, is the part of this network's work that the step's losses share. A
    loss that finds no `batch["shared"]` (micro-batches, validation) does that part for itself. One update may have it.
    """

    network: str
    loss: LossFn
    optimizer: optax.GradientTransformation
    every: int = 1
    forward: Callable[[Params, Key, Batch, Any], Tree] | None = None


def update_names(updates: Sequence[Update]) -> list[str]:
    """The key of each update in `TrainState.opt` and in the metrics: its network, then network:2, network:3, ..."""
    seen: Counter[str] = Counter()
    names = []
    for update in updates:
        seen[update.network] += 1
        names.append(update.network if seen[update.network] == 1 else f"{update.network}:{seen[update.network]}")
    return names


def init_state(
    params: Mapping[str, Params],
    updates: Sequence[Update],
    ema: Mapping[str, Mapping[str, Ema]],
    key: Key,
    state: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state before the first step: fresh optimizers, and averages that start as float32 copies of the parameters.

    All arrays are copied, because the loop donates the state and the caller's own would go with it.
    Raises ValueError where an update or an average names a network that `params` does not hold.
    """
    for what, network in [("an Update", u.network) for u in updates] + [("ema", name) for name in ema]:
        if network not in params:
            raise ValueError(f"{what} names the network '{network}'; allowed: {', '.join(sorted(params))}")
    copy = lambda tree, dtype=None: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), tree)
    params = {name: copy(tree) for name, tree in params.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(key, copy=True),
        params=params,
        opt={n: u.optimizer.init(params[u.network]) for n, u in zip(update_names(updates), updates, strict=True)},
        ema={network: {name: copy(params[network], jnp.float32) for name in named} for network, named in ema.items()},
        state=copy(dict(state or {})),
    )


def make_train_step(
    updates: Sequence[Update],
    ema: Mapping[str, Mapping[str, Ema]],
    axis_name: str | None = None,
    accumulate: int = 1,
    drawn: Sequence[str] = (),
) -> TrainStep:
    """Build the step. It is pure: the caller jits it and donates its first argument.

    axis_name: the `pmap` or `shard_map` axis over which gradients, metrics and mutable state are averaged; None under
        `jit`, where sharded inputs need nothing.
    accumulate: micro-batches a step, run one after another by `lax.scan`. Losses must be means over examples; gradients
        and metrics are averaged, and mutable state passes from one micro-batch to the next.
    drawn: names in the mutable state whose arrays are examples, of which a mean would be none: over `axis_name` the first
        device's stand for all.

    Metrics are scalars: `<update>/loss`, `.../grad_norm` (before clipping), `.../update_norm`, `<update>/<name>`
    for what the loss reports, and `finite` (1.0 or 0.0). Those of an update that `every` skipped are NaN.
    Raises ValueError for no updates, two with `forward`, `every` or `accumulate` below 1, or a batch that `accumulate` does
    not divide.
    """
    if not updates:
        raise ValueError("make_train_step got no updates; give at least one Update(network, loss, optimizer)")
    for update in updates:
        if update.every < 1:
            raise ValueError(f"Update of '{update.network}' has every={update.every}; allowed: 1 or more")
    if sum(update.forward is not None for update in updates) > 1:
        raise ValueError("two Updates of a step have a forward; allowed: one")
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; allowed: 1 or more micro-batches a step")
    names = update_names(updates)

    def apply(update: Update, params: dict, opt: Any, state: dict, key: Any, batch: Batch, step: Any, pull: Any) -> tuple:
        """-> (new parameters of its network, its optimizer state, mutable state, metrics)."""
        network, own = params[update.network], update.forward is not None and pull is not None

        def loss_of(given: Params, state: dict, part: Batch) -> tuple[Array, tuple[Metrics, dict]]:
            if own:  # the shared part stands between the network and the loss: differentiate both sides of it
                given, part = given[0], {**part, "shared": given[1]}
            value, aux = update.loss({**params, update.network: given}, state, key, part, step)
            return value, (dict(aux.metrics), state if aux.state is None else {**state, **aux.state})

        given = (network, batch["shared"]) if own else network
        grads, metrics, state = _gradients(loss_of, given, state, batch, accumulate)
        if own:
            grads = jax.tree.map(jnp.add, grads[0], pull(grads[1])[0])
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
            state = jax.tree_util.tree_map_with_path(partial(_agreed, axis_name, frozenset(drawn)), state)
        change, opt = update.optimizer.update(grads, opt, network)
        metrics |= {"grad_norm": _norm(grads), "update_norm": _norm(change)}
        return optax.apply_updates(network, change), opt, state, metrics

    def train_step(train: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(train.key, train.step)
        params, opt, state = dict(train.params), dict(train.opt), train.state
        metrics: Metrics = {}
        finite = jnp.array(True)
        pull = None
        for update in updates:
            if update.forward is not None and accumulate == 1:
                alone = partial(_alone, update.forward, params, update.network, key, batch, train.step)
                shared, pull = jax.vjp(alone, params[update.network])
                batch = {**batch, "shared": shared}
        for name, update in zip(names, updates, strict=True):

            def run(params: dict, opt: Any, state: dict, update: Update = update) -> tuple:
                *new, scalars = apply(update, params, opt, state, key, batch, train.step, pull)
                ok = jnp.isfinite(scalars["loss"]) & jnp.isfinite(scalars["grad_norm"])
                return *new, scalars, ok & jnp.isfinite(scalars["update_norm"])

            operands = (params, opt[name], state)
            if update.every == 1:
                out = run(*operands)
            else:
                blank = jax.tree.map(lambda m: jnp.full(m.shape, jnp.nan, m.dtype), jax.eval_shape(run, *operands)[3])
                skip = lambda p, o, s, update=update, blank=blank: (p[update.network], o, s, blank, jnp.array(True))
                out = jax.lax.cond(train.step % update.every == 0, run, skip, *operands)
            params[update.network], opt[name], state, scalars, ok = out
            finite &= ok
            metrics |= {f"{name}/{k}": v for k, v in scalars.items()}
        averages = {
            network: {k: e.update(train.ema[network][k], params[network], train.step) for k, e in named.items()}
            for network, named in ema.items()
        }
        new = (params, opt, averages, state)
        old = (train.params, train.opt, train.ema, train.state)
        params, opt, averages, state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        metrics["finite"] = finite.astype(jnp.float32)
        return TrainState(train.step + 1, train.key, params, opt, averages, state), metrics

    return train_step


def make_multi_step(step: TrainStep, n: int) -> TrainStep:
    """`n` steps in one dispatch, by `lax.scan`, on batches stacked as `[n, B, ...]`; metrics come stacked as `[n]`.

    Raises ValueError where the leading axis is not `n`.
    """

    def multi_step(train: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        lengths = {x.shape[0] for x in jax.tree.leaves(batches)}
        if lengths != {n}:
            raise ValueError(f"stacked batches have leading sizes {sorted(lengths)}; allowed: {n}, one batch a step")
        return jax.lax.scan(step, train, batches, length=n)

    return multi_step


def _gradients(loss_of: Callable, network: Params, state: dict, batch: Batch, parts: int) -> tuple[Tree, Metrics, dict]:
    """Gradient, metrics (with `loss`) and new state, as means over `parts` micro-batches."""
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def one(state: dict, part: Batch) -> tuple[dict, tuple[Tree, Metrics]]:
        (value, (metrics, state)), grads = differentiate(network, state, part)
        return state, (grads, {k: _as_float(v) for k, v in {**metrics, "loss": value}.items()})

    if parts == 1:
        state, (grads, metrics) = one(state, batch)
        return grads, metrics, state

    def split(x: Array) -> Array:
        if x.shape[0] % parts:
            raise ValueError(
                f"a batch of {x.shape[0]} does not split into accumulate={parts}; use a multiple of {parts}"
            )
        # Micro-batch j takes examples j, j + parts, ...: an array sharded over its examples stays evenly sharded.
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def add(carry: tuple, part: Batch) -> tuple[tuple, None]:
        state, total = carry
        state, new = one(state, part)
        return (state, jax.tree.map(jnp.add, total, new)), None

    batches = jax.tree.map(split, batch)
    shapes = jax.eval_shape(one, state, jax.tree.map(lambda x: x[0], batches))[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (state, total), _ = jax.lax.scan(add, (state, zeros), batches)
    grads, metrics = jax.tree.map(lambda x: x / parts, total)
    return grads, metrics, state


def _agreed(axis_name: str, drawn: frozenset[str], path: Any, s: Array) -> Array:
    """One value of an array of the mutable state for all devices: their mean, or the first one's."""
    if drawn & {getattr(key, "key", None) for key in path}:
        return jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, s, jnp.zeros_like(s)), axis_name)
    return jax.lax.pmean(s, axis_name) if _is_float(s) else s


def _alone(forward: Callable, params: dict, network: str, key: Key, batch: Batch, step: Any, own: Params) -> Tree:
    """`forward` as a function of its own network's parameters."""
    return forward({**params, network: own}, key, batch, step)


def _norm(tree: Tree) -> Array:
    """Global norm, summed in float32 at least: float16's largest square is 65504."""
    return optax.global_norm(jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree))


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _as_float(x: Any) -> Array:
    x = jnp.asarray(x)
    return x if _is_float(x) else x.astype(jnp.float32)
