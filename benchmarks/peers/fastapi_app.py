"""The FastAPI app that most people write: a pydantic model of nested lists, a `def` endpoint, a call of the session.

Two things are done better than most do: one-thread sessions, and `uvicorn --workers 2`. Nothing is batched.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel

from benchmarks.peers.graph import Graph

graph = Graph()
app = FastAPI()

Rows: Any = float
for _ in range(1 + len(graph.event)):
    Rows = list[Rows]


class Rowful(BaseModel):
    """What is asked."""

    inputs: Rows


class Scores(BaseModel):
    """What is answered."""

    elbo: list[float]


async def content(request: Request) -> bytes:
    """The body as it came."""
    return await request.body()


@app.post("/score")
def score(asked: Rowful) -> Scores:
    """The ELBO of each row, from JSON to JSON."""
    return Scores(elbo=graph.elbo(np.array(asked.inputs, graph.dtype)).tolist())


@app.post("/score/raw")
def score_raw(body: Annotated[bytes, Depends(content)]) -> Response:
    """The same from bytes to bytes."""
    return Response(graph.elbo(graph.raw(body)).tobytes(), media_type="application/octet-stream")
