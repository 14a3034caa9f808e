"""The file of a graph: whether it is one self-contained graph of standard operators, of a size that is said openly.

Read before any runtime sees it, and without one. Knows no session.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from service.artifact import WEIGHTS
from service.engine.protobuf import fields, numbers
from service.engine.sizes import AXES, MOST, Constant, Node, sizes_fault

# onnx.proto, as far as something can hide: message → {field: the message it holds}.
NESTED: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 8: "Opset", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Initialiser", 11: "Port", 12: "Port", 13: "Port", 15: "Sparse"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Port": {2: "Type"},
    "Type": {1: "Array"},
    "Array": {2: "Shape"},
    "Shape": {1: "Dimension"},
}
STANDARD = (b"", b"ai.onnx")
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
PARTS = 1_000_000  # fields of a file, and their walk's time with them; a graph of ours has some thousands
SHORT = 640  # bytes of whole numbers that could be a shape, or a tensor's axes
TWICE = "has a value that is given twice, or in two ways"
PAYLOADS = {2, 3, 4, 5, 7, 8, 9}  # fields of an attribute that hold its value, graphs aside
BROKEN = "is not a graph that onnxruntime can open"
ELSEWHERE = "keeps tensors in other files"
RAW = 9  # the field of a tensor's bytes; DATA: of its elements in any form
DATA = {4, 5, 6, 7, RAW, 10, 11}
FORMS = {1: ("f", 4), 6: ("i", 5), 7: ("q", 7), 11: ("d", 10)}  # types of elements: as bytes, and their own field
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}


@dataclass(frozen=True, slots=True)
class Look:
    """What a file was seen to hold: nodes of its graph and its tensors by name, both in the file's order.

    outside are the tensors that lie in the artifact's one file of weights.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    outside: dict[str, Outside] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outside:
    """A tensor that lies in the artifact's one file of weights: where, of which shape and ONNX type."""

    offset: int
    length: int
    dims: tuple[int, ...]
    kind: int


class Hostile(ValueError):
    """What makes a file none that may be opened."""


def onnx_fault(content: bytes, weights: int | None = None) -> str | None:
    """What makes a file one that must not be opened, if anything; a clause that goes after the file's name.

    weights: how many bytes the artifact's weights.bin has, where it has one; then tensors may lie there, and nowhere
    else. Opened from bytes, the runtime would look for others in the working directory, where no digest is checked.
    """
    try:
        look(content, weights)
    except Hostile as error:
        return str(error)
    except (IndexError, ValueError, OverflowError):
        return BROKEN
    return None


def look(content: bytes, weights: int | None = None) -> Look:
    """See what a file holds, without opening it; Hostile says what is wrong with it, ValueError that it is no graph."""
    seen = Look()
    for kind, start, end in messages(content):
        match kind:
            case "Tensor" | "Initialiser":
                _tensor(content, start, end, weights, seen, named=kind == "Initialiser")
            case "Opset":
                _domain(content, start, end, 1)
            case "Node":
                _node(content, start, end, seen)
            case "Port":
                _port(content, start, end)
            case "Function":
                raise Hostile("defines functions of its own; inline them when it is exported (onnx.inliner)")
            case "Sparse":
                raise Hostile("keeps sparse tensors, which can be of any size; store them dense")
            case "Attribute":
                _attribute(content, start, end)
    seen.nodes.reverse()  # what comes last in the file was met first
    if fault := sizes_fault(seen.nodes, seen.constants):
        raise Hostile(fault)
    return seen


