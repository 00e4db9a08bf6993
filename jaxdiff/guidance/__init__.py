"""Guidance: functions from a Denoiser to a Denoiser, so that they stack and every sampler takes them.

    denoise = static_threshold(path)(classifier_free(2.0, num_classes)(denoise))

The one nearest the network comes first; thresholding comes last. Each keeps `alpha x0 + sigma eps = x_t`.
"""

from jaxdiff.guidance.autoguidance import autoguidance
from jaxdiff.guidance.classifier import classifier, classifier_log_prob, classifier_logits
from jaxdiff.guidance.classifier_free import classifier_free
from jaxdiff.guidance.thresholds import dynamic_threshold, static_threshold

__all__ = [
    "autoguidance", "classifier", "classifier_free", "classifier_log_prob", "classifier_logits", "dynamic_threshold",
    "static_threshold",
]
