"""mosec: a Rust front that hands requests to Python workers over a socket; PEER_BATCH requests are run together.

Two workers for two cores, the parsing in the worker (one stage: a second costs more in passing than it wins in
parsing beside). After append_worker's docstring and measurements: the shortest wait for a batch to fill that mosec
knows, 1 ms, which with its queue takes 3; and batches of 16, which fill before it ends when 16 or more are asking (at
16 connections twice the rows of batches of 64, which wait; at 64 connections the same).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker

from benchmarks.peers.graph import Array, Graph

BATCH = int(os.environ.get("PEER_BATCH", "1"))
HEAD = b'{"inputs":'  # a worker isn't told the content type or the route; no row of numbers begins with these bytes
Asked = tuple[Array, bool]  # the rows, and whether they came as JSON


class Score(Worker):  # type: ignore[misc]  # mosec may not be installed here
    """Scores the rows of one request, or of several together."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()

    def deserialize(self, data: bytes) -> Asked:
        """Rows from a body, before they are batched."""
        as_json = data.startswith(HEAD)
        return (self.graph.parsed(data) if as_json else self.graph.raw(data)), as_json

    def forward(self, data: Any) -> Any:
        """One request's answer; a list of them where mosec batches."""
        if BATCH == 1:
            rows, as_json = data
            return self.graph.elbo(rows), as_json
        if len(data) == 1:
            return [(self.graph.elbo(data[0][0]), data[0][1])]
        elbo = self.graph.elbo(np.concatenate([rows for rows, _ in data]))
        ends = np.cumsum([len(rows) for rows, _ in data])
        return [(part, as_json) for part, (_, as_json) in zip(np.split(elbo, ends[:-1]), data, strict=True)]

    def serialize(self, data: Asked) -> bytes:
        """The answer's bytes, in the form of its request."""
        elbo, as_json = data
        return orjson.dumps({"elbo": elbo}, option=orjson.OPT_SERIALIZE_NUMPY) if as_json else elbo.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Score, num=int(os.environ.get("PEER_WORKERS", "2")), max_batch_size=BATCH, max_wait_time=1, route="/score"
    )
    server.run()
