"""Tensors: the protocol's datatypes, and arrays to and from their bytes. Knows no request and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from service.artifact import Array
from service.errors import Malformed

# Little endian, as the protocol has it on every machine. BF16 has no dtype of NumPy's: it is the upper half of an FP32.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
BF16, BYTES = "BF16", "BYTES"
SMALL = 4096  # bytes that are copied sooner than a view of them is made
MOST_AXES = 32  # of a tensor; NumPy has 64 at the most


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a model's metadata lists it; −1 in its shape is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype.

    >>> datatype_of(np.dtype(np.float32))
    'FP32'
    """
    return NAMES.get(dtype, BYTES)


def dtype_of(datatype: object, name: str) -> np.dtype[Any]:
    """A datatype's dtype, BF16's as bits; Malformed where there is no such datatype, or none of numbers."""
    if isinstance(datatype, str) and datatype in DTYPES:
        return DTYPES[datatype]
    if datatype == BF16:
        return DTYPES["UINT16"]
    if datatype == BYTES:
        raise Malformed(f"input {name} is of BYTES where numbers are wanted")
    raise Malformed(f"input {name}: {str(datatype)[:80]} is no datatype")


def shape_of(shape: object, name: str) -> tuple[int, ...]:
    """A shape as it was sent, held to be one."""
    if not isinstance(shape, list) or any(type(length) is not int or length < 0 for length in shape):
        raise Malformed(f"input {name}: its shape isn't a list of whole numbers from 0 on")
    if len(shape) > MOST_AXES:
        raise Malformed(f"input {name}: its shape has {len(shape)} axes; {MOST_AXES} are the most")
    return tuple(shape)


def from_bytes(content: bytes, start: int, size: int, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    """A tensor that lies in a body, without a copy where its place suits its dtype."""
    dtype = dtype_of(datatype, name)
    if (needed := prod(shape) * dtype.itemsize) != size:
        raise Malformed(f"input {name}: {datatype} of shape {list(shape)} is {needed} bytes, and {size} were sent")
    if size == 0:
        return np.empty(shape, dtype)
    flat = np.frombuffer(content, dtype, size // dtype.itemsize, start)
    if not flat.flags.aligned:  # every pass over numbers that straddle words costs more than this copy
        flat = flat.copy()
    return (widened(flat) if datatype == BF16 else flat).reshape(shape)


def widened(bits: Array) -> Array:
    """BF16 as FP32: the same bits, and 16 zeros.

    >>> widened(np.array([0x3FC0], np.uint16))
    array([1.5], dtype=float32)
    """
    return (bits.astype("<u4") << np.uint32(16)).view("<f4")


def to_bytes(array: Array | Sequence[str]) -> bytes | memoryview:
    """A tensor's buffer: row-major, little endian; text with its length before it."""
    if not isinstance(array, np.ndarray):
        parts = [part.encode() for part in array]
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    if array.nbytes <= SMALL or not array.flags.c_contiguous:
        return array.tobytes()
    return array.data.cast("B")
