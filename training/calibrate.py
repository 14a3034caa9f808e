"""Calibration: held-out rows through the service's own engine and operations → reference scores in the artifact.

The code that will serve makes the reference scores, so a p-value is about the very number that is returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service import artifact, calibration, engine, models, noise, operations
from service.artifact import Calibration, Manifest
from training import config, data
from training.config import Unusable

Rows = NDArray[np.generic]
SEED, DRAWS = 0, 16
AT_ONCE = 250  # rows

Scored = Callable[[int, int], None]


def calibrate(folder: Path, scored: Scored | None = None) -> Calibration:
    """Score the calibration split and write the scores, and the noise they were made with, into the artifact.

    scored, if given, is told how many of how many rows are done. ArtifactRefused where the folder isn't what its
    manifest says; Unusable where the data no longer gives the rows that were set aside.
    """
    found = artifact.read(folder)
    rows = held_out_rows(found.manifest)
    scores, bank = asyncio.run(score(folder, rows, scored))
    hold_to_seed(bank)
    reference = calibration.fit(scores)
    elbo = found.manifest.graphs["elbo"].file
    facts = Calibration(
        n=len(scores),
        draws=DRAWS,
        seed=SEED,
        estimator=models.estimator(bank),
        smallest_p=reference.smallest_p,
        split=artifact.digest_rows(rows),
        graphs={elbo: found.manifest.files[elbo].sha256},
    )
    arrays = artifact.pack({"scores": reference.scores, "noise": bank.noise})
    artifact.rewrite(found, {"calibration": facts.model_dump()}, {artifact.CALIBRATION: arrays})
    return facts


def hold_to_seed(bank: noise.Bank) -> None:
    """Unusable unless the bank is the one that its seed makes.

    Loading doesn't ask again, since making a bank costs half a second: there calibration.npz's SHA-256 binds it.
    """
    if not np.array_equal(bank.noise, noise.bank(bank.seed, bank.draws, bank.noise.shape[1]).noise):
        raise Unusable(f"the noise used is not what seed {bank.seed} makes here; another SciPy may have made it")


def held_out_rows(manifest: Manifest) -> Rows:
    """The calibration split, made again from the run in the manifest and held to its digest."""
    run = config.check(manifest.training.config, f"{artifact.MANIFEST}: training.config")
    dataset = data.load(run.data)
    if dataset.digests["calibration"] != manifest.training.splits["calibration"]:
        raise Unusable(f"{run.data.name} no longer gives the rows that were set aside for calibration; fit again")
    return dataset.splits["calibration"]


async def score(folder: Path, rows: Rows, scored: Scored | None) -> tuple[NDArray[np.float64], noise.Bank]:
    """The rows' ELBOs, (n,), as the service gives them, and the bank that it used."""
    lanes = engine.Lanes(1)
    workshop = models.Workshop(open_engine=partial(engine.open_engine, device="cpu"), lanes=lanes)
    parts = []
    try:
        async with models.open_one(folder, workshop) as opened:
            model = replace(opened, calibrated=None, reference=None)  # an earlier calibration's bank has had its day
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                errand = operations.Errand()
                answer = await operations.score(model, part, draws=DRAWS, seed=SEED, errand=errand)
                parts.append(answer.bound.elbo)
                if scored:
                    scored(start + len(part), len(rows))
            return np.concatenate(parts), await model.bank(SEED, DRAWS)
    finally:
        lanes.close()
