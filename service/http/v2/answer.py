"""Answer: what was found, as the bytes of the protocol. Knows no operation and no HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service.artifact import Array
from service.errors import Malformed
from service.http.v2 import tensors
from service.http.v2.request import Inference, Wanted

Found = Array | list[str]
SPREAD = "scores."  # a field of fields of arrays


@dataclass(frozen=True, slots=True)
class Answer:
    """Tensors and scalars by name: the outputs and the parameters of an answer."""

    tensors: Mapping[str, Found]
    scalars: Mapping[str, Any]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(len(found) if isinstance(found, list) else found.size for found in self.tensors.values())


def flat(content: Mapping[str, Any], asked: Inference) -> Answer:
    """An operation's fields under the names that they have in npz, `scores.kl.p_value`; what is null is left out.

    Where outputs are named, what is spread over inner fields is only gone through if one of them is in there.
    """
    found: dict[str, Found] = {}
    scalars: dict[str, Any] = {}
    if asked.outputs and not any(wanted.name.startswith(SPREAD) for wanted in asked.outputs):
        content = {key: value for key, value in content.items() if key + "." != SPREAD}
    _flatten(content, "", found, scalars)
    return Answer(found, scalars)


def _flatten(content: Mapping[str, Any], prefix: str, found: dict[str, Found], scalars: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            found[prefix + key] = value
        elif isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", found, scalars)
        elif isinstance(value, list):
            found[prefix + key] = value if value and isinstance(value[0], str) else _flags(value)
        elif value is not None:
            scalars[prefix + key] = value


def _flags(values: Sequence[bool | None]) -> Array:
    """Booleans, where what can't be told is false: the protocol has no third value, and the p-value beside is NaN."""
    return np.array([value is True for value in values], np.bool_)


def chosen(answer: Answer, asked: Inference) -> list[tuple[str, Found, bool]]:
    """The outputs that are asked for, in the order asked, and whether each is to be binary."""
    if not asked.outputs:
        return [(name, found, asked.binary) for name, found in answer.tensors.items()]
    return [_chosen(answer, wanted, asked) for wanted in asked.outputs]


def _chosen(answer: Answer, wanted: Wanted, asked: Inference) -> tuple[str, Found, bool]:
    if (found := answer.tensors.get(wanted.name)) is None:
        reason = answer.scalars.get("calibration.reason", "the request's parameters give none")
        raise Malformed(f"there is no output {wanted.name} for this request: {reason}")
    return wanted.name, found, asked.binary if wanted.binary is None else wanted.binary


def write(
    name: str, version: str, asked: Inference, scalars: Mapping[str, Any], outputs: Iterable[tuple[str, Found, bool]]
) -> tuple[int | None, bytes]:
    """An answer's body, and of how many bytes its JSON is where buffers follow; what isn't finite is null in JSON."""
    buffers: list[bytes | memoryview] = []
    listed = [_output(*output, buffers) for output in outputs]
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if asked.id is not None:
        head["id"] = asked.id
    if scalars:
        head["parameters"] = scalars
    head["outputs"] = listed
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if not buffers:
        return None, text
    return len(text), b"".join([text, *buffers])


def _output(name: str, found: Found, binary: bool, buffers: list[bytes | memoryview]) -> dict[str, Any]:
    """An output as the JSON lists it; a binary one's buffer is laid beside."""
    if isinstance(found, list):
        listed: dict[str, Any] = {"name": name, "datatype": tensors.BYTES, "shape": (len(found),)}
    else:
        listed = {"name": name, "datatype": tensors.NAMES[found.dtype], "shape": found.shape}
    if binary:
        buffer = tensors.to_bytes(found)
        listed["parameters"] = {"binary_data_size": len(buffer)}
        buffers.append(buffer)
    else:
        listed["data"] = found if isinstance(found, list) else _row_major(found)
    return listed


def _row_major(array: Array) -> Array:
    """An array as orjson takes it: of one axis, so that the data is flat."""
    return array if array.ndim == 1 and array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
