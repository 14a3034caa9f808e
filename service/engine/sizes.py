"""Sizes: how large the tensors become that a graph makes of its constants, bounded from above. Knows no file.

The runtime computes what depends on constants alone while it opens a graph. So a file of a hundred bytes may ask for
gigabytes before a single row: by ConstantOfShape, or by a product of a column and a row. What depends on rows is not
bounded here; golden rows are the first that a graph is run on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHORT = 16  # entries of a shape
MOST = 2**28  # elements of one tensor, and of all that are made of constants together; 1 GiB of float32

# op → the input that says how large its output is to be
SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "Resize": 3, "OneHot": 1, "CenterCropPad": 1}
SHAPED |= dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"), 0)
# What gives as much as attributes, scales or steps say, which aren't looked at: of rows alone, and not of constants.
UNTOLD = {"Pad", "Resize", "Upsample", "ConvTranspose", "Col2Im", "MaxUnpool", "DFT", "STFT", "MelWeightMatrix"}
UNTOLD |= {"AffineGrid", "GridSample", "RoiAlign", "DeformConv"}
SAME = {"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Shape", "Flatten", "Split"}
SAME |= {"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMean", "Neg", "Exp", "Log", "Sqrt", "Tanh", "Abs", "Clip"}
# What gives an array of the shape that it takes.
ALIKE = {
    "Abs",
    "Cast",
    "Ceil",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Identity",
    "LeakyRelu",
    "Log",
    "Neg",
    "Not",
}
ALIKE |= {"Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh"}
KEPT = {"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Slice", "ReduceProd", "Neg", "Abs"}
JOINED = {"Concat", "Mul", "Max", "Min"}  # their outputs, multiplied, come to no more than their inputs do
POINTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Where", "Equal", "Less", "Greater", "And", "Or"}


class Node(NamedTuple):
    """A node: its operator, and the names of what it takes and gives."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that doesn't depend on a row: its shape, and its values where they could be a shape themselves."""

    dims: tuple[int, ...]
    values: tuple[float, ...] | None = None

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.dims)


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of a value: at most so many elements, and what they may come to as a shape; constant or not."""

    size: float
    product: float
    constant: bool
    dims: tuple[int, ...] | None = None


ROWS = Bound(1, 1, False)


def sizes_fault(nodes: Sequence[Node], constants: Mapping[str, Constant]) -> str | None:
    """Why the runtime would need too much memory to open a graph, if it would."""
    known = {name: _known(constant) for name, constant in constants.items()}
    made = 0.0
    for node in nodes:
        if node.op == "Constant":
            continue
        inputs = [known.get(name, ROWS) for name in node.inputs if name]
        asked = _range(node, constants, inputs) if node.op == "Range" else _asked(node, known)
        if node.op in UNTOLD and not asked and inputs and all(one.constant for one in inputs):
            return f"makes a tensor of constants whose size isn't known ({node.op}); have it made before it is exported"
        if asked > MOST:
            return f"asks for a tensor of {_said(asked)} elements ({node.op}); at most {MOST:,} are taken"
        found = _of(node, inputs, asked, [constants.get(name) for name in node.inputs])
        if found.constant:
            made += found.size
            if made > MOST:
                return f"makes {_said(made)} elements of its constants ({node.op}); at most {MOST:,} are taken"
        known.update(dict.fromkeys(node.outputs, found))
    return None


def _known(constant: Constant) -> Bound:
    product = math.inf if constant.values is None else _product(constant.values)
    return Bound(constant.size, product, True, constant.dims)


def _product(values: Iterable[float]) -> float:
    """What values come to as a shape; what is below 1 counts as 1."""
    return math.prod(max(1.0, abs(float(value))) for value in values)


def _asked(node: Node, known: Mapping[str, Bound]) -> float:
    """How many elements a node is asked for in so many words; 0: it isn't."""
    place = SHAPED.get(node.op)
    if place is None or place >= len(node.inputs):
        return 0.0
    return known.get(node.inputs[place], ROWS).product


