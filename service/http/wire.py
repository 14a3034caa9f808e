"""Wire: bytes ↔ arrays. JSON, npy, npz, compression, and the limits on them. Knows nothing of what the arrays mean."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import orjson
import simdjson
import zstandard

from service.artifact import Array
from service.errors import Malformed, TooLarge, Unreadable, Unspeakable, invalid, pointer
from service.http import text

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
FLOOR = 2**20  # numbers, and a quarter of that in arrays, that any body may hold
SCALARS = 64  # fields beside the array, and more than any operation has
DIAGNOSED = 2**20  # bytes of a bad JSON body that are read again, slowly, to say what is wrong and where
# Bytes of a compressed member that are looked at first. What follows a member's end is copied, so a window as long as
# the body would make the work grow with the square of the number of members.
WINDOW = 512
NPY_HEAD = 1024  # bytes of an npy file's header at most; a shape and a dtype take 200, and it is parsed as Python
AXES, LONGEST = 64, 1 << 63  # that an array of NumPy has at most, and what their lengths stay below


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for."""

    body_bytes: int
    json_depth: int
    rows: int
    draws: int
    row_draws: int
    evidence_draws: int = 16_384

    def check(self, rows: int, draws: int = 1, most: int | None = None) -> None:
        """TooLarge, naming the limit, where a request asks for more; most is another limit for the draws."""
        draws = max(1, draws)
        for found, limit, name in (
            (rows, self.rows, "rows"),
            (draws, most or self.draws, "draws"),
            (rows * draws, self.row_draws, "rows × draws"),
        ):
            if found > limit:
                raise TooLarge(f"{found} {name} is over the limit of {limit} {name} a request")


@dataclass(frozen=True, slots=True)
class Body:
    """A request's fields, and its array if it has one; query says that the fields came as text."""

    fields: Mapping[str, Any]
    array: Array | None
    query: bool = False


# ---------------------------------------------------------------- reading


