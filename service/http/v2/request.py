"""Request: a body of the protocol as what it asks for. Knows no model, no HTTP, and is a function of its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import simdjson

from service.artifact import Array
from service.errors import Malformed
from service.http import text
from service.http.text import halved
from service.http.v2 import figures, tensors
from service.http.v2.tensors import Tensor
from service.http.wire import DIAGNOSED, Limits, check_count

DATA = b'"data"'  # without it a JSON text holds no numbers worth a parser of numbers
SMALL = 65_536  # bytes of JSON that can't become many, whatever they say
RESERVED = ("sequence_id", "sequence_start", "sequence_end", "headers")  # Triton's, and none that we have
OURS = ("binary_data_output", "timeout", "priority")  # a priority changes nothing, as where a server has none


class Wanted(NamedTuple):
    """An output that is asked for, and whether its buffer is to come in binary; None: as the request says."""

    name: str
    binary: bool | None


@dataclass(frozen=True, slots=True)
class Inference:
    """What a body asks for: its id, the operation's parameters, its tensors, and which outputs in which form.

    outputs is empty where all are wanted. timeout is in seconds; None: as the service has it.
    """

    id: str | None
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Array]
    outputs: tuple[Wanted, ...] = ()
    binary: bool = False
    timeout: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(array.nbytes for array in self.inputs.values())


def header_length(header: str | None, size: int) -> int | None:
    """Inference-Header-Content-Length of a body of so many bytes; None where it isn't there."""
    if header is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", header):
        raise Malformed("Inference-Header-Content-Length is not a whole number of bytes")
    if int(header) > size:
        raise Malformed(f"Inference-Header-Content-Length is {int(header)}, and the body has {size} bytes")
    return int(header)


def read(
    content: bytes, length: int | None, inputs: Sequence[Tensor], limits: Limits, nulls: bool = False
) -> Inference:
    """A body, decompressed. length is its JSON's, as its header says; inputs are those that the model lists.

    With nulls, a null among an input's numbers is a value that is missing.
    """
    if length == 0:
        return _raw(content, inputs)
    text = content if length is None or length == len(content) else content[:length]
    if len(text) > SMALL:
        name, event = (inputs[0].name, inputs[0].shape[1:]) if inputs else (None, ())
        check_count(text, name, limits, event)
    document = _document(text)
    if "inputs" not in document:
        raise Malformed("the request has no inputs")
    asked = document["inputs"]
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise Malformed("inputs is not an array of objects")
    reader = _Reader(content, text, nulls, len(text))
    found = _named((reader.name(one), one) for one in asked)
    arrays = reader.arrays(found, isinstance(document.get("outputs"), list))
    _check_names(arrays, inputs)
    return _inference(document, arrays)


def _raw(content: bytes, inputs: Sequence[Tensor]) -> Inference:
    """A body that is its model's only input, of one row: the binary request with a header of no bytes."""
    if len(inputs) != 1:
        raise Malformed(f"a raw binary request is for models of one input, and this has {len(inputs)}")
    (only,) = inputs
    shape = tuple(1 if length < 0 else length for length in only.shape)
    array = tensors.from_bytes(content, 0, len(content), only.datatype, shape, only.name)
    return Inference(None, {}, {only.name: array}, binary=True)


# ---------------------------------------------------------------- the JSON


def _document(text: bytes) -> dict[str, Any]:
    """A JSON object, in which only data is left to its parser: a simdjson array, or Python lists."""
    try:
        found = _parsed(text) if DATA in text else orjson.loads(text)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        found = _diagnosed(text, error)
    if not isinstance(found, dict):
        raise Malformed("the request is not a JSON object")
    return found


def _parsed(text: bytes) -> dict[str, Any]:
    document: Any = simdjson.Parser().parse(text)
    found: dict[str, Any] = {}
    for key in document.keys():  # noqa: SIM118  it is no dict
        if key in found:
            raise ValueError("a key is given twice")
        value = document[key]
        found[key] = [_input(one) for one in value] if key == "inputs" else _plain(value)
    return found


