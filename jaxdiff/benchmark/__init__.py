"""Timings by turns, ratios within one run, the same network in another framework, traces: what `jaxdiff bench` tells."""

from jaxdiff.benchmark.report import COMPARE, WHAT, measure

__all__ = ["COMPARE", "WHAT", "measure"]
