"""Tables: cells and roles → rows of float64, one column each, categories as their codes 0, 1, …"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.artifact import Feature
from training.part import Unusable
from training.sources import cells as reading
from training.sources import roles
from training.sources.cells import Cells, as_number, numbers_of
from training.sources.found import REAL, Found
from training.wanted import Column, Table

Doubles = NDArray[np.float64]
Texts = Sequence[str | None]


def read(wanted: Table) -> Found:
    """The columns of a table that aren't skipped; Unusable names the column, the line and the cell that is wrong."""
    cells = reading.read(wanted)
    kept = [(name, of, column) for name, of, column in decided(cells, wanted) if column.role != "skip"]
    if not kept:
        raise Unusable(f"{wanted.path}: every column is skipped; give one a role in `columns`")
    rows = np.column_stack([_encoded(name, of, column, cells, wanted) for name, of, column in kept])
    for place, (name, _, column) in enumerate(kept):
        _hold_varies(rows[:, place], name, column, wanted)
    features = tuple(
        Feature(name=name, unit=column.unit, categories=column.categories and tuple(column.categories))
        for name, _, column in kept
    )
    return Found(rows, REAL, features, tuple(column for _, _, column in kept))


def decided(cells: Cells, wanted: Table) -> list[tuple[str, Texts, Column]]:
    """Name, cells and role of each column: as the config says, else as guessed; categories named."""
    return [
        (name, of, _whole(name, of, wanted.columns.get(name), wanted))
        for name, of in zip(cells.names, cells.columns, strict=True)
    ]


def _whole(name: str, of: Texts, said: object, wanted: Table) -> Column:
    """A column with all that is to be known of it. One that looks like nothing has to be skipped by the config."""
    if said is None:
        found = roles.guess(of)
        if found.column.role == "skip":
            raise Unusable(
                f"{wanted.path}: column {name} has no role that could be guessed ({found.why}); "
                f"say `columns: {{{name}: skip}}`, or what it is"
            )
        return found.column
    column = said if isinstance(said, Column) else Column.model_validate({"role": said})
    if column.role not in ("binary", "category") or column.categories:
        return column
    there = roles.names([cell for cell in of if cell is not None])
    if column.role == "binary" and there == ["0", "1"]:
        return column
    if not 2 <= len(there) <= roles.most(column):
        right = "two" if column.role == "binary" else f"2 to {roles.most(column)}"
        raise Unusable(
            f"{wanted.path}: column {name} is {column.role} and has {len(there)} different values, not {right}"
        )
    return column.model_copy(update={"categories": there})


def _encoded(name: str, of: Texts, column: Column, cells: Cells, wanted: Table) -> Doubles:
    """A column as numbers, NaN where a cell is missing."""

    def refuse(place: int, what: str) -> Unusable:
        return Unusable(f"{wanted.path}: {cells.places[place]}: column {name} holds {of[place]!r}, {what}")

    def no_number(place: int) -> float:
        raise refuse(place, f"which is no finite number, and its role is {column.role}")

    if column.categories is None:
        found = np.array(numbers_of(of, no_number), np.float64)
        for place in np.flatnonzero(_off(found, column))[:1]:
            raise refuse(int(place), f"which is no {'count' if column.role == 'count' else '0 or 1'}")
        return found
    code_of = _coding(column.categories)
    found = np.full(len(of), np.nan)
    for place, cell in enumerate(of):
        if cell is not None and (code := code_of(cell)) is None:
            raise refuse(place, f"which is none of its categories: {', '.join(column.categories[:8])}")
        found[place] = np.nan if cell is None else code
    return found


def _coding(categories: Sequence[str]) -> Callable[[str], float | None]:
    """A cell's code: by its text, or, where all categories are numbers, by the number that it is."""
    texts = {category: float(code) for code, category in enumerate(categories)}
    numbers = roles.as_numbers(categories)
    known = {} if numbers is None else {number: float(code) for code, number in enumerate(numbers.tolist())}

    def code_of(cell: str) -> float | None:
        number = as_number(cell)
        return texts.get(cell, None if number is None else known.get(number))

    return code_of


def _off(found: Doubles, column: Column) -> NDArray[np.bool_]:
    """Where a number isn't what the role says."""
    there = ~np.isnan(found)
    if column.role == "count":
        return np.asarray(there & ((found < 0) | (found != np.floor(found)) | (found > 2**53)))
    wrong = (found != 0) & (found != 1) if column.role == "binary" else np.zeros(found.shape, np.bool_)
    return np.asarray(there & wrong)


def _hold_varies(found: Doubles, name: str, column: Column, wanted: Table) -> None:
    """A column that says nothing is no column."""
    there = found[~np.isnan(found)]
    if there.size == 0:
        raise Unusable(f"{wanted.path}: column {name} has nothing but missing values; say `columns: {{{name}: skip}}`")
    if there.min() == there.max():
        value = column.categories[int(there[0])] if column.categories else f"{there[0]:g}"
        raise Unusable(f"{wanted.path}: column {name} is {value} in every row; say `columns: {{{name}: skip}}`")
    if column.transform == "log" and there.min() <= 0:
        raise Unusable(f"{wanted.path}: column {name} holds {there.min():g}, which has no logarithm; use quantile")
