"""The engine: one artifact's ONNX Runtime sessions. Knows nothing of requests, and nothing of who computes when.

On the CPU every session runs with one thread, since only then is a row's answer the same to the last bit whoever shares
its batch; several cores are used by several lanes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Arrays, Artifact, Graph
from service.errors import ArtifactRefused, DeviceUnavailable, EngineFailed

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
T = TypeVar("T")

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 moves a score by about 1e-3 relative, past any manifest's tolerance.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
# Nodes that may stay on the CPU under `cuda`: those that make and move shapes, and compute nothing. The runtime tells
# a node's op and not its types, so arithmetic on shapes can't be told from arithmetic on rows: no committed graph has
# any, and one that had would be refused. What is left open: these ops moving rows, not shapes, on the CPU.
SHAPE_OPS = {
    *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "Reshape", "Shape"),
    *("Size", "Slice", "Squeeze", "Unsqueeze"),
}


# A golden tolerance may be this much of max(1, the largest |answer|): past it golden rows would prove nothing. Our
# exports state at most 8e-5; where a sum's terms cancel they state more, and this leaves room for twelve times that.
LOOSEST = 1e-3


@dataclass(frozen=True)
class Engine:
    """One artifact's sessions. `device` is where they really are; `fallback` says why that is not what was wanted."""

    device: Literal["cpu", "cuda"]
    providers: list[str]
    fallback: str | None
    sessions: Mapping[str, ort.InferenceSession] = field(repr=False)

    @cached_property
    def names(self) -> Mapping[str, list[str]]:
        """What each graph gives, in its order."""
        return {name: [output.name for output in session.get_outputs()] for name, session in self.sessions.items()}

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Run one graph; blocks. EngineFailed says what the runtime said."""
        names = self.names[graph]
        try:
            return dict(zip(names, self.sessions[graph].run(names, feeds), strict=True))
        except Exception as error:  # the runtime's exceptions share no base class
            raise EngineFailed(f"{graph}: {error}") from error

    def run(self, graph: str, pieces: Mapping[str, Sequence[Array]], shared: Mapping[str, Array]) -> Arrays:
        """Run one graph on rows that come in pieces, copied once; blocks. shared is what all rows have in common."""
        rows = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in pieces.items()}
        return self.compute(graph, {**rows, **shared})


def open_engine(artifact: Artifact, device: Device = "cpu") -> Engine:
    """Open an artifact's graphs where they are wanted and hold them to its golden rows; blocks."""
    engine = _on_device(artifact, device)
    check_golden(engine, artifact)
    return engine


def _on_device(artifact: Artifact, device: Device) -> Engine:
    """Sessions on the device; `auto` falls back to the CPU and keeps the reason, `cuda` does not."""
    if device == "cpu":
        return _open(artifact, "cpu", None)
    try:
        return _open(artifact, "cuda", None)
    except DeviceUnavailable as error:
        if device == "cuda":
            raise
        return _open(artifact, "cpu", str(error) if _expected_cuda() else None)


def _expected_cuda() -> bool:
    """Whether a person would expect CUDA here: its runtime is installed, or a device is in sight."""
    return CUDA in ort.get_available_providers() or Path("/dev/nvidia0").exists()


def _open(artifact: Artifact, device: Literal["cpu", "cuda"], fallback: str | None) -> Engine:
    if device == "cuda":
        _require_cuda()
    names = artifact.manifest.graphs
    sessions = {name: _session(graph, artifact.graph(name), device) for name, graph in names.items()}
    return Engine(device, sessions["elbo"].get_providers(), fallback, sessions)


def _require_cuda() -> None:
    if CUDA not in ort.get_available_providers():
        raise DeviceUnavailable("this onnxruntime was built without CUDA; install onnxruntime-gpu instead")
    ort.preload_dlls(cuda=True, cudnn=True)  # prints what it misses and never raises; the session check below does


def _session(graph: Graph, content: bytes, device: Literal["cpu", "cuda"]) -> ort.InferenceSession:
    """A session of bytes whose digest is right, where it was asked to be, or an error."""
    if fault := onnx_fault(content):
        raise ArtifactRefused(f"{graph.file} {fault}")
    options = _options(device)
    wanted: list[object] = [CPU] if device == "cpu" else [(CUDA, CUDA_OPTIONS), CPU]
    try:
        session = ort.InferenceSession(content, options, providers=wanted, enable_fallback=0)
    except Exception as error:  # the runtime's exceptions share no base class
        if device == "cuda":
            raise DeviceUnavailable(f"CUDA could not open {graph.file}") from error
        raise ArtifactRefused(f"{graph.file} is not a graph that onnxruntime can open") from error
    if device == "cuda":
        _check_placement(session, graph.file)
    _check_ports(session, graph)
    session._model_bytes = None  # kept for set_providers and the fallback, neither of which is used; 5.5 MB for mnist
    return session


