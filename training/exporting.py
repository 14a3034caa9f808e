"""Exporting: a fitted VAE → an artifact, or a refusal. What it promises of a graph, it has measured on the runtime.

Refused: an output further from torch in float64 than its tolerance, a row whose bits depend on its batch, and a
number that isn't finite.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from service import artifact, engine, noise, scoring
from service.artifact import Arrays, Golden, Graph, Parity, Prior, Training
from service.errors import ArtifactRefused
from service.models import DEFAULT_DRAWS, DEFAULT_SEED
from training import card, config, graphs, independence, missing, objective, weights
from training.config import Unusable
from training.data import DataSet
from training.likelihoods import Mixed
from training.vae import VAE

Array = NDArray[Any]
Say = Callable[[str], None]

PARITY_ROWS = 48
GOLDEN_ROWS, GOLDEN_DRAWS = 8, 5
OF_SUM = 5e-6  # of max(1, Σ|terms|): what a summed log-likelihood may differ by
OF_VALUE = 2e-5  # of max(1, the largest |value| of its row): what any other number may
UNKNOWN = "not known: the model was made elsewhere"
GOLDEN_SLACK = 4.0  # another processor's float32 differs from ours by as much as ours from float64, and then some


class Origin(Protocol):
    """Where a VAE is from, as the manifest keeps it: a run of ours, or what a model from elsewhere was given with."""

    @property
    def name(self) -> str: ...  # noqa: D102  the artifact's
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def latent_size(self) -> int: ...  # noqa: D102
    @property
    def missing(self) -> config.Missing | None: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def objective(self) -> config.Objective | None: ...  # noqa: D102  None where it isn't known
    def plain(self) -> dict[str, Any]: ...  # noqa: D102


class Fitted(Protocol):
    """A VAE with its origin and its data; `figures` has one entry for each epoch that is known of."""

    @property
    def run(self) -> Origin: ...  # noqa: D102
    @property
    def data(self) -> DataSet: ...  # noqa: D102
    @property
    def vae(self) -> VAE: ...  # noqa: D102
    @property
    def figures(self) -> list[dict[str, float]]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Exported:
    """A graph as bytes, open in the runtime, beside the module in float64 that it must agree with.

    weights: what it has in common with the others, if it isn't all in its bytes.
    """

    graph: Graph
    content: bytes
    session: onnxruntime.InferenceSession
    truth: nn.Module
    doubled: VAE
    weights: bytes = field(default=b"", repr=False)

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """The runtime's outputs by name."""
        return dict(zip(self.graph.outputs, self.session.run(None, dict(feeds)), strict=True))

    @torch.no_grad()
    def exact(self, feeds: Mapping[str, Array]) -> Arrays:
        """The same from torch in float64."""
        outputs = self.truth(*(torch.from_numpy(np.array(value)) for value in feeds.values()))
        return {name: value.double().numpy() for name, value in zip(self.graph.outputs, outputs, strict=True)}

    @torch.no_grad()
    def terms(self, feeds: Mapping[str, Array]) -> Array:
        """Σ_j |log p(x_j|z)| of each row and draw, what the error of their sum is measured by; (n, k)."""
        given = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
        z = given["z"] if "z" in given else self.doubled.posterior(given["x"]).draws(given["noise"].double())
        return np.asarray(self.doubled.feature_log_likelihood(given["x"], z).abs().sum(-1).numpy())


def export(
    fitted: Fitted,
    models: Path,
    *,
    version: int | None = None,
    replace: bool = False,
    shared_weights: bool = False,
    say: Say = print,
) -> Path:
    """Write the artifact of a fitted run into models/<name>/<version>, and return that folder.

    Without a version, the next free one. Unusable where it is taken; ArtifactRefused where a promise doesn't hold.
    shared_weights: its graphs have their large weights in one file, weights.bin, and the matrices in memory once.
    """
    folder = destination(models / fitted.run.name, version, replace)
    made = build(fitted.vae, fitted, say)
    write(sharing(made) if shared_weights else made, fitted, folder, replace=replace, say=say)
    return folder


def write(
    made: Mapping[str, Exported], fitted: Fitted, folder: Path, *, replace: bool = False, say: Say = print
) -> None:
    """Hold graphs to their promises, and write them with what was found; ArtifactRefused where one doesn't hold."""
    say("rows alone against rows in batches, bit by bit")
    for one in made.values():
        independence.check(one.graph, one.run, _feeds(one.graph, fitted, 300, 9, "fit"))
    say("parity with torch in float64")
    parity = measure(made, fitted)
    golden = {name: _feeds(one.graph, fitted, GOLDEN_ROWS, GOLDEN_DRAWS, "test") for name, one in made.items()}
    say("the bound on the test split")
    fields = _manifest(fitted, int(folder.name), parity, _golden(made, golden), _held_out(made["elbo"], fitted))
    files = {one.graph.file: one.content for one in made.values()}
    if shared := made["elbo"].weights:
        files[artifact.WEIGHTS] = shared
    files[artifact.GOLDEN] = artifact.pack(_flat(made, golden))
    files[artifact.CONFIG] = config.write(fitted.run).encode()
    artifact.write(folder, fields, files, replace=replace)
    say("the model card")
    card.write(folder, fitted.data.splits["test"])


