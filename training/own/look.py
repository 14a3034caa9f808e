"""Look: an ONNX file from elsewhere, judged before anything in it is run or anything that it names is opened.

Unusable says what is wrong with it and what would be right. Knows no runtime: a file is read as a message, no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx import TensorProto, external_data_helper, helper

from service.engine.onnxfile import onnx_fault
from training.config import Unusable

MOST_BYTES = 1 << 30  # of a file, and of the data beside it
MOST_ELEMENTS = 100_000_000  # of a weight, and of whatever a graph makes of one row
MOST_NODES = 50_000
STANDARD = ("", "ai.onnx")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
PICKLES = (b"PK\x03\x04", b"\x80")  # a torch checkpoint is a zip of a pickle; older ones are a pickle


def read(path: Path) -> onnx.ModelProto:
    """The model in a file, with its weights; Unusable where it isn't one graph that can safely be run."""
    try:
        return _looked(path)
    except (MemoryError, RecursionError) as error:
        raise Unusable(
            f"{path}: takes more memory to look at than there is; is it broken? Export it again, without constants "
            "that grow when it is run"
        ) from error


def _looked(path: Path) -> onnx.ModelProto:
    model = _parsed(path)
    for fault in (_foreign(model), _uncontrolled(model), _too_large(model)):
        if fault:
            raise Unusable(f"{path}: {fault}")
    _load_beside(path, model)
    # What onnx itself does with a graph grows with the sizes in it, so the service's own look comes before that.
    if fault := _unlike_their_size(model) or onnx_fault(model.SerializeToString()) or _bomb(model):
        raise Unusable(f"{path}: {fault}")
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise Unusable(f"{path}: is {size / 1e9:.1f} GB, and at most {MOST_BYTES / 1e9:.1f} GB are read")
        content = path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    if content.startswith(PICKLES):
        raise Unusable(
            f"{path}: is a pickle or a torch checkpoint, which runs code when it is opened, so it isn't opened. Load "
            "its weights into your modules by torch.load(…, weights_only=True), and give these to training.export"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise Unusable(f"{path}: is not an ONNX file") from error
    if not model.graph.node:
        raise Unusable(f"{path}: is not an ONNX file with a graph in it")
    return model


# ---------------------------------------------------------------- what it says


def _foreign(model: onnx.ModelProto) -> str | None:
    """An operator that isn't ONNX's, or a function that could be one."""
    for node in _nodes(model.graph):
        if node.domain not in STANDARD:
            return (
                f"uses the operator {node.op_type} of the domain {node.domain!r}; only ONNX's own can be served. "
                "Export again without it; functions of older exporters go away with onnx.inliner.inline_local_functions"
            )
    if model.functions:
        return "has functions of its own; write them out with onnx.inliner.inline_local_functions"
    if model.training_info:
        return "carries a training graph; export it for inference"
    return None


def _uncontrolled(model: onnx.ModelProto) -> str | None:
    """A graph within the graph, whose work no shape bounds, or a random operator."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            return (
                f"has control flow ({node.op_type}), so how long it runs isn't known from its shapes; export a graph "
                "without branches and loops: torch.where for the former, unrolled for the latter"
            )
        training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants
        if node.op_type in RANDOM or (training and any(onnx.numpy_helper.to_array(constants[node.input[2]]).flat)):
            return (
                f"draws random numbers ({node.op_type}). Export the encoder in eval mode, up to its mean and log "
                "variance without drawing z, and the decoder from z on; noise is an input of the artifact's graphs"
            )
    return None


def _too_large(model: onnx.ModelProto) -> str | None:
    """A weight that declares more elements than any model of ours may have, or more nodes."""
    if model.graph.sparse_initializer:
        return "has sparse weights; make them dense"
    if len(model.graph.node) > MOST_NODES:
        return f"has {len(model.graph.node):,} nodes, and at most {MOST_NODES:,} are read"
    for tensor in _tensors(model):
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > MOST_ELEMENTS:
            return (
                f"declares {math.prod(tensor.dims):,} elements of {tensor.name!r}; at most {MOST_ELEMENTS:,} are read"
            )
    return None


def _unlike_their_size(model: onnx.ModelProto) -> str | None:
    """A weight whose bytes aren't those of its shape."""
    for tensor in _tensors(model):
        try:
            held = onnx.numpy_helper.to_array(tensor).size
        except (ValueError, TypeError, KeyError) as error:
            why = " ".join(str(error).split())[:200]
            return f"declares {list(tensor.dims)} for {tensor.name!r} and holds something else ({why})"
        if held != math.prod(tensor.dims):
            return f"declares {list(tensor.dims)} for {tensor.name!r} and holds {held:,} elements"
    return None


def _bomb(model: onnx.ModelProto) -> str | None:
    """A tensor that the graph would make, far larger than what it is given: shapes are worked out, nothing is run."""
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return f"isn't a valid graph: {' '.join(str(error).split())[:300]}"
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        size = math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        if size > MOST_ELEMENTS:
            return f"would make {size:,} elements of {value.name!r} for a row; at most {MOST_ELEMENTS:,} are made"
    return None


# ---------------------------------------------------------------- what lies beside it


def _load_beside(path: Path, model: onnx.ModelProto) -> None:
    """Bring weights in that lie in files beside the model: in its own folder, no links, and whole."""
    folder, room = path.resolve().parent, MOST_BYTES
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        name = said.get("location", "")
        beside = folder / name
        if not name or Path(name).name != name or "\\" in name:
            raise Unusable(f"{path}: keeps weights in {name!r}, outside its folder; put them into one file beside it")
        if beside.is_symlink() or not beside.is_file():
            raise Unusable(f"{path}: keeps weights in {name!r}, which is no file beside it")
        start, length = _number(said, "offset"), _number(said, "length")
        size = beside.stat().st_size
        wanted = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if start is None or length not in (None, wanted) or start + wanted > size or wanted > room:
            raise Unusable(f"{path}: {tensor.name!r} doesn't lie in {name!r} as it says")
        room -= wanted
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _number(said: dict[str, str], key: str) -> int | None:
    """A place in a file; None where it is left out (0 for an offset) or none."""
    value = said.get(key, "0" if key == "offset" else None)
    return int(value) if value is not None and value.isdecimal() else None


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of graphs in attributes too."""
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.type == attribute.GRAPH else list(attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All tensors that are written down in a model."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.type == attribute.TENSOR else attribute.tensors
