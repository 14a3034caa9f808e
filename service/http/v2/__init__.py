"""The Open Inference Protocol v2 over HTTP, so that Triton's and KServe's clients work unchanged.

tensors     datatypes, and arrays to and from their bytes
figures     the numbers of a tensor in JSON
request     read(bytes) → what is asked for      both are functions of their arguments alone:
answer      what was found → write() → bytes     nothing of HTTP is in them
encodings   compression
served      each operation of each artifact as a model: its tensors, metadata and configuration
tally       what the statistics extension counts
infer       one request from its headers to its answer; job: the same at the front
routes      every path; pages: what OpenAPI says of them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter
from starlette.routing import BaseRoute

from service.http import scores
from service.http.admin import Admin
from service.http.exchange import Desk, Operation
from service.http.v2 import pages, routes
from service.http.v2.infer import Window
from service.http.v2.job import Finder
from service.http.v2.served import DEFAULT, Shelf, describe
from service.http.v2.tally import Tally
from service.metrics import Metrics
from service.models import Model

__all__ = ["Finder", "Window", "described", "example", "router", "window"]

SCORE = {operation.name: operation for operation in scores.OPERATIONS}[DEFAULT]
Reasons = Callable[[], list[str]]


def window(desk: Desk, operations: Iterable[Operation[Any]], metrics: Metrics) -> Window:
    """Where inferences are asked for, of these operations."""
    shelf = Shelf(desk.models, {operation.name: operation for operation in operations})
    return Window(desk, shelf, Tally(metrics))


def router(window: Window, faults: Reasons, unready: Reasons, admin: Admin | None = None) -> APIRouter:
    """Every path under /v2; faults and unready say why the service isn't live or ready, and admin changes models."""
    return routes.router(window, faults, unready, admin)


def described(window: Window) -> list[BaseRoute]:
    """Routes that only the page with the schema knows."""
    return routes.described(window).routes


def example(model: Model) -> dict[str, Any]:
    """A body that an artifact's bare name answers."""
    return pages.example(describe(model.manifest.name, model, SCORE))
