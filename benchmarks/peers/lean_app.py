"""A lean app: Starlette, bytes straight into an array, the session called where the request is read; no batches.

Two processes (uvloop, httptools), each with a listener of its own on one port (SO_REUSEPORT), so that the kernel
spreads the connections; with uvicorn's own `--workers` one process often takes all that come at once. The graph blocks
its event loop, which on as many processes as cores costs nothing that a thread would save (a hop takes 50–100 µs).
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.graph import Graph

WORKERS = 2


def build() -> Starlette:
    """The app, with its graph opened in this process."""
    graph = Graph()

    async def score(request: Request) -> Response:
        body = await request.body()
        if request.headers["content-type"] == "application/json":
            answer = orjson.dumps({"elbo": graph.elbo(graph.parsed(body))}, option=orjson.OPT_SERIALIZE_NUMPY)
            return Response(answer, media_type="application/json")
        return Response(graph.elbo(graph.raw(body)).tobytes(), media_type="application/octet-stream")

    return Starlette(routes=[Route("/score", score, methods=["POST"])])


def serve(port: int) -> None:
    """One worker."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(build(), loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run([listener])


def main() -> None:
    """Fork the workers, and end them with this process."""
    children = []
    for _ in range(WORKERS):
        if (child := os.fork()) == 0:
            serve(int(os.environ["PEER_PORT"]))
            sys.exit()
        children.append(child)

    def stop(number: int, _: object) -> None:
        for child in children:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
