"""Calibrations: rows that are as they should be → the reference scores that p-values are taken from.

The operations that serve scores make them, for `training calibrate` as for a caller, so that a p-value is about the
very number that is returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from service import anomaly, artifact, calibration, footing, noise, state
from service.anomaly import Doubles
from service.artifact import Array, Calibration, Choice, Manifest, ScoreFacts
from service.calibration import References
from service.errors import Fault, Invalid, Problem, invalid
from service.footing import Footing
from service.models import Model, Models
from service.operations.errand import Errand, off_loop
from service.operations.rows import admitted
from service.operations.scores import measure, terms
from service.state import Prepared

AT_ONCE = 250  # rows
FEWEST = 19  # rows, for a p-value of 0.05
USUAL = Choice(score="elbo", why="it bounds log p(x), the density that the model states")
GRAPHS = ("elbo", "encoder", "terms")


async def _nobody(_: Model) -> None:
    """Nobody else serves the model."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where calibrations are kept, the false-alarm rate of their watch for drift, and who else is told of one."""

    folder: Path
    false_alarm: float
    told: Callable[[Model], Awaitable[None]] = _nobody


async def measured(
    model: Model, rows: Array, bank: noise.Bank, *, errand: Errand
) -> AsyncIterator[tuple[Array, anomaly.Statistics]]:
    """Admitted rows, some at a time, with what their scores are made of."""
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        yield part, (await measure(model, part, bank, norms=True, errand=errand))[1]


async def refer(
    model: Model,
    rows: Array,
    bank: noise.Bank,
    fitted: Mapping[str, anomaly.Parameters],
    chosen: str,
    *,
    errand: Errand,
    scored: Callable[[int, int], None] | None = None,
) -> References:
    """All references of admitted rows, with what was fitted for their scores elsewhere; Invalid where a row has none.

    scored, if given, is told how many of how many rows are done.
    """
    statistics, features, latents = [], [], []
    done = 0
    async for part, found in measured(model, rows, bank, errand=errand):
        statistics.append(found)
        feature, latent = await terms(model, part, bank, errand)
        features.append(feature)
        latents += [] if latent is None else [latent]
        done += len(part)
        if scored:
            scored(done, len(rows))
    values = anomaly.values(anomaly.joined(statistics), fitted)
    _refuse_numberless(values)

    def work() -> References:
        scores = {name: calibration.fit(array, anomaly.KINDS[name].strange) for name, array in values.items()}
        feature = calibration.spread(np.concatenate(features), "low")
        latent = calibration.spread(np.concatenate(latents), "high") if latents else None
        return References(scores, fitted, feature, latent, chosen)

    return await off_loop(len(rows) * model.manifest.dimensions, work)


def facts(manifest: Manifest, rows: Array, bank: noise.Bank, references: References, choice: Choice) -> Calibration:
    """What a calibration by these rows is of; what was fitted for its scores was fitted on the validation split."""
    return Calibration(
        n=references.n,
        complete=not bool(np.isnan(rows).any()),
        draws=bank.draws,
        seed=bank.seed,
        estimator=footing.estimator(bank),
        smallest_p=references.scores["elbo"].smallest_p,
        split=artifact.digest_rows(rows),
        graphs={file: manifest.files[file].sha256 for file in manifest.computed_by(*GRAPHS)},
        scores={name: _score_facts(name) for name in references.scores},
        anomaly=choice,
        validation=manifest.training.splits["validation"].sha256 if references.fitted else None,
        terms="median_95",
    )


async def calibrate(models: Models, model: Model, inputs: Array, keeping: Keeping, *, errand: Errand) -> Footing:
    """Calibrate a model by rows that are as they should be, keep that in the state, and serve by it from now on.

    One at a time for each model; a request that is being answered keeps the calibration that it began with. Whatever
    fails, or is cancelled, changes nothing.
    """
    if len(inputs) < FEWEST:
        reason = f"holds {len(inputs)} rows; {FEWEST} are needed at least, for any row to have p ≤ 0.05"
        raise invalid("/inputs", reason)
    x = await admitted(inputs, model.manifest)
    async with models.calibrating(model):
        bank = await model.bank(model.seed, model.draws)
        fitted = model.references.fitted if model.references else {}
        before = model.manifest.calibration
        choice = (before.anomaly if before else None) or USUAL
        references = await refer(model, x, bank, fitted, choice.score, errand=errand)
        made = footing.now()
        arrays: dict[str, Array] = {**calibration.arrays(references), "noise": bank.noise}
        said = facts(model.manifest, x, bank, references, choice)
        if before:  # its stored noise goes on being used, however it was made
            said = said.model_copy(update={"estimator": before.estimator})
        found = footing.renewed(references, bank, keeping.false_alarm, made, complete=said.complete)
        writing = asyncio.ensure_future(
            asyncio.to_thread(state.prepare, keeping.folder, model.digest, model.manifest, said, arrays, made)
        )
        prepared = await _unless_cancelled(writing)
        _swap(models, model, found, prepared)
        await keeping.told(model)
    return found


def _swap(models: Models, model: Model, found: Footing, prepared: Prepared) -> None:
    """Keep and serve a calibration, or neither; nothing is awaited, so nobody can be cancelled in between."""
    loop = asyncio.get_running_loop()
    try:
        models.hold(model)
        prepared.commit()
    except Problem:
        loop.run_in_executor(None, prepared.discard)
        raise
    models.serve(replace(model, footing=found))
    loop.run_in_executor(None, prepared.settle)


async def _unless_cancelled(writing: asyncio.Future[Prepared]) -> Prepared:
    """What is being written, once it is; cancelled, it is put away as soon as it is."""

    def put_away(ended: asyncio.Future[Prepared]) -> None:
        if not ended.cancelled() and ended.exception() is None:
            ended.result().discard()

    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        writing.add_done_callback(put_away)
        raise


def _score_facts(name: str) -> ScoreFacts:
    """What the manifest says of a score."""
    kind = anomaly.KINDS[name]
    return ScoreFacts(
        strange=kind.strange, unit=kind.unit, fitted={key: list(shape) for key, shape in kind.fitted.items()}
    )


def _refuse_numberless(values: Mapping[str, Doubles]) -> None:
    """Refuse rows that some score has no finite number for: others could not be told from them."""
    wrong = np.flatnonzero(~np.logical_and.reduce([np.isfinite(array) for array in values.values()]))
    if len(wrong):
        raise Invalid(*(Fault(f"/inputs/{row}", "has a score that isn't a finite number") for row in wrong[:8]))
