"""What an autoencoder's run loses: its reconstructions of test pictures, scored beside the pictures themselves.

The numbers are those of a run that is given a picture, with one draw of each; the Frechet distance is LDM's rFID
(Rombach et al. 2022, table 8) under the features at hand. A codebook's use is counted over the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, codec, evaluation
from jaxdiff.facts import Facts
from jaxdiff.judge import judge_of
from jaxdiff.networks import quantizer
from jaxdiff.run import Run

METRICS = ("psnr", "ssim", "lpips", "feature_distance", "frechet", "codebook")


def score(
    run: Run, workdir: Any, num: int, metrics: Sequence[str], progress: bool
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """`(numbers by name, pictures, reconstructions)` of up to `num` test pictures."""
    part = run.config.evaluate
    wanted = check_metrics(run.config, run.facts, metrics)
    x = build.examples(run.config, run.facts, "test", num)["x"]
    again = jax.jit(codec.reconstruction(run.network))
    x_hat = evaluation.extract(lambda images: again(run.params, images), x, part.batch_size)
    found = codebook_use(run, x) if "codebook" in wanted else {}
    features: Any = None
    if {"feature_distance", "frechet"} & set(wanted):
        if part.inception:
            found["features"], features = "inception pool3", evaluation.inception_features(part.inception)
        else:
            judge = judge_of(run, workdir, progress)
            found["features"], features = judge.name, judge.features
    lpips = evaluation.lpips_distance(part.lpips, part.lpips_net) if "lpips" in wanted else None
    paired = tuple(name for name in wanted if name != "codebook")
    if paired:
        found |= evaluation.paired_report(x, x_hat[None], x, features=features, lpips=lpips, metrics=paired)
    return found, x, x_hat


def codebook_use(run: Run, x: np.ndarray) -> dict[str, Any]:
    """Over all positions of pictures `x`: the share of codes used at all, and the perplexity of their histogram."""
    encode = jax.jit(lambda images: run.network.apply({"params": run.params}, images, method="encode"))
    z_e = evaluation.extract(encode, x, run.config.evaluate.batch_size)
    counts = quantizer.histogram(quantizer.nearest(run.params["codebook"], jnp.asarray(z_e)), run.network.num_codes)
    return {"codebook_usage": float(quantizer.usage(counts)), "codebook_perplexity": float(quantizer.perplexity(counts)),
            "codebook_codes": run.network.num_codes}


def check_metrics(config: ConfigDict, known: Facts, metrics: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics asked for, or the config's, or all that this run can give; ValueError for one that it cannot."""
    part = config.evaluate
    judged = part.inception or part.classifier or known.num_classes
    blind = (not judged, "pictures without classes need Inception's features; mend: --inception=FILE, its weights")
    missing = {"feature_distance": blind, "frechet": blind,
               "lpips": (not part.lpips, "mend: --lpips=FILE, weights of its network"),
               "ssim": (min(known.shape[:2]) < 11, "it needs pictures of 11 pixels or more"),
               "codebook": (not config.network.num_codes, "this autoencoder has no codebook")}
    possible = tuple(name for name in METRICS if not missing.get(name, (False,))[0])
    wanted = tuple(metrics) or tuple(part.metrics)
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"metric is {name!r}; allowed for an autoencoder: {', '.join(METRICS)}")
        if name not in possible:
            raise ValueError(f"metric {name!r} cannot be had here; {missing[name][1]}")
    return wanted or possible
