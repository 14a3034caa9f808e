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
AXES = 64  # of a tensor
MOST = 2**28  # elements of one tensor, and of all that are made of constants together; 1 GiB of float32

# op → the input that says how large its output is to be
SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "Resize": 3, "OneHot": 1, "CenterCropPad": 1}
SHAPED |= dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"), 0)
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
ALIKE |= {"Softmax", "LogSoftmax", "IsNaN", "IsInf", "CumSum"}
# What gives no more elements than its first input has.
SAME = ALIKE | {"Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Flatten", "Split", "Trilu"}
SAME |= {"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceL2", "ArgMax", "ArgMin"}
POINTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow", "Mod", "PRelu", "Where", "Equal", "Less"}
POINTWISE |= {"LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"}
# Of anything else, and of attributes that say how much is given, nothing is known: it may be done to rows alone.
KNOWN = SAME | POINTWISE | {"Concat", "ConstantOfShape", "Expand", "Gather", "Gemm", "MatMul", "OneHot", "Range"}
KNOWN |= {"NonZero", "Shape", "Size", "Tile", "HannWindow", "HammingWindow", "BlackmanWindow"}
# As shapes: values that stay what they are, or become fewer or smaller; and that come to no more than both inputs' do.
KEPT = {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Slice", "ReduceProd", "Abs"}
JOINED = {"Concat", "Mul", "Max", "Min"}


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

    @property
    def whole(self) -> list[int] | None:
        """Its values as whole numbers, where they are known and are that."""
        if self.values is None or not all(map(math.isfinite, self.values)):
            return None
        return [int(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of a value: at most so many elements, and what they may come to as a shape; constant or not.

    An axis of no length counts as one of 1: what is reduced over it, or multiplied along it, is as large as the others.
    positive: no value is below 0, where that matters: cast to another type, such a one may become any number.
    """

    size: float
    product: float
    constant: bool
    dims: tuple[int, ...] | None = None
    positive: bool = False


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
        if node.op not in KNOWN and inputs and all(one.constant for one in inputs):
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
    dims = tuple(max(1, axis) for axis in constant.dims)
    positive = constant.values is not None and min(constant.values, default=0.0) >= 0
    return Bound(math.prod(dims), product, True, dims, positive)


def _product(values: Iterable[float]) -> float:
    """What values come to as a shape; what is below 1 counts as 1, and what is no number as more than any."""
    return math.prod(max(1.0, abs(float(value))) if math.isfinite(value) else math.inf for value in values)


def _asked(node: Node, known: Mapping[str, Bound]) -> float:
    """How many elements a node is asked for in so many words; 0: it isn't."""
    place = SHAPED.get(node.op)
    if node.op == "Reshape" and known.get(node.inputs[0], ROWS).constant:
        place = 1  # nothing at all may be put into a shape of any size, along an axis of no length
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
    if not inputs or not all(one.constant for one in inputs):
        return Bound(1.0, _worth(node.op, inputs, constant=False), constant=False)
    dims = _dims(node.op, inputs, given)
    positive = node.op in (KEPT | {"Concat", "Mul"}) and all(one.positive for one in inputs)
    return Bound(_size(node.op, inputs, asked, dims), _worth(node.op, inputs, constant=True), True, dims, positive)


def _size(op: str, inputs: Sequence[Bound], asked: float, dims: tuple[int, ...] | None) -> float:
    """How many elements are made of constants."""
    sizes = [max(1.0, one.size) for one in inputs]
    if dims is not None:
        return float(math.prod(dims))
    if op in ("Shape", "Size"):
        return SHORT
    if op == "Concat":
        return sum(sizes)
    if op == "Reshape":
        return max(sizes[0], asked)
    if op == "NonZero":  # a place for each, with an index along each axis
        return sizes[0] * len(inputs[0].dims or range(AXES))
    if op in SAME:
        return sizes[0]
    if op in ("ConstantOfShape", "Range"):
        return asked
    if op in ("MatMul", "Gemm") and all(len(one.dims or ()) == 2 for one in inputs):
        return float(math.prod(max(one.dims or (1,)) for one in inputs))
    return math.prod(sizes) * max(1.0, asked)


def _dims(op: str, inputs: Sequence[Bound], given: Sequence[Constant | None]) -> tuple[int, ...] | None:
    """The shape of what is made of constants, where it can be told; given are those that are in the file themselves."""
    shapes = [one.dims for one in inputs if one.dims is not None]
    if op in ALIKE:
        return inputs[0].dims
    if op in POINTWISE:
        return _broadcast(shapes) if len(shapes) == len(inputs) else None
    if op not in ("Expand", "Reshape", "Unsqueeze") or len(given) != 2 or inputs[0].dims is None or given[1] is None:
        return None
    dims, values = inputs[0].dims, given[1].whole
    if values is None:
        return None
    if op == "Expand":
        return _broadcast([dims, tuple(max(1, abs(value)) for value in values)])
    if op == "Reshape":
        return _reshaped(math.prod(dims), values)
    rank = len(dims) + len(values)
    if not all(-rank <= value < rank for value in values):
        return None
    shape = list(dims)
    for place in sorted(value % rank for value in values):
        shape.insert(place, 1)
    return tuple(shape)


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
    if (
        op == "Cast" and inputs and inputs[0].positive
    ):  # what wraps around becomes no more; once, for it may be negative
        return inputs[0].product
    if op == "Concat":
        return math.prod(one.product for one in inputs)
    if op in JOINED:
        return _joined(inputs)
    if op == "Gather" and len(inputs) > 1 and constant:
        return _power(inputs[0].product, inputs[1].size)  # an entry may be taken more than once
    if op in ("Shape", "Size") and constant and inputs:
        return inputs[0].size
    return math.inf if constant else 1.0


def _joined(inputs: Sequence[Bound]) -> float:
    """What values come to that are multiplied with one another, those that are fewer again and again."""
    if any(one.constant and one.dims is None for one in inputs) and len({one.size for one in inputs}) > 1:
        return math.inf
    length = max((one.size for one in inputs), default=1.0)
    if all(one.dims is not None for one in inputs):
        length = max(length, float(math.prod(_broadcast([one.dims or () for one in inputs]))))
    return math.prod(_power(one.product, math.ceil(length / max(1.0, one.size))) for one in inputs)


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
