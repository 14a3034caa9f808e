"""Protobuf: the fields of a message, read where they lie in the file. Knows no message's meaning."""

from __future__ import annotations

from collections.abc import Iterator


def fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """The fields of a protobuf message: a number for a varint, a slice of content for anything with a length."""
    while at < end:  # most tags and lengths are a byte, which is not worth a call
        tag, at = (content[at], at + 1) if content[at] < 0x80 else varint(content, at)
        wire = tag & 7
        value: int | slice
        if wire == 2:
            size, at = (content[at], at + 1) if content[at] < 0x80 else varint(content, at)
            value, at = slice(at, at + size), at + size
        elif wire == 0:
            value, at = (content[at], at + 1) if content[at] < 0x80 else varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = slice(at, at + size), at + size
        else:
            raise ValueError("a group, which ONNX has none of")
        if at > end or tag >= 1 << 32:
            raise ValueError("a field past its message's end, or past what can be one")
        yield tag >> 3, value


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def numbers(content: bytes, value: int | slice) -> list[int]:
    """Whole numbers of a repeated field, signed: one, or as many as are packed together."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], value.start
    while at < value.stop:
        number, at = varint(content, at)
        found.append(_signed(number))
    return found


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
