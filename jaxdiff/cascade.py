"""Cascades: a base stage and super-resolution stages, each an ordinary diffusion model (Ho et al. 2022, CDM).

    z_0 ~ base;   for each further stage:  z_s from z_0 (or from the stage before, cut short),  z_0 ~ stage given z_s

Non-truncated, a stage is sampled to the end and its picture noised to s, on the path of the next stage's augmentation.
Truncated, it stops where its own log-SNR is that of s, and its state, scaled, is z_s:

    t = time_at(path, log_snr(path_aug, s)),   z_s = (alpha_aug(s) / alpha(t)) x_t

which has the same distribution, so that stages of different processes join. At s = 0 both are the picture itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import samplers
from jaxdiff.augmentation import NONE, Augmentation
from jaxdiff.samplers import Sampler
from jaxdiff.sde.kernels import as_time, log_snr, prior, time_at
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Params


class Codec(NamedTuple):
    """`encode(params, key, x) -> z` and `decode(params, z) -> x`: between pictures and what a stage diffuses."""

    encode: Callable[[Params, Key, Array], Array]
    decode: Callable[[Params, Array], Array]


PIXELS = Codec(lambda params, key, x: x, lambda params, z: z)


@dataclass(frozen=True)
class Stage:
    """One model of a cascade.

    shape: of one example of what it diffuses, (H, W, C). path: its process. denoiser: `(params, cond) -> Denoiser`.
    sampler, num_steps, grid: how it is sampled; the sampler's natural grid by default. guidance: wraps the denoiser.
    codec: identity by default. augmentation: how it takes the stage before it (a base stage has none to take). can_stop:
    whether it knows times between those of its grid, so that it can be truncated; a few-step generator does not.
    """

    shape: tuple[int, ...]
    path: Any
    denoiser: Callable[[Params, Cond], Denoiser]
    sampler: Sampler
    num_steps: int
    grid: Callable[[Any, int], Array] | None = None
    guidance: Guidance | None = None
    codec: Codec = PIXELS
    augmentation: Augmentation = NONE
    can_stop: bool = True

    def times(self, t_end: float | None = None) -> np.ndarray:
        """The grid, or its times above t_end and then t_end itself."""
        with jax.ensure_compile_time_eval():
            whole = np.asarray((self.grid or self.sampler.grid)(self.path, self.num_steps))
        return whole if t_end is None else np.append(whole[whole > t_end], t_end).astype(whole.dtype)


class Cut(NamedTuple):
    """Where a stage stops for the next one: at its own time t, and how much its state there is scaled to be z_s."""

    t: float
    scale: float


def cut(path: Any, augmentation: Augmentation, s: float) -> Cut:
    """The time of `path` with the log-SNR that s has on the augmentation's path.

    Raises ValueError where the path never is as noisy as s.
    """
    with jax.ensure_compile_time_eval():
        t = float(time_at(path, log_snr(augmentation.path, s)))
        scale = float(augmentation.path.alpha(as_time(s)) / path.alpha(as_time(t)))
    if not t < path.t_max:
        raise ValueError(f"s is {s}, which is noisier than the stage before it ever is (t = {t:g} of {path.t_max:g}); "
                         "allowed: a smaller s")
    return Cut(t, scale)


def sample_stage(
    key: Key, stage: Stage, params: Params, cond: Cond, num: int, stop: Cut | None = None
) -> tuple[Array, Array | None]:
    """`(pictures [num, H, W, C], z_s or None)`: to the end; or stopped, when the pictures are the predicted x_0 there."""
    denoise = stage.denoiser(params, None)
    denoise = denoise if stage.guidance is None else stage.guidance(denoise)
    k_prior, k_steps, k_last = jax.random.split(key, 3)
    x_T = prior(stage.path, k_prior, jax.ShapeDtypeStruct((num, *stage.shape), jnp.zeros(()).dtype))
    times = jnp.asarray(stage.times(None if stop is None else stop.t))
    if stop is None:
        x = samplers.sample(stage.sampler, denoise, stage.path, times, k_steps, x_T, cond)
        return stage.codec.decode(params, x), None
    x = samplers.sample(stage.sampler, denoise, stage.path, times, k_steps, x_T, cond, noisy=True)
    return denoise(k_last, x, times[-1], cond).x0, stop.scale * x


def sample_cascade(
    key: Key,
    stages: Sequence[Stage],
    params: Sequence[Params],
    cond: Cond | Sequence[Cond] = None,
    num: int | None = None,
    s: float | Sequence[float] = 0.0,
    truncated: bool = False,
) -> list[Array]:
    """The pictures of every stage, `[num, H, W, C]` each; a pure function of key and params, to be jitted whole.

    Args:
      stages: base first. params: of each.
      cond: told to every stage, such as `label` `[num]`, or of each its own, for stages that read texts by different
        encoders; its length is `num` where that is not given.
      s: the augmentation's time for each super-resolution stage, or one for all; Python numbers.
      truncated: stop each stage at s instead of noising its picture.

    Raises ValueError for stages, params and conditions of different numbers, an s outside its augmentation's times, and a
    truncated stage that has a codec or cannot stop.
    """
    if len(params) != len(stages) or not stages:
        raise ValueError(f"{len(stages)} stages and {len(params)} params; allowed: one of each, at least one")
    levels = [float(v) for v in s] if isinstance(s, Sequence) else [float(s)] * (len(stages) - 1)
    if len(levels) != len(stages) - 1:
        raise ValueError(f"s has {len(levels)} values for {len(stages) - 1} super-resolution stages; allowed: one each, or "
                         "one for all")
    told = each_cond(cond, len(stages))
    size = num if num is not None else next((len(v) for one in told for v in one.values()), None)
    if size is None:
        raise ValueError("neither num nor a condition says how many samples; mend: num=16")
    images: list[Array] = []
    given: dict[str, Any] = {}
    for i, stage in enumerate(stages):
        k_stage, k_noise = jax.random.split(jax.random.fold_in(key, i))
        following, level = (stages[i + 1].augmentation, levels[i]) if i + 1 < len(stages) else (None, 0.0)
        if following is not None:
            following.check(level)
        stop = cut(stage.path, following, level) if following is not None and truncated and level > 0 else None
        if stop is not None and (stage.codec is not PIXELS or not stage.can_stop):
            raise ValueError("a stage with a codec, whose state is no picture, or of a few-step generator, which knows its "
                             "own times only, cannot be truncated; mend: truncated=False")
        x, z = sample_stage(k_stage, stage, params[i], {**told[i], **given} or None, size, stop)
        images.append(x)
        if following is not None:
            given = following.noised(k_noise, x, level) if z is None else following.tell(z, level)
    return images


def each_cond(cond: Cond | Sequence[Cond], count: int) -> list[dict[str, Any]]:
    """What each of `count` stages is told. Raises ValueError for a sequence of another length."""
    found = [cond] * count if cond is None or isinstance(cond, Mapping) else list(cond)
    if len(found) != count:
        raise ValueError(f"{len(found)} conditions for {count} stages; allowed: one for all, or one for each")
    return [dict(one or {}) for one in found]
