"""Jointly Gaussian (x, y): the exact denoiser, the exact moments of a sampler, and the moments of its limit."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import jaxdiff as jd
from jaxdiff.samplers.base import bind
from jaxdiff.trees import clock

KEY = jax.random.key(0)


class Pair:
    """x [dx], y [dy] with a random mean and covariance; every eigenvalue of cov(x | y) is at least .1."""

    def __init__(self, dx=3, dy=2, seed=0):
        rng = np.random.default_rng(seed)
        self.dx, self.dy = dx, dy
        while True:
            root = rng.normal(size=(dx + dy, dx + dy)) / np.sqrt(dx + dy)
            self.cov, self.mean = root @ root.T, rng.normal(size=dx + dy) * 0.5
            self.y = rng.multivariate_normal(self.mean[dx:], self.cov[dx:, dx:])
            if np.linalg.eigvalsh(self.given()[1]).min() >= 0.1:
                break

    def given(self):
        """Mean and covariance of x | y."""
        n = self.dx
        gain = self.cov[:n, n:] @ np.linalg.inv(self.cov[n:, n:])
        return self.mean[:n] + gain @ (self.y - self.mean[n:]), self.cov[:n, :n] - gain @ self.cov[n:, :n]

    def scales(self, path, t):
        """alpha and sigma of every dimension, [dx + dy]."""
        counts = {"x": self.dx, "y": self.dy}
        return (jnp.concatenate([jnp.full(n, getattr(path[k], name)(t)) for k, n in counts.items()])
                for name in ("alpha", "sigma"))

    def denoise(self, path, tilt=None):
        """The exact joint denoiser; `tilt` [d, d] times z_t is added to the noise that it predicts."""

        def call(key, z, t, cond=None):
            alpha, sigma = self.scales(path, t)
            flat = jnp.concatenate([z["x"], z["y"]], axis=1) - alpha * self.mean
            marginal = alpha[:, None] * self.cov * alpha + jnp.diag(sigma**2)
            eps = sigma * jnp.linalg.solve(marginal, flat.T).T
            if tilt is not None:
                eps = eps + sigma * (flat @ tilt.T)
            x0 = self.mean + (flat - sigma * eps) / alpha
            split = lambda v: {"x": v[:, : self.dx], "y": v[:, self.dx :]}
            return jd.Prediction(split(x0), split(eps))

        return call

    def denoise_given(self, path):
        """CDE's exact denoiser of x | y, with y in cond["image"]; the mean follows the y that it is told."""
        n = self.dx
        gain = self.cov[:n, n:] @ np.linalg.inv(self.cov[n:, n:])
        _, cov = self.given()

        def call(key, x, t, cond):
            mean = self.mean[:n] + (cond["image"] - self.mean[n:]) @ gain.T
            alpha, sigma = path.alpha(t), path.sigma(t)
            flat = x - alpha * mean
            eps = sigma * jnp.linalg.solve(alpha**2 * cov + sigma**2 * jnp.eye(n), flat.T).T
            return jd.Prediction(mean + (flat - sigma * eps) / alpha, eps)

        return call


def moments(sampler, denoise, path, grid, like, hook, monkeypatch, shared=0):
    """Exact mean and covariance of what `sample` returns, by propagating each step's affine map; no random numbers.

    Noise enters through jax.random.normal, which is replaced by independent inputs of the step. `shared` normals that all
    steps have in common (one path of y) are told to `hook(normals)`, which is the hook itself without them.
    """
    start = sampler.init(jax.tree.map(lambda v: jnp.zeros((1, *v.shape)), like), grid)
    zero, unravel = ravel_pytree((start.x, start.mean, start.memory))
    zero = jnp.asarray(zero, float)

    def step(vector, drawn, common, index, t, s):
        left = list(drawn)
        monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), dtype=float: left.pop(0).reshape(shape))
        x, mean, memory = unravel(vector)
        model, key = bind(denoise, KEY, None, hook(common) if shared else hook)
        state = start._replace(x=model.observe(x, t), mean=mean, memory=memory, index=index)
        new = sampler.step(key, state, model, path, t, s)
        monkeypatch.undo()
        return ravel_pytree((new.x, new.mean, new.memory))[0]

    none, counted = jnp.zeros(shared), []
    count = lambda key, shape=(), dtype=float: counted.append(int(np.prod(shape))) or jnp.zeros(shape)
    monkeypatch.setattr(jax.random, "normal", count)
    model, key = bind(denoise, KEY, None, hook(none) if shared else hook)
    sampler.step(key, start._replace(x=model.observe(start.x, grid[0])), model, path, grid[0], grid[1])
    monkeypatch.undo()
    zeros = [jnp.zeros(n) for n in counted]

    def body(carry, inputs):
        mean, cov, ties = carry  # ties [state, shared]: how the state hangs on the shared normals
        by_state, by_noise, by_shared = jax.jacfwd(step, (0, 1, 2))(mean, zeros, none, *inputs)
        cov = by_state @ cov @ by_state.T + sum(c @ c.T for c in by_noise)
        return (step(mean, zeros, none, *inputs), cov, by_state @ ties + by_shared), None

    places = unravel(jnp.arange(len(zero), dtype=float))  # where in the vector each number of the state lies
    of_x = lambda tree: np.asarray(tree["x"] if isinstance(tree, dict) else tree).ravel().astype(int)
    first, sigma = np.zeros((len(zero), len(of_x(places[0])))), float(clock(path).sigma(grid[0]))
    for places_of in (places[0], places[1]):  # x and mean start as the same noise; y is written by the hook
        first[of_x(places_of), np.arange(first.shape[1])] = sigma
    steps = (jnp.arange(len(grid) - 1), grid[:-1], grid[1:])
    run = jax.jit(lambda carry: jax.lax.scan(body, carry, steps)[0])
    mean, cov, ties = run((zero, jnp.asarray(first @ first.T), jnp.zeros((len(zero), shared))))
    last = of_x(places[1])
    return np.asarray(mean)[last], np.asarray(cov + ties @ ties.T)[np.ix_(last, last)]


