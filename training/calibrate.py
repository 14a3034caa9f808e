"""Calibration: held-out rows through the service's own engine and operations → reference scores in the artifact.

The code that will serve makes the reference scores, so a p-value is about the very number that is returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service import anomaly, artifact, calibration, engine, models, noise, operations
from service.anomaly import Statistics
from service.artifact import Calibration, Choice, Manifest
from service.calibration import References
from service.lanes import Lanes
from service.models import DEFAULT_DRAWS, DEFAULT_SEED, Model
from training import card, choice, config, data, strangers
from training.config import Unusable

Rows = NDArray[np.generic]
AT_ONCE = 250  # rows

Scored = Callable[[int, int], None]


def calibrate(folder: Path, scored: Scored | None = None) -> Calibration:
    """Score the calibration split and write the scores, and the noise they were made with, into the artifact.

    What scores need to know of typical rows is fitted on the validation split, which also chooses the score that
    anomalies are told by. scored, if given, is told how many of how many rows are done. ArtifactRefused where the
    folder isn't what its manifest says; Unusable where the data no longer gives the rows that were set aside.
    """
    found = artifact.read(folder)
    validation, rows = held_out_rows(found.manifest, "validation"), held_out_rows(found.manifest)
    references, chosen, bank = asyncio.run(refer(folder, validation, rows, scored))
    facts = operations.facts(found.manifest, rows, bank, references, chosen)
    arrays = artifact.pack({**calibration.arrays(references), "noise": bank.noise})
    artifact.rewrite(found, {"calibration": facts.model_dump()}, {artifact.CALIBRATION: arrays})
    card.write(folder, held_out_rows(found.manifest, "test"))
    return facts


def held_out_rows(manifest: Manifest, split: data.SplitName = "calibration") -> Rows:
    """A split that was set aside, made again from the run in the manifest and held to its digest."""
    run = config.check(manifest.training.config, f"{artifact.MANIFEST}: training.config")
    dataset = data.of(run)
    if dataset.digests[split] != manifest.training.splits[split]:
        raise Unusable(f"{run.data.name} no longer gives the rows that were set aside for {split}; fit again")
    return dataset.splits[split]


async def refer(
    folder: Path, validation: Rows, rows: Rows, scored: Scored | None
) -> tuple[References, Choice, noise.Bank]:
    """All reference scores of the rows, as the service gives them, the choice among them, and the bank it used."""
    lanes = Lanes(1)
    workshop = models.Workshop(open_engine=partial(engine.open_engine, device="cpu"), lanes=lanes)
    try:
        async with models.open_one(folder, workshop) as model:
            bank = noise.bank(
                DEFAULT_SEED, DEFAULT_DRAWS, model.manifest.latent_size
            )  # not what an older calibration stored
            typical = await measure(model, validation, bank)
            others = strangers.made(validation, model.manifest.support, DEFAULT_SEED)
            chosen = choice.choose(typical, {kind: await measure(model, x, bank) for kind, x in others.items()})
            held, fitted, errand = operations.admit(rows, model.manifest), anomaly.fit(typical), operations.Errand()
            references = await operations.refer(model, held, bank, fitted, chosen.score, errand=errand, scored=scored)
            return references, chosen, bank
    finally:
        lanes.close()


async def measure(model: Model, rows: Rows, bank: noise.Bank) -> Statistics:
    """What the rows' scores are made of, as the service has it."""
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        part = operations.admit(rows[start : start + AT_ONCE], model.manifest)
        parts.append((await operations.measure(model, part, bank, norms=True, errand=operations.Errand()))[1])
    return anomaly.joined(parts)
