"""Served: each operation of each artifact as a model of the protocol, with its tensors. Knows no request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import Unknown
from service.http.exchange import Operation, find
from service.http.v2.tensors import Tensor, datatype_of
from service.models import Model, Models

PLATFORM = "onnx_onnxv1"
DEFAULT = "score"  # the operation that an artifact's bare name stands for
# The work whose engine calls an operation is counted by.
GRAPHS = {
    "score": "score",
    "encode": "encoder",
    "decode": "decoder",
    "reconstruct": "decoder",
    "sample": "decoder",
    "evidence": "joint",
    "impute": "decoder",
}
ROWS = -1
# Outputs that come when they are asked for: what a request has to say for them.
ASKED_FOR: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "score": {
        "feature_log_likelihood": {"explain": True},
        "latent_kl": {"explain": True},
        "feature_deviation": {"explain": True},
        "latent_deviation": {"explain": True},
        "feature_names": {"explain": True},
        "feature_conditional": {"conditionals": True},
        "feature_conditional_k": {"conditionals": True},
    },
    "encode": {"latents": {}},
}


@dataclass(frozen=True, slots=True)
class Served:
    """An operation of an artifact, as a model: its name, and the tensors that it takes and gives by default."""

    name: str
    model: Model
    operation: Operation[Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    known: frozenset[str]
    extra: Mapping[str, Mapping[str, Any]]

    @property
    def version(self) -> str:
        """Its version, which the protocol has as text."""
        return str(self.model.manifest.version)

    @property
    def batched(self) -> bool:
        """Whether the first axis of its tensors is one of rows."""
        return self.operation.array is not None


@dataclass(slots=True)
class Shelf:
    """Every model of the protocol by its name; what is known of one is made once, as long as its artifact is served."""

    models: Models
    operations: Mapping[str, Operation[Any]]
    _made: dict[tuple[str, int, str], Served] = field(default_factory=dict)

    def find(self, name: str, version: str | None) -> Served:
        """A model; without a version the highest that is loaded. Unknown, or NotReady with the reason."""
        artifact, dot, operation = name.partition(".")
        model = find(self.models, artifact, version)
        return self.of(model, operation if dot else DEFAULT, name)

    def of(self, model: Model, operation: str, name: str) -> Served:
        """An operation of an artifact under a name."""
        key = (name, model.manifest.version, operation)
        made = self._made.get(key)
        if made is None or made.model is not model:
            if (found := self.operations.get(operation)) is None:
                raise Unknown(f"{name[:80]} is no model: the operations are {', '.join(self.operations)}")
            if reason := found.withheld(model.manifest):
                raise Unknown(reason)
            made = self._made[key] = describe(name, model, found)
        return made

    def forget(self, gone: Model) -> None:
        """Keep nothing of a model that is put away."""
        self._made = {key: made for key, made in self._made.items() if made.model is not gone}

    def names(self, model: Model) -> Iterable[tuple[str, str]]:
        """The names that an artifact's operations have, each with its operation."""
        name = model.manifest.name
        offered = [one.name for one in self.operations.values() if not one.withheld(model.manifest)]
        return [(name, DEFAULT), *((f"{name}.{operation}", operation) for operation in offered)]

    def all(self) -> list[Served]:
        """Every model under each of its names, in all its versions."""
        return [self.of(model, operation, name) for model in self.models.all() for name, operation in self.names(model)]

    def versions(self, served: Served) -> list[str]:
        """The loaded versions of a model, as text."""
        catalogue = dict(self.models.catalogue())
        return [str(version) for version in catalogue.get(served.model.manifest.name, ())]


def describe(name: str, model: Model, operation: Operation[Any]) -> Served:
    """What the protocol is told of an operation."""
    outputs = _outputs(model, operation.name)
    extra = ASKED_FOR.get(operation.name, {})
    if operation.name == "decode":
        extra = {f"parameters.{parameter}": {"output": "parameters"} for parameter in model.manifest.parameters}
    known = frozenset([*(tensor.name for tensor in outputs), *extra])
    return Served(name, model, operation, _inputs(model, operation), outputs, known, extra)


