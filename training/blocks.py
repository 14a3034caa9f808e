"""Blocks: elementwise operations of a graph whose bits depend on a row's place, done on whole blocks instead.

The runtime computes these sixteen numbers at a time and what is left over in another way, so a row of a width that
isn't a multiple of 16 gets other last bits at another place in its batch. Our own likelihoods fill up in torch
(`aligned`); modules and files from elsewhere don't know of it. Knows no VAE.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from training.likelihoods.base import BLOCK

UNEVEN = ("Softplus", "Log", "Sin", "Cos", "Elu", "Selu", "Celu", "Mish")


def filled_up(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with those operations on rows filled up by ones to whole blocks; the same model if there are none."""
    graph = model.graph
    if not any(node.op_type in UNEVEN for node in graph.node):
        return model
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        span = _span(types[node.input[0]]) if node.op_type in UNEVEN and node.input[0] in types else None
        if span is None:
            nodes.append(node)
            continue
        made, constants = _around(node, f"block_{place}", *span, types[node.input[0]].elem_type)
        nodes += made
        graph.initializer.extend(constants)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _span(array: onnx.TypeProto.Tensor) -> tuple[int, int] | None:
    """The first axis after the last dynamic one, and the numbers from there on; None where these are whole blocks."""
    if not array.HasField("shape"):
        return None
    dims = [dim.dim_value for dim in array.shape.dim]
    dynamic = [axis for axis, size in enumerate(dims) if size == 0]
    if not dynamic or dynamic[-1] == len(dims) - 1:
        return None
    axis = dynamic[-1] + 1
    size = math.prod(dims[axis:])
    return (axis, size) if size % BLOCK else None


def _around(
    node: onnx.NodeProto, name: str, axis: int, size: int, kind: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The operation on flattened rows that are filled up, and their shape again."""
    numbers = {
        "pads": np.array([0, 0, 0, -size % BLOCK]),
        "one": np.array(1, helper.tensor_dtype_to_np_dtype(kind)),
        "start": np.array([0]),
        "stop": np.array([size]),
        "axis": np.array([1]),
    }
    constants = [numpy_helper.from_array(np.asarray(value), f"{name}_{key}") for key, value in numbers.items()]
    part = {key: f"{name}_{key}" for key in (*numbers, "shape", "flat", "whole", "done", "cut")}
    make, (given,), (made,) = helper.make_node, node.input, node.output
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.input[:], inner.output[:] = [part["whole"]], [part["done"]]
    return [
        make("Shape", [given], [part["shape"]]),
        make("Flatten", [given], [part["flat"]], axis=axis),
        make("Pad", [part["flat"], part["pads"], part["one"]], [part["whole"]]),
        inner,
        make("Slice", [part["done"], part["start"], part["stop"], part["axis"]], [part["cut"]]),
        make("Reshape", [part["cut"], part["shape"]], [made], allowzero=1),
    ], constants
