"""Samplers against diffusers' schedulers in one run: the same start, noise levels, denoiser and (where drawn) noise.

The denoiser is the exact one of 1/2 N(-.6, .3^2) + 1/2 N(.6, .3^2) in every dimension, not affine, so that an error of
a history or a half-step shows. The peers keep their noise levels, and some their states, in float32: agreement ends near
1e-6. They are told x0 (`prediction_type="sample"`), so that their own alphas and sigmas are used throughout.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.samplers import Model, ancestral, ddim, dpm_solver, heun, sample, unipc

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

MODE, STD = 0.6, 0.3
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "sample"}
START = np.random.default_rng(0).normal(size=(6, 3))


@pytest.mark.parametrize("ends", [{}, {"beta_start": 0.0015, "beta_end": 0.0195}], ids=["text", "class"])
def test_betas_of_latent_diffusion(ends):
    """The peer's table is float32."""
    told = {"beta_start": 0.00085, "beta_end": 0.012, **ends}
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="scaled_linear", **told).betas.numpy()
    np.testing.assert_allclose(jd.sde.scaled_linear_betas(1000, **ends), theirs, rtol=3e-7)


def clean(x, alpha, sigma, tanh):
    """E[x0 | x_t], elementwise; numpy scalars alpha and sigma, any library's x."""
    c = alpha**2 * STD**2 + sigma**2
    mode = MODE * tanh(alpha * MODE / c * x)
    return mode + alpha * STD**2 / c * (x - alpha * mode)


def exact(path):
    def denoise(key, x, t, cond=None):
        alpha, sigma = path.alpha(t), path.sigma(t)
        x0 = clean(x, alpha, sigma, jnp.tanh)
        return jd.Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def numbers(tensor):
    return np.asarray(tensor.detach(), np.float64)


def run_peer(peer, x, levels, noise=None, **options):
    """The peer's own loop; `levels` are (alpha, sigma) at each of its timesteps, `noise` the draws of each step."""
    x = torch.tensor(np.asarray(x), dtype=torch.float64)
    for i, t in enumerate(peer.timesteps):
        alpha, sigma = (float(v) for v in levels[i])
        peer.scale_model_input(x, t)  # their Euler insists; our denoiser does its own scaling
        extra = {} if noise is None else {"variance_noise": torch.tensor(np.asarray(noise[i]))}
        x = peer.step(clean(x, alpha, sigma, torch.tanh), t, x, **extra, **options).prev_sample
    return numbers(x)


def run_ours(sampler, path, grid, x):
    call = jax.jit(lambda g, z: sample(sampler, exact(path), path, g, jax.random.key(0), z))
    return np.asarray(call(jnp.asarray(grid), jnp.asarray(x)))


def run_ours_with_its_noise(sampler, path, grid, x, denoise=None):
    """Step by step through the public contract, so that the noise of each step is known: a step with one variable draws
    normal(key). Returns the last mean and the draws."""
    model = Model(lambda z, t: (denoise or exact(path))(None, z, t), lambda z, t: z)
    step = jax.jit(lambda key, state, t, s: sampler.step(key, state, model, path, t, s)._replace(index=state.index + 1))
    grid, state, draws = jnp.asarray(grid), sampler.init(jnp.asarray(x), jnp.asarray(grid)), []
    for i, key in enumerate(jax.random.split(jax.random.key(4), len(grid) - 1)):
        state = step(key, state, grid[i], grid[i + 1])
        draws.append(jax.random.normal(key, x.shape))
    draws[-1] = jnp.zeros_like(draws[-1])  # the mean is what counts at the last step
    return np.asarray(state.mean), draws


def agree(name, ours, theirs, atol=1e-5):
    worst = float(np.abs(ours - theirs).max())
    print(f"{name}: largest difference {worst:.1e}")
    assert np.all(np.isfinite(ours)) and np.abs(theirs).max() > 0.5
    assert worst < atol


# ---- plain noise levels: x_t = x_0 + sigma eps, the EDM path on the peer's own sigmas


@pytest.mark.parametrize("karras", [False, True])
def test_euler(x64, karras):
    peer = diffusers.EulerDiscreteScheduler(**LINEAR, use_karras_sigmas=karras)
    peer.set_timesteps(20)
    sigmas = numbers(peer.sigmas)
    x = START * sigmas[0]
    theirs = run_peer(peer, x, [(1, s) for s in sigmas])
    agree("Euler", run_ours(ddim(0.0), jd.sde.EDM(1e-3, 200.0), sigmas, x), theirs)


@pytest.mark.parametrize("karras", [False, True])
def test_heun(x64, karras):
    peer = diffusers.HeunDiscreteScheduler(**LINEAR, use_karras_sigmas=karras)
    peer.set_timesteps(20)
    doubled = numbers(peer.sigmas)  # s0, s1, s1, s2, s2, .., 0: each half-step's own level
    sigmas = np.append(doubled[0], doubled[1::2])
    x = START * sigmas[0]
    theirs = run_peer(peer, x, [(1, s) for s in doubled])
    agree("Heun", run_ours(heun(), jd.sde.EDM(1e-3, 200.0), sigmas, x), theirs)