def _range(node: Node, constants: Mapping[str, Constant], inputs: Sequence[Bound]) -> float:
    """How many numbers a Range gives; without end where it is of constants that aren't known, 0 where it is of rows."""
    values = [found.values for name in node.inputs if (found := constants.get(name)) and found.values]
    if len(values) == 3 and all(map(len, values)):
        (start, *_), (limit, *_), (step, *_) = values
        return max(0.0, (limit - start) / step) if step else math.inf
    return math.inf if all(one.constant for one in inputs) else 0.0


def _of(node: Node, inputs: Sequence[Bound], asked: float, given: Sequence[Constant | None]) -> Bound:
    """The bound of what a node gives."""
    sizes = [max(1.0, one.size) for one in inputs]
    constant = bool(inputs) and all(one.constant for one in inputs) and node.op != "Shape"
    product, dims = _worth(node.op, inputs, constant), _dims(node.op, inputs, given) if constant else None
    if dims is not None:
        size = float(math.prod(dims))
    elif node.op in ("Concat", "Sum"):
        size = sum(sizes)
    elif node.op in SAME:
        size = sizes[0] if sizes else 1.0
    elif node.op in ("ConstantOfShape", "Range"):
        size = asked
    elif node.op in ("MatMul", "Gemm") and all(len(one.dims or ()) == 2 for one in inputs[:2]):
        size = math.prod(one.size / min(one.dims or (1,)) if min(one.dims or (1,)) else 0.0 for one in inputs[:2])
    else:
        size = math.prod(sizes) * max(1.0, asked)
    return Bound(size if constant else 1.0, product, constant, dims)


def _dims(op: str, inputs: Sequence[Bound], given: Sequence[Constant | None]) -> tuple[int, ...] | None:
    """The shape of what is made of constants, where it can be told; given are those that are in the file themselves."""
    shapes = [one.dims for one in inputs if one.dims is not None]
    if op in ALIKE:
        return inputs[0].dims
    if op in POINTWISE:
        return _broadcast(shapes) if len(shapes) == len(inputs) else None
    if len(given) != 2 or inputs[0].dims is None or given[1] is None or given[1].values is None:
        return None
    dims, values = inputs[0].dims, [int(value) for value in given[1].values]
    if op == "Expand":
        return _broadcast([dims, tuple(map(abs, values))])
    if op == "Reshape":
        return _reshaped(math.prod(dims), values)
    if op == "Unsqueeze" and all(-len(dims) <= value <= len(dims) for value in values):
        places = sorted(value % (len(dims) + len(values)) for value in values)
        shape = list(dims)
        for place in places:
            shape.insert(place, 1)
        return tuple(shape)
    return None


def _reshaped(size: int, values: Sequence[int]) -> tuple[int, ...] | None:
    """So many elements in a shape with at most one −1, as Reshape has it; None where they aren't as many.

    >>> _reshaped(12, [2, -1, 3]), _reshaped(12, [5, -1])
    ((2, 2, 3), None)
    """
    rest = math.prod(value for value in values if value > 0)
    shape = tuple(size // rest if value == -1 else value for value in values)
    return shape if min(shape, default=1) > 0 and math.prod(shape) == size else None


def _worth(op: str, inputs: Sequence[Bound], constant: bool) -> float:
    """What the values that a node gives may come to as a shape; 1 where they depend on rows and nothing is known."""
    if op in KEPT and inputs:
        return inputs[0].product
    if op in JOINED:
        return math.prod(one.product for one in inputs)
    if op == "Gather" and len(inputs) > 1 and constant:
        return _power(inputs[0].product, inputs[1].size)  # an entry may be taken more than once
    return math.inf if constant else 1.0


def _power(base: float, exponent: float) -> float:
    return math.inf if base > 1 and exponent > SHORT else base**exponent


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of arrays of these shapes together.

    >>> _broadcast([(3, 1), (4,)])
    (3, 4)
    """
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(axis) for axis in zip(*padded, strict=True))


def _said(count: float) -> str:
    return f"{count:,.0f}" if count < 1e18 else "more than 10^18"
