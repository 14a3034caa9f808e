"""Routes: every path of the Open Inference Protocol, and what its page says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Malformed
from service.http.admin import TOKEN, Admin, Changed
from service.http.exchange import read_body
from service.http.v2 import pages, served
from service.http.v2.infer import Window
from service.http.wire import JSON
from service.models import State

NAME, VERSION = "vae-serve", "0.1.0"
EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "statistics")
MODEL = ("/v2/models/{model}/versions/{version}", "/v2/models/{model}")
METHODS = ["GET", "POST"]
STATES: Mapping[State, str] = {
    "served": "READY",
    "loading": "LOADING",
    "refused": "UNAVAILABLE",
    "unloaded": "UNAVAILABLE",
}
# What Triton's clients may also ask for, and why they don't get it here.
ABSENT = {
    "/v2/trace/setting": "tracing",
    "/v2/models/{model}/trace/setting": "tracing",
    "/v2/logging": "changing the log while serving",
    **{
        f"/v2/{kind}sharedmemory{path}": "shared memory"
        for kind in ("system", "cuda")
        for path in (
            "/status",
            "/region/{region}/status",
            "/region/{region}/register",
            "/register",
            "/unregister",
            "/region/{region}/unregister",
        )
    },
}

Endpoint = Callable[[Request], Awaitable[Response]]


def router(
    window: Window, faults: Callable[[], list[str]], unready: Callable[[], list[str]], admin: Admin | None
) -> APIRouter:
    """Every path of the protocol; faults and unready are why the service isn't live, and why it isn't ready.

    Models are loaded and unloaded where there is an admin, who may have to send people elsewhere.
    """
    loads = admin is not None and not admin.elsewhere
    routes = APIRouter(tags=["v2"])
    for path in MODEL:
        routes.add_route(f"{path}/infer", window.infer, methods=["POST"], include_in_schema=False)
    _add_server(routes, faults, unready, (*EXTENSIONS, "model_repository") if loads else EXTENSIONS)
    _add_models(routes, window)
    _add_index(routes, window)
    _add_control(routes, window, admin)
    for path, what in ABSENT.items():
        routes.add_route(path, _absent(what), methods=METHODS, include_in_schema=False)
    return routes


def described(window: Window) -> APIRouter:
    """What the page says of inferences, which Starlette's routes meet."""
    routes, extra = APIRouter(tags=["v2"]), pages.infer()
    for path in MODEL:
        routes.add_api_route(
            f"{path}/infer",
            window.infer,
            methods=["POST"],
            name="infer",
            description=pages.INFER,
            openapi_extra=extra,
        )
    return routes


def _add_server(
    routes: APIRouter, faults: Callable[[], list[str]], unready: Callable[[], list[str]], extensions: Sequence[str]
) -> None:
    @routes.get("/v2", responses=pages.answers(pages.Server))
    async def server(request: Request) -> Response:
        """What answers here, and which extensions of the protocol it has."""
        _note(request, "metadata")
        return _json({"name": NAME, "version": VERSION, "extensions": extensions})

    @routes.api_route("/v2/health/live", methods=["GET", "HEAD"], include_in_schema=False)
    @routes.get("/v2/health/live", responses=pages.answers(pages.Live, 503))
    async def live(request: Request) -> Response:
        """As /livez says."""
        _note(request, "livez")
        return _condition("live", {"live": True}, faults())

    @routes.api_route("/v2/health/ready", methods=["GET", "HEAD"], include_in_schema=False)
    @routes.get("/v2/health/ready", responses=pages.answers(pages.Ready, 503))
    async def ready(request: Request) -> Response:
        """As /readyz says."""
        _note(request, "readyz")
        return _condition("ready", {"live": True, "ready": True}, unready())


