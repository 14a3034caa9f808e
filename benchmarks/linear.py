"""Linear: VAEs whose evidence, posterior, bound and gap have closed forms, as NumPy and as artifacts to be served.

    z ~ N(0, I_d),  x|z ~ N(Wz + b, diag s²),  q(z|x) = N(μ(x) + shift·σ, diag (stretch·σ)²)

μ(x) is the posterior's mean and σ_j = 1/√Λ_jj the scale of the best diagonal q. With one s for all features this is
probabilistic PCA (Tipping & Bishop 1999), with its own s for each factor analysis.

    model = made(d=8)                                a random model; noise=… and stretch=…, shift=… change it
    model.sample(100, seed=1)                        rows (100, D)
    model.evidence(x), model.elbo(x), model.gap(x)   exact, (rows,)
    model.joint(x, z)                                log p(x, z), (rows, draws)
    write(model, folder, "name")                     an artifact at folder/name/1, its five graphs in float64
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from service import artifact, noise
from service.artifact import Arrays, Golden, Parity

Doubles = NDArray[np.float64]
Array = NDArray[Any]

LIKE = Path(__file__).parents[1] / "exported_models" / "breast-cancer" / "1"  # what isn't about numbers is as there
OPSET = 20
ROWS, DRAWS = 8, 5  # golden ones


@dataclass(frozen=True)
class Linear:
    """W (D, d), b (D,), s (D,), and how far q is from the best diagonal one: stretch and shift, in its scales."""

    W: Doubles
    b: Doubles
    s: Doubles
    stretch: float = 1.0
    shift: float = 0.0

    @property
    def precision(self) -> Doubles:
        """Λ = I + WᵀΨ⁻¹W, the posterior's, (d, d), the same for every row."""
        return np.asarray(np.eye(self.W.shape[1]) + (self.W / self.s[:, None] ** 2).T @ self.W)

    @property
    def regression(self) -> Doubles:
        """What makes the posterior's mean of x − b: μ = (x − b) @ regression, (D, d)."""
        return np.asarray(np.linalg.solve(self.precision, (self.W / self.s[:, None] ** 2).T).T)

    @property
    def scale(self) -> Doubles:
        """q's scales, (d,)."""
        return np.asarray(self.stretch / np.sqrt(np.diag(self.precision)))

    def mean(self, x: Doubles) -> Doubles:
        """q's means, (rows, d)."""
        return (x - self.b) @ self.regression + self.shift * self.scale / self.stretch

    def sample(self, rows: int, seed: int) -> Doubles:
        """x ~ p(x), (rows, D)."""
        g = np.random.default_rng(seed)
        z = g.normal(size=(rows, self.W.shape[1]))
        return np.asarray(z @ self.W.T + self.b + self.s * g.normal(size=(rows, len(self.b))))

    def joint(self, x: Doubles, z: Array) -> Doubles:
        """log p(x, z) at z (rows, draws, d); (rows, draws)."""
        z = np.asarray(z, np.float64)
        residual = ((x - self.b)[:, None] - z @ self.W.T) / self.s
        prior = (z * z).sum(-1) + z.shape[-1] * math.log(2 * math.pi)
        return np.asarray(-0.5 * ((residual * residual).sum(-1) + prior) - self._constant)

    def evidence(self, x: Doubles) -> Doubles:
        """log p(x), exact, (rows,)."""
        covariance = self.W @ self.W.T + np.diag(self.s**2)
        away = x - self.b
        squares = (away * np.linalg.solve(covariance, away.T).T).sum(-1)
        return np.asarray(-0.5 * (squares + np.linalg.slogdet(2 * math.pi * covariance)[1]))

    def elbo(self, x: Doubles) -> Doubles:
        """The bound, exact, (rows,)."""
        m, v = self.mean(x), self.scale**2
        residual = (x - self.b - m @ self.W.T) / self.s
        spread = float((v * ((self.W / self.s[:, None]) ** 2).sum(0)).sum())
        kl = 0.5 * (v + m * m - 1.0 - np.log(v)).sum(-1)
        return np.asarray(-0.5 * ((residual * residual).sum(-1) + spread) - self._constant - kl)

    def gap(self, x: Doubles) -> Doubles:
        """KL(q(z|x) ‖ p(z|x)), exact: evidence − elbo, from its own formula, (rows,)."""
        precision, v = self.precision, self.scale**2
        away = (x - self.b) @ self.regression - self.mean(x)
        trace = float((v * np.diag(precision)).sum()) - len(v)
        logs = float(np.log(v).sum()) + float(np.linalg.slogdet(precision)[1])
        return np.asarray(0.5 * (trace + (away @ precision * away).sum(-1) - logs))

    @property
    def _constant(self) -> float:
        """Σ_j log s_j + D/2 log 2π."""
        return float(np.log(self.s).sum()) + 0.5 * len(self.s) * math.log(2 * math.pi)


