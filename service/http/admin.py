"""Admin: who may load and unload models, and their routes under /v1. Offered only where a token is set."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Late, Malformed, NotLoaded, Unauthorised, Unknown
from service.http import wire
from service.http.exchange import Desk, hear, number, while_there
from service.http.openapi import problems
from service.models import Key
from service.repository import Change, Repository

# For the page alone: it refuses nobody, Admin.check does.
TOKEN = Security(HTTPBearer(scheme_name="admin", description="VAE_SERVE_ADMIN_TOKEN", auto_error=False))


class Changed(BaseModel):
    """What became of a name's versions."""

    model: str
    versions: list[int] = Field(description="that are served now, ascending")
    default_version: int | None = Field(description="the one that answers when none is named; null: none is served")
    loaded: list[int] = Field(description="opened by this request, since they were new or had changed")
    retired: list[int] = Field(description="no new request gets these; those that had them before are answered")


@dataclass(frozen=True, slots=True)
class Admin:
    """What changes the models that are served, for those who have the token.

    elsewhere says what to do instead where this process is one of several, and a change to it alone would be wrong.
    """

    desk: Desk
    repository: Repository
    token: str
    elsewhere: str | None = None

    def check(self, request: Request) -> None:
        """Unauthorised unless a request has the token."""
        request.scope["visit"].operation = "repository"
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise Unauthorised("this takes the token of VAE_SERVE_ADMIN_TOKEN, as Authorization: Bearer …")
        if self.elsewhere:
            raise Malformed(self.elsewhere)

    async def load(self, request: Request, name: str) -> dict[str, Any]:
        """Open a name's versions that are new or have changed; NotLoaded says what was refused and why."""
        self.check(request)
        change = await self._done(request, self.repository.load(_artifact(name)))
        if change.refused:
            reasons = "; ".join(f"{of}/{version}: {reason}" for (of, version), reason in change.refused.items())
            raise NotLoaded(f"{reasons}. What was served before still is")
        return self._said(name, change)

    async def unload(self, request: Request, name: str, version: str | None = None) -> dict[str, Any]:
        """Serve a version no more, or all of a name."""
        self.check(request)
        change = await self._done(request, self.repository.unload(_artifact(name), number(version)))
        return self._said(name, change)

    async def _done(self, request: Request, change: Coroutine[Any, Any, Change]) -> Change:
        """Wait for a change, as long as a request may; it is carried through, whoever has left."""
        visit, desk = request.scope["visit"], self.desk
        try:
            desk.door.check()
            heard = hear(request)
            ends = asyncio.get_running_loop().time() - (time.perf_counter() - visit.arrived) + desk.longest
            deadline = ends if heard.timeout is None else desk.deadline(heard, visit)
            async with asyncio.timeout_at(deadline):
                return await while_there(request, change)
        except TimeoutError:
            raise Late("it takes longer, and goes on; the repository's index says when it is done") from None
        finally:
            change.close()  # where it was never begun

    def _said(self, name: str, change: Change) -> dict[str, Any]:
        models = self.desk.models
        versions = dict(models.catalogue()).get(name, [])
        return {
            "model": name,
            "versions": versions,
            "default_version": models.default(name) if versions else None,
            "loaded": _versions(change.loaded),
            "retired": _versions(change.retired),
        }


def router(admin: Admin) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(tags=["repository"], dependencies=[TOKEN])

    @routes.post("/v1/models/{model}/load", responses=_answers(401, 404, 422, 503))
    async def load(request: Request) -> Response:
        """Open a name's versions on disk that are new or have changed, and let go of those that aren't there any more.

        A version takes requests once it has answered its golden rows. What is refused leaves what was served.
        """
        return _json(await admin.load(request, request.path_params["model"]))

    @routes.post("/v1/models/{model}/versions/{version}/unload", responses=_answers(401, 404, 503))
    @routes.post("/v1/models/{model}/unload", responses=_answers(401, 404, 503))
    async def unload(request: Request) -> Response:
        """Serve a version no more, or all of a name, until it is loaded again; what is being answered is answered."""
        return _json(await admin.unload(request, request.path_params["model"], request.path_params.get("version")))

    return routes


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": Changed}, **problems(*statuses)}


def _artifact(name: str) -> str:
    """A name that may be loaded: an artifact's, and not that of one of its operations."""
    artifact, dot, _ = name.partition(".")
    if dot:
        raise Unknown(f"{name[:80]} comes and goes with its artifact, {artifact[:64]}")
    return name


def _versions(keys: tuple[Key, ...]) -> list[int]:
    return [version for _, version in keys]


def _json(content: Any) -> Response:
    return Response(wire.dumps(content), media_type=wire.JSON)
