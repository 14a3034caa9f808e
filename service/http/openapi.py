"""OpenAPI: the operations' routes, and their page with examples made from golden rows of the models that are served."""

from __future__ import annotations

import asyncio
import copy
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from service.artifact import Array
from service.errors import TooLarge, Unavailable
from service.http.exchange import Desk, Operation
from service.http.telemetry import Visit
from service.http.wire import JSON, NPY, NPZ, dumps, write
from service.models import Model, Models
from service.operations import Errand

NUMBERS = {"type": "array", "items": {}, "description": "a nested array of numbers"}
STATUSES = {
    400: "the bytes can't be read as what they claim to be",
    404: "no such model, version or operation",
    406: "the answer is wanted in a form we don't write",
    413: "over a limit, which is named",
    415: "the body is in a form we don't read",
    422: "read, understood, and not a request for this model; `errors` says where and why",
    429: "the waiting room is full; see Retry-After",
    503: "not ready, draining, or too late; see Retry-After",
    500: "our mistake, with a reference",
}
SAID = STATUSES | {401: "no bearer token, or another than the one that is set"}  # where an operation never says so
COMPONENTS = "#/components/schemas/{model}"
SCHEMA = "/openapi.json"
TIMEOUT = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "milliseconds from the request's headers on; a later answer is a 503",
}
PATIENCE = 1.0  # seconds that the page waits for its examples' answers
MOST_SHOWN = 1024  # numbers in an example; larger events are left to the example script


class FaultBody(BaseModel):
    """One thing wrong with a request."""

    pointer: str
    reason: str


class ProblemBody(BaseModel):
    """What every refusal says (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultBody]
    request_id: str


def router(desk: Desk, operations: Iterable[Operation[Any]]) -> APIRouter:
    """Each operation's two paths, with and without a version.

    Requests are met by Starlette's routes, which do less than FastAPI's; `described` makes those, for the page alone.
    """
    routes = APIRouter()
    for operation in operations:
        for path in _paths(operation):
            routes.add_route(path, _endpoint(desk, operation), methods=["POST"], include_in_schema=False)
    return routes


def described(desk: Desk, tag: str, operations: Iterable[Operation[Any]]) -> APIRouter:
    """What the page says of each operation's paths. To make it takes as long as all else that a service is made of."""
    routes = APIRouter(tags=[tag])
    for operation in operations:
        extra, endpoint = _page(operation), _endpoint(desk, operation)
        for path, said in _paths(operation).items():
            routes.add_api_route(
                path, endpoint, methods=["POST"], name=operation.name, description=said, openapi_extra=extra
            )
    return routes


