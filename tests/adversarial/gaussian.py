"""Gaussian data and a linear generator: every law of a few-step adversarial model in closed form, in numpy.

    x_0 ~ N(m, S),  x_s = alpha_s x_0 + sigma_s u,  x_t = a x_s + sqrt(beta) v,  s = t - 1, a = sqrt(1 - beta)
    g = A x_t + b + L z,   x'_s = c_1 x_t + c_2 g + std w  ~ q(x_s | x_t, x_0 = g)          (Ho et al. 2020, eq. 6-7)

Each of these is an affine map of the same independent standard normals, so a law is read off its matrix, a mean square
is |offset|^2 + |matrix|^2, and the optimal discriminator and estimator C are quadratic and linear.
"""

from dataclasses import dataclass

import numpy as np

import jaxdiff as jd

BLOCKS = ("x_0", "u", "v", "z", "w", "e")  # the independent normals; e is the printed form's fresh noise


@dataclass(frozen=True)
class Affine:
    """offset [d] + matrix [d, 6 d] times the normals."""

    offset: np.ndarray
    matrix: np.ndarray
    __array_ufunc__ = None  # so that numpy leaves `number * affine` and `matrix @ affine` to the methods below

    def __add__(self, other):
        return Affine(self.offset + other.offset, self.matrix + other.matrix)

    def __sub__(self, other):
        return Affine(self.offset - other.offset, self.matrix - other.matrix)

    def __rmul__(self, factor):
        return Affine(factor * self.offset, factor * self.matrix)

    def __rmatmul__(self, gain):
        return Affine(gain @ self.offset, gain @ self.matrix)

    def shifted(self, b):
        return Affine(self.offset + b, self.matrix)

    def cov(self):
        return self.matrix @ self.matrix.T

    def mean_square(self):
        """E |.|^2 / d: the mean over dimensions, as the losses take it."""
        return ((self.offset**2).sum() + (self.matrix**2).sum()) / len(self.offset)


def beside(one, other):
    """Two variables as one vector: the joint law of (x_s, x_t)."""
    return Affine(np.concatenate([one.offset, other.offset]), np.concatenate([one.matrix, other.matrix]))


def regression(of, on):
    """`(gain, offset)` of E[of | on], linear because both are Gaussian."""
    gain = of.matrix @ on.matrix.T @ np.linalg.inv(on.cov())
    return gain, of.offset - gain @ on.offset


def log_ratio(q, p):
    """`(Q, l, k)` of log q(x) - log p(x) = x Q x / 2 + l x + k, from two Affine maps."""
    pieces = []
    for law in (q, p):
        inverse = np.linalg.inv(law.cov())
        pull = inverse @ law.offset
        pieces.append((-inverse, pull, -0.5 * law.offset @ pull - 0.5 * np.linalg.slogdet(law.cov())[1]))
    return tuple(one - other for one, other in zip(*pieces, strict=True))


