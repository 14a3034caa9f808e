"""Weights: what an artifact's graphs have in common, large matrices and filters, taken out of them into one file.

A convolution's filters are laid out anew by the runtime, session by session: they are on disk once, and in memory once
for each of these. Knows no VAE and no runtime.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from service.artifact import WEIGHTS

LEAST = 1 << 16  # bytes of a tensor that is worth it
PAGE = 4096  # what a tensor's place is a multiple of
PAD_BY, PAD_AXIS, FROM, UNTIL = "shared.pad_by", "shared.axis", "shared.from", "shared.until"


class Store:
    """The bytes of the file as they come together; equal tensors lie in it once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[str, int] = {}

    def place(self, raw: bytes) -> int:
        """Where a tensor lies, now or already."""
        digest = hashlib.sha256(raw).hexdigest()
        if digest not in self._places:
            self.content.extend(bytes(-len(self.content) % PAGE))
            self._places[digest] = len(self.content)
            self.content.extend(raw)
        return self._places[digest]


def share(contents: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """Graphs by name → the same without their large tensors, and the bytes of weights.bin, empty if there are none."""
    store = Store()
    thinner = {name: _thinner(onnx.load_from_string(content), store) for name, content in contents.items()}
    return thinner, bytes(store.content)


def _thinner(model: ModelProto, store: Store) -> bytes:
    """A graph whose large matrices and filters lie in the store."""
    graph = model.graph
    dense = _dense(graph)
    _give_company(graph, {node.output[0] for node in dense})
    large = {node.input[1] for node in (*dense, *_convolutions(graph))}
    for tensor in graph.initializer:
        if tensor.name in large and _bytes(tensor) >= LEAST:
            _move(tensor, store)
    return bytes(model.SerializeToString(deterministic=True))


def _dense(graph: GraphProto) -> list[NodeProto]:
    """The nodes that multiply rows by a matrix that no row changes, of any size."""
    fixed = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    settled = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if all(name in settled for name in node.input):
            settled.update(node.output)
            fixed.update(node.output)
        elif node.op_type in ("Gemm", "MatMul") and node.input[0] not in settled and node.input[1] in fixed:
            found += [] if any(each.name == "transA" and each.i for each in node.attribute) else [node]
    return found


def _convolutions(graph: GraphProto) -> list[NodeProto]:
    """The nodes that slide filters over a row."""
    return [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]


def _bytes(tensor: TensorProto) -> int:
    each = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * each)


def _give_company(graph: GraphProto, outputs: set[str]) -> None:
    """Give dense layers one more row, of zeros, and take it off again.

    Where weights are shared the runtime packs no matrix, small ones neither; then it multiplies a single row by another
    algorithm, and so to other bits than the same row in a batch. With company no row is single.
    """
    nodes = [part for node in graph.node for part in (_in_company(node) if node.output[0] in outputs else [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    numbers = {PAD_BY: [0, 1], PAD_AXIS: [0], FROM: [0], UNTIL: [-1]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), name) for name, values in numbers.items()
    )


def _in_company(node: NodeProto) -> Iterator[NodeProto]:
    """Pad, the layer, Slice."""
    rows, given = node.input[0], node.output[0]
    more, all_of_them = f"{given}.padded", f"{given}.whole"
    layer = NodeProto()
    layer.CopyFrom(node)
    layer.input[0], layer.output[0] = more, all_of_them
    yield helper.make_node("Pad", [rows, PAD_BY, "", PAD_AXIS], [more])
    yield layer
    yield helper.make_node("Slice", [all_of_them, FROM, UNTIL, PAD_AXIS], [given])


def _move(tensor: TensorProto, store: Store) -> None:
    """Leave of a tensor where its elements lie."""
    raw = numpy_helper.to_array(tensor).tobytes()
    said = {"location": WEIGHTS, "offset": str(store.place(raw)), "length": str(len(raw))}
    kept = (tensor.name, tensor.data_type, list(tensor.dims))
    tensor.Clear()
    tensor.name, tensor.data_type = kept[:2]
    tensor.dims.extend(kept[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
