"""How tests speak the Open Inference Protocol without a client of it: bodies put together and taken apart by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import orjson

from service.artifact import Array

LENGTH = "inference-header-content-length"
DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
DATATYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def tensor(array: Array, name: str = "inputs", **changes: Any) -> dict[str, Any]:
    """An input whose data is nested JSON; changes replace what the protocol would have."""
    head = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype], "data": array.tolist()}
    return {key: value for key, value in {**head, **changes}.items() if value is not None}


def binary(array: Array, name: str = "inputs", **changes: Any) -> dict[str, Any]:
    """An input whose data follows the JSON."""
    return tensor(array, name, **{"data": None, "parameters": {"binary_data_size": array.nbytes}, **changes})


def framed(request: Mapping[str, Any], *buffers: bytes) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and buffers, and the header that tells them apart."""
    text = orjson.dumps(request)
    return b"".join([text, *buffers]), {LENGTH: str(len(text))}


async def ask(client: httpx.AsyncClient, model: str, *inputs: Mapping[str, Any], **fields: Any) -> httpx.Response:
    """POST an inference in JSON."""
    return await client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **fields})


async def send(
    client: httpx.AsyncClient, model: str, array: Array, *, name: str = "inputs", **fields: Any
) -> httpx.Response:
    """POST an inference of one binary input, its answer in binary."""
    parameters = {"binary_data_output": True, **fields.pop("parameters", {})}
    content, headers = framed({"inputs": [binary(array, name)], "parameters": parameters, **fields}, array.tobytes())
    return await client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


def opened(response: httpx.Response) -> tuple[dict[str, Any], dict[str, Array]]:
    """The JSON of a 200, held to the protocol, and its tensors, in whichever form each came."""
    assert response.status_code == 200, response.text
    content, length = response.content, response.headers.get(LENGTH)
    if length is None:
        assert response.headers["content-type"] == "application/json"
        head, rest = orjson.loads(content), b""
    else:
        assert response.headers["content-type"] == "application/octet-stream"
        head, rest = orjson.loads(content[: int(length)]), content[int(length) :]
    arrays = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        dtype = np.dtype(DTYPES[output["datatype"]]) if output["datatype"] != "BYTES" else np.dtype(object)
        if size is None:
            found = np.array(output["data"], dtype)
        else:
            assert "data" not in output
            found, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        arrays[output["name"]] = found.reshape(output["shape"])
    assert not rest
    return head, arrays


def error(response: httpx.Response, status: int) -> str:
    """What a refusal says, held to the protocol's form of it."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"] == "application/json"
    body = orjson.loads(response.content)
    assert set(body) == {"error"}
    said = body["error"]
    assert isinstance(said, str)
    assert said
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    for secret in ("Traceback", ".py", "/tmp/", "0x", "object at"):
        assert secret not in said
    return said
