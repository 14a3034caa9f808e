"""Tables: several small VAEs and kernels fitted to a table's rows, and a bound on the evidence of their mixture.

Knows no file, no graph and no label. What a member is, `members` and `kernels` say; here are their weights in the
mixture, which the normal rows decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import Unusable
from training.tables import kernels, members
from training.tables.kernels import Kernels
from training.tables.members import ColumnNormal, EvenNormal, Recipe, Stack

__all__ = ["RECIPE", "Doubles", "Member", "Recipe", "Table", "fit"]

Doubles = NDArray[np.float64]

FEWEST = 8  # rows to fit
NARROWEST = 1e-12  # deviation of a column, against its largest value, below which it is constant
RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a member, in nats a row, and its part of its kind.

    held_out: the mean bound of rows that it wasn't fitted to. spread: the standard deviation of its bound over the
    same rows. Over fitted rows members hardly differ; rows that surprise a member are rows that it wasn't fitted to.
    """

    held_out: float
    spread: float
    part: float = 1.0


@dataclass(frozen=True, slots=True)
class Table:
    """Fitted members: a bound on the log evidence of a row under their mixture. Columns: (D,) all of them.

    centre and deviation standardise; a column that never varied among the fitted rows is divided by 1.
    """

    centre: Doubles
    deviation: Doubles
    kinds: tuple[Stack | Kernels, ...]
    members: tuple[Member, ...]

    @property
    def weights(self) -> Doubles:
        """What each member weighs in the mixture, (members,); they sum to 1.

        Kinds are weighed in inverse proportion to their spreads, whatever the number of their members. Were they
        weighed alike, the one whose bounds vary most would decide alone, and it may vary most because normal rows
        surprise it.
        """
        inverse = np.array([member.part / member.spread for member in self.members])
        return np.asarray(inverse / inverse.sum(), np.float64)

    def bounds(self, rows: Doubles) -> Doubles:
        """Each member's bound of each row, (members, n), in nats, against Lebesgue measure in the units of x."""
        u = torch.from_numpy((rows - self.centre) / self.deviation)
        jacobian = -np.log(self.deviation).sum()
        return np.asarray(np.concatenate([kind.bounds(u) for kind in self.kinds]) + jacobian, np.float64)

    def score(self, rows: Doubles) -> Doubles:
        """A bound on log p(x) of each row, (n,), in nats: Σ w_i b_i(x) ≤ log Σ w_i p_i(x), by Jensen's inequality.

        b_i is a VAE's bound on log p_i, or log p_i itself of kernels. p = Σ w_i p_i is the mixture of the members'
        densities, each of which integrates to 1 over x in the units of the rows. The weights are `weights`. A row's
        score is a function of the row.
        """
        return np.asarray((self.weights[:, None] * self.bounds(rows)).sum(0), np.float64)


def fit(rows: Doubles, recipe: Recipe = RECIPE, seed: int = 0) -> Table:
    """Fit the recipe's members to a table's rows, (n, D); the same for the same seed. Unusable for too few rows."""
    if rows.ndim != 2 or len(rows) < FEWEST or not np.isfinite(rows).all():
        raise Unusable(f"a table needs {FEWEST} rows of finite numbers at least")
    centre, deviation = rows.mean(0), rows.std(0)
    deviation = np.where(deviation > NARROWEST * np.abs(rows).max(0), deviation, 1.0)
    u = torch.from_numpy((rows - centre) / deviation)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vaes = [members.fit(u, kind, recipe, generator) for kind in (ColumnNormal, EvenNormal)]
    local = [kernels.fit(u, shares, generator) for shares in (kernels.ROUND, kernels.SHAPED)]
    kinds: list[Stack | Kernels] = [*(stack for stack, _ in vaes), *(one for one, _ in local)]
    known = [member for _, held_out in (*vaes, *local) for member in _known(held_out)]
    return Table(centre, deviation, tuple(kinds), tuple(known))


def _known(held_out: Doubles) -> list[Member]:
    """What is known of a kind's members by their bounds of held-out rows, (members, rows).

    A spread of 0 is taken for 1.
    """
    return [
        Member(float(bounds.mean()), float(bounds.std()) if bounds.std() > 0 else 1.0, 1.0 / len(held_out))
        for bounds in held_out
    ]
