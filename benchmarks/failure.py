"""When the ELBO fails: pictures that are simpler than the data, and what the score chosen instead makes of them.

    python -m benchmarks.failure [PICTURE.png]

Nalisnick et al. (2019) found that a model of FashionMNIST gives MNIST, which is simpler, a higher likelihood. The same
is shown here on the committed model of MNIST, with pictures that its score was not chosen by: the choice saw
validation rows and the strangers of training/strangers.py alone, of which `constant` and `erased` are the nearest.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.detection import MODELS, area, auroc, dataset
from service import anomaly, models, operations
from service.anomaly import Doubles
from service.artifact import Array
from service.engine import open_engine
from service.lanes import Lanes
from service.models import Workshop
from service.operations import Errand, Score

SHOWN = ("elbo", "typicality", "density_of_states")
SIDE = 28


@dataclass(frozen=True)
class Simple:
    """Pictures that are simpler than digits, and what they are."""

    name: str
    rows: Array


def simple(test: Array) -> Iterator[Simple]:
    """From nothing at all to digits with half of their contrast; and two that are not simple, to compare."""
    generator = np.random.default_rng(0)
    yield Simple("blank", np.zeros((200, SIDE, SIDE), np.uint8))
    yield Simple("one dot of 2×2", np.stack([_bar(generator, 2, 2) for _ in range(200)]))
    yield Simple("a bar, upright", np.stack([_bar(generator, 18, 2) for _ in range(200)]))
    yield Simple("a bar, lying", np.stack([_bar(generator, 2, 18) for _ in range(200)]))
    yield Simple("a blurred spot", np.stack([_spot(generator) for _ in range(200)]))
    yield Simple("the digits, upper half", np.where(np.arange(SIDE)[:, None] < SIDE // 2, test, 0).astype(np.uint8))
    yield Simple("the digits, half as bright", test // 2)
    yield Simple("the digits, a quarter as bright", test // 4)
    yield Simple("the digits, half as large", np.stack([_smaller(row) for row in test]))
    yield Simple("the digits, twice, half left and half right", np.stack([_halves(row) for row in test]))
    yield Simple("noise", generator.integers(0, 256, (200, SIDE, SIDE)).astype(np.uint8))


def _bar(generator: np.random.Generator, height: int, width: int) -> Array:
    """One white bar somewhere."""
    row = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (generator.integers(4, SIDE - 4 - size + 1) for size in (height, width))
    row[top : top + height, left : left + width] = 255
    return row


def _spot(generator: np.random.Generator) -> Array:
    """A soft spot somewhere."""
    place = generator.uniform(10, 18, 2)
    away = ((np.indices((SIDE, SIDE)) - place[:, None, None]) ** 2).sum(0)
    return np.asarray(np.rint(200 * np.exp(-away / 18)), np.uint8)


def _smaller(row: Array) -> Array:
    """A digit in 14×14, in the middle."""
    small = ndimage.zoom(row.astype(np.float64), 0.5, order=1)
    return np.pad(np.clip(np.rint(small), 0, 255), SIDE // 4).astype(np.uint8)


def _halves(row: Array) -> Array:
    """The left half of a digit and its mirror."""
    return np.concatenate([row[:, : SIDE // 2], row[:, SIDE // 2 - 1 :: -1]], axis=1)


def line(normal: Score, strange: Score, name: str) -> str:
    """One line of the table: how the ELBO ranks them, how the others do, and what is flagged."""
    areas = [area(normal, strange, score) for score in SHOWN]
    below = float(np.median(strange.bound.elbo))
    p = [strange.scores[score].p_value for score in ("elbo", strange.calibration.score or "elbo")]
    flagged = [f"{(each <= 0.05).mean():.0%}" for each in p if each is not None]
    return f"| {' | '.join([name, f'{below:.0f}', *areas, *flagged])} |"


async def main(picture: Path | None) -> None:
    """Print the table, and draw the picture where one is asked for."""
    async with models.open_one(MODELS / "mnist" / "1", Workshop(open_engine, Lanes(1))) as model:
        test = np.asarray(dataset(model).splits["test"])
        normal = await operations.score(model, test, errand=Errand())
        chosen = normal.calibration.score
        print(f"MNIST test digits (median ELBO {np.median(normal.bound.elbo):.0f} nats) against simpler pictures.")
        print(f"AUROC, 0.5 is chance; in bold the score that the manifest chose ({chosen}).\n")
        print(f"| against | median ELBO | {' | '.join(SHOWN)} | flagged by elbo | flagged by {chosen} |")
        print("|---" * (len(SHOWN) + 4) + "|")
        kinds = list(simple(test))
        found = [await operations.score(model, kind.rows, errand=Errand()) for kind in kinds]
        for kind, strange in zip(kinds, found, strict=True):
            print(line(normal, strange, kind.name), flush=True)
        higher = [auroc(normal.bound.elbo, each.bound.elbo) for each in found]
        print(f"\nOf {len(kinds)} kinds the ELBO puts {sum(area > 0.5 for area in higher)} above the digits.")
        if picture:
            draw(picture, test, normal, kinds, found)


def draw(path: Path, test: Array, normal: Score, kinds: Sequence[Simple], found: Sequence[Score]) -> None:
    """Two rows of histograms, the ELBO and the chosen score: the digits, and four kinds with a picture of each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [0, 2, 5, 6]
    chosen = normal.calibration.score or "elbo"
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 6.4), height_ratios=(1, 2, 2), layout="constrained")
    strip = np.concatenate([test[0], *(kinds[index].rows[0] for index in shown)], axis=1)
    axes[0].imshow(255 - strip, cmap="gray")
    axes[0].set_axis_off()
    axes[0].set_title("a digit | " + " | ".join(kinds[index].name for index in shown), fontsize=8)
    for axis, score in zip(axes[1:], ("elbo", chosen), strict=True):
        values = [normal.scores[score].value, *(found[index].scores[score].value for index in shown)]
        _histogram(axis, score, values, ["digits", *(kinds[index].name for index in shown)])
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _histogram(axis: object, score: str, values: Sequence[Doubles], labels: Sequence[str]) -> None:
    """Histograms of one score over one another; left is stranger."""
    low = float(np.quantile(values[0], 0.001)) - 3 * float(values[0].std())
    edges = np.linspace(low, max(float(each.max()) for each in values) + 1, 90)
    for each, label in zip(values, labels, strict=True):
        axis.hist(np.clip(each, edges[0], None), edges, density=True, alpha=0.55, label=label)  # type: ignore[attr-defined]
    axis.set_xlabel(f"{score} ({anomaly.KINDS[score].unit}); the lower the stranger", fontsize=8)  # type: ignore[attr-defined]
    axis.set_yscale("log")  # type: ignore[attr-defined]


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
