"""Roles: which family each column of a table gets by its role, where a run names none. Knows no number of any row."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import Block, Column, Unusable

FAMILIES = {"real": "normal", "count": "negative_binomial", "binary": "bernoulli", "category": "categorical"}
TRANSFORMED = {"log": "lognormal", "quantile": "quantile_normal"}


def blocks(columns: Sequence[Column] | None) -> list[Block]:
    """A block for each family that the columns have; categories share one where they are equally many."""
    if columns is None:
        raise Unusable("likelihood mixed: say `blocks`; only the columns of a `table` have roles that decide")
    places: dict[str, list[int | str]] = {}
    for place, column in enumerate(columns):
        places.setdefault(block(column), []).append(place)
    return [
        Block.model_validate({"name": name, "columns": some, "family": name.partition("-")[0]})
        for name, some in places.items()
    ]


def block(column: Column) -> str:
    """The family's name, and for categories how many they are.

    >>> block(Column(role="category", categories=["a", "b", "c"])), block(Column(role="real", transform="log"))
    ('categorical-3', 'lognormal')
    """
    if column.transform:
        return TRANSFORMED[column.transform]
    count = f"-{len(column.categories or ())}" if column.role == "category" else ""
    return FAMILIES[column.role] + count
