"""A run directory as pure functions: what other JAX code calls.

    run = jd.load_run("runs/digits")
    draw = jax.jit(run.sampler(num_steps=18), static_argnums=3)
    images = draw(run.params, jax.random.key(0), {"label": jnp.arange(10)}, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, configfile, guiding, observe, samplers, sde, tables, training
from jaxdiff.denoiser import denoiser as make_denoiser
from jaxdiff.facts import Facts, check_condition, check_labels, facts_of_run
from jaxdiff.latents import Latents, of_network
from jaxdiff.prompts import Reader, open_reader
from jaxdiff.samplers import Sampler
from jaxdiff.types import Array, Cond, Denoiser, Guidance, Key, Params, Prediction

Draw = Callable[..., Array]


class Run(NamedTuple):
    """A trained model: `config`, `params` of its network, `path`, `facts` of its data, `step` it was trained to; `latents`
    between pictures and what it diffuses, None for the pictures themselves; `reader` of prompts, None where none are read.
    The autoencoder's parameters are constants of every function of the run."""

    config: ConfigDict
    params: Params
    path: Any
    facts: Facts
    network: Any
    step: int
    latents: Latents | None = None
    reader: Reader | None = None

    def read(self, texts: Iterable[str]) -> dict[str, Array]:
        """Prompts as a condition of `sampler`: `text` float32 `[B, L, D]`, `text_mask` bool `[B, L]`. Not for inside `jit`.

        Too long a prompt is cut, and an empty one is no text, which `remarks` says. Raises ValueError for a run that was
        trained without captions.
        """
        reader = self._must_read()
        ids, mask = reader.tokens([str(text) for text in texts])[:2]
        if reader.embed is not None:
            return {"text": jnp.asarray(reader.embed(ids, mask)), "text_mask": jnp.asarray(mask)}
        hidden = self.network.apply({"params": self.params}, ids, mask, method="read")
        return {"text": hidden, "text_mask": jnp.asarray(mask)}

    def remarks(self, texts: Iterable[str]) -> list[str]:
        """A line for each prompt that does not go in whole: too long, empty, or with what the vocabulary does not know."""
        return self._must_read().remarks([str(text) for text in texts])

    def _must_read(self) -> Reader:
        if self.reader is None:
            raise ValueError(f"the run {self.config.name!r} was trained without captions and reads no text; mend: leave it "
                             "out, or a run of configs/latent.py:cond=text")
        return self.reader

    def _must_denoise(self) -> None:
        kind = build.trains(self.config)
        if kind in ("classifier", "autoencoder"):
            raise ValueError(f"the run {self.config.name!r} is {'an' if kind[0] == 'a' else 'a'} {kind}, with nothing to "
                             "sample; allowed: the run of a denoiser")

    def denoiser(self, params: Params, cond: Cond = None) -> Denoiser:
        """`(key, x_t, t, cond) -> Prediction`; `cond` here is what it is told when the caller gives none."""
        self._must_denoise()
        told = cond
        inner = make_denoiser(build.apply(self.config, self.network, self.facts), params, self.path,
                              build.parameterization(self.config), stochastic=True)

        def denoise(key: Key, x_t: Any, t: Any, cond: Cond = None) -> Prediction:
            return inner(key, x_t, t, told if cond is None else cond)

        return denoise

    def sampler(
        self,
        num_steps: int | None = None,
        sampler: Sampler | str | None = None,
        guidance: Guidance | float | str | None = None,
        grid: Callable[[Any, int], Array] | None = None,
        threshold: float | None = None,
        y_draws: str | None = None,
        s: float = 0.0,
    ) -> Draw:
        """A pure function `(params, key, cond, shape_or_num) -> images`, to be jitted, vmapped or exported.

        Args:
          num_steps: steps of the grid; the config's by default.
          sampler: a Sampler, or the name of one with its default options; the config's by default.
          guidance: a classifier-free scale (1 is the plain conditional model), words such as
            "classifier_free:scale=3+dynamic_threshold" (guiding.py lists them), or a Guidance; the config's by default.
            Other runs that the words name are read at once and become constants of the returned function.
          grid: `(path, num_steps) -> times`; the sampler's natural grid, or the config's, by default.
          threshold: clip the predicted image to [-threshold, threshold] at every step, after guidance; 0 is off, and the
            config's is the default.
          y_draws: how a diffused condition (CDiffE, CMDE) is known: "redraw" at each network call, "one_path" or
            "one_noise" (`jd.observe`); the config's by default.
          s: of a stage of a cascade: the time on its augmentation's path to which its low-resolution input, given clean as
            cond["image"] `[B, h, w, C]`, is noised; 0 is clean.

        In the returned function `shape_or_num` is static: a count of examples, or the whole shape `[B, ...]`, of the
        latents where the run diffuses latents: other sizes than trained for are drawn so. With cond
        None a class-conditional run draws from all classes at once (the null label), and one that reads prompts, whose
        condition `read` makes, from all texts. A run with a condition picture
        needs it as cond["image"], float32 [-1, 1] `[B, H, W, C]` (a stage `[B, h, w, C]`). An unconditional run that is
        given "image" and "mask" (`[B, H, W, 1]`, 1 = hidden) fills in the hidden pixels by replacing the known ones
        (`jd.observe.known_pixels`).
        A generator draws a latent at each step, or takes cond["z"] `[B, latent_dim]` at all of them; it goes down the steps
        that it was trained for, by `ancestral`, without guidance.
        """
        self._must_denoise()
        chosen = build.sampler(self.config, sampler)
        steering = guiding.steering(self, guidance, threshold, load_run)
        steps = self.config.sampler.num_steps if num_steps is None else num_steps
        if build.adversarial(self.config):
            _check_few_steps(self, chosen, steps, bool(steering.guides), grid is not None)
        times = (grid or chosen.grid)(self.path, steps)
        hooks = {"redraw": observe.redraw, "one_path": observe.one_path, "one_noise": observe.one_noise}
        follow = tables.pick(hooks, self.config.sampler.observe if y_draws is None else y_draws, "sampler.observe")
        joint = build.joint(self.config)
        if self.facts.low_res or s:
            build.augmentation(self.config).check(s)

        def draw(params: Params, key: Key, cond: Cond, shape_or_num: int | tuple[int, ...]) -> Array:
            if isinstance(shape_or_num, int | np.integer):
                shape_or_num = (int(shape_or_num), *self.facts.shape)
            shape = tuple(shape_or_num)
            told, known = self._told(cond, shape[0])
            told = build.told(self.config, self.facts, told, jax.random.fold_in(key, 3), s)
            asked = not {"label", "text"}.isdisjoint(cond or ())
            denoise = steering(self.denoiser(params), asked)
            k_prior, k_steps = jax.random.split(key)
            like = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
            if joint:
                k_path = () if follow is observe.redraw else (jax.random.fold_in(key, 2),)
                hook, both = follow(self.path, known["image"], *k_path), {"x": like, "y": known["image"]}
                x_T = sde.prior(self.path, k_prior, both)
                return samplers.sample(chosen, denoise, self.path, times, k_steps, x_T, told, hook)["x"]
            hook = observe.known_pixels(self.path, known["image"], known["mask"]) if known else None
            x_T = sde.prior(self.path, k_prior, like)
            x = samplers.sample(chosen, denoise, self.path, times, k_steps, x_T, told, hook)
            return x if self.latents is None else self.latents.decode(x)

        return draw

    def at(self, height: int, width: int) -> Run:
        """The same run for pictures of another size, drawn by the same convolutions (Rombach et al. 2022, section 4.3.2).

        A picture that the run is given has this size too. Attention stands at the levels where it was trained. Raises
        ValueError for points, a super-resolution stage of a cascade, and a size that the autoencoder or the network does not
        divide.
        """
        known = self.facts
        if known.kind != "image" or known.low_res or self.config.network.kind != "unet":
            raise ValueError(f"size is {height}x{width} for the run {self.config.name!r}; allowed: runs of a U-Net that "
                             "draw pictures, and no super-resolution stage")
        across, down = (whole // part for whole, part in zip(known.pixels[:2], known.shape[:2], strict=True))
        longer, trained = max(height // across, width // down), max(known.shape[:2])
        places = [side * longer / trained for side in self.network.attention_resolutions if trained % side == 0]
        if height % across or width % down or any(place % 1 for place in places):
            raise ValueError(f"size is {height}x{width}; allowed: whole multiples of {known.pixels[0]}x{known.pixels[1]}, "
                             "and sides between that every feature map divides")
        shape = (height // across, width // down, known.shape[2])
        facts = known._replace(shape=shape, picture=(height, width, known.pixels[2]) if known.picture else (),
                               condition=(height, width, known.condition[2]) if known.condition else ())
        return self._replace(facts=facts, network=self.network.clone(attention_resolutions=tuple(map(int, places))))

    def _told(self, cond: Cond, num: int) -> tuple[Cond, dict[str, Any]]:
        """What the network is told, and what the observe hook knows."""
        size = self.config.network.latent_dim
        if size and cond is not None and cond.get("z") is not None:
            z = cond["z"]
            if jnp.shape(z) != (num, size):
                raise ValueError(f"cond['z'] has shape {jnp.shape(z)}; allowed: ({num}, {size}), network.latent_dim numbers "
                                 "for each example")
            told, known = self._told({name: value for name, value in cond.items() if name != "z"} or None, num)
            return {**(told or {}), "z": z}, known
        check_condition(cond, self.facts, num)
        if cond is None:
            return {"label": jnp.full(num, self.facts.num_classes)} if self.facts.num_classes else None, {}
        label = cond.get("label")
        if label is not None:
            if jnp.shape(label) != (num,):
                raise ValueError(f"cond['label'] has shape {jnp.shape(label)}; allowed: ({num},), a label for each example")
            if not isinstance(label, jax.core.Tracer):
                check_labels(label, self.facts)
        unread = () if "mask" in build.batch_keys(self.config, self.facts) else ("mask",)
        observed = ("image",) if build.joint(self.config) else () if self.facts.condition else ("image", "mask")
        known = {name: cond[name] for name in observed if name in cond}
        told = {name: value for name, value in cond.items() if name not in known and name not in unread}
        return told or None, known


def _check_few_steps(run: Run, sampler: Sampler, steps: int, guided: bool, regridded: bool) -> None:
    """Refuse what a generator, which draws x_0 in place of its mean, has no meaning for."""
    if sampler.step is not samplers.ancestral().step:
        raise ValueError(f"the run {run.config.name!r} is a few-step generator, whose draws of x_0 other samplers take for "
                         "means; allowed: the sampler ancestral with its small variance")
    if steps != run.path.num_steps or regridded or run.config.grid.kind not in ("natural", "discrete"):
        asked = f"{steps} steps" + (" on another grid" if steps == run.path.num_steps else "")
        raise ValueError(f"the run {run.config.name!r} was trained for {run.path.num_steps} steps and is asked for {asked}; "
                         f"allowed: num_steps={run.path.num_steps} on the natural grid")
    if guided:
        raise ValueError(f"the run {run.config.name!r} is a few-step generator, which guidance cannot steer; allowed: no "
                         "guidance")


def load_run(workdir: Any, step: int | None = None, ema: bool = True) -> Run:
    """Read a run directory.

    Args:
      workdir: the directory that was trained in.
      step: a saved step; the newest complete checkpoint by default.
      ema: the averaged parameters (default) or the raw ones.

    Raises FileNotFoundError without a run or a whole checkpoint there, ValueError for one of another version.
    """
    config = configfile.from_run(workdir)
    restored = training.restore(workdir, step, what="ema" if ema else "params")
    name = build.trains(config)
    params = restored.tree[name]["ema"] if ema else restored.tree[name]
    params = jax.device_put(jax.device_get(params))  # uncommitted: a caller's mesh takes them as it takes fresh arrays
    known = facts_of_run(workdir)
    path = None if config.path.kind == "none" else build.path(config)
    coder = open_latents(config, known, Path(workdir).parent) if config.codec.run else None
    reader = open_reader(config, known, workdir) if known.text else None
    return Run(config, params, path, known, build.network(config, known), restored.step, coder, reader)


def open_latents(config: ConfigDict, known: Facts, beside: Path | None = None) -> Latents:
    """The latents of the autoencoder's run that `codec.run` names, scaled as `known` says.

    A run that is not there is looked for by its last name in the folder `beside`, so that two runs may move together.
    Raises FileNotFoundError without such a run, ValueError for a run of another kind, of other pictures, or one that was
    trained on since `known` was written.
    """
    name = config.codec.run
    places = [Path(name), *([beside / Path(name).name] if beside else [])]
    found = next((place for place in places if training.steps(place)), None)
    if found is None:
        raise FileNotFoundError(f"codec.run is {name!r}, where no trained run is; mend: train configs/autoencoder.py first, "
                                "--config.codec.run=DIR, or the autoencoder's run beside this one")
    other = load_run(found)
    if build.trains(other.config) != "autoencoder":
        raise ValueError(f"codec.run is {name!r}, the run of a {build.trains(other.config)}; allowed: an autoencoder's, of "
                         "configs/autoencoder.py")
    if other.facts.shape[-1] != known.pixels[-1]:
        raise ValueError(f"codec.run is {name!r}, of pictures with {other.facts.shape[-1]} channels, and these have "
                         f"{known.pixels[-1]}; mend: data.channels, or another autoencoder")
    coder = of_network(other.network, other.params, known.scale)
    if known.codec and known.codec != coder.name:
        raise ValueError(f"codec.run is {name!r}, whose parameters are {coder.name} and were {known.codec} when this run "
                         "was trained; mend: the autoencoder as it was, or train this run again")
    return coder