def media_type(header: str | None) -> str:
    """The body's form; without a header it is JSON."""
    if not header:
        return JSON
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    if kind not in (JSON, NPY):
        raise Unreadable(f"a body of {kind or 'no type'} can't be read; send {JSON} or {NPY}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise Unreadable(f"charset {value} can't be read; send UTF-8")
    return kind


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body as it was before it was compressed, never more than `limit` bytes of it."""
    match (encoding or "identity").strip().lower():
        case "identity":
            return body
        case "gzip" | "x-gzip":
            return _gunzip(body, limit)
        case "zstd":
            return _unzstd(body, limit)
        case other:
            raise Unreadable(f"Content-Encoding {other} can't be read; send gzip, zstd or none")


def _gunzip(body: bytes, limit: int) -> bytes:
    """The members of a gzip body, which may be strung together, in one pass."""
    parts: list[bytes] = []
    size = start = 0
    while start < len(body):
        stream, width = zlib.decompressobj(wbits=31), WINDOW
        while not stream.eof and start < len(body):
            window = body[start : start + width]
            try:
                part = stream.decompress(window, limit + 1 - size)
            except zlib.error as error:
                raise Malformed(f"the body is not what gzip makes: {error}") from None
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLarge(_over(limit))
            start += len(window) - len(stream.unused_data)
            width *= 2
        if not stream.eof:
            raise Malformed("the gzip body is cut short")
    return b"".join(parts)


def _unzstd(body: bytes, limit: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body, read_across_frames=True) as reader:
            content = reader.read(limit + 1)
        if len(content) <= limit and not _whole_zstd(body):
            raise Malformed("the zstd body is cut short")
    except zstandard.ZstdError as error:
        raise Malformed(f"the body is not what zstd makes: {error}") from None
    if len(content) > limit:
        raise TooLarge(_over(limit))
    return content


def _whole_zstd(body: bytes) -> bool:
    """Whether every frame of a body that fits the limit ends."""
    reader, start = zstandard.ZstdDecompressor(max_window_size=2**27), 0
    while start < len(body):
        stream, width = reader.decompressobj(), WINDOW
        while not stream.eof and start < len(body):
            window = body[start : start + width]
            stream.decompress(window)
            start += len(window) - len(stream.unused_data)
            width *= 2
        if not stream.eof:
            return False
    return True


def _over(limit: int) -> str:
    return f"the body is over the limit of {limit} bytes"


def read_json(body: bytes, array: str | None, limits: Limits, event: tuple[int, ...], nulls: bool = False) -> Body:
    """The fields of a JSON object; the one named `array` as float64, straight from the text.

    event is the shape of one of its rows. With nulls, a null among its numbers is NaN, a value that is missing.

    The parser is simdjson, which refuses text, booleans and null among numbers and flattens ragged rows in
    silence: so every length is compared, and the brackets are counted. What it won't have is read again slowly.
    """
    check_count(body, array, limits, event)
    key: str | None = None
    try:
        document: Any = simdjson.Parser().parse(body)
        keys = list(document.keys())
        if len(set(keys)) < len(keys):
            raise ValueError("a key is given twice")
        fields: dict[str, Any] = {}
        for key in keys:
            if key != array:
                fields[key] = _scalar(document[key])
        key = array
        numbers = None
        if array is not None and array in keys:
            holes = nulls and b"null" in body
            numbers = _holed(array, body, limits) if holes else _numbers(document[array], body, limits)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        return _diagnose(body, array, limits, error, key, nulls)
    if numbers is not None and numbers.ndim > limits.json_depth - 1:
        raise Malformed(f"the body is nested deeper than the limit of {limits.json_depth}")
    return Body(fields, numbers)


def check_count(body: bytes, array: str | None, limits: Limits, event: tuple[int, ...]) -> None:
    """Refuse a body with more commas or brackets than any that is within the limits, before it is parsed.

    Parsed, two bytes become dozens: 64 MiB of `[],` would be gigabytes. What is merely wrong is told so by the parser,
    as long as it stays below a floor that does no harm.
    """
    if len(body) <= FLOOR // 4:
        return
    rows = limits.rows if array else 0
    arrays = sum(prod(event[:depth]) for depth in range(len(event)))
    commas, brackets = max(rows * prod(event), FLOOR), max(rows * arrays, FLOOR // 4)
    if text.count(body, b",") > commas + SCALARS or text.count(body, b"[") > brackets + SCALARS:
        _check_depth(body, limits)
        raise TooLarge(f"the body holds more than the limit of {limits.rows} rows of {prod(event)} numbers")


def _scalar(value: object) -> object:
    if isinstance(value, simdjson.Array | simdjson.Object):
        raise TypeError("not a scalar")
    return value


def _numbers(value: Any, body: bytes, limits: Limits) -> Array:
    """A nested simdjson array as float64; TypeError or ValueError unless it is one box of numbers."""
    shape = [len(value)]
    limits.check(rows=shape[0])
    level = [value]
    while level and len(level[0]) and isinstance(level[0][0], simdjson.Array):
        level = [part for parent in level for part in parent]
        width = len(level[0])
        if any(len(part) != width for part in level):
            raise ValueError("ragged")
        shape.append(width)
    flat = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
    # With all lengths right, an array too many can only hide where a number should be.
    arrays = sum(prod(shape[:depth]) for depth in range(len(shape)))
    if text.count(body, b"[") != arrays or flat.size != prod(shape):
        raise ValueError("ragged")
    return flat.reshape(shape)


def _holed(array: str, body: bytes, limits: Limits) -> Array:
    """An array with nulls among its numbers, as NaN: what differs between reading every null as 0 and as 1.

    So large bodies are read as fast as those without, twice, and no number has to be kept for a mark.
    """
    low, high = (_reread(array, text.null_as(number, body), limits) for number in (b"0", b"1"))
    return np.where(low == high, low, np.nan)


def _reread(array: str, body: bytes, limits: Limits) -> Array:
    document: Any = simdjson.Parser().parse(body)
    return _numbers(document[array], body, limits)


def _diagnose(
    body: bytes, array: str | None, limits: Limits, error: Exception, key: str | None, nulls: bool = False
) -> Body:
    """Read a body that the fast parser won't have: say what is wrong and where, or read it after all.

    key is the field that it stumbled over, if it came to the fields.
    """
    _check_depth(body, limits)
    if len(body) > DIAGNOSED:
        if isinstance(error, TypeError) or "ragged" in str(error) or "NUMBER" in str(error) or "BIGINT" in str(error):
            said = (
                "is ragged, or holds something that isn't a number" if key in (array, None) else "is not a single value"
            )
            raise invalid(pointer(key or array) if key or array else "", said)
        raise Malformed(f"the body is not JSON: {str(error).partition(':')[2].strip() or error}")
    try:
        content = json.loads(body.decode(), parse_constant=_no_constant, parse_int=_whole, object_pairs_hook=_pairs)
    except json.JSONDecodeError as fault:
        raise Malformed(f"the body is not JSON: {fault.msg} at line {fault.lineno}, column {fault.colno}") from None
    except UnicodeDecodeError as fault:
        raise Malformed(f"the body is not UTF-8, at byte {fault.start}") from None
    if b"\\u" in body and text.halved(content):
        raise Malformed("the body is not JSON: half a surrogate pair is no character")
    if not isinstance(content, dict):
        raise invalid("", "the body is not a JSON object")
    if array is None or array not in content:
        return Body(content, None)
    return Body(content, np.array(_checked(content.pop(array), f"/{array}", nulls), np.float64))


def _check_depth(body: bytes, limits: Limits) -> None:
    if text.depth(body) > limits.json_depth:
        raise Malformed(f"the body is nested deeper than the limit of {limits.json_depth}")


def _no_constant(name: str) -> float:
    raise Malformed(f"the body is not JSON: {name} is not a JSON number")


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise invalid(pointer(twice), "is given twice")
    return content


def _checked(value: Any, pointer: str, nulls: bool) -> Any:
    """Nested lists of numbers, or nulls if allowed, all of one shape; Invalid points at the first thing that isn't."""
    if not isinstance(value, list):
        raise invalid(pointer, f"{_kind(value)} where an array of numbers is wanted")
    nested = [isinstance(item, list) for item in value]
    if not any(nested):
        for index, item in enumerate(value):
            if item is None and nulls:
                continue
            if isinstance(item, bool) or not isinstance(item, int | float):
                also = ", and no value may be missing here" if item is None else ""
                raise invalid(f"{pointer}/{index}", f"{_kind(item)} is not a number{also}")
        return value
    if not all(nested):
        at = nested.index(False)
        raise invalid(f"{pointer}/{at}", f"{_kind(value[at])} where an array is wanted, as beside it")
    rows = [np.array(_checked(item, f"{pointer}/{index}", nulls), np.float64) for index, item in enumerate(value)]
    for index, row in enumerate(rows):
        if row.shape != rows[0].shape:
            reason = f"has shape {list(row.shape)} where the first has {list(rows[0].shape)}: the rows are ragged"
            raise invalid(f"{pointer}/{index}", reason)
    return rows


def _kind(value: object) -> str:
    names = {bool: "a boolean", str: "text", type(None): "null", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")


def read_npy(body: bytes, name: str) -> Array:
    """The one array of an npy file, without a copy; nothing is ever unpickled."""
    wide = body[6:7] != b"\x01"  # version 1 has two bytes for the length of its header, the others four
    start = (12 if wide else 10) + int.from_bytes(body[8 : 12 if wide else 10], "little")
    try:
        shape, fortran, dtype = _npy_head(body[: min(start, NPY_HEAD)])
    except Exception:  # a header is parsed as Python, and fails in as many ways
        raise Malformed("the body is not an npy file: its header can't be read") from None
    if dtype.hasobject or dtype.names is not None or dtype.kind not in "iuf":
        raise invalid(f"/{name}", f"holds {dtype} where numbers are wanted")
    if len(shape) > AXES or any(type(length) is not int or not 0 <= length < LONGEST for length in shape):
        raise Malformed(f"the npy header's shape of {len(shape)} axes is none that an array can have")
    size = prod(shape) * dtype.itemsize
    if len(body) - start != size:
        promised = f"{size}" if size < LONGEST else "too many"
        raise Malformed(f"the npy header promises {promised} bytes of data and {len(body) - start} follow")
    array = np.frombuffer(body, dtype, offset=start) if size else np.empty(0, dtype)
    try:
        return array.reshape(shape, order="F" if fortran else "C")
    except ValueError:  # of no elements, and of lengths past what can be
        raise Malformed(f"the npy header's shape of {len(shape)} axes is none that an array can have") from None


@lru_cache(maxsize=64)  # few are sent, over and over; to parse one takes long, and leaves garbage in cycles
def _npy_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is in Fortran's order, and the dtype; an error of any kind where there is none."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(version)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=NPY_HEAD)
    return shape, fortran, dtype


# ---------------------------------------------------------------- writing


def negotiate(accept: str | None, offered: tuple[str, ...] = (JSON, NPZ)) -> str:
    """The form of the answer: the one accepted most, JSON where the caller doesn't care. Unspeakable if none is."""
    if not accept:
        return offered[0]
    best = max(offered, key=lambda form: _quality(form, accept))
    if _quality(best, accept) <= 0:
        raise Unspeakable(f"none of {accept} can be answered; accept {' or '.join(offered)}")
    return best


def _quality(form: str, accept: str) -> float:
    """How much an Accept header wants a form; of several ranges that match, the most specific decides."""
    ranks = {form: 2, form.partition("/")[0] + "/*": 1, "*/*": 0}
    best = (-1, 0.0)
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_float(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if kind in ranks:
            best = max(best, (ranks[kind], quality))
    return best[1]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def write(form: str, content: Mapping[str, Any]) -> bytes:
    """An answer's bytes. In JSON what isn't finite is null; in npz null entries are NaN, null fields absent."""
    if form == JSON:
        return orjson.dumps(_contiguous(content), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    buffer = io.BytesIO()
    np.savez(buffer, **_flat(content))  # type: ignore[arg-type]  # the stub has allow_pickle among them
    return buffer.getvalue()


def dumps(content: object) -> bytes:
    """Plain JSON."""
    return orjson.dumps(content)


def _contiguous(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for key, v in content.items()}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """Nested fields under dotted names, `calibration.n`."""
    arrays: dict[str, Array] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            arrays |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and None in value:
            arrays[prefix + key] = np.array([np.nan if item is None else item for item in value], np.float64)
        elif value is not None:
            arrays[prefix + key] = np.asarray(value)
    return arrays


def size(content: Mapping[str, Any]) -> int:
    """How many numbers an answer holds."""
    parts = content.values()
    return sum(size(v) if isinstance(v, Mapping) else v.size for v in parts if isinstance(v, np.ndarray | Mapping))
