"""What a VAE detects in tables, beside k-NN, isolation forest, ECOD, PCA and PyOD's VAE.

    python -m benchmarks.anomaly FOLDER          every FOLDER/*.npz with rows X and labels y, 1 for an anomaly

One class: each seed fits everyone to a random half of the normal rows, and asks how they rank the other half against
the anomalies (AUROC). Ours is `training.tables` with its default recipe, the same for every table; no label is seen
before the ranking is scored. The others are scikit-learn's and PyOD's at their defaults, on standardised columns as
is the custom. PyOD is in an extra: pip install -e '.[cpu,train,adapters]'.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

ROOT = Path(__file__).parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that `python benchmarks/anomaly.py` finds the trainer

Doubles = NDArray[np.float64]
Labels = NDArray[np.bool_]
Detector = Callable[[Doubles, Doubles, int], Doubles]  # rows to fit, rows to rank, seed → greater is stranger

SEEDS = (0, 1, 2)
NEIGHBOURS = 5
MOST = 10_000  # rows that anyone is fitted to, and of each kind that anyone ranks: a large table takes minutes
FEWEST = 16  # normal rows
MISSING = "PyOD is not installed: pip install -e '.[cpu,train,adapters]', or pip install 'pyod>=3.6' tqdm"


class Unusable(Exception):
    """Something that the caller can mend, in one line."""


@dataclass(frozen=True)
class Split:
    """Normal rows to fit, and rows to rank with what they are."""

    fitted: Doubles
    ranked: Doubles
    strange: Labels


@dataclass(frozen=True)
class Question:
    """A table and a seed: one split, ranked by everyone."""

    path: Path
    seed: int
    names: tuple[str, ...]


def ours(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:
    """The surprise of `training.tables`, with its default recipe."""
    from training import tables

    return tables.fit(fitted, tables.RECIPE, seed).surprise(ranked)


def knn(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:  # noqa: ARG001  # nothing is drawn
    """The mean distance to the five nearest fitted rows; ADBench takes five, too."""
    fitted, ranked = standardised(fitted, ranked)
    distances, _ = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(fitted))).fit(fitted).kneighbors(ranked)
    return np.asarray(distances.mean(1), np.float64)


def iforest(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:
    """Isolation forest, scikit-learn's defaults."""
    return np.asarray(-IsolationForest(random_state=seed).fit(fitted).score_samples(ranked), np.float64)


