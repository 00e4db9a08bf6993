"""What the data tells every other part, and the checks of what a run may be asked with: labels, pictures, masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import evaluation
from jaxdiff.networks.layers import space_to_depth


class Facts(NamedTuple):
    """What the data tells every other part: shape of one example, classes (0: not conditioned), grey levels, kind."""

    shape: tuple[int, ...]
    num_classes: int
    levels: int
    kind: str
    class_names: tuple[str, ...] = ()
    condition: tuple[int, ...] = ()  # shape of the condition picture y, in pixels; () without one
    masked: bool = False  # a mask comes with y, 1 where it is hidden
    picture: tuple[int, ...] = ()  # shape of the pictures whose latents have `shape`; () where x is the picture itself
    scale: float = 1.0  # of the latents
    codec: str = ""  # fingerprint of their autoencoder
    text: tuple[int, ...] = ()  # (L, D): tokens of a caption, and channels of each as the network reads it; () without
    vocab: int = 0  # of the text encoder that is learned with the network; 0: the embeddings come from a frozen one
    encoder: str = ""  # fingerprint of the frozen one

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of what is read from the data and given to people."""
        return self.picture or self.shape

    @property
    def low_res(self) -> bool:
        """Whether y is a smaller picture, as a stage of a cascade is given."""
        return bool(self.condition) and self.condition[:2] != self.pixels[:2]

    @property
    def fold(self) -> int:
        """How many pixels high and wide the place of a latent is; 1 where x is the picture itself.

        Raises ValueError where it is no square of whole pixels.
        """
        (height, width), (h, w) = self.pixels[:2], self.shape[:2]
        if height % h or width % w or height // h != width // w:
            raise ValueError(f"a condition picture of {height} x {width} for latents of {h} x {w}; allowed: as many whole "
                             "pixels to a latent up and across; mend: data.size, or another autoencoder")
        return height // h

    @property
    def dim(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size


def folded(known: Facts, cond: Mapping[str, Any]) -> dict[str, Any]:
    """A condition as a network of latents reads it: `image`, `mask` `[B, H, W, C]` -> `[B, h, w, f f C]`, f = `known.fold`.

    The pixels of a latent's place stand side by side as channels, so nothing is lost or learnt, and a picture of any kind
    is concatenated to the latents (Rombach et al. 2022, section 4.3.2, who make it smaller or encode it). All else, and
    every condition of a run on pixels, stays as it is.
    """
    if not known.picture:
        return dict(cond)
    return {name: space_to_depth(value, known.fold) if name in ("image", "mask") else value for name, value in cond.items()}


def write_facts(workdir: Any, known: Facts) -> None:
    """Keep the facts in the run directory, so that a run can be sampled where its data is not."""
    text = json.dumps(known._asdict(), indent=2) + "\n"
    evaluation.write_whole(Path(workdir) / "data.json", lambda file: file.write(text.encode()))


def facts_of_run(workdir: Any) -> Facts:
    """The facts that `write_facts` kept."""
    path = Path(workdir) / "data.json"
    try:
        held: dict[str, Any] = json.loads(path.read_text())
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}
        return Facts(**fields)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; mend: train again, which writes it, or copy the whole run") from None
    except (json.JSONDecodeError, TypeError, KeyError):
        raise ValueError(f"{path} is not the facts of a data set; mend: train again, which writes it") from None


def check_labels(label: Any, known: Facts) -> None:
    """Refuse labels outside 0..num_classes (the last is "no class"), or any label for a run without classes."""
    values = np.asarray(label)
    if known.num_classes == 0:
        raise ValueError("a label was given but this run has no classes; mend: leave it out")
    wrong = (values < 0) | (values > known.num_classes) | (values % 1 != 0)
    if wrong.any():
        last = known.num_classes - 1
        raise ValueError(f"label {values[wrong].flat[0]} is not a class of this run; allowed: whole numbers 0 to {last}")