def made(
    d: int, D: int = 48, seed: int = 0, noise: float | tuple[float, float] = 0.7, stretch: float = 1.0, shift: float = 0
) -> Linear:
    """A random model; noise: one scale for all features, or the range of theirs. D is a multiple of 16."""
    g = np.random.default_rng([seed, d])
    low, high = noise if isinstance(noise, tuple) else (noise, noise)
    return Linear(g.normal(size=(D, d)) / math.sqrt(d), g.normal(size=D), g.uniform(low, high, D), stretch, shift)


# ---------------------------------------------------------------- as an artifact

# Sums are products with ones, whose last bits don't depend on where in memory a row lies.
ENCODER = """
encoder (double[n,D] x) => (float[n,d] mean, float[n,d] log_scale) {
    r = Sub(x, b)
    regressed = MatMul(r, regression)
    exact = Add(regressed, shift)
    zeros = Mul(exact, zero)
    repeated = Add(zeros, log_scales)
    mean = Cast<to = 1>(exact)
    log_scale = Cast<to = 1>(repeated)
}"""
DECODER = """
decoder (float[n,d] z) => (double[n,D] mean, double[n,D] loc, double[n,D] scale) {
    latent = Cast<to = 11>(z)
    product = MatMul(latent, W)
    loc = Add(product, b)
    mean = Identity(loc)
    zeros = Mul(loc, zero)
    scale = Add(zeros, s)
}"""
DRAWS_OF_Q = """
    r = Sub(x, b)
    regressed = MatMul(r, regression)
    m = Add(regressed, shift)
    epsilon = Cast<to = 11>(noise)
    spread = Mul(epsilon, scales)
    m_ = Unsqueeze(m, draws_axis)
    latent = Add(m_, spread)
    m_squares = Mul(m, m)
    kl_twice = Add(m_squares, kl_constants)
    kl_terms = Mul(kl_twice, half)
"""
AT_LATENT = """
    r_ = Unsqueeze(r, draws_axis)
    product = MatMul(latent, W)
    away = Sub(r_, product)
    residual = Div(away, s)
    squares = Mul(residual, residual)
    halves = Mul(squares, minus_half)
    terms = Sub(halves, constants)
"""
JOINT = f"""
joint (double[n,D] x, float[n,k,d] z) => (double[n,k] log_likelihood, double[n,k] log_prior) {{
    r = Sub(x, b)
    latent = Cast<to = 11>(z)
    {AT_LATENT}
    log_likelihood = MatMul(terms, ones)
    z_squares = Mul(latent, latent)
    z_halves = Mul(z_squares, minus_half)
    z_terms = Sub(z_halves, half_log_2pi)
    log_prior = MatMul(z_terms, latent_ones)
}}"""
ELBO = f"""
elbo (double[n,D] x, float[k,d] noise) => (double[n,k] log_likelihood, double[n,k] log_weight, double[n] kl) {{
    {DRAWS_OF_Q}
    {AT_LATENT}
    log_likelihood = MatMul(terms, ones)
    z_squares = Mul(latent, latent)
    e_squares = Mul(epsilon, epsilon)
    differences = Sub(e_squares, z_squares)
    halves_ = Mul(differences, half)
    ratio_terms = Add(halves_, log_scales)
    ratio = MatMul(ratio_terms, latent_ones)
    log_weight = Add(log_likelihood, ratio)
    kl = MatMul(kl_terms, latent_ones)
}}"""
TERMS = f"""
terms (double[n,D] x, float[k,d] noise) => (double[n,k,D] feature_log_likelihood, double[n,d] latent_kl) {{
    {DRAWS_OF_Q}
    {AT_LATENT}
    feature_log_likelihood = Identity(terms)
    latent_kl = Identity(kl_terms)
}}"""
TEXTS = {"encoder": ENCODER, "decoder": DECODER, "elbo": ELBO, "joint": JOINT, "terms": TERMS}