def ecod(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:  # noqa: ARG001  # nothing is drawn
    """PyOD's ECOD: tails of empirical distribution functions."""
    from pyod.models.ecod import ECOD

    return decided(ECOD(), *standardised(fitted, ranked))


def pca(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:
    """PyOD's PCA: distances along principal axes, weighted by their variances."""
    from pyod.models.pca import PCA

    return decided(PCA(random_state=seed), *standardised(fitted, ranked))


def pyod_vae(fitted: Doubles, ranked: Doubles, seed: int) -> Doubles:
    """PyOD's VAE, its defaults: squared error to one random reconstruction."""
    from pyod.models.vae import VAE

    return decided(VAE(random_state=seed, verbose=0), *standardised(fitted, ranked))


DETECTORS: dict[str, Detector] = {
    "ours": ours,
    "knn": knn,
    "iforest": iforest,
    "ecod": ecod,
    "pca": pca,
    "pyod_vae": pyod_vae,
}
OF_PYOD = ("ecod", "pca", "pyod_vae")


def standardised(fitted: Doubles, ranked: Doubles) -> tuple[Doubles, Doubles]:
    """Both by the fitted rows' means and standard deviations."""
    mean, deviation = fitted.mean(0), fitted.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (fitted - mean) / deviation, (ranked - mean) / deviation


def decided(detector: object, fitted: Doubles, ranked: Doubles) -> Doubles:
    """What one of PyOD's detectors makes of the rows. What doesn't vary says nothing, and some of them divide by it."""
    varies = fitted.std(0) > 0
    detector.fit(fitted[:, varies])  # type: ignore[attr-defined]  # PyOD has no types
    return np.asarray(detector.decision_function(ranked[:, varies]), np.float64)  # type: ignore[attr-defined]


def read(path: Path) -> tuple[Doubles, Labels]:
    """A table's rows, (n, D), and which are anomalies, (n,); Unusable where the file holds no such thing."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows, labels = np.asarray(archive["X"], np.float64), np.asarray(archive["y"]).ravel()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Unusable(f"{path}: not an npz of numbers named X and y: {error}") from error
    strange = labels != 0
    if rows.shape[:1] != labels.shape or not rows.size or not strange.any() or not np.isfinite(rows).all():
        raise Unusable(f"{path}: X must be finite rows, and y as many labels, 0 for normal rows and 1 for anomalies")
    if (~strange).sum() < FEWEST:
        raise Unusable(f"{path}: holds {(~strange).sum()} normal rows, and at least {FEWEST} are needed")
    return rows.reshape(len(rows), -1), strange


def split(rows: Doubles, strange: Labels, seed: int) -> Split:
    """A random half of the normal rows to fit; the others and the anomalies to rank."""
    generator = np.random.default_rng(seed)
    normal, others = (generator.permutation(np.flatnonzero(which)) for which in (~strange, strange))
    half = len(normal) // 2
    ranked = np.concatenate((normal[half:][:MOST], others[:MOST]))
    return Split(rows[normal[:half][:MOST]], rows[ranked], strange[ranked])


def answer(question: Question) -> list[float]:
    """The AUROC of each detector on one split, in hundredths."""
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # PyOD's and scikit-learn's, about their own settings
    found = split(*read(question.path), question.seed)
    values = []
    for name in question.names:
        scores = DETECTORS[name](found.fitted, found.ranked, question.seed)
        if name != "ours":  # PyOD's may divide by 0; ours has to give a number for every row
            scores = np.nan_to_num(scores)
        values.append(100.0 * float(roc_auc_score(found.strange, scores)))
    return values


def answers(questions: list[Question], jobs: int) -> Iterator[list[float]]:
    """Answers in the order of the questions; each process has one thread, so nobody's numbers depend on jobs."""
    if jobs == 1:
        yield from map(answer, questions)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(answer, questions)


def main(arguments: list[str] | None = None) -> None:
    """Print a line a table, and the means last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomaly", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder of .npz files with rows X and labels y")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=DETECTORS, default=list(DETECTORS), help="detectors (all)")
    wanted = parser.parse_args(arguments)
    try:
        run(wanted.folder, tuple(wanted.only), wanted.jobs)
    except Unusable as error:
        sys.exit(str(error))


def run(folder: Path, names: tuple[str, ...], jobs: int) -> None:
    """Every table of a folder, by every detector named."""
    if set(names) & set(OF_PYOD) and not (find_spec("pyod") and find_spec("tqdm")):
        raise Unusable(MISSING)
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise Unusable(f"{folder}: holds no .npz file")
    for path in paths:
        read(path)  # so that what can't be used is said at once
    packages = ("torch", "scikit-learn", "numpy", *(("pyod",) if set(names) & set(OF_PYOD) else ()))
    print(f"{len(paths)} tables, {len(SEEDS)} seeds; " + ", ".join(f"{name} {version(name)}" for name in packages))
    print(
        f"AUROC × 100: mean over seeds ± their standard deviation\n\n| table | rows × columns | {' | '.join(names)} |"
    )
    print("|---|---|" + "---|" * len(names), flush=True)
    found = answers([Question(path, seed, names) for path in paths for seed in SEEDS], jobs)
    means = []
    for path in paths:
        values = np.array([next(found) for _ in SEEDS])  # (seeds, detectors)
        means.append(values.mean(0))
        cells = (f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(means[-1], values.std(0), strict=True))
        rows, _ = read(path)
        print(f"| {path.stem} | {rows.shape[0]} × {rows.shape[1]} | {' | '.join(cells)} |", flush=True)
    overall = np.mean(means, axis=0)
    print("\nmean auroc: " + " ".join(f"{name}={mean:.2f}" for name, mean in zip(names, overall, strict=True)))


if __name__ == "__main__":
    main()
