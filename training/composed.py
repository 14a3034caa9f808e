"""Composed: an ONNX graph as a torch module, which the artifact's graphs take in node by node. Knows no VAE.

In float32 its numbers are the runtime's own, in float64 those of ONNX's reference; exported, it is the graph itself,
so nothing of it is translated.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

DOMAIN = "vae_serve.composed"
INPUT, OUTPUT = "composed_input", "composed_output"
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Dropout")
Shapes = tuple[tuple[int, ...], ...]


class Composed(nn.Module):
    """A graph of one input, (n, *shape), float32, and outputs of one shape a row each, float32."""

    def __init__(self, role: str, model: onnx.ModelProto, shape: tuple[int, ...], outputs: Shapes, origin: str) -> None:
        """model: prepared, with INPUT (n, *shape) and OUTPUT (n, all outputs). origin: which file it is, in words."""
        super().__init__()
        self.role, self.content = role, model.SerializeToString()
        self.shape, self.outputs, self.origin = shape, outputs, origin

    @property
    def width(self) -> int:
        """How many numbers all outputs of a row are."""
        return sum(math.prod(shape) for shape in self.outputs)

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """Each output, (n, *shape)."""
        flat = self._flat(given.reshape(given.shape[0], *self.shape))
        parts = torch.split(flat, [math.prod(shape) for shape in self.outputs], dim=-1)
        return tuple(part.reshape(part.shape[0], *shape) for part, shape in zip(parts, self.outputs, strict=True))

    def _flat(self, given: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            shape = (given.shape[0], self.width)
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{self.role}", (given,), dtype=given.dtype, shape=shape, version=1
            )
        rows = given.detach().numpy()
        if given.dtype == torch.float64:
            (found,) = _reference(self.content).run(None, {INPUT: rows})
        else:
            (found,) = session(self.content).run(None, {INPUT: rows})
        return torch.from_numpy(np.array(found))

    def without_last(self, kinds: tuple[str, ...], last_axis: bool = False) -> bool:
        """Take off a last Sigmoid, or a Softmax over the last axis, as `tracing.without_last` does."""
        model = onnx.load_from_string(self.content)
        makers = {name: node for node in model.graph.node for name in node.output}
        uses = [name for node in model.graph.node for name in node.input]
        name = OUTPUT
        while (node := makers.get(name)) is not None and uses.count(name) <= 1:
            one = node.op_type in ("Concat", "Flatten", "Identity") and len(node.input) == 1
            if node.op_type in kinds and (not last_axis or _axis(node) in (-1, len(self.outputs[0]))):
                node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
                self.content = model.SerializeToString()
                return True
            if not one and (last_axis or node.op_type not in RESHAPING):
                return False
            name = node.input[0]
        return False


def prepared(
    model: onnx.ModelProto, given: str, shape: tuple[int | str, ...], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """The model with INPUT and OUTPUT, (n, everything), in place of its own."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    del graph.value_info[:], graph.output[:], graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *shape]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", None]))
    flat = [f"{OUTPUT}_{place}" for place in range(len(outputs))]
    graph.node.insert(0, helper.make_node("Identity", [INPUT], [given]))
    graph.node.extend(helper.make_node("Flatten", [name], [to], axis=1) for name, to in zip(outputs, flat, strict=True))
    graph.node.append(helper.make_node("Concat", flat, [OUTPUT], axis=1))
    return made


def spliced(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """The model with the graphs of the composed modules in place of the nodes that stand for them."""
    parts = {part.role: part for part in module.modules() if isinstance(part, Composed)}
    if not parts:
        return model
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        inner = compose.add_prefix(onnx.load_from_string(parts[node.op_type].content), f"{node.op_type}_{place}_")
        renamed = {inner.graph.input[0].name: node.input[0], inner.graph.output[0].name: node.output[0]}
        for own in inner.graph.node:
            own.input[:] = [renamed.get(name, name) for name in own.input]
            own.output[:] = [renamed.get(name, name) for name in own.output]
        nodes += inner.graph.node
        model.graph.initializer.extend(inner.graph.initializer)
    kept = [helper.make_opsetid(opset.domain, opset.version) for opset in model.opset_import if opset.domain != DOMAIN]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.extend(kept)
    return model


@functools.lru_cache(maxsize=8)
def session(content: bytes) -> onnxruntime.InferenceSession:
    """A graph in the runtime, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=4)
def _reference(content: bytes) -> ReferenceEvaluator:
    """The same graph in float64, as ONNX itself says what it means."""
    return ReferenceEvaluator(doubled(onnx.load_from_string(content)))


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose every float32 is float64."""
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.type == attribute.TENSOR else []
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def _axis(node: onnx.NodeProto) -> int:
    """The axis of a Softmax."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), -1)