def destination(models: Path, version: int | None, replace: bool) -> Path:
    """The folder of a version: the one asked for, or one above the highest there is."""
    if version is None:
        taken = [int(path.name) for path in models.glob("*") if path.name.isdecimal()]
        version = max(taken, default=0) + 1
    folder = models / str(version)
    if folder.exists() and not replace:
        raise Unusable(
            f"{folder} exists; versions are not overwritten without --replace (replace=True), and where "
            "no version is said the next free one is taken"
        )
    return folder


def build(vae: VAE, fitted: Fitted, say: Say = print) -> dict[str, Exported]:
    """The graphs, exported and opened."""
    exact = doubled(fitted)
    truths = graphs.modules(exact)
    made = {}
    for name, module in graphs.modules(vae).items():
        say(f"{name}.onnx")
        graph = artifact.graphs(vae.likelihood.parameter_names, vae.form)[name]
        example = {key: torch.from_numpy(value) for key, value in _feeds(graph, fitted, 3, 2, "fit").items()}
        content = graphs.export(name, module, example, tuple(graph.outputs))
        made[name] = Exported(graph, content, session(content), truths[name], exact)
    return made


def sharing(made: Mapping[str, Exported]) -> dict[str, Exported]:
    """The same graphs with their large weights in one place; Unusable where they have none."""
    contents, shared = weights.share({name: one.content for name, one in made.items()})
    if not shared:
        raise Unusable(f"shared weights: no layer has weights of {weights.LEAST // 1024} KiB; export without")
    return {
        name: replace(one, content=contents[name], session=session(contents[name], shared), weights=shared)
        for name, one in made.items()
    }


def session(content: bytes, shared: bytes = b"") -> onnxruntime.InferenceSession:
    """A graph in the runtime as the promises are made for: the CPU provider with one thread.

    shared: weights that lie outside of it, which must outlive the session.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if shared:
        engine.borrow(options, shared)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measure(made: Mapping[str, Exported], fitted: Fitted) -> dict[str, Parity]:
    """Each output's worst difference from float64, on held-out rows, with the tolerance that stood there."""
    parity = {}
    for name, one in made.items():
        feeds = _feeds(one.graph, fitted, PARITY_ROWS, DEFAULT_DRAWS, "test")
        found, exact, allowed = one.run(feeds), one.exact(feeds), _tolerances(one, feeds)
        for output in one.graph.outputs:
            parity[f"{name}.{output}"] = compare(f"{name}.{output}", found[output], exact[output], allowed[output])
    return parity


def compare(output: str, found: Array, exact: Array, allowed: Array) -> Parity:
    """The worst entry's error and tolerance; ArtifactRefused where it is out of tolerance, or no finite number."""
    if not (np.isfinite(found).all() and np.isfinite(exact).all()):
        raise ArtifactRefused(f"{output} isn't a finite number on held-out rows")
    error = np.abs(found - exact)
    worst = np.unravel_index(np.argmax(error / allowed), error.shape)
    parity = Parity(error=float(error[worst]), tolerance=float(np.broadcast_to(allowed, error.shape)[worst]))
    if parity.error > parity.tolerance:
        difference = f"by {parity.error:.3g} where {parity.tolerance:.3g} is allowed"
        raise ArtifactRefused(f"{output} differs from torch in float64 {difference}")
    return parity


def _tolerances(one: Exported, feeds: Mapping[str, Array]) -> Arrays:
    """What each output's entries may differ by; sums of log-likelihoods by their terms, all else by its value."""
    exact = one.exact(feeds)
    allowed = {name: OF_VALUE * np.maximum(1.0, _largest(value)) for name, value in exact.items()}
    if "log_likelihood" in exact:
        terms = one.terms(feeds)
    for name in {"log_likelihood", "log_weight"} & exact.keys():
        allowed[name] = OF_SUM * np.maximum(1.0, terms)
    if "log_weight" in exact:
        kl = (
            np.abs(exact["log_likelihood"] - exact["log_weight"]) if "kl" not in exact else np.abs(exact["kl"])[:, None]
        )
        allowed["log_weight"] = allowed["log_weight"] + OF_VALUE * np.maximum(1.0, kl)
    return allowed


def _largest(values: Array) -> Array:
    """The largest |value| of each row, one for each of its values."""
    rows = np.abs(values).reshape(len(values), -1).max(1)
    return np.broadcast_to(rows.reshape(-1, *[1] * (values.ndim - 1)), values.shape)