def _check_ports(session: ort.InferenceSession, graph: Graph) -> None:
    """Refuse a graph whose inputs or outputs are not exactly those of an artifact."""
    found = ({port.name for port in session.get_inputs()}, {port.name for port in session.get_outputs()})
    wanted = ({*graph.rows, *([graph.bank] if graph.bank else [])}, set(graph.outputs))
    for what, there, asked in zip(("takes", "gives"), found, wanted, strict=True):
        if there != asked:
            named = f"{', '.join(sorted(there))}, not {', '.join(sorted(asked))}"
            raise ArtifactRefused(f"{graph.file} {what} {named}")


def _options(device: Literal["cpu", "cuda"]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # patterns are kept for every batch size seen, and never let go
    options.log_severity_level = 3
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _check_placement(session: ort.InferenceSession, name: str) -> None:
    """CUDA means CUDA: it comes first, and nothing but the making of shapes is left on the CPU."""
    if session.get_providers()[0] != CUDA:
        raise DeviceUnavailable(f"{name} was opened on the CPU: CUDA is installed and no device answers")
    for placed in session.get_provider_graph_assignment_info():
        if placed.ep_name == CUDA:
            continue
        strays = {node.op_type for node in placed.get_nodes()} - SHAPE_OPS
        if strays:
            raise DeviceUnavailable(f"CUDA leaves {', '.join(sorted(strays))} of {name} to the CPU")


# onnx.proto, as far as a tensor or a domain can hide: message → {field: the message it holds}.
NESTED: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 8: "Opset", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
STANDARD = (b"", b"ai.onnx")


def onnx_fault(content: bytes) -> str | None:
    """What makes a file more than one self-contained standard graph, if anything.

    Opened from bytes, the runtime would look for external data in the working directory, where no digest is checked.
    """
    waiting = [("Model", 0, len(content))]
    try:
        while waiting:
            kind, start, end = waiting.pop()
            for number, value in _fields(content, start, end):
                if kind == "Tensor" and (number == 13 or (number == 14 and value != 0)):  # external_data, data_location
                    return "keeps tensors in other files"
                if kind == "Opset" and number == 1 and isinstance(value, slice) and content[value] not in STANDARD:
                    return "needs operators outside the standard domain"
                if isinstance(value, slice) and (inner := NESTED.get(kind, {}).get(number)):
                    waiting.append((inner, value.start, value.stop))
    except (IndexError, ValueError):
        return "is not a graph that onnxruntime can open"
    return None


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """The fields of a protobuf message: a number for a varint, a slice of content for anything with a length."""
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        value: int | slice
        if wire == 0:
            value, at = _varint(content, at)
        elif wire in (1, 2, 5):
            size, at = _varint(content, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = slice(at, at + size), at + size
        else:
            raise ValueError("a group, which ONNX has none of")
        if at > end or tag >= 1 << 32:
            raise ValueError("a field past its message's end, or past what can be one")
        yield number, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def check_golden(engine: Engine, artifact: Artifact) -> None:
    """Refuse an engine that does not answer the golden rows as the manifest says."""
    golden, manifest = artifact.golden, artifact.manifest
    for graph in manifest.graphs.values():
        inputs = (*graph.rows, graph.bank) if graph.bank else graph.rows
        try:
            answers = engine.compute(graph.name, {name: golden[f"{graph.name}.{name}"] for name in inputs})
        except EngineFailed as error:
            raise ArtifactRefused(f"{graph.file} fails on its golden rows") from error
        for output in graph.outputs:
            key = f"{graph.name}.{output}"
            ceiling = LOOSEST * max(1.0, float(np.abs(golden[key]).max(initial=0.0)))
            if manifest.golden.tolerance[key] > ceiling:
                raise ArtifactRefused(
                    f"golden.tolerance of {key} is {manifest.golden.tolerance[key]:.3g}, past {ceiling:.3g}: "
                    "golden rows would prove nothing"
                )
            off = difference(answers.get(output), golden[key])
            if not off <= manifest.golden.tolerance[key]:
                raise ArtifactRefused(
                    f"golden rows: {key} is off by {off:.3g} where the manifest allows "
                    f"{manifest.golden.tolerance[key]:.3g}"
                )


def difference(found: Array | None, wanted: Array) -> float:
    """The largest absolute difference; infinite where the arrays don't match or only one is a number."""
    if found is None or found.shape != wanted.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    return float(np.max(np.nan_to_num(np.where(same, 0.0, off), nan=np.inf), initial=0.0))
