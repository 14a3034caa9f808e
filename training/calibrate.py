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
from training.data import DataSet
from training.own import rows as own_rows
from training.own.given import KIND
from training.own.rows import Sample

Rows = NDArray[np.generic]

Scored = Callable[[int, int], None]


def calibrate(folder: Path, scored: Scored | None = None, given: Sample | None = None) -> Calibration:
    """Score the calibration split and write the scores, and the noise they were made with, into the artifact.

    What scores need to know of typical rows is fitted on the validation split, which also chooses the score that
    anomalies are told by. scored, if given, is told how many of how many rows are done. given: the sample that an own
    model was exported with, since no config tells where it is. ArtifactRefused where the folder isn't what its
    manifest says; Unusable where the data no longer gives the rows that were set aside.
    """
    found = artifact.read(folder)
    dataset = of(found.manifest, given)
    validation, rows = (held_out_rows(found.manifest, split, dataset) for split in ("validation", "calibration"))
    references, chosen, bank = asyncio.run(refer(folder, validation, rows, scored))
    facts = operations.facts(found.manifest, rows, bank, references, chosen)
    arrays = artifact.pack({**calibration.arrays(references), "noise": bank.noise})
    artifact.rewrite(found, {"calibration": facts.model_dump()}, {artifact.CALIBRATION: arrays})
    card.write(folder, held_out_rows(found.manifest, "test", dataset))
    return facts


def of(manifest: Manifest, given: Sample | None = None) -> DataSet:
    """The data that a model was made with: by the run in its manifest, or, for an own model, as it is given."""
    if manifest.training.config.get("kind") == KIND:
        if given is None:
            raise Unusable("an own model's rows are with you alone: give those that it was exported with (--rows)")
        return own_rows.dataset(given, seed=int(manifest.training.config["split_seed"]))
    if given is not None:
        raise Unusable("rows are given for own models alone; this one's manifest says where its rows are from")
    return data.of(config.check(manifest.training.config, f"{artifact.MANIFEST}: training.config"))


def held_out_rows(manifest: Manifest, split: data.SplitName = "calibration", dataset: DataSet | None = None) -> Rows:
    """A split that was set aside, made again and held to its digest."""
    dataset = dataset or of(manifest)
    if dataset.digests[split] != manifest.training.splits[split]:
        where = dataset.source if manifest.training.config.get("kind") == KIND else manifest.training.data
        raise Unusable(f"{where}: these are no longer the rows that were set aside for {split}; export or fit again")
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
    held = operations.admit(rows, model.manifest)
    return anomaly.joined([one async for _, one in operations.measured(model, held, bank, errand=operations.Errand())])
