"""The welcome: once the service is ready, where it is and what to try first. Knows nothing of requests."""

from __future__ import annotations

import asyncio
import json
import logging

import uvicorn

from service.http.openapi import example
from service.models import Model, Models

log = logging.getLogger(__name__)

PASTABLE = 128  # numbers in an event that still make a command of a decent length


async def greet(models: Models, server: uvicorn.Server) -> None:
    """Wait until the server listens and the models are ready, then say so on standard output."""
    while not server.started or models.unready():  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    host = server.config.host if server.config.host not in ("0.0.0.0", "::") else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    try:
        print(text(models, f"http://{host}:{port}"), flush=True)  # noqa: T201  for a person, not for the log
    except OSError as error:  # standard output is full or closed: no reason to end a service
        log.warning("the welcome can't be printed: %s", error.strerror)


def text(models: Models, address: str) -> str:
    """The address, a command to paste, and what else there is."""
    names = ", ".join(name for name, _ in models.catalogue())
    lines = ["", f"vae-serve is ready at {address} and serves {names}"]
    if model := _pasted(models):
        what = "a real digit" if "digit" in model.manifest.training.data else "a row"
        body = json.dumps({"inputs": example("score", model)["inputs"]}, separators=(",", ":"))
        lines += [
            "",
            f"Score {what}:",
            f"  curl -s {address}/v1/models/{model.manifest.name}/score "
            f"-H 'Content-Type: application/json' -d '{body}'",
        ]
    lines += ["", f"Then try   {address}/docs   every operation, with examples that run"]
    lines += [f"           {address}/v1/models   what is served", ""]
    return "\n".join(lines)


def _pasted(models: Models) -> Model | None:
    """The model whose row is pasted: a small one of digits if there is one, else any small one."""
    small = [model for model in models.all() if model.manifest.dimensions <= PASTABLE]
    return min(
        small, key=lambda model: ("digit" not in model.manifest.training.data, model.manifest.name), default=None
    )
