"""The betas of few large steps: published figures, and the VP process integrated numerically (Xiao et al. 2022)."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

import jaxdiff as jd


def test_four_steps_have_the_published_figures(x64):
    betas = jd.sde.vp_betas(4)
    np.testing.assert_allclose(betas, [0.478255, 0.849206, 0.956418, 0.987404], atol=1e-6)
    path = jd.sde.Discrete(betas)
    np.testing.assert_allclose(path.alpha(np.arange(5.0)), [1, 0.722319, 0.280492, 0.058557, 0.006572], atol=1e-6)


@pytest.mark.parametrize("steps, options", [
    (1, {}), (2, {}), (8, {}), (3, {"beta_min": 0.5, "beta_max": 9.0}), (2, {"t_min": 0.05})])
def test_betas_are_the_vp_process_between_equal_times(steps, options):
    """1 - beta_i = exp(-int beta(u) du) over a T-th of [t_min, 1], beta(u) linear; the chain starts at its own time 0."""
    low, high, start = (options.get(k, v) for k, v in [("beta_min", 0.1), ("beta_max", 20.0), ("t_min", 1e-3)])
    ends = start + (1 - start) * np.arange(steps + 1) / steps
    pieces = [quad(lambda u: low + (high - low) * u, *pair)[0] for pair in pairwise(ends)]
    betas = jd.sde.vp_betas(steps, **options)
    np.testing.assert_allclose(betas, 1 - np.exp(-np.array(pieces)), rtol=1e-10)
    assert jd.sde.Discrete(betas).num_steps == steps and hash(betas) == hash(jd.sde.vp_betas(steps, **options))