def check_condition(cond: Any, known: Facts, num: int) -> None:
    """Refuse a condition picture or mask of the wrong shape or range, and one that is missing or has no place."""
    given = {name: value for name, value in (cond or {}).items() if value is not None}
    allowed = ("label", "image", "mask", "text", "text_mask")
    _check_text(given, known, num)
    for name in given:
        if name not in allowed:
            raise ValueError(f"cond has {name!r}; allowed: {', '.join(allowed)}")
    if known.picture and not known.masked and "mask" in given:
        raise ValueError("cond has 'mask', but this run diffuses latents, in which no pixel can be held; allowed: a run on "
                         "pixels, or one of task.kind=inpaint")
    if known.condition and "image" not in given:
        raise ValueError(f"this run needs a condition picture; mend: cond['image'], of shape ({num}, "
                         f"{', '.join(map(str, known.condition))}) in [-1, 1]")
    if not known.condition and ("image" in given) != ("mask" in given):
        raise ValueError("this run has no condition picture; allowed: cond['image'] with cond['mask'], for replacement "
                         "inpainting")
    shapes = {"image": known.condition or known.pixels, "mask": (*known.pixels[:2], 1)}
    for name in shapes.keys() & given.keys():
        value, shape = given[name], (num, *shapes[name])
        if jnp.shape(value) != shape:
            raise ValueError(f"cond[{name!r}] has shape {jnp.shape(value)}; allowed: {shape}")
        if isinstance(value, jax.core.Tracer):
            continue
        values = np.asarray(value, np.float32)
        low = -1 if name == "image" else 0
        if not (np.isfinite(values).all() and low - 1e-3 <= values.min() and values.max() <= 1 + 1e-3):
            raise ValueError(f"cond[{name!r}] goes from {values.min():g} to {values.max():g}; allowed: {low} to 1")
        if name == "mask" and (values > 0.5).all((1, 2, 3)).any():
            raise ValueError("cond['mask'] hides everything of a picture; allowed: some known pixels, 0 in the mask")


def _check_text(given: Mapping[str, Any], known: Facts, num: int) -> None:
    """Refuse embeddings of texts in a run without, and those of other shapes."""
    if "text" not in given:
        if "text_mask" in given:
            raise ValueError("cond has 'text_mask' without 'text', to which it belongs; mend: both, as run.read gives them")
        return
    if not known.text:
        raise ValueError("cond has 'text', and this run was trained without captions; mend: leave it out")
    shape = jnp.shape(given["text"])
    if len(shape) != 3 or shape[0] != num or shape[2] != known.text[1]:
        raise ValueError(f"cond['text'] has shape {shape}; allowed: ({num}, L, {known.text[1]}), as run.read gives it")
    if "text_mask" in given and jnp.shape(given["text_mask"]) != shape[:2]:
        raise ValueError(f"cond['text_mask'] has shape {jnp.shape(given['text_mask'])}; allowed: {shape[:2]}, as the text")


def labels_from_text(text: str, num: int, known: Facts) -> np.ndarray:
    """`num` labels from "3", "3,5" or class names, in turn, int32."""
    if known.num_classes == 0:
        raise ValueError(f"label {text!r} was given but this run has no classes; mend: leave it out")
    names = {name: i for i, name in enumerate(known.class_names)}
    allowed = f"0 to {known.num_classes - 1}"
    words = [name for name in names if not name.isdecimal()]
    if words:
        allowed += f", or a name: {', '.join(words[:12])}{', ...' if len(words) > 12 else ''}"
    found = []
    for word in text.split(","):
        word = word.strip()
        number = names.get(word, int(word) if word.isdecimal() else -1)
        if not 0 <= number < known.num_classes:
            raise ValueError(f"label {word!r} is not a class of this run; allowed: {allowed}")
        found.append(number)
    return np.resize(np.asarray(found, np.int32), num)
