"""What imputation is worth: held-out rows with values taken out, beside means, nearest neighbours and a Gaussian.

    python -m benchmarks.imputation [FOLDER OF AN ARTIFACT]

The artifact is one that was trained for missing values; its own splits are used, through the service's own operations,
and nothing is chosen here. `reliable` is the share of rows whose answer says so; errors are in standard deviations of
the fitted rows. The log score is (log p(x) − log p(x_observed)) / missing values, in nats a value of standardised
rows, from the evidence operation.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.impute import KNNImputer

from service import models, operations
from service.engine import open_engine
from service.lanes import Lanes
from service.models import Model, Workshop
from service.operations import Errand
from training import config, data, missing

FOLDER = Path(__file__).parents[1] / "exported_models" / "breast-cancer-missing" / "1"
RATES = (0.1, 0.3, 0.5, 0.7)
MASKS = 5  # of each held-out row
DRAWS = 2048  # decoder calls for each evidence

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """Held-out rows, which of their values are taken out, and the rows to learn from; standardised, (rows, D) each."""

    whole: Doubles
    holed: Doubles
    fitted: Doubles

    @property
    def gone(self) -> Flags:
        """Which values were taken out."""
        return np.asarray(np.isnan(self.holed), np.bool_)

    def rmse(self, found: Doubles) -> float:
        """The root mean squared error over the values that were taken out."""
        return float(np.sqrt(np.mean((found - self.whole)[self.gone] ** 2)))


def by_means(question: Question) -> tuple[Doubles, float]:
    """0, the column's mean, and a standard normal's log score."""
    values = question.whole[question.gone]
    score = float(np.mean(-0.5 * values**2 - 0.5 * np.log(2 * np.pi)))
    return np.where(question.gone, 0.0, question.holed), score


def by_neighbours(question: Question) -> tuple[Doubles, float]:
    """scikit-learn's KNNImputer as it comes, five neighbours; it has no density."""
    return np.asarray(KNNImputer().fit(question.fitted).transform(question.holed)), float("nan")


def by_a_gaussian(question: Question) -> tuple[Doubles, float]:
    """The conditional of one multivariate normal, its covariance shrunk (Ledoit & Wolf 2004)."""
    covariance = LedoitWolf(assume_centered=True).fit(question.fitted).covariance_
    found, scores = question.holed.copy(), 0.0
    for row, whole in zip(found, question.whole, strict=True):
        gone = np.isnan(row)
        gain = covariance[gone][:, ~gone] @ np.linalg.inv(covariance[~gone][:, ~gone])
        spread = covariance[gone][:, gone] - gain @ covariance[~gone][:, gone]
        row[gone] = gain @ row[~gone]
        away = (whole - row)[gone]
        scores -= 0.5 * (away @ np.linalg.solve(spread, away) + np.linalg.slogdet(2 * np.pi * spread)[1])
    return found, scores / int(question.gone.sum())


OTHERS: dict[str, Callable[[Question], tuple[Doubles, float]]] = {
    "column means": by_means,
    "5 nearest neighbours": by_neighbours,
    "one Gaussian": by_a_gaussian,
}


async def by_the_model(
    model: Model, question: Question, centre: Doubles, spread: Doubles
) -> tuple[Doubles, float, float]:
    """E[x_missing|x_observed], log p(x) − log p(x_observed), and the share of reliable rows, by the service."""
    holed, whole = question.holed * spread + centre, question.whole * spread + centre
    found = await operations.impute(model, holed, draws=1, errand=Errand())
    parts = [await operations.evidence_of(model, rows, draws=DRAWS, errand=Errand()) for rows in (whole, holed)]
    all_of_it, observed = (part.estimate.log_evidence for part in parts)
    units = (question.gone * np.log(spread)).sum()  # the Jacobian of standardising what is missing
    score = float(((all_of_it - observed).sum() + units) / question.gone.sum())
    return (found.outputs - centre) / spread, score, float(np.mean(found.reliable))


def asked(dataset: data.DataSet, rate: float) -> tuple[Question, Doubles, Doubles]:
    """The test rows, each with several masks of a rate, and what standardises them."""
    fitted = dataset.splits["fit"].reshape(len(dataset.splits["fit"]), -1)
    centre, spread = np.nanmean(fitted, 0), np.nanstd(fitted, 0)
    test = dataset.splits["test"].reshape(len(dataset.splits["test"]), -1)
    whole = np.tile((test - centre) / spread, (MASKS, 1))
    generator = np.random.default_rng(round(1000 * rate))
    holed = missing.punch(whole, config.Missing(least=rate, most=rate), generator)
    some = np.isnan(holed).any(1) & ~np.isnan(holed).all(1)
    return Question(whole[some], holed[some], (fitted - centre) / spread), centre, spread


async def main(folder: Path) -> None:
    """Open the artifact and print the table."""
    lanes = Lanes(1)
    try:
        async with models.open_one(folder, Workshop(lambda found: open_engine(found, "cpu"), lanes)) as model:
            run = config.check(model.manifest.training.config, "manifest.json: training.config")
            dataset = data.of(run)
            held_out = model.manifest.training.held_out["elbo"]
            print(f"{model.manifest.name}: held-out ELBO of complete test rows {held_out:.2f} nats a row\n")
            print("| missing | by | RMSE (standard deviations) | log score (nats a value) | reliable |")
            print("|---|---|---|---|---|", flush=True)
            for rate in RATES:
                question, centre, spread = asked(dataset, rate)
                found, score, reliable = await by_the_model(model, question, centre, spread)
                cells = f"{question.rmse(found):.3f} | {score:.3f} | {reliable:.0%}"
                print(f"| {rate:.0%} | {model.manifest.name} | {cells} |", flush=True)
                for name, way in OTHERS.items():
                    found, score = way(question)
                    said = "–" if np.isnan(score) else f"{score:.3f}"
                    print(f"| {rate:.0%} | {name} | {question.rmse(found):.3f} | {said} | – |", flush=True)
    finally:
        lanes.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
