"""What the score detects, beside the squared error to one random reconstruction that most people serve.

    python -m benchmarks.detection

AUROC of held-out rows against others, over the committed artifacts, through the service's own operations. Nothing is
chosen here: the splits are the artifacts' own, and rows, seeds and resizing are fixed below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service import anomaly, models, operations
from service.artifact import Array
from service.engine import open_engine
from service.lanes import Lanes
from service.models import Model, Workshop
from service.operations import Errand, Score
from training import config, data

MODELS = Path(__file__).parents[1] / "exported_models"
ALPHA = 0.05


@dataclass(frozen=True)
class Question:
    """Held-out rows against others, and what the others are."""

    normal: str
    others: str
    held_out: Array
    strange: Array


def dataset(model: Model) -> data.DataSet:
    """The data that the artifact's manifest names, split as it was."""
    run = config.check(model.manifest.training.config, "manifest.json: training.config")
    return data.load(run.data)


def digits_questions(model: Model) -> Iterator[Question]:
    """The held-out digits against four things that aren't what they are."""
    test = np.asarray(dataset(model).splits["test"])
    generator = np.random.default_rng(0)
    shuffled = np.array([generator.permuted(row.ravel()).reshape(row.shape) for row in test])
    yield Question("MNIST digits", "the same, upside down", test, np.ascontiguousarray(test[:, ::-1, ::-1]))
    yield Question("MNIST digits", "the same, pixels shuffled", test, shuffled)
    yield Question("MNIST digits", "the same, inverted", test, 255 - test)
    yield Question("MNIST digits", "scikit-learn's digits, resized", test, resized_digits())


def resized_digits() -> Array:
    """scikit-learn's 8×8 digits of 17 levels as MNIST has them: 20×20 by linear interpolation, in a frame of 28×28."""
    images = load_digits().images
    large = np.array([ndimage.zoom(image, 20 / 8, order=1) for image in images])
    return np.pad(np.clip(np.rint(large * 255 / 16), 0, 255), ((0, 0), (4, 4), (4, 4))).astype(np.uint8)


def tumour_questions(model: Model) -> Iterator[Question]:
    """Benign against malignant, the model having seen benign only."""
    found = dataset(model)
    assert found.anomalies is not None
    yield Question("benign tumours", "malignant ones", np.asarray(found.splits["test"]), np.asarray(found.anomalies))


async def squared_error(model: Model, rows: Array) -> Array:
    """The mean squared error to one random reconstruction, seed 0."""
    found = await operations.reconstruct(model, rows, draws=1, seed=0, errand=Errand())
    return np.asarray(((found.astype(np.float64) - rows) ** 2).reshape(len(rows), -1).mean(-1))


def auroc(normal: Array, strange: Array) -> float:
    """The share of pairs that are ranked right; greater means stranger."""
    labels = np.r_[np.zeros(len(normal)), np.ones(len(strange))]
    return float(roc_auc_score(labels, np.r_[normal, strange]))


async def row(model: Model, question: Question) -> str:
    """One line of the table."""
    normal = await operations.score(model, question.held_out, alpha=ALPHA, errand=Errand())
    strange = await operations.score(model, question.strange, alpha=ALPHA, errand=Errand())
    ours = [area(normal, strange, name) for name in anomaly.KINDS]
    errors = [await squared_error(model, rows) for rows in (question.held_out, question.strange)]
    flagged = np.mean([bool(flag) for flag in strange.anomaly or ()])
    sizes = f"{len(question.held_out)} / {len(question.strange)}"
    cells = [question.normal, question.others, sizes, *ours, f"{auroc(*errors):.3f}", f"{flagged:.1%}"]
    return f"| {' | '.join(cells)} |"


def area(normal: Score, strange: Score, name: str) -> str:
    """A score's AUROC, in bold where it is the one that `anomaly` is told by."""
    each = [anomaly.strangeness(name, found.scores[name].value) for found in (normal, strange)]
    told = f"{auroc(*each):.3f}"
    return f"**{told}**" if name == normal.calibration.score else told


async def alarms(model: Model) -> str:
    """How many held-out test rows each score flags, beside the range that a sound calibration gives 99 times in 100."""
    test = np.asarray(dataset(model).splits["test"])
    found = await operations.score(model, test, alpha=ALPHA, errand=Errand())
    n = found.calibration.n or 0
    rank = int(np.floor(ALPHA * (n + 1) + 1e-9))
    low, high = stats.betabinom(len(test), rank, n + 1 - rank).interval(0.99)
    p_values = [found.scores[name].p_value for name in anomaly.KINDS]
    counts = [str(int((p <= ALPHA).sum())) for p in p_values if p is not None]
    return f"| {model.manifest.name} | {n} | {len(test)} | {' | '.join(counts)} | {low:.0f}–{high:.0f} |"


async def main() -> None:
    """Print both tables."""
    print("AUROC, greater is better; in bold the score that the manifest chose, and what it flags at α = 0.05\n")
    names = " | ".join(anomaly.KINDS)
    print(f"| held out | against | rows | {names} | one-draw squared error | flagged |")
    print("|---" * (len(anomaly.KINDS) + 5) + "|")
    for name, questions in (("mnist", digits_questions), ("breast-cancer", tumour_questions)):
        async with models.open_one(MODELS / name / "1", Workshop(open_engine, Lanes(2))) as model:
            for question in questions(model):
                print(await row(model, question), flush=True)
    print("\nFalse alarms among held-out test rows at α = 0.05\n")
    print(f"| model | calibration rows | test rows | {names} | 99 % range |")
    print("|---" * (len(anomaly.KINDS) + 4) + "|")
    for name in sorted(path.name for path in MODELS.iterdir()):
        async with models.open_one(MODELS / name / "1", Workshop(open_engine, Lanes(2))) as model:
            print(await alarms(model), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