def _feeds(graph: Graph, fitted: Fitted, rows: int, draws: int, split: str) -> Arrays:
    """A graph's inputs: rows of a split (over again where it has fewer), and fixed noise."""
    x = fitted.data.splits[split]  # type: ignore[index]  # one of the four names
    latent_size = fitted.run.latent_size
    every: Arrays = {
        "x": _holed(x[np.arange(rows) % len(x)], fitted),
        "z": noise.normals(1, (rows, draws, latent_size) if graph.drawn else (rows, latent_size)),
        "epsilon": noise.normals(2, (rows, draws, latent_size) if graph.drawn else (rows, latent_size)),
        "uniform": noise.generator(3).random(rows, dtype=np.float32),
    }
    feeds = {name: every[name] for name in graph.rows}
    if graph.bank:
        feeds[graph.bank] = np.array(noise.bank(DEFAULT_SEED, draws, latent_size).noise)
    return feeds


def _holed(rows: Array, fitted: Fitted) -> Array:
    """Rows as the model may be sent: if it takes missing values, every other row has some, and the last has nothing."""
    if not fitted.run.missing:
        return rows
    holes = missing.punch(rows, config.Missing(most=0.9), np.random.default_rng(0))
    holes[::2], holes[-1] = rows[::2], np.nan
    return holes


def doubled(fitted: Fitted) -> VAE:
    """The same VAE in float64."""
    return copy.deepcopy(fitted.vae).double().eval().requires_grad_(False)


def _golden(made: Mapping[str, Exported], feeds: Mapping[str, Arrays]) -> Golden:
    """How far from our answers an engine's may be: by the same measure as parity, with room for other processors."""
    tolerance: dict[str, float] = {}
    for name, one in made.items():
        allowed = _tolerances(one, feeds[name])
        tolerance |= {f"{name}.{output}": GOLDEN_SLACK * float(allowed[output].max()) for output in one.graph.outputs}
    return Golden(rows=GOLDEN_ROWS, tolerance=tolerance)


def _flat(made: Mapping[str, Exported], feeds: Mapping[str, Arrays]) -> Arrays:
    """golden.npz: `graph.input` and `graph.output` arrays."""
    return {
        f"{name}.{key}": value
        for name, one in made.items()
        for key, value in {**feeds[name], **one.run(feeds[name])}.items()
    }


def _held_out(elbo: Exported, fitted: Fitted) -> dict[str, float]:
    """The bound's mean on the test split, as the service will estimate it, in nats a row."""
    bank = noise.bank(DEFAULT_SEED, DEFAULT_DRAWS, fitted.run.latent_size)
    rows = fitted.data.splits["test"]
    parts = [elbo.run({"x": rows[i : i + 50], "noise": bank.noise}) for i in range(0, len(rows), 50)]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in elbo.graph.outputs}
    bound = scoring.bound(outputs["log_likelihood"], scoring.kl(outputs), bank)
    means = {"elbo": bound.elbo, "log_likelihood": bound.log_likelihood, "kl": bound.kl}
    if not all(np.isfinite(values).all() for values in means.values()):
        raise ArtifactRefused("the bound isn't a finite number on every row of the test split")
    return {name: float(values.mean()) for name, values in means.items()}


def _manifest(
    fitted: Fitted, version: int, parity: dict[str, Parity], golden: Golden, held_out: dict[str, float]
) -> dict[str, Any]:
    """The manifest's fields, but the files."""
    run, data, likelihood = fitted.run, fitted.data, fitted.vae.likelihood
    training = Training(
        objective=objective.formula(run.objective) if run.objective else UNKNOWN,
        beta=run.objective.beta if run.objective else 1.0,
        epochs=len(fitted.figures),
        seed=run.seed,
        data=data.source,
        splits=data.digests,
        held_out=held_out,
        config=run.plain(),
        versions=_versions(),
    )
    return {
        "name": run.name,
        "version": version,
        "description": run.description,
        "event_shape": list(data.event_shape),
        "event_dtype": data.event_dtype,
        "latent_size": run.latent_size,
        "family": likelihood.family,
        "parameters": list(likelihood.parameter_names),
        "mean": "expectation",
        "missing": run.missing is not None,
        "support": likelihood.support,
        "base_measure": likelihood.base_measure,
        "blocks": likelihood.blocks if isinstance(likelihood, Mixed) else None,
        "units": likelihood.units,
        "features": list(data.features) if data.features else None,
        "prior": _prior(fitted.vae),
        "kl": fitted.vae.form.kl,
        "training": training,
        "parity": parity,
        "row_independence": independence.PROMISE,
        "golden": golden,
    }


def _prior(vae: VAE) -> Prior:
    """The forms of p(z) and q(z|x), and where p(z) lies unless everyone knows."""
    found = vae.prior.moments()
    mean, scale = (None, None) if found is None else (each.tolist() for each in found)
    return Prior(family=vae.form.prior, posterior=vae.form.posterior, mean=mean, scale=scale)


def _versions() -> dict[str, str]:
    """What it was made with."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__.partition("+")[0],
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": str(graphs.OPSET),
    }
