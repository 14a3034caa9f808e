"""LitServe: FastAPI in front, workers behind a queue, requests run together.

After the advice in LitServer's docstring: a worker for each core, fast_queue (ZeroMQ) above 100 requests a second; the
shortest batch_timeout that does not spin. The body goes to the worker as bytes: the front's own request.json() would
parse it with the standard library.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import litserve
import numpy as np
import orjson
from fastapi import Depends, Request, Response

from benchmarks.peers.graph import Array, Graph

BATCH = int(os.environ.get("PEER_BATCH", "64"))
TIMEOUT = float(os.environ.get("PEER_BATCH_TIMEOUT", "0.001"))
API_SERVERS = int(os.environ.get("PEER_API_SERVERS", "2"))
Asked = tuple[Array, bool]  # the rows, and whether they came as JSON


async def content(request: Request) -> tuple[bytes, bool]:
    """The body as it came, and whether it is JSON."""
    return await request.body(), request.headers.get("content-type") == "application/json"


Body = Annotated[tuple[bytes, bool], Depends(content)]


class Score(litserve.LitAPI):  # type: ignore[misc]  # LitServe may not be installed here
    """Scores the rows of several requests together."""

    def setup(self, device: str) -> None:  # noqa: ARG002  its signature
        """Open the graph, in the worker."""
        self.graph = Graph()

    def decode_request(self, request: Body) -> Asked:
        """Rows from a body."""
        body, as_json = request
        return (self.graph.parsed(body) if as_json else self.graph.raw(body)), as_json

    def batch(self, inputs: list[Asked]) -> list[Asked]:
        """Leave them as they are: predict needs to know whose rows are whose."""
        return inputs

    def predict(self, x: Any) -> Any:
        """The answers, one a request."""
        if BATCH == 1:
            return self.graph.elbo(x[0]), x[1]
        rows = [rows for rows, _ in x]
        elbo = self.graph.elbo(rows[0] if len(rows) == 1 else np.concatenate(rows))
        parts = np.split(elbo, np.cumsum([len(part) for part in rows])[:-1])
        return [(part, as_json) for part, (_, as_json) in zip(parts, x, strict=True)]

    def unbatch(self, output: Any) -> Any:
        """They are separate already."""
        return output

    def encode_response(self, output: Asked) -> Response:
        """The answer, in the form of its request."""
        elbo, as_json = output
        if not as_json:
            return Response(elbo.tobytes(), media_type="application/octet-stream")
        return Response(orjson.dumps({"elbo": elbo}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


# annotations are strings here, and LitServe reads them as they are
Score.decode_request.__annotations__["request"] = Body
Score.encode_response.__annotations__["return"] = Response

if __name__ == "__main__":
    api = Score(max_batch_size=BATCH, batch_timeout=TIMEOUT if BATCH > 1 else 0.0, api_path="/score")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=API_SERVERS,
        generate_client_file=False,
        log_level="warning",
    )
