"""What an autoencoder's run loses: its reconstructions of test pictures, scored beside the pictures themselves.

The numbers are those of a run that is given a picture, with one draw of each; the Frechet distance is LDM's rFID
(Rombach et al. 2022, table 8) under the features at hand. A codebook's use is counted over the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff import build, codec, evaluation, inverse
from jaxdiff.networks import quantizer
from jaxdiff.run import Run
from jaxdiff.spread import by_example

METRICS = ("psnr", "ssim", "lpips", "feature_distance", "frechet", "codebook")


def score(
    run: Run, workdir: Any, num: int, metrics: Sequence[str], progress: bool
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """`(numbers by name, pictures, reconstructions)` of up to `num` test pictures."""
    part = run.config.evaluate
    wanted = inverse.check_metrics(run.config, run.facts.shape, tuple(metrics) or tuple(part.metrics), METRICS)
    x = build.examples(run.config, run.facts, "test", num)["x"]
    again = codec.reconstruction(run.network)
    x_hat = evaluation.extract(by_example(lambda images: again(run.params, images)), x, part.batch_size)
    found = codebook_use(run, x) if "codebook" in wanted else {}
    paired = tuple(name for name in wanted if name != "codebook")
    if paired:
        found |= inverse.report(run, workdir, {"x": x, "image": x}, x_hat[None], paired, progress)
    return found, x, x_hat


def codebook_use(run: Run, x: np.ndarray) -> dict[str, Any]:
    """Over all positions of pictures `x`: the share of codes used at all, and the perplexity of their histogram."""
    encode = by_example(lambda images: run.network.apply({"params": run.params}, images, method="encode"))
    z_e = evaluation.extract(encode, x, run.config.evaluate.batch_size)
    counts = quantizer.histogram(quantizer.nearest(run.params["codebook"], jnp.asarray(z_e)), run.network.num_codes)
    return {"codebook_usage": float(quantizer.usage(counts)), "codebook_perplexity": float(quantizer.perplexity(counts)),
            "codebook_codes": run.network.num_codes}