def _inputs(model: Model, operation: Operation[Any]) -> tuple[Tensor, ...]:
    manifest = model.manifest
    match operation.array:
        case None:
            return (Tensor("count", "INT64", (1,), optional=True),)
        case "latents":
            return (Tensor("latents", "FP32", (ROWS, manifest.latent_size)),)
        case name:
            dtype = model.golden["encoder.x"].dtype
            return (Tensor(name, datatype_of(dtype), (ROWS, *manifest.event_shape)),)


def _outputs(model: Model, operation: str) -> tuple[Tensor, ...]:
    """What an operation gives to a request that names no outputs and no parameters."""
    event, latent = tuple(model.manifest.event_shape), model.manifest.latent_size
    decoded, encoded = (datatype_of(model.golden[f"{graph}.mean"].dtype) for graph in ("decoder", "encoder"))
    match operation:
        case "encode":
            names = ("mean",) if model.manifest.prior.posterior == "flow" else ("mean", "scale")
            return tuple(Tensor(name, encoded, (ROWS, latent)) for name in names)
        case "decode" | "reconstruct":
            return (Tensor("outputs", decoded, (ROWS, *event)),)
        case "sample":
            return Tensor("outputs", decoded, (ROWS, *event)), Tensor("latents", "FP32", (ROWS, latent))
        case "impute":
            made = Tensor("outputs", "FP64", (ROWS, *event)), Tensor("imputations", "FP64", (ROWS, ROWS, *event))
            return *made, *_doubles("effective_draws", "pareto_k"), Tensor("reliable", "BOOL", (ROWS,))
        case "evidence":
            errors = ("log_evidence", "log_evidence_error", "lower_bound", "elbo", "elbo_error", "gap", "gap_error")
            return *_doubles(*errors, "pareto_k", "effective_draws"), Tensor("reliable", "BOOL", (ROWS,))
        case _:
            return _scores(model)


def _scores(model: Model) -> tuple[Tensor, ...]:
    """A score's outputs: bounds, every score that the calibration fits, and p-values where there is a calibration."""
    references = model.references
    measured = ["elbo", "log_likelihood", "kl", "iwae_gap", *(references.fitted if references else ())]
    named = []
    for score in measured:
        named += [f"scores.{score}.value"]
        named += [f"scores.{score}.p_value"] if references and score in references.scores else []
    bits = ["bits_per_dim"] if model.manifest.discrete else []
    flags = (Tensor("anomaly", "BOOL", (ROWS,)),) if references else ()
    decided = ["p_value"] if references else []
    return *_doubles("elbo", "elbo_error", "log_likelihood", "kl", *named, *decided), *flags, *_doubles(*bits)


def _doubles(*names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, "FP64", (ROWS,)) for name in names)


# ---------------------------------------------------------------- as they are told


def metadata(served: Served, versions: list[str]) -> dict[str, Any]:
    """A model's metadata."""
    return {
        "name": served.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_told(tensor) for tensor in served.inputs],
        "outputs": [_told(tensor) for tensor in served.outputs],
    }


def _told(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def config(served: Served, rows: int) -> dict[str, Any]:
    """A model's configuration, as Triton's clients read it; a batch has as many rows as a request may."""
    batched = served.batched
    return {
        "name": served.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": rows if batched else 0,
        "input": [_configured(tensor, batched) for tensor in served.inputs],
        "output": [_configured(tensor, batched) for tensor in served.outputs],
        **({"dynamic_batching": {}} if batched else {}),
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }


def _configured(tensor: Tensor, batched: bool) -> dict[str, Any]:
    """A tensor as a configuration lists it, without the axis of rows."""
    datatype = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    listed = {"name": tensor.name, "data_type": datatype, "dims": list(tensor.shape[1:] if batched else tensor.shape)}
    return listed | ({"optional": True} if tensor.optional else {})
