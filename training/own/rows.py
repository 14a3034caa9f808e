"""Rows: a sample of rows that the model was not trained on → four disjoint splits. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from service.artifact import Feature, Support
from training import data
from training.config import Unusable
from training.data import SPLITS, DataSet, Rows, SplitName
from training.sources.found import levels

DTYPES = ("uint8", "int32", "int64", "float32", "float64")
# What no artifact has, and the narrowest that holds each of its values.
WIDER = {"bool": "uint8", "int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64", "float16": "float32"}
FEWEST, FEWEST_EACH = 40, 5  # rows of a sample; of a split
Sample = Rows | Mapping[str, Rows] | Mapping[SplitName, Rows]


def dataset(sample: Sample, features: Sequence[str | Feature] | None = None, seed: int = 0) -> DataSet:
    """Rows in four splits: those that are given, or a sample cut up. Unusable where they can't be."""
    splits = _given(sample) if isinstance(sample, Mapping) else _cut(checked(sample), seed)
    first = splits["fit"]
    if len({rows.shape[1:] for rows in splits.values()} | {(rows.dtype,) for rows in splits.values()}) > 2:
        raise Unusable("sample: the splits differ in the shape or dtype of their rows")
    count = sum(map(len, splits.values()))
    named = tuple(_feature(one) for one in features or ())
    if named and len(named) != first[0].size:
        raise Unusable(f"features: {len(named)} names for {first[0].size} numbers a row")
    if len(named) > len({one.name for one in named}):
        raise Unusable("features: a name is given twice; an explanation names each number by its own")
    return DataSet(f"{count:,} rows given to the export", _support(splits), splits, named or None)


def _feature(said: object) -> Feature:
    """A feature by its name, or as it is."""
    if isinstance(said, Feature):
        return said
    if not isinstance(said, str) or not said:
        raise Unusable(f"features: names are text, not {said!r}")
    return Feature(name=said, unit=None)


def sample(path: Path) -> Sample:
    """The rows in an .npy file, or the four splits in an .npz; never unpickled. Unusable where it is neither."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: np.asarray(found[name]) for name in found.files}
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or 'not an .npy or .npz file'}") from error
    except (ValueError, EOFError, MemoryError, BadZipFile) as error:
        raise Unusable(f"{path}: not an .npy or .npz file of numbers; nothing in it was unpickled") from error


def checked(rows: object) -> Rows:
    """Rows along the first axis, of a dtype that an artifact may have, each a finite number."""
    found = _array(rows)
    found = found.astype(WIDER.get(found.dtype.name, found.dtype))
    if found.ndim < 2 or found[:1].size == 0:
        raise Unusable(f"sample: an array (rows, …) is needed, not one of shape {list(found.shape)}")
    if found.dtype.name not in DTYPES:
        raise Unusable(f"sample: holds {found.dtype}; {', '.join(DTYPES)} can be served: use .astype")
    if not np.isfinite(found).all():
        raise Unusable(
            "sample: holds NaN or an infinity; an own model takes no missing values. Leave such rows out, or fill them "
            "in as they are before the model is asked"
        )
    return np.ascontiguousarray(found, found.dtype.newbyteorder("="))


def _array(rows: object) -> Rows:
    """Rows as an array, whatever holds them: a tensor's are its values, wherever it lies and whatever it is part of."""
    if isinstance(rows, str | Path):
        raise Unusable(
            f"sample: {str(rows)!r} is a path, and rows are needed: np.load it, or say --sample to import-onnx"
        )
    if not isinstance(rows, list | tuple) and not hasattr(rows, "__array__"):
        raise Unusable(
            f"sample: a {type(rows).__name__} is no array (rows, …) of numbers; of a data set or its loader make one: "
            "torch.stack([x for x, *_ in dataset]), torch.cat([x for x, *_ in loader])"
        )
    try:
        if hasattr(rows, "detach"):  # a tensor; NumPy has no bfloat16, and float32 holds all of it
            held = rows.detach().cpu()
            return np.asarray(held.float() if str(held.dtype) == "torch.bfloat16" else held)
        return np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        ragged = "rows of unlike lengths make none; pad them, or cut them to one" if "inhomogeneous" in why else why
        raise Unusable(f"sample: isn't an array (rows, …) of numbers: {ragged}") from error


def shares(rows: int) -> tuple[int, int, int, int]:
    """Half of the rows to calibration, since a scale is all that is fitted here; a quarter to validation.

    >>> shares(1000)
    (125, 250, 500, 125)
    """
    edge, validation = rows // 8, rows // 4
    return edge, validation, rows - 2 * edge - validation, edge


def _cut(rows: Rows, seed: int) -> dict[SplitName, Rows]:
    different = data.distinct(rows)
    if len(different) < FEWEST:
        raise Unusable(f"sample: {len(different)} different rows, and at least {FEWEST} are needed; 1,000 are better")
    return data.split(different, shares(len(different)), seed)


def _given(splits: Mapping[Any, Rows]) -> dict[SplitName, Rows]:
    if sorted(splits) != sorted(SPLITS):
        raise Unusable(f"sample: the splits are {', '.join(SPLITS)}, not {', '.join(sorted(splits)) or 'none'}")
    found: dict[SplitName, Rows] = {name: checked(splits[name]) for name in SPLITS}
    seen: set[bytes] = set()
    for name, rows in found.items():
        own = {(row + 0).tobytes() for row in rows}
        if len(own) < FEWEST_EACH:
            raise Unusable(
                f"sample: {len(own)} different rows of {name}, and at least {FEWEST_EACH} of each split are needed; of "
                "calibration many more, for with n of them no p-value is below 1/(n + 1)"
            )
        if own & seen:
            raise Unusable(f"sample: a row of {name} is in another split too; splits are disjoint")
        seen |= own
    return found


def _support(splits: Mapping[SplitName, Rows]) -> Support:
    """What a dtype says of values, as for data from a file."""
    first = splits["fit"]
    if first.dtype == np.uint8:
        return levels(max(1, *(int(rows.max()) for rows in splits.values())))
    return Support(kind="counts" if first.dtype.kind == "i" else "real")
