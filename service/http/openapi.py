"""OpenAPI: what an operation's page says, with examples made from the golden rows of the models that are served."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.http.wire import JSON, NPY, NPZ
from service.models import Model, Models

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
COMPONENTS = "#/components/schemas/{model}"
OPERATIONS = ("score", "encode", "decode", "reconstruct", "sample")
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


def operation(
    fields: type[BaseModel], answer: type[BaseModel], array: str | None, about: str | None = None
) -> dict[str, Any]:
    """What a route adds to its page: the body it reads and the answers it gives."""
    schema = fields.model_json_schema(ref_template=COMPONENTS)
    if array:
        schema["properties"] = {array: {**NUMBERS, "description": about}, **schema.get("properties", {})}
        schema["required"] = [array]
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if array:
        content[NPY] = {"schema": {"type": "string", "format": "binary", "description": f"`{array}` as an npy file"}}
    problems = {
        str(status): {
            "description": said,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for status, said in STATUSES.items()
    }
    answers = {
        "description": "the answer",
        "content": {
            JSON: {"schema": answer.model_json_schema(ref_template=COMPONENTS)},
            NPZ: {"schema": {"type": "string", "format": "binary"}},
        },
    }
    body = {"required": bool(array), "content": content}
    return {"requestBody": body, "responses": {"200": answers, **problems}}


def install(app: FastAPI, models: Models) -> None:
    """Have the page made anew whenever it is asked for: the examples are those of the models served then."""

    def schema_now() -> dict[str, Any]:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        problem = ProblemBody.model_json_schema(ref_template=COMPONENTS)
        schemas |= {**problem.pop("$defs"), "ProblemBody": problem}
        for path, item in schema["paths"].items():
            for page in item.values():
                page["parameters"] = _parameters(path, models)
            _exemplify(path, item.get("post"), models)
            schemas |= _definitions(item)
        return schema

    app.openapi = schema_now  # type: ignore[method-assign]  # FastAPI's own way to change the page


def page(app: FastAPI, path: str = "/docs") -> None:
    """Serve the page that lets a person try every operation, from our own files: it works without the internet."""
    files = f"{path}/files"
    app.mount(files, StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get(path, include_in_schema=False)
    async def docs(request: Request) -> Response:
        request.scope["visit"].operation = "docs"
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
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
    """What stands in a path, with the names that are served, and the headers that an operation heeds."""
    names = [name for name, _ in models.catalogue()]
    schemas: dict[str, dict[str, Any]] = {
        "model": {"type": "string", "enum": names} if names else {"type": "string"},
        "version": {"type": "integer", "minimum": 1, "default": 1},
    }
    found = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
        if f"{{{name}}}" in path
    ]
    if path.rpartition("/")[2] in OPERATIONS:
        timeout = {"type": "integer", "minimum": 1}
        said = "milliseconds from the request's headers on; a later answer is a 503"
        found.append({"name": "X-Timeout-Ms", "in": "header", "schema": timeout, "description": said})
    return found


def _exemplify(path: str, post: dict[str, Any] | None, models: Models) -> None:
    """Give a POST's JSON body an example for each model that is small enough to show."""
    if post is None or "requestBody" not in post:
        return
    name = path.rpartition("/")[2]
    shown = [model for model in models.all() if model.manifest.dimensions <= MOST_SHOWN]
    examples = {model.manifest.name: {"value": example(name, model)} for model in shown}
    if examples:
        post["requestBody"]["content"][JSON]["examples"] = examples


def example(operation: str, model: Model) -> dict[str, Any]:
    """A body that a model answers: its first golden row."""
    x, z = model.golden["encoder.x"][:1].tolist(), model.golden["decoder.z"][:1].tolist()
    bodies: dict[str, dict[str, Any]] = {
        "encode": {"inputs": x, "draws": 2, "seed": 1},
        "decode": {"latents": z, "output": "mean"},
        "reconstruct": {"inputs": x},
        "sample": {"count": 2, "seed": 7},
        "score": {"inputs": x, "alpha": 0.05},
    }
    return bodies[operation]
