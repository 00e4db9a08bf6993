"""Orders of convergence, 128 to 512 steps: the textbook's, within .25, on a Gaussian whose flow is known exactly.

The probability flow keeps z = (x_t - alpha_t m) / std_t, so the state that the solver should reach at the grid's end is
alpha m + std z there: the error has no floor from the end time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.samplers import ddim, dpm_solver, heun, sample, unipc
from tests import oracle

MEAN, STD = 0.4, 0.5

PATHS = {"Flow": jd.sde.Flow(), "VP": jd.sde.VP(), "Discrete": jd.sde.Discrete(jd.sde.linear_betas(1000))}
ROWS = {  # name: (sampler, grid, order)
    "ddim, log-SNR": (ddim(), "log_snr", 1), "ddim, uniform": (ddim(), "uniform", 1),
    "heun, log-SNR": (heun(), "log_snr", 2), "heun, uniform": (heun(), "uniform", 2),
    "dpm_solver 1": (dpm_solver(1), "log_snr", 1), "dpm_solver 2": (dpm_solver(2), "log_snr", 2),
    "unipc 2": (unipc(2), "log_snr", 3), "unipc 3": (unipc(3), "log_snr", 4),
}


@pytest.mark.parametrize("name", ROWS)
def test_order(x64, name):
    sampler, grid_name, order = ROWS[name]
    z = jnp.asarray([[-1.3], [0.8]])

    @jax.jit
    def error(number, grid):
        path = oracle.AnyPath(PATHS.values(), number)
        state = lambda t: path.alpha(t) * MEAN + oracle.marginal_std(path, STD, t) * z
        denoise = oracle.gaussian(path, MEAN, STD)
        return jnp.abs(sample(sampler, denoise, path, grid, jax.random.key(0), state(grid[0])) - state(grid[-1])).max()

    for number, (path_name, path) in enumerate(PATHS.items()):
        first, last = (float(error(number, getattr(jd.sde.grids, grid_name)(path, n))) for n in (128, 512))
        measured = np.log2(first / last) / 2
        print(f"{name:14s} {path_name:9s} order {measured:.3f}, error {last:.1e} at 512 steps")
        assert abs(measured - order) < 0.25, path_name
