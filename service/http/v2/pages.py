"""Pages: what OpenAPI says of the protocol's paths. Wire models, and the body of an inference."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.http.openapi import COMPONENTS, STATUSES
from service.http.v2.infer import BINARY
from service.http.v2.served import Served
from service.http.wire import JSON

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
INFER = """An operation on rows, as the Open Inference Protocol v2 has it; the same as its path under `/v1`.

`NAME` and `NAME.score` score, `NAME.encode`, `NAME.decode`, `NAME.reconstruct`, `NAME.sample` and `NAME.evidence` do
what they say. An operation's fields are the request's `parameters`; its scalars come as the answer's `parameters`."""


class Error(BaseModel):
    """What every refusal under /v2 says."""

    error: str


class Server(BaseModel):
    """What answers here."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The process works."""

    live: bool


class Ready(Live):
    """Every required model answers."""

    ready: bool


class ModelReady(BaseModel):
    """A model answers."""

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description="−1: any length; the first axis is one of rows, but for sample's count")


class Model(BaseModel):
    """A model's tensors. A request that names no outputs is answered with those."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Configured(BaseModel):
    """A tensor, as a configuration lists it."""

    name: str
    data_type: str
    dims: list[int] = Field(description="without the axis of rows")
    optional: bool | None = None


class Config(BaseModel):
    """A model's configuration, as Triton's clients read it."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(description="rows in one request; 0: the model takes no rows")
    input: list[Configured]
    output: list[Configured]
    dynamic_batching: dict[str, Any] | None = None
    model_transaction_policy: dict[str, bool]
    response_cache: dict[str, bool]


class Duration(BaseModel):
    """How often, and for how long in all."""

    count: int
    ns: int


class Stages(BaseModel):
    """Requests by how they ended, and the stages of those that succeeded."""

    success: Duration
    fail: Duration
    queue: Duration = Field(description="from the rows' arrival at the batcher to their first engine call")
    compute_input: Duration = Field(description="reading the body")
    compute_infer: Duration = Field(description="from the first engine call to the end of the last")
    compute_output: Duration = Field(description="writing the answer")
    cache_hit: Duration = Field(description="there is no cache")
    cache_miss: Duration = Field(description="there is no cache")


class ModelStatistics(BaseModel):
    """What was counted of a model since the service started; of requests under /v2."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds of Unix time; 0: none yet")
    inference_count: int = Field(description="rows answered")
    execution_count: int = Field(description="calls of the operation's graph, whoever asked for them, /v1 too")
    inference_stats: Stages
    batch_stats: list[Any] = Field(description="empty: calls are shared by requests")


class Statistics(BaseModel):
    """What was counted."""

    model_stats: list[ModelStatistics]


class Indexed(BaseModel):
    """A model on disk."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class Parameters(BaseModel):
    """Text, numbers and booleans by name."""

    model_config = ConfigDict(extra="allow")


class Input(BaseModel):
    """A tensor: its data, or of how many bytes its buffer is."""

    name: str = Field(description="as the model's metadata lists it")
    shape: list[int] = Field(description="of all of it, the rows first")
    datatype: Datatype = Field(description="sent: any of numbers that the event's dtype can hold exactly")
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size`, where its buffer follows the JSON")
    data: list[Any] | None = Field(
        None, description="row-major; sent nested or flat, answered flat; null for what can't be given or is missing"
    )


class WantedOutput(BaseModel):
    """An output that is asked for."""

    name: str = Field(description="one of the metadata's, or one that comes only when it is asked for: docs/oip.md")
    parameters: dict[str, bool] | None = Field(None, description="`binary_data`: whether its buffer follows the JSON")


class Asked(BaseModel):
    """A request; buffers may follow it, and then the header Inference-Header-Content-Length says where they begin."""

    id: str | None = Field(None, description="comes back with the answer")
    parameters: dict[str, str | float | bool] | None = Field(
        None, description="the operation's fields as on /v1; `timeout` in µs; `binary_data_output`: all in binary"
    )
    inputs: list[Input] = Field(description="those of the model's metadata; buffers lie in their order")
    outputs: list[WantedOutput] | None = Field(None, description="which, in this order; default: those of the metadata")


class Output(Input):
    """A tensor that comes back."""


class Answered(BaseModel):
    """An answer; buffers follow where any output is binary."""

    model_name: str = Field(description="as it was asked for")
    model_version: str = Field(description="the version that answered")
    id: str | None = Field(None, description="the request's")
    parameters: dict[str, str | float | bool] | None = Field(None, description="the operation's scalars")
    outputs: list[Output] = Field(description="in the order asked for, else the metadata's")


def answers(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a path answers, and how it refuses."""
    return {200: {"model": model}, **{status: _refusal(status) for status in statuses}}


def _refusal(status: int) -> dict[str, Any]:
    return {"description": STATUSES[status], "model": Error}


def example(model: Served) -> dict[str, Any]:
    """A body that a model answers: its first golden row."""
    (tensor,), x = model.inputs, model.model.golden["encoder.x"][:1]
    data = [None if value != value else value for value in x.reshape(-1).tolist()]  # NaN is no JSON, and a hole is null
    rows = {"name": tensor.name, "shape": list(x.shape), "datatype": tensor.datatype, "data": data}
    return {"id": "1", "inputs": [rows], "outputs": [{"name": "elbo"}, {"name": "kl"}]}


def infer() -> dict[str, Any]:
    """The body of an inference, its answer and its refusals."""
    binary = {"schema": {"type": "string", "format": "binary", "description": "JSON, and the tensors' buffers"}}
    asked, answered, error = (model.model_json_schema(ref_template=COMPONENTS) for model in (Asked, Answered, Error))
    refusals = {
        str(status): {"description": said, "content": {JSON: {"schema": error}}}
        for status, said in STATUSES.items()
        if status != 406
    }
    answer = {"description": "the answer", "content": {JSON: {"schema": answered}, BINARY: binary}}
    body = {"required": True, "content": {JSON: {"schema": asked}, BINARY: binary}}
    return {"requestBody": body, "responses": {"200": answer, **refusals}}