def follow(path, grid, y):
    """One path of y as `(hook of shared normals, their number)`: y_t / alpha = y + sums of independent increments, in order
    of the noise level; where a sampler asks between two times of the grid, the nearer one's."""
    levels = np.asarray(jd.sde.noise_level(path["y"], grid)) ** 2
    steps = np.sqrt(-np.diff(np.append(levels, 0.0)))  # from each level down to the next
    sums = jnp.asarray(np.triu(np.ones((len(grid), len(grid)))) * steps)  # [time, increment]

    def hook(normals):
        moved = y + sums @ normals.reshape(len(grid), -1)
        at = lambda t: jnp.argmin(jnp.abs(grid - t))
        return lambda key, z, t: {**z, "y": path["y"].alpha(t) * moved[at(t)][None]}

    return hook, len(grid) * len(y)


def limit(pair, path, t_end, stochastic, mode):
    """Mean and covariance of x at t_end in the limit of many steps: linear ODEs of the moments, solved adaptively.

    `mode` "redraw": a fresh y_t at each of many calls acts through its mean alone. "one_path": a path of y given y_0 runs
    backward as the reverse of a diffusion that started at a point, so it joins the state with a known linear drift.
    "one_noise": the one noise joins the state and stands still.
    """
    n, share = pair.dx, 1.0 if stochastic else 0.5

    @jax.jit
    def system(t):
        alpha, sigma = pair.scales(path, t)
        inverse = jnp.linalg.inv(alpha[:, None] * pair.cov * alpha + jnp.diag(sigma**2))
        rates = jd.sde.drift(path, {k: jnp.ones((1, 1)) for k in path}, t)
        f, g2 = {k: rates[k][0, 0] for k in path}, {k: g**2 for k, g in jd.sde.diffusion(path, t).items()}
        to_x = f["x"] * jnp.eye(n) + share * g2["x"] * inverse[:n, :n]  # the score of x is -inverse[:n] (z - alpha mean)
        to_y = share * g2["x"] * inverse[:n, n:]
        offset = -share * g2["x"] * inverse[:n] @ (alpha * pair.mean)
        alpha_y, sigma_y = path["y"].alpha(t), path["y"].sigma(t)
        noise = g2["x"] if stochastic else 0.0
        if mode == "redraw":
            return to_x, offset + to_y @ (alpha_y * pair.y), noise * jnp.eye(n)
        still = jnp.zeros((pair.dy, n + pair.dy))
        if mode == "one_noise":
            drift = jnp.vstack([jnp.hstack([to_x, to_y * sigma_y]), still])
            push = jnp.concatenate([offset + to_y @ (alpha_y * pair.y), jnp.zeros(pair.dy)])
            return drift, push, jnp.diag(jnp.concatenate([jnp.full(n, noise), jnp.zeros(pair.dy)]))
        pull = g2["y"] / sigma_y**2
        drift = jnp.block([[to_x, to_y], [jnp.zeros((pair.dy, n)), (f["y"] + pull) * jnp.eye(pair.dy)]])
        push = jnp.concatenate([offset, -pull * alpha_y * pair.y])
        return drift, push, jnp.diag(jnp.concatenate([jnp.full(n, noise), jnp.full(pair.dy, g2["y"])]))

    d = n + (0 if mode == "redraw" else pair.dy)

    def rate(t, packed):
        m, p = packed[:d], packed[d:].reshape(d, d)
        a, b, q = (np.asarray(v) for v in system(t))
        return np.concatenate([a @ m + b, (a @ p + p @ a.T - q).ravel()])

    t_max = path["x"].t_max
    m = np.zeros(d)
    p = np.eye(d) * float(path["x"].sigma(t_max)) ** 2
    if mode == "one_noise":
        p[n:, n:] = np.eye(pair.dy)
    if mode == "one_path":
        m[n:] = float(path["y"].alpha(t_max)) * pair.y
        p[n:, n:] = np.eye(pair.dy) * float(path["y"].sigma(t_max)) ** 2
    done = solve_ivp(rate, (t_max, t_end), np.concatenate([m, p.ravel()]), method="LSODA", rtol=1e-8, atol=1e-10)
    return done.y[:n, -1], done.y[d:, -1].reshape(d, d)[:n, :n]


def error(got, truth):
    """The larger relative error of mean and covariance, in Frobenius norm."""
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, truth, strict=True))