def graphs(model: Linear) -> dict[str, bytes]:
    """The five graphs of an artifact."""
    D, d = model.W.shape
    constants: Arrays = {
        "W": model.W.T,
        "b": model.b,
        "s": model.s,
        "regression": model.regression,
        "shift": np.full(d, model.shift) * model.scale / model.stretch,
        "scales": model.scale,
        "log_scales": np.log(model.scale),
        "kl_constants": model.scale**2 - 1.0 - 2.0 * np.log(model.scale),
        "constants": np.log(model.s) + 0.5 * math.log(2 * math.pi),
        "half_log_2pi": np.array(0.5 * math.log(2 * math.pi)),
        "ones": np.ones(D),
        "latent_ones": np.ones(d),
        "half": np.array(0.5),
        "minus_half": np.array(-0.5),
        "zero": np.array(0.0),
        "draws_axis": np.array([1]),
    }
    return {name: _graph(text.replace("D]", f"{D}]").replace("d]", f"{d}]"), constants) for name, text in TEXTS.items()}


def _graph(text: str, constants: Arrays) -> bytes:
    """A graph from its text, with the constants that it names."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": {OPSET}]>' + text)
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & constants.keys()):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(constants[name]), name))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def write(model: Linear, folder: Path, name: str) -> Path:
    """Write a model as an artifact at folder/name/1, uncalibrated, and return where."""
    contents = graphs(model)
    golden = _golden(model, contents)
    outputs = [key for key in golden if key.partition(".")[2] not in ("x", "z", "noise")]
    like = artifact.read(LIKE).manifest
    changes = {
        "name": name,
        "version": 1,
        "description": "A linear-Gaussian VAE with hand-set weights, whose evidence has a closed form",
        "event_shape": [len(model.b)],
        "event_dtype": "float64",
        "latent_size": model.W.shape[1],
        "features": None,
        "calibration": None,
        "parity": dict.fromkeys(outputs, Parity(error=0.0, tolerance=1e-6)),
        "golden": Golden(rows=ROWS, tolerance=dict.fromkeys(outputs, 1e-6)),
    }
    files = {f"{graph}.onnx": content for graph, content in contents.items()}
    fields = {**like.model_dump(exclude={"files"}), **changes}
    artifact.write(folder / name / "1", fields, {**files, artifact.GOLDEN: artifact.pack(golden)})
    return folder / name / "1"


def _golden(model: Linear, contents: Mapping[str, bytes]) -> Arrays:
    d = model.W.shape[1]
    every: Arrays = {
        "x": model.sample(ROWS, 1),
        "noise": np.array(noise.bank(0, DRAWS, d).noise),
    }
    arrays: Arrays = {}
    for name, content in contents.items():
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        z = noise.normals(1, (ROWS, d) if name == "decoder" else (ROWS, DRAWS, d))
        feeds = {port.name: (every | {"z": z})[port.name] for port in session.get_inputs()}
        found = dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))
        arrays |= {f"{name}.{key}": np.asarray(value) for key, value in {**feeds, **found}.items()}
    return arrays