def _paths(operation: Operation[Any]) -> dict[str, str | None]:
    """An operation's paths, and what is said of each."""
    root, name, said = "/v1/models/{model}", operation.name, operation.work.__doc__
    same = f"{said}\n\nThe same as `{root}/{name}`, of the version that is named."
    return {f"{root}/{name}": said, f"{root}/versions/{{version}}/{name}": same}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that a page lists, with their body."""
    body = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": SAID[status], "content": copy.deepcopy(body)} for status in statuses}


def _endpoint(desk: Desk, operation: Operation[Any]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await desk.serve(request, operation)

    return endpoint


def _page(operation: Operation[Any]) -> dict[str, Any]:
    """The body that an operation reads and the answers it gives."""
    schema, array = operation.fields.model_json_schema(ref_template=COMPONENTS), operation.array
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if array:
        schema["properties"] = {array: {**NUMBERS, "description": operation.about}, **schema.get("properties", {})}
        schema["required"] = [array]
        about = f"`{array}` as an npy file; other fields go into the query"
        content[NPY] = {"schema": {"type": "string", "format": "binary", "description": about}}
    answers = {
        "description": "the answer",
        "content": {
            JSON: {"schema": operation.answer.model_json_schema(ref_template=COMPONENTS)},
            NPZ: {"schema": {"type": "string", "format": "binary"}},
        },
    }
    body = {"required": bool(array), "content": content}
    refusals = {str(status): said for status, said in problems(*STATUSES).items()}
    return {"requestBody": body, "responses": {"200": answers, **refusals}}


def _query(operation: Operation[Any]) -> list[dict[str, Any]]:
    """An operation's fields as the query parameters that they are beside an npy body.

    Their defaults are told, not declared: the page would fill them in, and beside JSON a query is refused.
    """
    if operation.array is None:
        return []
    parameters = []
    for name, found in operation.fields.model_json_schema(ref_template=COMPONENTS)["properties"].items():
        schema = next((kind for kind in found.pop("anyOf", ()) if kind != {"type": "null"}), {}) | found
        default, about = schema.pop("default", None), schema.pop("description", None)
        said = [f"with {NPY} only", about, None if default is None else f"default: {str(default).lower()}"]
        description = "; ".join(part for part in said if part)
        parameters.append({"name": name, "in": "query", "schema": schema, "description": description})
    return parameters


def install(
    app: FastAPI,
    desk: Desk,
    tagged: Mapping[str, Iterable[Operation[Any]]],
    more: Callable[[], Iterable[BaseRoute]],
    bodies: Mapping[str, Callable[[Model], Any]],
) -> None:
    """Serve the schema and its page. What depends on the models is made anew at each request.

    tagged are the operations by the page's headings. more gives routes that only the page knows, and bodies a model's
    example for what isn't an operation of ours, by the end of its path.
    """
    named = {operation.name: operation for operations in tagged.values() for operation in operations}
    answers = Answers(desk)

    @cache
    def made() -> dict[str, Any]:
        ours = chain.from_iterable(described(desk, tag, operations).routes for tag, operations in tagged.items())
        routes = [*ours, *app.routes, *more()]
        return get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)

    @app.get(SCHEMA, include_in_schema=False)
    async def openapi(request: Request) -> Response:
        request.scope["visit"].operation = "openapi"
        return Response(dumps(await _schema(made(), answers, named, bodies)), media_type=JSON)

    _serve_page(app)


async def _schema(
    made: Mapping[str, Any],
    answers: Answers,
    operations: Mapping[str, Operation[Any]],
    bodies: Mapping[str, Callable[[Model], Any]],
) -> dict[str, Any]:
    """The whole schema, with the names that are served and examples that they answer."""
    schema: dict[str, Any] = copy.deepcopy(dict(made))  # what follows changes it, and it shares parts with the routes
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    problem = ProblemBody.model_json_schema(ref_template=COMPONENTS)
    schemas |= {**problem.pop("$defs"), "ProblemBody": problem}
    deadline = asyncio.get_running_loop().time() + PATIENCE
    for path, item in schema["paths"].items():
        for page in item.values():
            page["parameters"] = _parameters(path, answers.desk.models)
        if operation := operations.get(path.rpartition("/")[2]):
            item["post"]["parameters"] += [TIMEOUT, *_query(operation)]
            await _exemplify(item["post"], operation, answers, deadline)
        elif body := bodies.get(path.rpartition("/")[2]):
            item["post"]["parameters"] += [TIMEOUT]
            _show(item["post"], body, answers.desk.models.all())
        schemas |= _definitions(item)
    return schema


def _serve_page(app: FastAPI, path: str = "/docs") -> None:
    """Serve the page that lets a person try every operation, from our own files: it works without the internet."""
    files = f"{path}/files"
    app.mount(files, StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get(path, include_in_schema=False)
    async def docs(request: Request) -> Response:
        request.scope["visit"].operation = "docs"
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{SCHEMA}",
            title=app.title,
            swagger_js_url=f"{root}{files}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{files}/swagger-ui.css",
            swagger_favicon_url=f"{root}{files}/favicon-32x32.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "defaultModelsExpandDepth": -1},
        )


def _definitions(part: Any) -> dict[str, Any]:
    """Take the definitions out of schemas, wherever they are; they belong to the page as a whole."""
    found: dict[str, Any] = {}
    if isinstance(part, dict):
        found |= part.pop("$defs", {})
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        found |= _definitions(inner)
    return found


def _parameters(path: str, models: Models) -> list[dict[str, Any]]:
    """What stands in a path, with the names that are served."""
    names = [name for name, _ in models.catalogue()]
    schemas: dict[str, dict[str, Any]] = {
        "model": {"type": "string", "enum": names} if names and not path.startswith("/v2") else {"type": "string"},
        "version": {"type": "integer", "minimum": 1, "default": 1},
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
        if f"{{{name}}}" in path
    ]


async def _exemplify(post: dict[str, Any], operation: Operation[Any], answers: Answers, deadline: float) -> None:
    """Give an operation a body for each model small enough to show, and what the smallest answers to its own."""
    offered = [model for model in answers.desk.models.all() if not operation.withheld(model.manifest)]
    shown = _show(post, lambda model: example(operation.name, model), offered)
    if shown and not operation.changes and (answer := await answers.get(operation, shown[0], deadline)):
        post["responses"]["200"]["content"][JSON]["example"] = answer


def _show(post: dict[str, Any], body: Callable[[Model], Any], offered: Iterable[Model]) -> list[Model]:
    """Give a page a body for each model small enough to show; those models, the smallest first."""
    shown = [model for model in offered if model.manifest.dimensions <= MOST_SHOWN]
    shown.sort(key=lambda model: model.manifest.dimensions)
    if shown:
        examples = {model.manifest.name: {"value": body(model)} for model in shown}
        post["requestBody"]["content"][JSON]["examples"] = examples
    return shown


@dataclass(slots=True)
class Answers:
    """What models answer to their own examples; each is computed once, as long as the same models are served."""

    desk: Desk
    _served: list[weakref.ref[Model]] = field(default_factory=list)  # weak, so that who is put away can go
    _made: dict[str, Any] = field(default_factory=dict)

    async def get(self, operation: Operation[Any], model: Model, deadline: float) -> Any:
        """An answer as it goes over the wire; None while the service has no time for it, or takes no such request."""
        served = self.desk.models.all()
        if len(served) != len(self._served) or any(a is not b() for a, b in zip(served, self._served, strict=True)):
            self._served, self._made = (
                [weakref.ref(one) for one in served],
                {},
            )  # others are served, or one was calibrated again
        made = self._made
        if operation.name not in made:
            try:
                async with asyncio.timeout_at(deadline):
                    made[operation.name] = await _answer(operation, model, self.desk, deadline)
            except (Unavailable, TimeoutError, TooLarge):  # the last where limits are lower than an example
                return None
        return made[operation.name]


async def _answer(operation: Operation[Any], model: Model, desk: Desk, deadline: float) -> Any:
    """What a model answers to its own example."""
    fields = example(operation.name, model)
    rows = np.array(fields.pop(operation.array), np.float64) if operation.array else None  # null becomes NaN
    asked = operation.fields.model_validate(fields)
    visit = Visit("example", time.perf_counter(), errand=Errand(deadline))
    found = await operation.work(desk, model, asked, rows, visit)
    head = {"model": model.manifest.name, "version": model.manifest.version}
    return orjson.loads(write(JSON, {**head, **found}))


def example(operation: str, model: Model) -> dict[str, Any]:
    """A body that a model answers: its first golden row, and to impute the second, which has holes."""
    x, z = model.golden["encoder.x"][:1].tolist(), model.golden["decoder.z"][:1].tolist()
    bodies: dict[str, dict[str, Any]] = {
        "encode": {"inputs": x, "draws": 2, "seed": 1},
        "decode": {"latents": z, "output": "mean"},
        "reconstruct": {"inputs": x},
        "sample": {"count": 2, "seed": 7},
        "score": {"inputs": x, "alpha": 0.05},
        "impute": {"inputs": _with_nulls(model.golden["encoder.x"][1:2]), "draws": 2, "seed": 1},
        "evidence": {"inputs": x, "draws": 1024, "confidence": 0.95},
        "calibrate": {"inputs": x},  # too few to be taken: nobody replaces a calibration by trying the page
    }
    return bodies[operation]


def _with_nulls(rows: Array) -> Any:
    """Rows as JSON has them, null where a value is missing."""
    with_nulls = rows.astype(object)
    with_nulls[np.isnan(rows)] = None
    return with_nulls.tolist()
