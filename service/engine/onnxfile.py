"""The file of a graph: whether it is one self-contained graph of standard operators. Knows no runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
