"""Calibrations: rows that are as they should be, from whoever runs the service. Offered only where switched on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service import operations
from service.artifact import Array
from service.http.exchange import Desk, Fields, Operation
from service.http.latents import INPUTS, Answered
from service.http.telemetry import Visit
from service.models import Model


class Calibrate(Fields):
    """What calibrate takes besides its rows: nothing. The estimator is the one that the model is calibrated with."""


class Calibrated(Answered):
    """The calibration that is in use from now on, here and after a restart."""

    n: int = Field(description="rows it rests on: those that were sent")
    seed: int = Field(description="of the noise bank, as before")
    draws: int = Field(description="draws from q(z|x) a row, as before")
    score: str = Field(description="the score that p_value and anomaly are of, as before")
    smallest_p: float = Field(description="1/(n+1), the least p-value there can be")
    made: datetime
    digest: str = Field(description="SHA-256 of the manifest that it is for; another artifact is not calibrated by it")


async def calibrate(desk: Desk, model: Model, _: Calibrate, rows: Array, visit: Visit) -> dict[str, Any]:
    """Calibrate a model by rows that are as they should be, drawn like those to come and used for nothing else.

    p-values, anomalies and the watch for drift rest on them from then on; at least 19 are needed. They replace the
    calibration before, and the artifact itself stays as it is. Requests that are being answered keep theirs.
    """
    assert desk.keeping is not None  # or it would not be offered
    desk.count(visit, rows, model.draws)
    found = await operations.calibrate(desk.models, model, rows, desk.keeping, errand=visit.errand)
    return {
        "n": found.references.n,
        "seed": found.bank.seed,
        "draws": found.bank.draws,
        "score": found.references.chosen,
        "smallest_p": found.references.scores[found.references.chosen].smallest_p,
        "made": found.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "digest": model.digest,
    }


OPERATIONS = (Operation("calibrate", Calibrate, Calibrated, calibrate, "inputs", INPUTS, changes=True),)
