"""Held-out −log p of black-and-white digits by a VAE and an IWAE, beside what Burda et al. published.

    python -m training fit configs/binarised-vae.yaml && python -m training export runs/binarised-vae --to MODELS
    python -m training fit configs/binarised-iwae.yaml && python -m training export runs/binarised-iwae --to MODELS
    python -m benchmarks.burda MODELS [--rows 500] [--draws 5000]

Importance Weighted Autoencoders (2016), table 1: one stochastic layer, 784-200-200-50, −log p by the average of 5,000
weights of draws from q. That average is a bound, and lower than log p where q is bad, so `evidence` stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service import engine, models, operations
from service.evidence.estimate import log_mean
from service.lanes import Lanes
from service.models import Model
from training import calibrate

Doubles = NDArray[np.float64]

PUBLISHED = {"binarised-vae": ("VAE, k = 1", 86.76), "binarised-iwae": ("IWAE, k = 50", 84.78)}
AT_ONCE = 10  # rows
HEAD = """| fitted by | epochs | −ELBO | −log mean of {draws} weights | −log p by evidence | reliable | published |
|---|---|---|---|---|---|---|"""


async def line(folder: Path, rows: int, draws: int) -> str:
    """What one model gives the first rows of its test split, in nats a row, ± the standard error over rows."""
    lanes = Lanes(1)
    workshop = models.Workshop(open_engine=partial(engine.open_engine, device="cpu"), lanes=lanes)
    try:
        async with models.open_one(folder, workshop) as model:
            x = operations.admit(calibrate.held_out_rows(model.manifest, "test")[:rows], model.manifest)
            parts = [await figures(model, x[start : start + AT_ONCE], draws) for start in range(0, len(x), AT_ONCE)]
            elbo, textbook, evidence, reliable = (np.concatenate(column) for column in zip(*parts, strict=True))
            label, published = PUBLISHED[model.manifest.name]
            cells = " | ".join(mean(-values) for values in (elbo, textbook, evidence))
            epochs = model.manifest.training.epochs
            return f"| {label} | {epochs} | {cells} | {reliable.mean():.0%} | {published} |"
    finally:
        lanes.close()


async def figures(model: Model, x: NDArray[np.generic], draws: int) -> tuple[Doubles, ...]:
    """ELBO, the log of the mean weight of draws from q, log p by evidence, and whether that is reliable; (rows,)."""
    errand = operations.Errand()
    weights = (await errand.ask(model, "elbo", {"x": x}, await model.bank(0, draws)))["log_weight"]
    found = await operations.evidence_of(model, x, draws=draws, errand=errand)
    textbook = log_mean(np.ascontiguousarray(weights))
    return found.bound.elbo, textbook, found.estimate.log_evidence, found.estimate.reliable.astype(np.float64)


def mean(values: Doubles) -> str:
    """A mean and its standard error over rows."""
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--draws", type=int, default=5000)
    asked = parser.parse_args()
    print(HEAD.format(draws=asked.draws))
    for name in PUBLISHED:
        folder = max((asked.models / name).glob("[0-9]*"), key=lambda path: int(path.name))
        print(asyncio.run(line(folder, asked.rows, asked.draws)), flush=True)


if __name__ == "__main__":
    main()
