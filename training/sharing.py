"""Sharing: the dense weights of several graphs moved into one file that all of them read. Knows no runtime.

The runtime then uses them where they lie, and doesn't pack them. Without packing it multiplies a single row by another
kernel, which sums in another order: a row would have other bits alone than in company. So every product is given one
row more than it has, its first again, and the last is taken off what comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from service.artifact import WEIGHTS

SMALLEST = 16_384  # bytes: smaller tensors stay in their graph
PAGE = 4096  # tensors begin at a page, so that whoever maps the file can
FIRST, SECOND, LAST, ROWS = "sharing.first", "sharing.second", "sharing.last", "sharing.rows"
PLACES = {FIRST: 0, SECOND: 1, LAST: -1, ROWS: 0}  # what a row is taken, and one left out, by


@dataclass(slots=True)
class Pool:
    """One file of tensors: each once, however many graphs have it."""

    content: bytearray = field(default_factory=bytearray)
    places: dict[str, int] = field(default_factory=dict)

    def put(self, values: bytes) -> int:
        """Where these bytes lie, from now on if they didn't."""
        key = hashlib.sha256(values).hexdigest()
        if key not in self.places:
            self.content.extend(bytes(-len(self.content) % PAGE))
            self.places[key] = len(self.content)
            self.content.extend(values)
        return self.places[key]


def share(contents: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """Graphs by name as they are with their dense weights elsewhere, and the bytes of that file: weights.bin."""
    pool = Pool()
    return {name: _shared(content, pool) for name, content in contents.items()}, bytes(pool.content)


def _shared(content: bytes, pool: Pool) -> bytes:
    model = onnx.load_from_string(content)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    dense, others = set[str](), set[str]()
    for node in graph.node:
        is_dense = _is_dense(node, tensors)
        (dense if is_dense else others).update(node.input[1:2] if is_dense else node.input)
        nodes += _in_company(node) if is_dense else [onnx.NodeProto.FromString(node.SerializeToString())]
    for name in sorted(dense - others):
        _move(tensors[name], pool)
    if dense:
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(np.array([v], np.int64), name) for name, v in PLACES.items())
    return bytes(model.SerializeToString())


def _is_dense(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node multiplies rows by a matrix that doesn't depend on them."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in tensors:
        return False
    biases = [name for name in node.input[2:] if name]
    if any(name not in tensors or len(tensors[name].dims) > 1 for name in biases):
        return False
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return len(tensors[node.input[1]].dims) == 2 and not turned


def _move(tensor: onnx.TensorProto, pool: Pool) -> None:
    """A tensor's values out of its graph, where that is worth it."""
    values = np.ascontiguousarray(numpy_helper.to_array(tensor))
    if values.nbytes < SMALLEST:
        return
    places = {"location": WEIGHTS, "offset": pool.put(values.tobytes()), "length": values.nbytes}
    moved = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    moved.data_location = onnx.TensorProto.EXTERNAL
    for key, value in places.items():
        moved.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(moved)


def _in_company(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A product of one row more than there are, which is left out of what is given."""
    rows, given = node.input[0], node.output[0]
    first, more, every = (f"{given}.{part}" for part in ("first", "more", "every"))
    product = onnx.NodeProto.FromString(node.SerializeToString())
    product.input[0], product.output[0] = more, every
    return [
        onnx.helper.make_node("Slice", [rows, FIRST, SECOND, ROWS], [first]),
        onnx.helper.make_node("Concat", [rows, first], [more], axis=0),
        product,
        onnx.helper.make_node("Slice", [every, FIRST, LAST, ROWS], [given]),
    ]