def edm_network(x, sigma, sigma_data=0.5):
    """The raw network output whose preconditioned form is the exact denoiser."""
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    return (clean(x, 1.0, sigma, torch.tanh) - c_skip * x) / c_out


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("num_steps", [10, 20])
def test_edm_dpm_solver(x64, sde, num_steps, monkeypatch):
    """DPM-Solver++ 2M and its SDE form in EDM's own noise levels, Karras' grid down to 0."""
    from diffusers.schedulers import scheduling_edm_dpmsolver_multistep as module

    peer = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_data=0.5, algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++", lower_order_final=False)
    peer.set_timesteps(num_steps)
    sigmas = numbers(peer.sigmas)
    path, x = jd.sde.EDM(), START * sigmas[0]
    np.testing.assert_allclose(jd.sde.grids.karras(path, num_steps), sigmas, rtol=1e-4)
    ours, draws = run_ours_with_its_noise(dpm_solver(sde=sde), path, sigmas, x)
    queue = [torch.tensor(np.asarray(z)) for z in draws]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: queue.pop(0))
    state = torch.tensor(x)
    for t, sigma in zip(peer.timesteps, sigmas, strict=False):
        state = peer.step(edm_network(state, float(sigma)), t, state).prev_sample
    agree("EDM DPM-Solver++ 2M" + (" SDE" if sde else ""), ours, numbers(state))


def test_edm_euler(x64):
    peer = diffusers.EDMEulerScheduler(sigma_data=0.5)
    peer.set_timesteps(20)
    sigmas = numbers(peer.sigmas)
    x, state = START * sigmas[0], torch.tensor(START * sigmas[0])
    for t, sigma in zip(peer.timesteps, sigmas, strict=False):
        peer.scale_model_input(state, t)
        state = peer.step(edm_network(state, float(sigma)), t, state).prev_sample
    agree("EDM Euler", run_ours(ddim(0.0), jd.sde.EDM(), sigmas, x), numbers(state))


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_in_plain_noise_levels(x64, order):
    """Their variance-preserving run on a Karras grid, ours on the EDM path from the same start, x / alpha."""
    peer = diffusers.UniPCMultistepScheduler(
        **LINEAR, solver_order=order, use_karras_sigmas=True, lower_order_final=order == 2)
    peer.set_timesteps(20)
    if order == 3:  # a last step to 0 needs a lower order, and their repeated last sigma gives NaN: stop one before
        peer.timesteps, peer.sigmas = peer.timesteps[:-1], peer.sigmas[:-1]
    sigmas = numbers(peer.sigmas)
    alphas = 1 / np.sqrt(1 + sigmas**2)
    theirs = run_peer(peer, START, list(zip(alphas, alphas * sigmas, strict=True)))
    ours = run_ours(unipc(order), jd.sde.EDM(1e-3, 200.0), sigmas, START / alphas[0])
    agree(f"UniPC-{order}, plain sigmas", alphas[-1] * ours, theirs)


# ---- DDPM's chain: the Discrete path made of the peer's betas, its timesteps + 1 as grid


def in_float64(peer):
    """The peer's table of alpha-bars from its own betas in float64: over 1,000 steps a float32 table costs 2e-5."""
    peer.alphas_cumprod = torch.cumprod(1 - peer.betas.double(), 0)
    return peer


def chain_of(peer):
    return jd.sde.Discrete(numbers(peer.betas))


def chain_levels(peer):
    bar = numbers(peer.alphas_cumprod)[numbers(peer.timesteps).astype(int)]
    return list(zip(np.sqrt(bar), np.sqrt(1 - bar), strict=True))


def chain_grid(peer):
    return np.append(numbers(peer.timesteps) + 1, 0.0)


def grid_of_sigmas(peer):
    """Times of the Discrete path at the peer's own (float32) sigma / alpha, close to its timesteps + 1; and the levels."""
    sigmas = numbers(peer.sigmas)
    with np.errstate(divide="ignore"):
        grid = np.where(sigmas > 0, jd.sde.time_at(chain_of(peer), -2 * np.log(sigmas)), 0.0)
    np.testing.assert_allclose(grid[:-1], numbers(peer.timesteps) + 1, atol=2e-3)
    alphas = 1 / np.sqrt(1 + sigmas**2)
    return grid, list(zip(alphas, alphas * sigmas, strict=True))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm_solver_on_the_chain(x64, algorithm, final):
    peer = diffusers.DPMSolverMultistepScheduler(**LINEAR, algorithm_type=algorithm, final_sigmas_type=final)
    peer.set_timesteps(20)
    grid, levels = grid_of_sigmas(peer)
    sde = algorithm.startswith("sde")
    ours, draws = run_ours_with_its_noise(dpm_solver(sde=sde), chain_of(peer), grid, START)
    theirs = run_peer(peer, START, levels, draws if sde else None)
    agree(f"{algorithm}, {final}", ours, theirs)
    if not sde:
        agree("the same through sample", run_ours(dpm_solver(), chain_of(peer), grid, START), theirs)