def _input(one: Any) -> dict[str, Any]:
    return {key: one[key] if key == "data" else _plain(one[key]) for key in one.keys()}  # noqa: SIM118  it is no dict


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _diagnosed(text: bytes, error: Exception) -> Any:
    """Read what the fast parsers won't have again, slowly, to say what is wrong and where."""
    if len(text) > DIAGNOSED:
        raise Malformed(f"the request is not JSON: {str(error).partition(':')[2].strip() or error}") from None
    try:
        found = json.loads(text.decode(), parse_constant=_no_constant)
        if b"\\u" in text and halved(found):
            raise Malformed("the request is not JSON: half a surrogate pair is no character")
    except json.JSONDecodeError as fault:
        said = f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
        raise Malformed(f"the request is not JSON: {said}") from None
    except UnicodeDecodeError as fault:
        raise Malformed(f"the request is not UTF-8, at byte {fault.start}") from None
    except (RecursionError, ValueError):
        raise Malformed("the request is nested too deep, or holds a number too long") from None
    return found


def _no_constant(name: str) -> float:
    said = f"{name} is not a JSON number; send null or binary data for a value that is missing"
    raise Malformed(f"the request is not JSON: {said}")


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in pairs:
        if name in found:
            raise Malformed(f"input {name} is given twice")
        found[name] = one
    return found


def _check_names(arrays: Mapping[str, Array], inputs: Sequence[Tensor]) -> None:
    known = [tensor.name for tensor in inputs]
    if unknown := next((name for name in arrays if name not in known), None):
        raise Malformed(f"there is no input {unknown}; there is {', '.join(known) or 'none'}")
    if lacking := next((one.name for one in inputs if one.name not in arrays and not one.optional), None):
        raise Malformed(f"input {lacking} is missing")


# ---------------------------------------------------------------- the tensors


@dataclass(slots=True)
class _Reader:
    """A body and how far its buffers have been read."""

    content: bytes
    text: bytes
    nulls: bool
    place: int

    @staticmethod
    def name(one: Mapping[str, Any]) -> str:
        name = one.get("name")
        if not isinstance(name, str) or not name:
            raise Malformed("an input has no name")
        return name[:80]

    def arrays(self, inputs: Mapping[str, Any], outputs: bool) -> dict[str, Array]:
        """Every tensor, in the order sent; their buffers have to be all that follows the JSON."""
        brackets = 1 + outputs  # of the lists of inputs and outputs; each tensor adds those of its shape and its data
        arrays: dict[str, Array] = {}
        fast = DATA in self.text
        for index, (name, one) in enumerate(inputs.items()):
            shape, datatype = tensors.shape_of(one.get("shape"), name), one.get("datatype")
            tensors.dtype_of(datatype, name)
            parameters = one.get("parameters") or {}
            _check_parameters(parameters, "input", name)
            size = parameters.get("binary_data_size")
            if (size is None) == (one.get("data") is None):
                raise Malformed(f"input {name} needs either data or the parameter binary_data_size")
            if size is not None:
                arrays[name] = self._binary(size, datatype, shape, name)
                brackets += 1
            else:
                arrays[name], more = self._json(one["data"], datatype, shape, name, index)
                brackets += 1 + more
        if self.place != len(self.content):
            raise Malformed(f"{len(self.content) - self.place} bytes follow that belong to no input")
        if fast and self.text.count(b"[") != brackets:
            self._recount(inputs, brackets, arrays)
        return arrays

    def _binary(self, size: object, datatype: str, shape: tuple[int, ...], name: str) -> Array:
        if type(size) is not int or size < 0:
            raise Malformed(f"input {name}: binary_data_size is not a whole number of bytes")
        if size > len(self.content) - self.place:
            left = len(self.content) - self.place
            raise Malformed(f"input {name}: binary_data_size is {size}, and {left} bytes are left of the body")
        array = tensors.from_bytes(self.content, self.place, size, datatype, shape, name)
        self.place += size
        return array

    def _json(self, data: Any, datatype: str, shape: tuple[int, ...], name: str, index: int) -> tuple[Array, int]:
        """A tensor's numbers, and how many arrays they came in."""
        try:
            if isinstance(data, list):
                raise TypeError("read slowly already")
            arrays = figures.arrays_in(data, shape)
            if self.nulls and b"null" in self.text:
                find = lambda document: document["inputs"][index]["data"]  # noqa: E731
                return figures.holed(self.text, find, datatype, shape, name), arrays
            return figures.numbers(data, datatype, shape, name), arrays
        except (ValueError, TypeError, AttributeError):
            return self._slowly(datatype, shape, name, index), 0

    def _slowly(self, datatype: str, shape: tuple[int, ...], name: str, index: int) -> Array:
        if len(self.text) > DIAGNOSED:
            said = f"its data isn't of shape {list(shape)}, or holds something that isn't a number"
            raise Malformed(f"input {name}: {said}")
        document = _diagnosed(self.text, ValueError())
        return figures.slowly(document["inputs"][index].get("data"), datatype, shape, name, self.nulls)

    def _recount(self, inputs: Mapping[str, Any], brackets: int, arrays: dict[str, Array]) -> None:
        """There are more brackets than arrays: in text, or where a number should be."""
        if text.TEXT.sub(b"", self.text).count(b"[") == brackets:
            return
        for index, (name, one) in enumerate(inputs.items()):
            if one.get("data") is not None:
                shape = tensors.shape_of(one["shape"], name)
                arrays[name] = self._slowly(one["datatype"], shape, name, index)


