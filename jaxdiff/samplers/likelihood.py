"""Exact likelihood by the probability-flow ODE (Song et al. 2021, eq. 39; Grathwohl et al. 2019).

    log p(x) = log N(x_T; 0, sigma(t_max)^2) + integral from t_min to t_max of div(dx/dt) dt

x is taken to be the state at t_min. The value is the density that the ODE itself defines, the prior pushed back; with a
finite t_max it differs from the data's by about alpha_T mean z / sigma_T. For 8-bit images dequantise first:
`x = 2 (k + u) / levels - 1`, u ~ U[0, 1), and convert with `bits_per_dim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from jaxdiff.samplers.base import Observe, bind
from jaxdiff.sde.kernels import as_time, prior_log_prob, velocity
from jaxdiff.trees import clock
from jaxdiff.types import Array, Cond, Denoiser, Key

TRACES = ("exact", "hutchinson")


def bits_per_dim(log_prob: Array, dim: int, levels: int) -> Array:
    """Nats of a density on [-1, 1] to bits per dimension of `levels` grey levels: -log2 p / D + log2(levels / 2).

    Args:
      log_prob: log density in nats of the dequantised example, `[B]`.
      dim: the number of dimensions D of one example.
      levels: grey levels of the source; the offset is 7 bits for 256, 3.087 for digits' 17.
    """
    if levels < 2 or dim < 1:
        raise ValueError(f"bits_per_dim got levels={levels}, dim={dim}; allowed: at least 2 levels and 1 dimension")
    return -log_prob / (dim * math.log(2)) + math.log2(levels / 2)


def _exact_divergence(field: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """The field and the trace of its Jacobian, one forward derivative a dimension; examples are independent."""
    dim = math.prod(x.shape[1:])
    value, push = jax.linearize(field, x)

    def entry(i: Array) -> Array:
        tangent = jax.nn.one_hot(i, dim, dtype=x.dtype).reshape(x.shape[1:])
        column = push(jnp.broadcast_to(tangent, x.shape))
        return (column * tangent).reshape(x.shape[0], -1).sum(1)

    return value, jax.lax.map(entry, jnp.arange(dim), batch_size=min(dim, 64)).sum(0)


def _hutchinson(field: Callable[[Array], Array], x: Array, probes: Array) -> tuple[Array, Array]:
    """An unbiased estimate with fixed Rademacher probes `[P, B, ...]`, averaged."""
    value, push = jax.linearize(field, x)
    dots = jax.vmap(lambda probe: (push(probe) * probe).reshape(x.shape[0], -1).sum(1))(probes)
    return value, dots.mean(0)


def _ascending(grid: Array, path: Any) -> Array:
    """A fixed grid in the direction of the solve; its values are checked where they are known (not under a trace)."""
    times = as_time(grid)
    allowed = f"allowed: [N + 1] distinct times from {path.t_min} or later to t_max = {path.t_max}, N >= 1"
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"grid has shape {times.shape}; {allowed}")
    times = jnp.sort(times)
    if not isinstance(times, jax.core.Tracer):
        low, high, step = float(times[0]), float(times[-1]), float(jnp.diff(times).min())
        if not (low >= path.t_min * (1 - 1e-6) and abs(high - path.t_max) <= 1e-6 * path.t_max and step > 0):
            raise ValueError(f"grid goes from {low} to {high} with a smallest step of {step}; {allowed}")
    return times


def log_likelihood(
    denoise: Denoiser,
    path: Any,
    x: Array,
    key: Key,
    cond: Cond = None,
    observe: Observe | None = None,
    trace: str = "exact",
    num_probes: int = 1,
    grid: Array | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 10_000,
) -> Array:
    """log p(x) in nats, `[B]`, in x's dtype (at least float32).

    Args:
      denoise: `(key, x_t, t, cond) -> Prediction`, each example on its own.
      path: the forward process of x; with a dict of paths, x is the entry "x" and the other entries come from `observe`,
        which is given `{"x": x_t, other: zeros}` and must fill them in (the divergence is over x only).
      x: `[B, ...]` floating, already dequantised, taken as the state at t_min.
      key: for the probes, the observations and a stochastic denoiser; the draws are held fixed along the ODE.
      trace: "exact" (D derivatives a step) or "hutchinson" (`num_probes` Rademacher probes).
      grid: `[N + 1]` times, descending from t_max or ascending to it, for a fixed-step fifth-order solve with 6 N field
        evaluations (x is then the state at its smallest time, at least t_min); None is adaptive. Both use
        Dormand-Prince 5.
      rtol, atol: tolerances of the adaptive solve; 1e-5 in float32, 1e-9 in float64.
      max_steps: a bound of the adaptive solve; more is an error.
    """
    if trace not in TRACES:
        raise ValueError(f"trace is {trace!r}; allowed: {', '.join(TRACES)}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    k_model, k_probe = jax.random.split(key)
    probes = jax.random.rademacher(k_probe, (num_probes, *x.shape), x.dtype)
    joint = isinstance(path, Mapping)
    path_x = clock(path)

    def field(t: Array, z: Array) -> Array:
        model, _ = bind(denoise, k_model, cond, observe)
        state: Any = {name: z if name == "x" else jnp.zeros_like(z) for name in path} if joint else z
        state = model.observe(state, t)
        prediction = model.predict({**state, "x": z} if joint else z, t)
        if joint:
            prediction = prediction._replace(x0=prediction.x0["x"], eps=prediction.eps["x"])
        return velocity(path_x, prediction, t)

    def augmented(t: Any, y: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
        if trace == "exact":
            return _exact_divergence(lambda z: field(t, z), y[0])
        return _hutchinson(lambda z: field(t, z), y[0], probes)

    tolerance = 1e-5 if x.dtype == jnp.float32 else 1e-9
    if grid is None:
        times = as_time(jnp.asarray([path_x.t_min, path_x.t_max]))
        control: Any = diffrax.PIDController(rtol=rtol or tolerance, atol=atol or tolerance)
    else:
        times = _ascending(grid, path_x)
        control = diffrax.StepTo(times.astype(x.dtype))
    times = times.astype(x.dtype)  # else a float64 time would raise a float32 state
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(augmented),
        diffrax.Dopri5(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=(x, jnp.zeros(x.shape[0], x.dtype)),
        stepsize_controller=control,
        max_steps=max_steps if grid is None else times.shape[0],
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
    )
    x_T, divergence = (leaf[0] for leaf in solution.ys)
    return prior_log_prob(path_x, x_T) + divergence