@pytest.mark.parametrize("order, lower_order_final, final", [(2, True, "zero"), (2, False, "sigma_min"),
                                                             (3, False, "sigma_min")])
def test_unipc_on_the_chain(x64, order, lower_order_final, final):
    """With `lower_order_final` they end 3, 2, 1; ours keeps its order down to a last step to sigma = 0."""
    peer = diffusers.UniPCMultistepScheduler(
        **LINEAR, solver_order=order, lower_order_final=lower_order_final, final_sigmas_type=final)
    peer.set_timesteps(20)
    grid, levels = grid_of_sigmas(peer)
    theirs = run_peer(peer, START, levels)
    agree(f"UniPC-{order}, {final}", run_ours(unipc(order), chain_of(peer), grid, START), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(x64, spacing, eta):
    peer = in_float64(diffusers.DDIMScheduler(**LINEAR, timestep_spacing=spacing, clip_sample=False))
    peer.set_timesteps(25)
    ours, draws = run_ours_with_its_noise(ddim(eta), chain_of(peer), chain_grid(peer), START)
    theirs = run_peer(peer, START, chain_levels(peer), draws, eta=eta)
    agree(f"DDIM eta {eta}, {spacing}", ours, theirs)


@pytest.mark.parametrize("spacing, num_steps", [("leading", 1000), ("leading", 25), ("trailing", 40)])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm(x64, spacing, num_steps, variance, monkeypatch):
    """The whole chain and respaced ones, with the draws fed in; and each step's variance."""
    from diffusers.schedulers import scheduling_ddpm as module

    learned = variance == "learned"
    peer = in_float64(diffusers.DDPMScheduler(
        **LINEAR, variance_type="learned_range" if learned else f"fixed_{variance}", timestep_spacing=spacing,
        clip_sample=False))
    peer.set_timesteps(num_steps)
    path, grid = chain_of(peer), chain_grid(peer)
    share = lambda x, tanh: tanh(x)  # the network's second half, in [-1, 1]

    def with_variance(key, x, t, cond=None):
        return exact(path)(key, x, t)._replace(var_mix=0.5 * (share(x, jnp.tanh) + 1))

    denoise = with_variance if learned else exact(path)
    ours, draws = run_ours_with_its_noise(ancestral(variance), path, grid, START, denoise)
    queue = [torch.tensor(np.asarray(z)) for z in draws]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: queue.pop(0))
    x = torch.tensor(START)
    for t, (alpha, sigma) in zip(peer.timesteps, chain_levels(peer), strict=True):
        raw = clean(x, float(alpha), float(sigma), torch.tanh)
        raw = torch.cat([raw, share(x, torch.tanh)], 1) if learned else raw
        x = peer.step(raw, int(t), x).prev_sample
    agree(f"DDPM {variance}, {spacing} {num_steps}", ours, numbers(x))


@pytest.mark.parametrize("num_steps", [1000, 50])
def test_ddpm_variances(x64, num_steps):
    peer = in_float64(diffusers.DDPMScheduler(**LINEAR))
    peer.set_timesteps(num_steps)
    path, grid = chain_of(peer), jnp.asarray(chain_grid(peer))
    t, s, zero = grid[:-1], grid[1:], jnp.zeros(num_steps)
    small = jd.sde.posterior(path, zero, zero, t, s)[1] ** 2
    large = jd.sde.transition(path, zero, s, t)[1] ** 2
    for kind, ours in (("fixed_small", small), ("fixed_large", large)):
        theirs = [float(peer._get_variance(int(k), variance_type=kind)) for k in peer.timesteps]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=2e-20)  # theirs is clamped at 1e-20
    np.testing.assert_allclose(chain_of(peer).betas, jd.sde.linear_betas(1000), rtol=1e-5)


# ---- flow matching: x_t = (1 - t) x_0 + t eps


@pytest.mark.parametrize("name", ["Euler", "DPM-Solver++ 2M", "UniPC-2"])
def test_flow(x64, name):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    peer, sampler = {
        "Euler": lambda: (diffusers.FlowMatchEulerDiscreteScheduler(), ddim(0.0)),
        "DPM-Solver++ 2M": lambda: (diffusers.DPMSolverMultistepScheduler(**flow, flow_shift=1.0), dpm_solver()),
        "UniPC-2": lambda: (diffusers.UniPCMultistepScheduler(**flow), unipc(2)),
    }[name]()
    peer.set_timesteps(20)
    times = numbers(peer.sigmas)
    path = jd.sde.Flow(t_max=min(float(times[0]), 1.0))
    state = torch.tensor(START)
    for t, sigma in zip(peer.timesteps, times, strict=False):
        velocity = (state - clean(state, 1 - float(sigma), float(sigma), torch.tanh)) / float(sigma)
        state = peer.step(velocity, t, state).prev_sample
    agree(f"Flow {name}", run_ours(sampler, path, times, START), numbers(state))