class World:
    """Data N(mean, cov) in d dimensions on a chain of T betas; generators are dicts A [T, d, d], b [T, d], L [T, d, d]."""

    def __init__(self, mean, cov, betas):
        self.mean, self.root = np.asarray(mean, float), np.linalg.cholesky(np.asarray(cov, float))
        self.betas, self.steps, self.d = np.asarray(betas), len(betas), len(self.mean)
        self.bar = np.concatenate([[1.0], np.cumprod(1 - self.betas)])  # alpha-bar at t = 0..T

    def normal(self, name):
        matrix = np.zeros((self.d, len(BLOCKS) * self.d))
        at = BLOCKS.index(name) * self.d
        matrix[:, at : at + self.d] = np.eye(self.d)
        return Affine(np.zeros(self.d), matrix)

    def real(self, t):
        """x_0, x_s and x_t of the forward process."""
        beta, bar = self.betas[t - 1], self.bar[t - 1]
        x_0 = (self.root @ self.normal("x_0")).shifted(self.mean)
        x_s = np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * self.normal("u")
        return x_0, x_s, np.sqrt(1 - beta) * x_s + np.sqrt(beta) * self.normal("v")

    def fake(self, theta, t):
        """x'_s of the generator at t."""
        beta, before, after = self.betas[t - 1], self.bar[t - 1], self.bar[t]
        x_t = self.real(t)[2]
        g = (theta["A"][t - 1] @ x_t + theta["L"][t - 1] @ self.normal("z")).shifted(theta["b"][t - 1])
        keep, take = np.sqrt(1 - beta) * (1 - before) / (1 - after), np.sqrt(before) * beta / (1 - after)
        return keep * x_t + take * g + np.sqrt(beta * (1 - before) / (1 - after)) * self.normal("w")

    def truth(self):
        """The generator that draws from q(x_0 | x_t)."""
        found = []
        for t in range(1, self.steps + 1):
            x_0, _, x_t = self.real(t)
            gain, offset = regression(x_0, x_t)
            found.append((gain, offset, np.linalg.cholesky((x_0 - gain @ x_t).cov())))
        return {name: np.stack(values) for name, values in zip("AbL", zip(*found, strict=True), strict=True)}

    def off(self, size=0.3, seed=0):
        """A generator that is wrong in its slope, offset and spread at every t."""
        rng = np.random.default_rng(seed)
        return {name: value + size * rng.uniform(0.5, 1, value.shape) * rng.choice([-1, 1], value.shape)
                for name, value in self.truth().items()}

    def residual(self, theta, t):
        """r = (x_t - a x'_s) / sqrt(beta)."""
        beta = self.betas[t - 1]
        return (1 / np.sqrt(beta)) * (self.real(t)[2] - np.sqrt(1 - beta) * self.fake(theta, t))

    def optimal(self, theta, joint=False):
        """Parameters of the optimal discriminator: its logit's Q, l, k, C's residual W, w, the denoising head's H, h."""
        rows = []
        for t in range(1, self.steps + 1):
            x_0, x_s, x_t = self.real(t)
            fake = self.fake(theta, t)
            logit = log_ratio(beside(x_s, x_t), beside(fake, x_t)) if joint else log_ratio(x_s, fake)
            rows.append((*logit, *regression(self.residual(theta, t), fake), *regression(x_0, x_s)))
        return {name: np.stack(values) for name, values in zip("QlkWwHh", zip(*rows, strict=True), strict=True)}

    # the parts of the generator's loss at t, exact expectations

    def kl_bracket(self, theta, phi, t):
        """E [ |r|^2 - |r - c|^2 ], c = W x'_s + w."""
        r = self.residual(theta, t)
        c = (phi["W"][t - 1] @ self.fake(theta, t)).shifted(phi["w"][t - 1])
        return r.mean_square() - (r - c).mean_square()

    def anchor(self, theta, phi, t):
        """(1 - beta) / beta E |x'_s - x_s|^2."""
        beta = self.betas[t - 1]
        return (1 - beta) / beta * (self.fake(theta, t) - self.real(t)[1]).mean_square()

    def printed_bracket(self, theta, phi, t):
        """The anchor less E |e - c|^2, e fresh."""
        c = (phi["W"][t - 1] @ self.fake(theta, t)).shifted(phi["w"][t - 1])
        return self.anchor(theta, phi, t) - (self.normal("e") - c).mean_square()

    def gan(self, theta, phi, t, joint=False, nodes=60):
        """E softplus(-D(x'_s)) by Gauss-Hermite quadrature; of the pair (x'_s, x_t) with `joint`."""
        law = self.fake(theta, t)
        law = beside(law, self.real(t)[2]) if joint else law
        at, weight = np.polynomial.hermite_e.hermegauss(nodes)
        n = len(law.offset)
        grid = np.stack(np.meshgrid(*[at] * n, indexing="ij"), -1).reshape(-1, n)
        weights = np.prod(np.stack(np.meshgrid(*[weight / weight.sum()] * n, indexing="ij"), -1).reshape(-1, n), axis=1)
        x = law.offset + grid @ np.linalg.cholesky(law.cov()).T
        square, slope, constant = (phi[name][t - 1] for name in "Qlk")
        return weights @ np.logaddexp(0, -(0.5 * ((x @ square) * x).sum(1) + x @ slope + constant))


def slopes(fn, theta, step=1e-5):
    """Central differences of a scalar function of a dict of arrays, as a dict."""
    found = {}
    for name, value in theta.items():
        rows = []
        for i in range(value.size):
            moved = [fn({**theta, name: value + sign * step * np.eye(value.size)[i].reshape(value.shape)})
                     for sign in (1, -1)]
            rows.append((moved[0] - moved[1]) / (2 * step))
        found[name] = np.reshape(rows, value.shape)
    return found


PLANE = World([0.5, -0.3], [[0.49, 0.2], [0.2, 0.3]], jd.sde.vp_betas(4))
LINE = World([0.4], [[0.49]], (0.35, 0.6))  # x_t still hears the data at every t
