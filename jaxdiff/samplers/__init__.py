"""Samplers: one idea a file, all driven by `sample`. Each knows the grid that suits it, `sampler.grid(path, num_steps)`.

| sampler | order | network calls for N steps | grid |
|---|---|---|---|
| ancestral(variance) | SDE, weak 1 | N | natural |
| ddim(eta) | 1 | N | natural |
| euler_maruyama(), reverse_diffusion() | SDE, weak 1 | N | natural |
| chain(langevin(snr), predictor) | SDE, corrected | 2 N | the predictor's |
| heun(churn) | 2 | 2 N - 1 | karras |
| dpm_solver(order, sde) | 2 | N | log-SNR |
| unipc(order) | order + 1 | N | log-SNR |
| repaint(predictor, jump, repeats) | the predictor's | N repeats | the predictor's, up and down |

"natural" is the path's own clock: a Discrete path's times, equal steps on [0, 1], Karras' grid on EDM (sde/grids.py).
"""

from jaxdiff.samplers.ancestral import ancestral
from jaxdiff.samplers.base import Model, Sampler, State, sample, start
from jaxdiff.samplers.ddim import ddim
from jaxdiff.samplers.dpm_solver import dpm_solver
from jaxdiff.samplers.heun import heun
from jaxdiff.samplers.langevin import chain, langevin
from jaxdiff.samplers.likelihood import bits_per_dim, log_likelihood
from jaxdiff.samplers.repaint import repaint
from jaxdiff.samplers.reverse_sde import euler_maruyama, reverse_diffusion
from jaxdiff.samplers.unipc import unipc

__all__ = [
    "Model", "Sampler", "State", "ancestral", "bits_per_dim", "chain", "ddim", "dpm_solver", "euler_maruyama", "heun",
    "langevin", "log_likelihood", "repaint", "reverse_diffusion", "sample", "start", "unipc",
]
