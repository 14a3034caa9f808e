"""Tables: small VAEs and kernels fitted to a table's rows; a bound on the evidence of their mixture, and a surprise.

Knows no file, no graph and no label. What a member is, `members` and `kernels` say; here is what they say together,
and how much each counts, which normal rows decide that it wasn't fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from training.config import Unusable
from training.tables import kernels, members
from training.tables.kernels import Kernels
from training.tables.members import Recipe, Stack

__all__ = ["RECIPE", "Doubles", "Member", "Recipe", "Table", "fit"]

Doubles = NDArray[np.float64]

FEWEST = 8  # rows to fit
NARROWEST = 1e-12  # deviation of a column, against its largest value, below which it is constant
SLOPE = 1e-3  # of a surprise in a bound, in standard deviations, where no held-out row's bound is passed
RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a member: its bounds of rows that it wasn't fitted to, ascending, (rows,), in nats.

    Over fitted rows members hardly differ; rows that surprise a member are rows that it wasn't fitted to.
    """

    held_out: Doubles

    @property
    def spread(self) -> float:
        """The standard deviation of the bounds; 0 is taken for 1."""
        return float(self.held_out.std()) or 1.0

    def surprises(self, bounds: Doubles) -> Doubles:
        """−Φ⁻¹(p) of bounds, (n,), p their place among the held-out ones: a standard normal for rows like those.

        Beyond all of the held-out rows p is level; a slight slope keeps stranger rows apart.
        """
        place = (np.searchsorted(self.held_out, bounds, "right") + 0.5) / (len(self.held_out) + 1)
        return np.asarray(-ndtri(place) - SLOPE * (bounds - self.held_out.mean()) / self.spread, np.float64)


@dataclass(frozen=True, slots=True)
class Table:
    """Fitted members: a bound on the log evidence of a row under their mixture, and how surprising it is to them.

    centre and deviation, (D,), standardise; a column that never varied among the fitted rows is divided by 1.
    """

    centre: Doubles
    deviation: Doubles
    vaes: Stack
    kernels: tuple[Kernels, ...]
    members: tuple[Member, ...]

    @property
    def weights(self) -> Doubles:
        """What each member weighs in the mixture, (members,): in inverse proportion to its spread; they sum to 1.

        Were members weighed alike, the one whose bounds vary most would decide alone, and it may vary most because
        normal rows surprise it.
        """
        inverse = np.array([1.0 / member.spread for member in self.members])
        return np.asarray(inverse / inverse.sum(), np.float64)

    def bounds(self, rows: Doubles) -> Doubles:
        """Each member's bound of each row, (members, n), in nats, against Lebesgue measure in the units of x."""
        u = torch.from_numpy((rows - self.centre) / self.deviation)
        parts = np.concatenate((self.vaes.bounds(u), *(one.bounds(u) for one in self.kernels)))
        return np.asarray(parts + _jacobian(self.deviation), np.float64)

    def score(self, rows: Doubles) -> Doubles:
        """A bound on log p(x) of each row, (n,), in nats: Σ w_i b_i(x) ≤ log Σ w_i p_i(x), by Jensen's inequality.

        b_i is a VAE's bound on log p_i, or log p_i itself of kernels. p = Σ w_i p_i is the mixture of the members'
        densities, each of which integrates to 1 over x in the units of the rows. The weights are `weights`. A row's
        score is a function of the row.
        """
        return np.asarray((self.weights[:, None] * self.bounds(rows)).sum(0), np.float64)

    def surprise(self, rows: Doubles) -> Doubles:
        """How unusual each row is, (n,), without a unit: the mean of members' surprises; greater is stranger.

        Every member has the same say, however its bounds are spread. To rank rows by; for evidence there is `score`.
        """
        found = [member.surprises(bounds) for member, bounds in zip(self.members, self.bounds(rows), strict=True)]
        return np.asarray(np.stack(found).mean(0), np.float64)


def fit(rows: Doubles, recipe: Recipe = RECIPE, seed: int = 0) -> Table:
    """Fit the recipe's members to a table's rows, (n, D); the same for the same seed. Unusable for too few rows."""
    if rows.ndim != 2 or len(rows) < FEWEST or not np.isfinite(rows).all():
        raise Unusable(f"a table needs {FEWEST} rows of finite numbers at least")
    centre, deviation = rows.mean(0), rows.std(0)
    deviation = np.where(deviation > NARROWEST * np.abs(rows).max(0), deviation, 1.0)
    u = torch.from_numpy((rows - centre) / deviation)
    torch.manual_seed(seed)
    vaes, held_out = members.fit(u, recipe, torch.Generator().manual_seed(seed))
    local = [kernels.fit(u, shares, seed) for shares in (kernels.ROUND, kernels.SHAPED)]
    return Table(
        centre,
        deviation,
        vaes,
        tuple(one for one, _ in local),
        tuple(
            Member(np.sort(bounds) + _jacobian(deviation))
            for of_kind in (held_out, *(left_out for _, left_out in local))
            for bounds in of_kind
        ),
    )


def _jacobian(deviation: Doubles) -> float:
    """What takes a log density of standardised rows to the units of x."""
    return -float(np.log(deviation).sum())