def messages(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Every message of a file as (kind, start, end): each before those within it, and of these the last first.

    No depth costs a stack.

    >>> [kind for kind, _, _ in messages(bytes([0x3A, 2, 0x0A, 0]))]
    ['Model', 'Graph', 'Node']
    """
    waiting, parts = [("Model", 0, len(content))], 0
    while waiting:
        kind, start, end = waiting.pop()
        inner = NESTED.get(kind, {})
        for number, value in fields(content, start, end):
            parts += 1
            if parts > PARTS:
                raise Hostile(f"is made of more than {PARTS:,} parts")
            if isinstance(value, slice) and number in inner:
                waiting.append((inner[number], value.start, value.stop))
        yield kind, start, end


def _domain(content: bytes, start: int, end: int, wanted: int) -> None:
    for number, value in fields(content, start, end):
        if number == wanted and isinstance(value, slice) and content[value] not in STANDARD:
            raise Hostile(f"needs operators outside the standard domain: {_shown(content[value])}")


def _attribute(content: bytes, start: int, end: int) -> None:
    """No graph within a node: Loop and Scan run for as long as they like, and If makes rows differ in what they run."""
    for number, _ in fields(content, start, end):
        if number in (6, 11):
            raise Hostile("has control flow (Loop, Scan or If); export it without loops and branches")


def _port(content: bytes, start: int, end: int) -> None:
    """An input, an output or a value of a declared shape."""
    size = 1
    for kind, first, last in _below("Port", content, start, end):
        for number, value in fields(content, first, last):
            if kind == "Dimension" and number == 1 and isinstance(value, int) and 1 <= value < 1 << 63:
                size *= value
        if size > MOST:
            raise Hostile(f"declares a value of {size:,} elements a row; at most {MOST:,} are taken")


def _below(kind: str, content: bytes, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """The messages within one, as far as shapes go."""
    for number, value in fields(content, start, end):
        inner = NESTED.get(kind, {}).get(number)
        if inner and isinstance(value, slice):
            yield inner, value.start, value.stop
            yield from _below(inner, content, value.start, value.stop)


def _node(content: bytes, start: int, end: int, seen: Look) -> None:
    """A node's operator, what it takes and gives, and a tensor that it is (Constant)."""
    _domain(content, start, end, 7)
    inputs, outputs, op, values = [], [], "", list[Constant | None]()
    for number, part in fields(content, start, end):
        if not isinstance(part, slice):
            continue
        if number == 1:
            inputs.append(_text(content[part]))
        elif number == 2:
            outputs.append(_text(content[part]))
        elif number == 4:
            op = _text(content[part])
        elif number == 5:
            values.append(_value(content, part.start, part.stop))
    if op in RANDOM:
        raise Hostile(f"draws random numbers of its own ({op}); noise is an input of a graph")
    seen.nodes.append(Node(op, tuple(inputs), tuple(outputs)))
    if op == "Constant" and outputs:  # of another kind it has fewer elements than bytes
        if len(values) != 1 or outputs[0] in seen.constants:
            raise Hostile(TWICE)
        seen.constants[outputs[0]] = values[0] or Constant((end - start,))


def _value(content: bytes, start: int, end: int) -> Constant | None:
    """The constant that an attribute is: a tensor, or whole numbers (value_int, value_ints)."""
    found: list[int] = []
    tensors: list[slice] = []
    kinds: set[int] = set()
    for number, value in fields(content, start, end):
        if number in PAYLOADS:
            kinds.add(number)
        if number == 5 and isinstance(value, slice):
            tensors.append(value)
        elif number in (3, 8):
            found += numbers(content, value)
    if len(kinds) > 1 or len(tensors) > 1:  # which of them is meant, the runtime knows
        raise Hostile(TWICE)
    if tensors:
        return _constant(content, tensors[0].start, tensors[0].stop)
    return Constant((len(found),), tuple(found)) if found else None


def _tensor(content: bytes, start: int, end: int, weights: int | None, seen: Look, *, named: bool) -> None:
    """Hold a tensor to what it says of itself; its elements must be in the file, or where they may be."""
    declared, name, kind = _constant(content, start, end), "", 0
    places: dict[str, str] = {}
    outside = False
    for number, value in fields(content, start, end):
        if number == 8 and isinstance(value, slice):
            name = _text(content[value])
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 13 and isinstance(value, slice):
            places |= _entry(content, value)
        outside |= number == 13 or (number == 14 and value != 0)  # external_data, data_location
    if outside:
        seen.outside[name] = _outside(places, declared, kind, weights)
    elif declared.size > 8 * (end - start):  # an element takes a bit at least
        raise Hostile(f"declares a tensor of {declared.size:,} elements, and holds {end - start:,} bytes of it")
    if declared.size > MOST:
        raise Hostile(f"holds a tensor of {declared.size:,} elements; at most {MOST:,} are taken")
    if named and seen.constants.setdefault(name, declared) is not declared:
        raise Hostile(f"has two tensors of one name: {_shown(name)}")


def _outside(places: Mapping[str, str], declared: Constant, kind: int, weights: int | None) -> Outside:
    """Where a tensor lies in weights.bin; anywhere else is refused, and so is what isn't all there."""
    location = places.get("location", "")
    if weights is None:
        raise Hostile(f"{ELSEWHERE}: {_shown(location)}, and the manifest lists no {WEIGHTS}")
    if location != WEIGHTS:
        raise Hostile(f"{ELSEWHERE}: {_shown(location)}; tensors may lie in {WEIGHTS} beside it and nowhere else")
    offset, length = (int(places.get(key, "0")) for key in ("offset", "length"))
    if length * 8 != declared.size * BITS.get(kind, 0) or not 0 <= offset <= offset + length <= weights:
        span = f"bytes {offset:,} to {offset + length:,}"
        raise Hostile(f"takes {span} of the {weights:,} in {WEIGHTS} for {declared.size:,} elements")
    return Outside(offset, length, declared.dims, kind)


def _entry(content: bytes, part: slice) -> dict[str, str]:
    """A key and its value."""
    found = {
        n: _text(content[value]) for n, value in fields(content, part.start, part.stop) if isinstance(value, slice)
    }
    return {found.get(1, ""): found.get(2, "")}


def _constant(content: bytes, start: int, end: int) -> Constant:
    """A tensor's shape, and its values where they are whole numbers and few enough to be a shape."""
    dims: list[int] = []
    kind, raw, listed, filled = 0, b"", list[float](), set[int]()
    for number, value in fields(content, start, end):
        short = isinstance(value, int) or value.stop - value.start <= SHORT
        if number == 1:
            dims += numbers(content, value) if short else [0] * (AXES + 1)
            if len(dims) > AXES or min(dims, default=0) < 0:
                raise Hostile(f"declares a tensor of a negative size, or of more than {AXES} axes")
        elif number == 2 and isinstance(value, int):
            kind = value
        if number in DATA:
            filled.add(number)
        if number in (4, 9, 10) and isinstance(value, slice) and short:  # float_data, raw_data, double_data
            raw += content[value]
        elif number in (5, 7) and short and len(listed) <= SHORT:
            listed += numbers(content, value)
    form, own = FORMS.get(kind, (None, 0))
    if len(filled) > 1 or filled - {own, RAW}:  # which of them is meant, the runtime knows
        return Constant(tuple(dims))
    if form and raw and len(raw) % struct.calcsize(form) == 0:
        listed = list(struct.unpack(f"<{len(raw) // struct.calcsize(form)}{form}", raw))
    return Constant(tuple(dims), tuple(listed) if form and len(listed) == math.prod(dims) else None)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _shown(name: str | bytes) -> str:
    """A name from the file as it may stand in a message: short, and on one line."""
    return repr((name if isinstance(name, str) else _text(name))[:60])
