"""Figures: the numbers of a JSON tensor, nested or flat, straight from the text. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import simdjson

from service.artifact import Array
from service.errors import Malformed
from service.http import text
from service.http.v2.tensors import BF16, dtype_of


def arrays_in(data: Any, shape: tuple[int, ...]) -> int:
    """How many arrays a tensor's data is made of, itself among them; ValueError where its lengths aren't the shape's.

    Flat data is one array. The innermost arrays are taken to hold numbers alone: count the body's brackets.
    """
    if not len(data) or not isinstance(data[0], simdjson.Array):
        if len(data) != prod(shape):
            raise ValueError("another number of elements")
        return 1
    level, count = [data], 0
    for depth, length in enumerate(shape):
        if level and set(map(len, level)) != {length}:  # TypeError at a number among arrays
            raise ValueError("another shape")
        count += len(level)
        if depth < len(shape) - 1:
            level = [part for parent in level for part in parent]
    return count


def numbers(data: Any, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    """A simdjson array as a tensor; TypeError or ValueError where it holds anything but numbers."""
    dtype = json_dtype(datatype, name)
    if dtype.kind == "b":
        raise TypeError("booleans are no numbers")
    if not len(data):
        return np.empty(shape, dtype)
    if dtype.kind in "iu":
        try:
            kind, wide = ("u", np.uint64) if datatype == "UINT64" else ("i", np.int64)
            return cast(np.frombuffer(data.as_buffer(of_type=kind), wide), dtype, name).reshape(shape)
        except TypeError:
            pass  # 3.0 is a whole number too
    return cast(np.frombuffer(data.as_buffer(of_type="d"), np.float64), dtype, name).reshape(shape)


def json_dtype(datatype: str, name: str) -> np.dtype[Any]:
    """The dtype of a tensor that came as JSON, where BF16 has no form."""
    if datatype == BF16:
        raise Malformed(f"input {name}: BF16 has no form in JSON; send it in binary, or as FP32")
    return dtype_of(datatype, name)


def cast(found: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Numbers as their datatype has them: fractions rounded to its precision, whole numbers as they are."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return found.astype(dtype)  # what is past its range is infinite, and refused as that
    with np.errstate(invalid="ignore"):
        whole = found.astype(dtype)
    other = whole != found
    if found.dtype.kind == "f":  # where the nearest float to the greatest number is the one above it
        other |= found >= float(np.iinfo(dtype).max) + 1.0
    if other.any():
        raise Malformed(f"input {name}: {found[other][0]} is none that its datatype can hold")
    return whole


def slowly(data: object, datatype: str, shape: tuple[int, ...], name: str, nulls: bool) -> Array:
    """The same of Python lists: it says what is wrong and where. With nulls, null is a value that is missing."""
    dtype = json_dtype(datatype, name)
    if not isinstance(data, list):
        raise Malformed(f"input {name}: its data isn't an array")
    flat = (shape or (1,)) if data and isinstance(data[0], list) else (prod(shape),)
    values: list[Any] = []
    accept = _boolean if dtype.kind == "b" else _number
    _flatten(data, flat, f"{name}.data", values, lambda value: accept(value) or (nulls and value is None))
    if dtype.kind == "b":
        return np.array(values, np.bool_).reshape(shape)
    if dtype.kind in "iu" and all(isinstance(value, int) for value in values):
        return _whole(values, dtype, name).reshape(shape)
    holes = [np.nan if value is None else value for value in values]
    try:
        return cast(np.array(holes, np.float64), dtype, name).reshape(shape)
    except OverflowError:
        raise Malformed(f"input {name}: it holds a number past any datatype's range") from None


def _whole(values: list[int], dtype: np.dtype[Any], name: str) -> Array:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if wrong := next((value for value in values if not low <= value <= high), None):
        raise Malformed(f"input {name}: {str(wrong)[:40]} is none that its datatype can hold")
    return np.array(values, dtype)


def _flatten(
    data: list[Any], shape: tuple[int, ...], place: str, into: list[Any], accept: Callable[[Any], bool]
) -> None:
    """Gather nested lists that are to have a shape; Malformed says where they don't."""
    if len(data) != shape[0]:
        raise Malformed(f"input {place} has {len(data)} elements where its shape has {shape[0]}")
    for index, item in enumerate(data):
        if len(shape) > 1 and isinstance(item, list):
            _flatten(item, shape[1:], f"{place}[{index}]", into, accept)
        elif len(shape) == 1 and accept(item):
            into.append(item)
        else:
            raise Malformed(f"input {place}[{index}]: {_kind(item)} can't stand there")


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: object) -> str:
    names = {bool: "a boolean", str: "text", type(None): "null", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")


def holed(body: bytes, find: Callable[[Any], Any], datatype: str, shape: tuple[int, ...], name: str) -> Array:
    """A tensor with nulls among its numbers, as NaN: what differs between reading every null as 0 and as 1."""
    low, high = (
        numbers(find(simdjson.Parser().parse(text.null_as(number, body))), datatype, shape, name)
        for number in (b"0", b"1")
    )
    if low.dtype.kind != "f":
        raise Malformed(f"input {name}: {datatype} can't say that a value is missing")
    return np.where(low == high, low, low.dtype.type(np.nan))
