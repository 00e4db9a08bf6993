"""DDPM's chain as a path, and its schedules of betas (Ho et al. 2020; Nichol & Dhariwal 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator


@cache
def _falling_cubic(betas: tuple[float, ...]) -> np.ndarray:
    """Coefficients [4, T], highest power first, of log alpha-bar between whole times.

    The smooth spline (continuous second derivative) where it falls everywhere; else, for betas that jump, Fritsch &
    Carlson's monotone cubic (continuous first derivative).
    """
    times = np.arange(len(betas) + 1)
    table = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray(betas)))])
    spline = CubicSpline(times, table)
    turns = spline.derivative().roots(discontinuity=False, extrapolate=False)
    return spline.c if len(turns) == 0 else PchipInterpolator(times, table).c


@dataclass(frozen=True)
class Discrete:
    """DDPM's chain (Ho et al. 2020): T betas, times 0 (data), 1, ..., T; between them log alpha-bar is interpolated.

    The interpolant is a falling cubic, so that the velocity and ODE solvers see a smooth path between whole times.
    `betas` is any sequence of numbers in (0, 1), kept as a tuple of floats. The network is told the 0-based index t - 1,
    as public checkpoints are.
    """

    betas: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            span = f" from {betas.min()} to {betas.max()}" if betas.size else ""
            raise ValueError(f"Discrete got betas of shape {betas.shape}{span}; "
                             "allowed: a non-empty list of numbers in (0, 1)")
        object.__setattr__(self, "betas", tuple(float(b) for b in betas))

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def t_min(self) -> float:
        return 1.0

    @property
    def t_max(self) -> float:
        return float(len(self.betas))

    def log_alpha_bar(self, t: Any) -> Any:
        """log of the product of (1 - beta_i) up to t, exact at whole times; 0 at t = 0."""
        t = jnp.asarray(t, float)
        pieces = jnp.asarray(_falling_cubic(self.betas), t.dtype)
        k = jnp.clip(jnp.floor(t), 0, self.num_steps - 1).astype(jnp.int32)
        a, b, c, d = pieces[:, k]
        u = t - k
        return ((a * u + b) * u + c) * u + d

    def alpha(self, t: Any) -> Any:
        return jnp.exp(0.5 * self.log_alpha_bar(t))

    def sigma(self, t: Any) -> Any:
        return jnp.sqrt(-jnp.expm1(self.log_alpha_bar(t)))

    def c_noise(self, t: Any) -> Any:
        return jnp.asarray(t, float) - 1


def linear_betas(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> tuple[float, ...]:
    """DDPM's linear schedule (Ho et al. 2020); the end points are scaled by 1000 / num_steps, as iDDPM does.

    >>> linear_betas(1000)[0], linear_betas(1000)[-1]
    (0.0001, 0.02)
    """
    scale = 1000 / num_steps
    if scale * beta_end >= 1:
        raise ValueError(f"linear_betas({num_steps}) would end at beta = {scale * beta_end}; allowed: below 1, so more than "
                         f"{1000 * beta_end:g} steps; mend: more steps, a smaller beta_end, or cosine_betas")
    return tuple(float(b) for b in np.linspace(beta_start * scale, beta_end * scale, num_steps))


def scaled_linear_betas(num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> tuple[float, ...]:
    """Latent diffusion's schedule (Rombach et al. 2022): the square roots of the betas are linear. The end points are those
    of its text-to-image models; of the class-conditional ones 0.0015 and 0.0195."""
    if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"scaled_linear_betas got {num_steps} steps from {beta_start} to {beta_end}; allowed: 1 step or "
                         "more, and 0 < beta_start <= beta_end < 1")
    return tuple(float(b) for b in np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2)


def cosine_betas(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> tuple[float, ...]:
    """iDDPM's cosine schedule (Nichol & Dhariwal 2021, eq. 17): betas of the cosine alpha-bar, clipped at `max_beta`."""
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    bar = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return tuple(float(b) for b in np.minimum(1 - bar[1:] / bar[:-1], max_beta))


def vp_betas(num_steps: int = 4, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> tuple[float, ...]:
    """A VP process cut into a few large steps (DDGAN; Xiao et al. 2022): its alpha-bar at t_i = t_min + (i/T)(1 - t_min).

    beta_i = 1 - alpha-bar(t_i) / alpha-bar(t_{i-1}), i = 1..T; the chain itself starts from clean data.
    """
    if num_steps < 1:
        raise ValueError(f"vp_betas got num_steps={num_steps}; allowed: 1 or more (DDGAN: 2 to 8)")
    t = t_min + np.arange(num_steps + 1) / num_steps * (1 - t_min)
    bar = np.exp(-(beta_min * t + 0.5 * (beta_max - beta_min) * t**2))
    return tuple(float(b) for b in 1 - bar[1:] / bar[:-1])


SCHEDULES = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas, "vp": vp_betas}


def of_schedule(
    schedule: str = "linear", num_steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
) -> Discrete:
    """A chain from the name of its beta schedule, of SCHEDULES; the ends of the linear ones are their own unless given."""
    if schedule not in SCHEDULES:
        raise ValueError(f"path.schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}")
    ends = {name: value for name, value in (("beta_start", beta_start), ("beta_end", beta_end)) if value is not None}
    if ends and "linear" not in schedule:
        raise ValueError(f"path.{next(iter(ends))} is {next(iter(ends.values()))}, but the schedule {schedule!r} has none; "
                         "allowed: with linear or scaled_linear")
    make: Any = SCHEDULES[schedule]
    return Discrete(make(num_steps, **ends))