def _add_models(routes: APIRouter, window: Window) -> None:
    shelf, rows = window.shelf, window.desk.limits.rows

    def find(request: Request) -> served.Served:
        _note(request, "metadata")
        return shelf.find(request.path_params["model"], request.path_params.get("version"))

    @routes.get("/v2/models/stats", responses=pages.answers(pages.Statistics))
    async def statistics(request: Request) -> Response:
        """What was counted of every model that is served."""
        _note(request, "statistics")
        return _json(await window.tally.statistics(shelf.all()))

    @_both(routes, "/stats", pages.Statistics)
    async def statistics_of(request: Request) -> Response:
        """What was counted of one model: of the version that is named, else of each that is served."""
        found, name = find(request), request.path_params["model"]
        versions = [found.version] if "version" in request.path_params else shelf.versions(found)
        return _json(await window.tally.statistics([shelf.find(name, version) for version in versions]))

    @_both(routes, "/config", pages.Config)
    async def config(request: Request) -> Response:
        """A model's configuration, as Triton's clients read it."""
        return _json(served.config(find(request), rows))

    @_both(routes, "/ready", pages.ModelReady)
    async def model_ready(request: Request) -> Response:
        """Whether a model answers: a 404 or 503 where it doesn't."""
        return _json({"name": find(request).name, "ready": True})

    @_both(routes, "", pages.Model)
    async def model(request: Request) -> Response:
        """A model's tensors; −1 in a shape is any length."""
        found = find(request)
        return _json(served.metadata(found, shelf.versions(found)))


def _both(routes: APIRouter, end: str, answer: type[BaseModel]) -> Callable[[Endpoint], Endpoint]:
    """A GET on a model, with and without a version."""

    def add(endpoint: Endpoint) -> Endpoint:
        for path in MODEL:
            routes.add_api_route(path + end, endpoint, methods=["GET"], responses=pages.answers(answer, 404, 503))
        return endpoint

    return add


def _add_index(routes: APIRouter, window: Window) -> None:
    desk, shelf = window.desk, window.shelf

    async def index(request: Request) -> Response:
        """Every model and version on disk, and why one isn't served; with ready, those that are served alone."""
        _note(request, "catalogue")
        listed: list[dict[str, str]] = []
        only = (await _object(request, window)).get("ready") is True
        for name, version, state, reason in desk.models.states():
            if state == "served":
                names = [other for other, _ in shelf.names(desk.models.get(name, version))]
            else:
                names = [] if only else [name]
            listed += [
                {"name": other, "version": str(version), "state": STATES[state], "reason": reason} for other in names
            ]
        return _json(listed)

    routes.add_api_route(
        "/v2/repository/index", index, methods=["POST"], name="index", responses=pages.answers(list[pages.Indexed], 400)
    )


def _add_control(routes: APIRouter, window: Window, admin: Admin | None) -> None:
    async def load(request: Request) -> Response:
        """Open an artifact's versions that are new or have changed; all of its models come and go with it."""
        given = await asked(request)
        if given.get("parameters"):
            raise Malformed("a model is loaded as it lies in the repository: no other config or files are taken")
        return _json(await admin.load(request, request.path_params["model"])) if admin else closed()

    async def unload(request: Request) -> Response:
        """Serve an artifact's versions no more, until they are loaded again; what is being answered is answered."""
        await asked(request)
        return _json(await admin.unload(request, request.path_params["model"])) if admin else closed()

    async def asked(request: Request) -> dict[str, Any]:
        _note(request, "repository")
        if admin:
            admin.check(request)  # before anything is read
        return await _object(request, window)

    def closed() -> Response:
        raise Malformed("models can't be loaded or unloaded while serving unless VAE_SERVE_ADMIN_TOKEN is set")

    for work in (load, unload):
        path = f"/v2/repository/models/{{model}}/{work.__name__}"
        if admin:
            responses = pages.answers(Changed, 400, 401, 404, 422, 503)
            routes.add_api_route(path, work, methods=["POST"], responses=responses, dependencies=[TOKEN])
        else:
            routes.add_route(path, work, methods=["POST"], include_in_schema=False)


async def _object(request: Request, window: Window) -> dict[str, Any]:
    """A small body: a JSON object, or nothing."""
    desk = window.desk
    with desk.memory.held() as held:
        content = await read_body(request, desk.limits.body_bytes, held)
    try:
        found = orjson.loads(content) if content else {}
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Malformed("the body is not a JSON object")
    return found


def _absent(what: str) -> Endpoint:
    async def absent(request: Request) -> Response:
        """Refuse what this server doesn't have."""
        _note(request, "other")
        return _json({"error": f"{what} is not offered by this server"}, 501)

    return absent


def _note(request: Request, operation: str) -> None:
    request.scope["visit"].operation = operation


def _condition(name: str, content: dict[str, Any], reasons: list[str]) -> Response:
    if not reasons:
        return _json(content)
    return _json({"error": f"not {name}: {'; '.join(reasons)}"}, 503, {"Retry-After": "1"})


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type=JSON)
