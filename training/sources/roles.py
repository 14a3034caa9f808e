"""Roles: what each column of a table is, guessed from its cells or as a config says. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.sources.cells import Cells, as_number, is_number
from training.wanted import MOST_CATEGORIES, Column, Role

Doubles = NDArray[np.float64]

FEW = 30  # categories that are guessed; a config may have up to MOST_CATEGORIES
SKEWED = 2.0  # skewness from which a logarithm is proposed, if it takes at least half of it away


@dataclass(frozen=True, slots=True)
class Guess:
    """What a column looks like, and why; absent: how many cells are missing; different: how many values there are."""

    column: Column
    why: str
    absent: int
    different: int


def guess(cells: Sequence[str | None]) -> Guess:
    """The role that a column's cells look like.

    >>> guess(["yes", "no", None, "yes"]).column.categories
    ['no', 'yes']
    >>> guess(["3", "0", "1", "7"]).column.role
    'count'
    """
    there = [cell for cell in cells if cell is not None]
    numbers = as_numbers(there)
    different = len(set(there)) if numbers is None else len(np.unique(numbers))
    column, why = _text(there, different) if numbers is None else _numeric(there, numbers, different)
    if different <= 1:
        column, why = Column(role="skip"), f"{'one value alone' if different else 'nothing but missing values'}"
    return Guess(column, why, len(cells) - len(there), different)


def every(cells: Cells) -> list[Guess]:
    """The guess for each column of a table."""
    return [guess(column) for column in cells.columns]


def as_numbers(there: Sequence[str]) -> Doubles | None:
    """All as numbers, or None where one isn't."""
    found = [as_number(cell) for cell in there]
    return None if None in found else np.array(found, np.float64)


def names(there: Sequence[str]) -> list[str]:
    """The categories that occur, in the order of the numbers that they are, else of the alphabet.

    >>> names(["10", "9", "9.0"]), names(["b", "a"]), names(["1234", "01234"])
    (['9', '10'], ['a', 'b'], ['01234', '1234'])
    """
    numbers = as_numbers(there)
    if numbers is None:
        return sorted(set(there))
    return [named(number) for number in np.unique(numbers).tolist()]


def named(number: float) -> str:
    """A number as the name of a category: 9 for 9.0."""
    return str(int(number)) if number == int(number) else repr(number)


def _text(there: Sequence[str], different: int) -> tuple[Column, str]:
    if different > FEW or (different > 2 and different > len(there) / 2):
        return Column(role="skip"), f"text of {different} different values"
    role: Role = "binary" if different == 2 else "category"
    padded = all(is_number(cell) for cell in there)
    why = "text: numbers that begin with a 0 for show" if padded else "text"
    return (Column(role=role, categories=names(there)) if different > 1 else Column(role="skip")), why


def _numeric(there: Sequence[str], numbers: Doubles, different: int) -> tuple[Column, str]:
    whole = bool((numbers == np.floor(numbers)).all())
    if different == 2 and (whole or len(there) > FEW):
        return Column(role="binary", categories=None if set(numbers) == {0.0, 1.0} else names(there)), "two values"
    if whole and len(there) > 2 and (np.diff(numbers) == 1).all():
        return Column(role="skip"), "it numbers the rows"
    if whole and numbers.min(initial=0) >= 0 and numbers.max(initial=0) <= 2**53:
        few = f"; only {different} values: a category, if they are names" if different <= 10 else ""
        return Column(role="count"), f"whole numbers from 0{few}"
    if numbers.min(initial=math.inf) > 0 and abs(_skewness(np.log(numbers))) < _skewness(numbers) / 2 > SKEWED / 2:
        return Column(role="real", transform="log"), "above 0, with a long tail"
    return Column(role="real"), "whole numbers, some below 0" if whole else "fractions"


def _skewness(numbers: Doubles) -> float:
    """The third standardised moment; 0 where nothing varies."""
    centred = numbers - numbers.mean()
    spread = float(centred.std())
    return float((centred**3).mean()) / spread**3 if spread > 0 else 0.0


def most(column: Column) -> int:
    """How many categories a column may have."""
    return 2 if column.role == "binary" else MOST_CATEGORIES
