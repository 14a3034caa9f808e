"""Strangers: rows that are made of typical ones and aren't typical, to choose a score by. Knows no model.

Every value of a stranger is a value that some row has in that place, or for pictures in another place, or lies between
the lowest and the highest level: so strangers keep to the support, whatever the family. Tables are spoilt in ways that
break what columns have to do with one another; pictures also in ways that make them simpler, since that is where
likelihoods are known to fail (Nalisnick et al. 2019, Serrà et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from service.artifact import Array, Support

Maker = Callable[[Array, np.random.Generator], Array]


def made(rows: Array, support: Support, seed: int) -> dict[str, Array]:
    """Strangers of each kind by its name, (n, *event) like the rows; stranger i is made mostly of row i."""
    kinds = dict(TABLES) if rows.ndim == 2 else {**TABLES, **PICTURES}
    if rows.ndim > 2 and support.kind == "levels":
        kinds |= {"inverted": lambda x, _: _between(support, int(support.lowest or 0) + int(support.highest or 0) - x)}
    sequence = np.random.SeedSequence(seed).spawn(len(kinds))
    generators = [np.random.default_rng(child) for child in sequence]
    found = [
        np.ascontiguousarray(make(rows, g), rows.dtype) for make, g in zip(kinds.values(), generators, strict=True)
    ]
    return dict(zip(kinds, found, strict=True))


# ---------------------------------------------------------------- any rows


def mixed(rows: Array, generator: np.random.Generator) -> Array:
    """Every feature from a row of its own: each is as it should be, and nothing goes together."""
    return generator.permuted(rows, axis=0)


def grafted(rows: Array, generator: np.random.Generator) -> Array:
    """A third of the features, chosen anew for each row, from one other row."""
    return np.where(generator.random(rows.shape) < 1 / 3, rows[_others(len(rows), generator)], rows)


def extreme(rows: Array, generator: np.random.Generator) -> Array:
    """A tenth of the features, and at least one a row on average, at the lowest or the highest that any row has."""
    share = max(0.1, 1.0 / rows[0].size)
    ends = np.where(generator.random(rows.shape) < 0.5, np.nanmin(rows, axis=0), np.nanmax(rows, axis=0))
    return np.where((generator.random(rows.shape) < share) & ~np.isnan(rows), ends, rows)


# ---------------------------------------------------------------- pictures


def constant(rows: Array, generator: np.random.Generator) -> Array:
    """One level everywhere, of those that occur: blank, black, or between."""
    levels = generator.choice(_levels(rows), len(rows))
    return np.broadcast_to(levels.reshape(-1, *(1,) * (rows.ndim - 1)), rows.shape)


def smoothed(rows: Array, _: np.random.Generator) -> Array:
    """Each pixel the median of its neighbourhood of 3×3: the thin and the small are gone."""
    edges = np.pad(rows, ((0, 0), (1, 1), (1, 1), *((0, 0),) * (rows.ndim - 3)), mode="edge")
    height, width = rows.shape[1:3]
    shifted = [edges[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(np.partition(np.stack(shifted), 4, axis=0)[4])


def blended(rows: Array, generator: np.random.Generator) -> Array:
    """Each pixel the median of three rows': what they have in common."""
    others = rows[_others(len(rows), generator)], rows[_others(len(rows), generator)]
    return np.asarray(np.partition(np.stack([rows, *others]), 1, axis=0)[1])


def flipped(rows: Array, _: np.random.Generator) -> Array:
    """Upside down and back to front."""
    return rows[:, ::-1, ::-1]


def erased(rows: Array, _: np.random.Generator) -> Array:
    """The lower half is the level that occurs most."""
    levels, counts = np.unique(rows[~np.isnan(rows)], return_counts=True)
    spoilt = rows.copy()
    spoilt[:, rows.shape[1] // 2 :] = levels[counts.argmax()]
    return spoilt


TABLES: Mapping[str, Maker] = {"mixed": mixed, "grafted": grafted, "extreme": extreme}
PICTURES: Mapping[str, Maker] = {
    "constant": constant,
    "smoothed": smoothed,
    "blended": blended,
    "flipped": flipped,
    "erased": erased,
}


def _others(count: int, generator: np.random.Generator) -> Array:
    """For each of some rows the place of another, each once: a cycle through them in some order."""
    order = generator.permutation(count)
    places = np.empty(count, np.int64)
    places[order] = np.roll(order, 1)
    return places


def _levels(rows: Array) -> Array:
    """The values that occur, NaN aside: it is none."""
    return np.unique(rows[~np.isnan(rows)])


def _between(support: Support, levels: Array) -> Array:
    return np.clip(levels, support.lowest, support.highest)
