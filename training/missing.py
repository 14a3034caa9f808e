"""Missing: values taken out of rows at random, and what stands where one is absent. NaN is absent. Knows no torch.

What stands in for an absent value never reaches a score: its term is dropped, so any value on the support will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import Missing, Unusable

Rows = NDArray[Any]


def punch(rows: Rows, wanted: Missing, generator: np.random.Generator) -> Rows:
    """The rows with values taken out at random: of each row a share that is uniform between `least` and `most`.

    >>> rows = punch(np.ones((1000, 10)), Missing(least=0.2, most=0.4), np.random.default_rng(0))
    >>> round(float(np.isnan(rows).mean()), 1)
    0.3
    """
    rates = generator.uniform(wanted.least, wanted.most, (len(rows), *[1] * (rows.ndim - 1)))
    return np.where(generator.random(rows.shape) < rates, rows.dtype.type(np.nan), rows)


def floating(rows: Rows) -> Rows:
    """Rows of a dtype that can say that a value is absent; whole numbers stay whole, and float32 holds all of uint8.

    >>> floating(np.array([[1, 255]], np.uint8))
    array([[  1., 255.]], dtype=float32)
    """
    return rows if rows.dtype.kind == "f" else rows.astype(np.float32 if rows.dtype.itemsize <= 2 else np.float64)


def stand_in(fitted: Rows) -> Rows:
    """One value a feature that occurs among the fitted rows, near their middle, and so on the support; (*event).

    Unusable where a feature is never there.

    >>> stand_in(np.array([[1.0, np.nan], [2.0, 5.0], [9.0, 7.0]])).tolist()
    [2.0, 5.0]
    """
    absent = np.isnan(fitted).all(0)
    if absent.any():
        place = ", ".join(map(str, np.argwhere(absent)[0]))
        raise Unusable(f"feature {place} is missing in every fitted row; leave it out")
    return np.asarray(np.nanquantile(fitted, 0.5, axis=0, method="lower"), fitted.dtype)


def filled(rows: Rows, fitted: Rows) -> Rows:
    """Rows whose holes became evenly spaced quantiles of their feature among the fitted rows.

    For what is fitted to features one by one, a mean and a scale; a single stand-in would make the scale too small.

    >>> rows = np.array([[1.0], [np.nan], [3.0], [5.0]])
    >>> filled(rows, rows).ravel().tolist()
    [1.0, 3.0, 3.0, 5.0]
    """
    holes = np.isnan(rows)
    if not holes.any():
        return rows
    stand_in(fitted)  # every feature is there at least once
    flat, donors = rows.reshape(len(rows), -1).copy(), fitted.reshape(len(fitted), -1)
    for column in np.flatnonzero(np.isnan(flat).any(0)):
        gaps = np.isnan(flat[:, column])
        there = np.sort(donors[:, column])
        there = there[~np.isnan(there)]
        levels = (np.arange(gaps.sum()) + 0.5) / gaps.sum()
        flat[gaps, column] = there[(levels * len(there)).astype(int)]
    return flat.reshape(rows.shape)
