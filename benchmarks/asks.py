"""Asks: rows as a request to a server, in JSON or in binary, and its answer as the ELBO of each row. Sends nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson

from benchmarks.load import Ask
from service.artifact import Array

SEED = 0  # of the one draw
JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"
DATATYPES = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8"}


@dataclass(frozen=True)
class Subject:
    """What is served: a model's name and version, some rows of its data, and the noise of its one draw."""

    name: str
    version: int
    rows: Array
    noise: Array

    def some(self, count: int) -> Array:
        """So many rows, the first ones again where there are not enough."""
        return np.ascontiguousarray(np.resize(self.rows, (count, *self.rows.shape[1:])))


def in_json(x: Array, **fields: int) -> bytes:
    """Rows as the shortest decimal numbers that are them."""
    return orjson.dumps({"inputs": x, **fields}, option=orjson.OPT_SERIALIZE_NUMPY)


def to_peer(x: Array, form: str, name: str) -> Ask:
    """To a peer, by its name."""
    if form == "json":
        return Ask("/score", {"Content-Type": JSON}, in_json(x))
    raw = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
    return Ask("/score/raw" if name.partition(":")[0] == "fastapi" else "/score", {"Content-Type": RAW}, raw, False)


def to_us(x: Array, form: str, binary: str, subject: Subject) -> Ask:
    """To the service: JSON and npy on /v1, binary tensors in the Open Inference Protocol on /v2."""
    path = f"/v1/models/{subject.name}/score"
    if form == "json":
        return Ask(path, {"Content-Type": JSON}, in_json(x, draws=1, seed=SEED))
    if binary == "npy":
        kept = io.BytesIO()
        np.save(kept, x)
        return Ask(f"{path}?draws=1&seed={SEED}", {"Content-Type": NPY}, kept.getvalue())
    return in_oip(x, f"/v2/models/{subject.name}/infer")


def in_oip(x: Array, path: str) -> Ask:
    """Rows as a binary tensor, and the elbo alone asked for as one."""
    raw = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
    tensor = {"name": "inputs", "shape": x.shape, "datatype": DATATYPES[x.dtype.name]}
    head = {
        "parameters": {"draws": 1, "seed": SEED},
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": "elbo", "parameters": {"binary_data": True}}],
    }
    told = json.dumps(head).encode()
    return Ask(path, {"Content-Type": RAW, "Inference-Header-Content-Length": str(len(told))}, told + raw, False)


def answered(ask: Ask, headers: Mapping[str, str], body: bytes) -> Array:
    """The ELBO of each row in the answer to any of these, (rows,) float64."""
    if ask.to_json:
        return np.asarray(orjson.loads(body)["elbo"], np.float64)
    start = int(headers.get("inference-header-content-length", 0))
    return np.frombuffer(body, "<f8", offset=start)