def _check_parameters(parameters: object, kind: str, name: str) -> None:
    if not isinstance(parameters, dict):
        raise Malformed(f"{kind} {name[:80]}: its parameters are no object")
    if "shared_memory_region" in parameters:
        raise Malformed(f"{kind} {name[:80]}: shared memory is not offered; send the data in the body")


# ---------------------------------------------------------------- what is asked for


def _inference(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> Inference:
    """The rest of a request, checked."""
    asked = document.get("id")
    if asked is not None and not isinstance(asked, str):
        raise Malformed("id is not text")
    parameters = document.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise Malformed("parameters is not an object")
    own = {name: value for name, value in parameters.items() if name not in OURS}
    for name in own:
        if name in RESERVED or name.startswith("triton_"):
            raise Malformed(f"the parameter {name[:80]} is reserved, and nothing that we offer")
    return Inference(
        asked,
        own,
        arrays,
        _wanted(document.get("outputs")),
        _flag(parameters.get("binary_data_output", False), "the parameter binary_data_output"),
        _timeout(parameters.get("timeout")),
    )


def _wanted(outputs: object) -> tuple[Wanted, ...]:
    if outputs is None:
        return ()
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise Malformed("outputs is not an array of objects")
    found: dict[str, Wanted] = {}
    for one in outputs:
        name = one.get("name")
        if not isinstance(name, str) or not name:
            raise Malformed("an output has no name")
        if name in found:
            raise Malformed(f"output {name[:80]} is asked for twice")
        parameters = one.get("parameters")
        binary = parameters.get("binary_data") if type(parameters) is dict and len(parameters) == 1 else None
        if binary is not True and binary is not False and parameters:  # it says more, or something else
            binary = _form(name, parameters)
        found[name] = Wanted(name, binary)
    return tuple(found.values())


def _form(name: str, parameters: Any) -> bool | None:
    """Whether an output is to be binary, by its parameters."""
    _check_parameters(parameters, "output", name)
    if parameters.get("classification"):
        raise Malformed(f"output {name[:80]}: classification is not offered")
    binary = parameters.get("binary_data")
    return None if binary is None else _flag(binary, f"binary_data of output {name[:80]}")


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"{what} is neither true nor false")
    return value


def _timeout(value: object) -> float | None:
    """Microseconds as seconds; 0 is none, as Triton has it."""
    if value is None or value == 0:
        return None
    if type(value) is not int or not 0 < value < 10**15:
        raise Malformed("the parameter timeout is not a whole number of microseconds")
    return value / 1e6
