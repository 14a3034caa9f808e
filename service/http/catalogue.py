"""The catalogue: what is served, its manifest, and its card."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.artifact import CARD, Manifest
from service.errors import Unknown
from service.footing import Footing
from service.http import wire
from service.http.card import GUARDED, HTML, MARKDOWN, PNG, markdown, page
from service.http.exchange import Desk, find, header
from service.http.openapi import problems
from service.models import Model


class Listed(BaseModel):
    """A name that is served."""

    name: str
    versions: list[int] = Field(description="ascending")
    default_version: int = Field(description="the one that answers when none is named")


class Drift(BaseModel):
    """What was served since, against the calibration: a bet that can't be won while rows are like the calibration's."""

    log_wealth: float = Field(description="what the bet has won, in nats; 0 at the start")
    threshold: float = Field(description="−log of the false-alarm rate; at this wealth the alarm is raised")
    alarm: bool = Field(description="whether the wealth has ever reached it; stays until the model is calibrated again")
    rows: int = Field(description="rows that were scored as calibrated")
    since: datetime = Field(description="when the calibration came into use here")
    recent_strange: float | None = Field(
        description="how often the last few hundred rows scored like the calibration's strangest 5 %, of what is due; "
        "1: as often as it should be"
    )
    recent_typical: float | None = Field(description="the same of its least strange 5 %")


class InUse(BaseModel):
    """The calibration that p-values rest on now; the manifest's `calibration` is the one the artifact came with."""

    n: int = Field(description="rows it rests on")
    seed: int
    draws: int
    score: str = Field(description="the score that p_value and anomaly are of")
    smallest_p: float = Field(description="1/(n+1)")
    made: datetime | None = Field(description="when it was made here; null for the artifact's")
    since: datetime = Field(description="when it came into use here")


class Served(Manifest):
    """A model's manifest, and where it runs."""

    device: str
    providers: list[str]
    device_fallback: str | None = Field(description="why CUDA was wanted and the CPU is used, where that is so")
    calibration_source: Literal["artifact", "state"] | None = Field(
        description="state: calibrated while serving; null: not calibrated"
    )
    calibration_in_use: InUse | None
    drift: Drift | None = Field(description="null where it isn't watched: uncalibrated, or switched off")
    card: str | None = Field(description="where the model card is, for people; null where the artifact has none")


LISTED: dict[int | str, dict[str, Any]] = {200: {"model": list[Listed]}, **problems(406)}
SERVED: dict[int | str, dict[str, Any]] = {200: {"model": Served}, **problems(404, 406, 503)}
SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {MARKDOWN: {}, HTML: {}}, "description": "Markdown unless a browser asks"},
    **problems(404, 406, 503),
}
PICTURED: dict[int | str, dict[str, Any]] = {200: {"content": {PNG: {}}, "description": "PNG"}, **problems(404, 503)}


def router(desk: Desk) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(tags=["catalogue"])

    @routes.get("/v1/models", responses=LISTED)
    async def models(request: Request) -> Response:
        """Every model that is served, its versions, and the one that answers when none is named."""
        request.scope["visit"].operation = "catalogue"
        listed = [
            {"name": name, "versions": versions, "default_version": desk.models.default(name)}
            for name, versions in desk.models.catalogue()
        ]
        return _json(request, listed)

    @routes.get("/v1/models/{model}/versions/{version}", responses=SERVED)
    @routes.get("/v1/models/{model}", responses=SERVED)
    async def model(request: Request) -> Response:
        """A model's manifest, and the device that it is really on."""
        request.scope["visit"].operation = "manifest"
        parameters = request.path_params
        return _json(request, described(find(desk.models, parameters["model"], parameters.get("version"))))

    @routes.get("/v1/models/{model}/versions/{version}/card", responses=SHOWN)
    @routes.get("/v1/models/{model}/card", responses=SHOWN)
    async def card(request: Request) -> Response:
        """The model card: what it is, how it was trained, and how its scores lie; Markdown, or a page for a browser."""
        request.scope["visit"].operation = "card"
        model, form = _asked(request), wire.negotiate(header(request, "accept"), (MARKDOWN, HTML))
        text = _of_card(model, CARD).decode("utf-8", "replace")
        name = "{}, version {}".format(*model.key)
        content = page(text, model.card, name) if form == HTML else markdown(text, model.card)
        return Response(content, headers=GUARDED, media_type=form)

    @routes.get("/v1/models/{model}/versions/{version}/card/{picture}", responses=PICTURED)
    @routes.get("/v1/models/{model}/card/{picture}", responses=PICTURED)
    async def picture(request: Request) -> Response:
        """A picture of the model card."""
        request.scope["visit"].operation = "card"
        content = _of_card(_asked(request), request.path_params["picture"])
        if request.path_params["picture"] == CARD:
            raise Unknown(f"{CARD} is the card itself: ask for it without a name")
        return Response(content, headers=GUARDED, media_type=PNG)

    def _asked(request: Request) -> Model:
        return find(desk.models, request.path_params["model"], request.path_params.get("version"))

    return routes


def _of_card(model: Model, name: str) -> bytes:
    """A file of a model's card, from those that were read with its manifest; nothing is looked up on the disk."""
    if not model.card:
        raise Unknown("this artifact has no card; python -m training card <its folder> writes one")
    if (content := model.card.get(name)) is None:
        raise Unknown(f"the card has no {name[:64]!r}; it has {', '.join(sorted(model.card.keys() - {CARD}))}")
    return content


def described(model: Model) -> dict[str, Any]:
    """A manifest as served."""
    engine = model.engine
    device = {"device": engine.device, "providers": engine.providers, "device_fallback": engine.fallback}
    footing = model.footing
    in_use, drift = (_in_use(footing), _drift(footing)) if footing else (None, None)
    calibration = {
        "calibration_source": footing.source if footing else None,
        "calibration_in_use": in_use.model_dump(mode="json") if in_use else None,
        "drift": drift.model_dump(mode="json") if drift else None,
    }
    card = f"/v1/models/{model.key[0]}/versions/{model.key[1]}/card" if model.card else None
    return {**model.manifest.model_dump(mode="json"), **device, **calibration, "card": card}


def _in_use(footing: Footing) -> InUse:
    """The facts of a calibration in use."""
    references = footing.references
    return InUse(
        n=references.n,
        seed=footing.bank.seed,
        draws=footing.bank.draws,
        score=references.chosen,
        smallest_p=references.scores[references.chosen].smallest_p,
        made=footing.made,
        since=footing.since,
    )


def _drift(footing: Footing) -> Drift | None:
    """What the watch over a calibration says."""
    if (watch := footing.watch) is None:
        return None
    low, high = watch.recent() or (None, None)
    return Drift(
        log_wealth=watch.log_wealth,
        threshold=watch.threshold,
        alarm=watch.alarm,
        rows=watch.rows,
        since=footing.since,
        recent_strange=low,
        recent_typical=high,
    )


def _json(request: Request, content: Any) -> Response:
    form = wire.negotiate(header(request, "accept"), (wire.JSON,))
    return Response(wire.dumps(content), media_type=form)
