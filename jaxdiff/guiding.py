"""Words of guidance: what `--guidance`, the config's `sampler.guidance` and `run.sampler(guidance=...)` may say.

    2                                                           classifier-free guidance at scale 2
    classifier_free:scale=2,interval=0.3-5                      the same at noise levels sigma / alpha from 0.3 to 5
    classifier:run=DIR,scale=4                                  the classifier is another run
    autoguidance:run=DIR,scale=2,step=500                       the weak model is another run, or an earlier step of one
    classifier_free:scale=5+dynamic_threshold:percentile=0.995  one around the other, the first nearest the network

A row of GUIDANCE is a function that returns a Guidance; its options are its parameters, those in DERIVED apart, which
the run that is guided gives.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxdiff import guidance, tables
from jaxdiff.guidance.pairs import is_number
from jaxdiff.trees import clock
from jaxdiff.types import Denoiser, Guidance


def _other(name: str, directory: str, guided: Any, load: Callable[..., Any], what: str, mend: str, **how: Any) -> Any:
    """Another run, of the kind asked for, that knows the noise levels, classes and shapes of the one that is guided."""
    with jax.ensure_compile_time_eval():  # its arrays are constants, also where a sampler is built inside the caller's jit
        run = load(directory, **how)
    word = f"guidance {name}:run={directory}"
    if (run.config.loss.kind == "classification") != (name == "classifier") or run.path is None:
        came = "a denoiser" if name == "classifier" else "a classifier"
        raise ValueError(f"{word} is {'a classifier of clean data' if run.path is None else came}; allowed: {what}")
    if run.path != (clock(guided.path) if name == "classifier" else guided.path):
        wrong = [f"{part}.{key}={value} and this run with {guided.config[part][key]}" for part in ("path", "estimator")
                 for key, value in run.config[part].items() if value != guided.config[part][key]]
        raise ValueError(f"{word} was trained on other noise levels: with {', '.join(wrong)}; mend: {mend}")
    pairs: dict[str, Any] = {name: (getattr(run.facts, field), getattr(guided.facts, field)) for name, field in
                             (("shape", "shape"), ("classes", "num_classes"), ("autoencoder", "codec"))}
    if name != "classifier":
        pairs["condition"] = (run.facts.condition, guided.facts.condition)
        pairs["text encoder"] = (run.facts.text + (run.facts.encoder,), guided.facts.text + (guided.facts.encoder,))
    for fact, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ValueError(f"{word} has {fact} {theirs}, and this run {ours}; mend: {mend}")
    if all(one.facts.class_names for one in (run, guided)) and run.facts.class_names != guided.facts.class_names:
        raise ValueError(f"{word} has other classes ({', '.join(run.facts.class_names[:3])}, ...) than this run "
                         f"({', '.join(guided.facts.class_names[:3])}, ...); mend: {mend}")
    return run


def _classifier(run: str, scale: float, *, guided: Any, load: Any) -> Guidance:
    """Classifier guidance by the run of a noisy classifier."""
    other = _other("classifier", run, guided, load, "a classifier of noisy pictures, from configs/noisy_classifier.py",
                   "train configs/noisy_classifier.py with this run's method and data")
    logits = lambda params, x, t, cond: other.network.apply({"params": params}, x, t)
    log_prob = guidance.classifier_log_prob(logits, other.params, other.path)
    of_x = lambda x_t, t, cond: log_prob(x_t["x"] if isinstance(x_t, dict) else x_t, t, cond)  # beside a diffused condition
    return guidance.classifier(of_x, scale, guided.path)


def _autoguidance(
    run: str, scale: float, interval: tuple[float, float] | None = None, step: int | None = None, raw: bool = False, *,
    guided: Any, load: Any,
) -> Guidance:
    """Autoguidance by another run, or an earlier `step` of one; `raw` takes its parameters without averaging."""
    other = _other("autoguidance", run, guided, load, "the run of a denoiser", "a weaker run of the same data and method",
                   step=step, ema=not raw)
    return guidance.autoguidance(other.denoiser(other.params), scale, guided.path, interval)


GUIDANCE: tables.Table = {
    "classifier_free": guidance.classifier_free, "classifier": _classifier, "autoguidance": _autoguidance,
    "dynamic_threshold": guidance.dynamic_threshold, "static_threshold": guidance.static_threshold,
}
DERIVED = ("path", "num_classes", "guided", "load")
ASK = ("classifier_free", "classifier")  # rows that lead towards a class


class Guide(NamedTuple):
    """`wrap` is the guidance; one that `asks` is left out where no class is asked for, as it would do nothing there."""

    wrap: Guidance
    asks: bool


@dataclass(frozen=True)
class Steering:
    """What is done to every prediction: `guides`, the first nearest the network, then `clip`, the bound of the picture.

    A Guidance; with `asked` False, for samples of no class, the guides that lead to one are left out.
    """

    guides: tuple[Guide, ...]
    clip: Guidance | None

    def __call__(self, denoise: Denoiser, asked: bool = True) -> Denoiser:
        for guide in self.guides:
            if asked or not guide.asks:
                denoise = guide.wrap(denoise)
        return denoise if self.clip is None else self.clip(denoise)


def steering(run: Any, words: Any, threshold: float | None, load: Callable[..., Any]) -> Steering:
    """The guidance and the threshold that a run is sampled with: those asked for, or for None its config's.

    A threshold of 0 is none. Raises as `guides` does.
    """
    part = run.config.sampler
    bound = part.threshold if threshold is None else threshold
    clip = guidance.static_threshold(run.path, bound) if bound else None
    return Steering(guides(part.guidance if words is None else words, run, load), clip)


def guides(words: Any, run: Any, load: Callable[..., Any]) -> tuple[Guide, ...]:
    """The guidance of a run, the one nearest the network first; () is the plain conditional model.

    Args:
      words: None, a classifier-free scale, text as above, or a Guidance of your own.
      run: the Run that is guided.
      load: `(workdir, step, ema) -> Run`. Other runs are read here and now, so that what is returned is pure.

    Raises ValueError for wrong words and for another run that does not fit, FileNotFoundError where there is none.
    """
    if words is None:
        return ()
    if callable(words):
        return (Guide(words, False),)
    if not isinstance(words, str):
        scale = float(words) if is_number(words) else words
        return () if is_number(scale) and scale == 1 else (_row("classifier_free", {"scale": scale}, run, load),)
    parts = re.split(r"\+(?=[A-Za-z_]+(?::|\+|$))", words.strip())  # the + of 1e+3 belongs to a value
    return tuple(made for part in parts for made in _read(part, run, load))


def _read(part: str, run: Any, load: Callable[..., Any]) -> tuple[Guide, ...]:
    """One row as it is written: a number, or a name and its options."""
    number = _value(part, "float")
    if not isinstance(number, str):
        return guides(number, run, load)
    kind, _, rest = part.partition(":")
    if kind not in GUIDANCE:
        raise ValueError(f"guidance is {part!r}; allowed: a number, or one of {', '.join(GUIDANCE)} with options, such as "
                         "--guidance=classifier_free:scale=2")
    parameters = {name: value for name, value in inspect.signature(GUIDANCE[kind]).parameters.items() if name not in DERIVED}
    given: dict[str, Any] = {}
    for word in filter(None, rest.split(",")):
        name, equals, text = word.partition("=")
        if not equals or name not in parameters or name in given:
            raise ValueError(f"guidance {kind} has {word!r}{' again' * (name in given)}; allowed, each once: "
                             f"{', '.join(f'{option}=...' for option in parameters)}")
        given[name] = _value(text, str(parameters[name].annotation))
        if name == "interval" and isinstance(given[name], str):
            raise ValueError(f"guidance {kind} has interval={text}; allowed: LOW-HIGH, two noise levels sigma / alpha, as "
                             "in interval=0.3-5")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and given.get(name) in (None, ""):
            raise ValueError(f"guidance {kind} has no {name}; mend: {kind}:{name}=...")
    return (_row(kind, given, run, load),)


def _row(kind: str, given: dict[str, Any], run: Any, load: Callable[..., Any]) -> Guide:
    """Call a row with its options and with what the guided run says."""
    classes = run.facts.num_classes
    if kind in ASK and not classes and not (kind == "classifier_free" and run.facts.text):
        raise ValueError(f"guidance {kind} leads towards a class or a text, and this run has none; mend: leave it out, or "
                         "autoguidance or a threshold instead")
    derived = {"path": run.path, "num_classes": classes, "guided": run, "load": load}
    taken = inspect.signature(GUIDANCE[kind]).parameters
    extra = {name: value for name, value in derived.items() if name in taken}
    return Guide(tables.call(GUIDANCE[kind], given, f"guidance {kind}", **extra), kind in ASK)


def _value(text: str, annotation: str) -> Any:
    """A number, true, false, none or an interval, as the annotation has it; text that is none of them stays."""
    if annotation == "str":
        return text
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "Interval" in annotation or "tuple" in annotation:
        number = r"([0-9.]+(?:e[+-]?[0-9]+)?|inf)"
        found = re.fullmatch(f"{number}-{number}", text)
        try:
            return tuple(map(float, found.groups())) if found else text
        except ValueError:  # 0.3.1-5
            return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
