"""Build: a run's family and its data → the likelihood, or one line that says why they don't go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.artifact import Support
from training import config
from training.config import Unusable
from training.data import DataSet
from training.likelihoods import roles
from training.likelihoods.base import Likelihood
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.categories import Categorical, Ordinal
from training.likelihoods.continuous_bernoulli import ContinuousBernoulli
from training.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.located import LogNormal, Normal, StudentT
from training.likelihoods.mixed import Mixed, Part
from training.likelihoods.quantile import QuantileNormal
from training.wanted import MOST_CATEGORIES

LOCATED = (config.Normal, config.StudentT, config.LogNormal, config.QuantileNormal)
DENSE = (*LOCATED, config.ContinuousBernoulli)
NAMED = (config.Bernoulli, config.Categorical, config.Ordinal)
COUNTED = (config.Poisson, config.NegativeBinomial, config.ZeroInflatedNegativeBinomial)


@dataclass(frozen=True, slots=True)
class Columns:
    """Numbers of a row that share a family. fitted: (n, D); every: (N, D), of all splits, which decides levels."""

    fitted: NDArray[np.float64]
    every: NDArray[np.float64]
    stated: Support
    names: tuple[str, ...]
    roles: tuple[config.Column, ...] | None = None

    def some(self, places: Sequence[int]) -> Columns:
        """Some of them."""
        chosen = list(places)
        names = tuple(self.names[place] for place in chosen)
        columns = self.roles and tuple(self.roles[place] for place in chosen)
        return Columns(self.fitted[:, chosen], self.every[:, chosen], self.stated, names, columns)

    @property
    def categories(self) -> list[int]:
        """How many categories each has; 0 where x is a number."""
        return [len(column.categories or ()) for column in self.roles or ()]

    def hold(self, right: NDArray[np.bool_], what: str) -> None:
        """Unusable, naming the first column of which something isn't so."""
        if not right.all():
            raise Unusable(f"column {self.names[int(np.argmin(right))]} {what}")


def build(wanted: config.Family, data: DataSet) -> Likelihood:
    """The likelihood that a run names, for the data that it names; Unusable where the two don't go together."""
    columns = _columns(data)
    likelihood = _mixed(wanted, columns, data) if isinstance(wanted, config.Mixed) else one(wanted, columns, data)
    for rows in data.splits.values():
        likelihood.check(rows)
    return likelihood


def one(wanted: config.OneFamily, columns: Columns, data: DataSet) -> Likelihood:
    """The likelihood of columns that share a family."""
    kind = columns.stated.kind
    if not isinstance(wanted, NAMED):
        columns.hold(np.array(columns.categories) == 0, f"holds categories, which are no quantities to {wanted.family}")
    if isinstance(wanted, DENSE) and kind != "real":
        raise Unusable(f"likelihood {wanted.family}: a density over data of whole {kind} can grow without bound; use "
                       f"{'discretised_logistic' if kind == 'levels' else 'negative_binomial'}")  # fmt: skip
    if isinstance(wanted, COUNTED) and data.event_dtype == "uint8":
        raise Unusable(
            f"likelihood {wanted.family}: counts have no highest, and uint8 has; keep them as int32 or int64"
        )
    match wanted:
        case config.Bernoulli():
            return Bernoulli()
        case config.DiscretisedLogistic():
            return DiscretisedLogistic(_levels(wanted, columns), wanted.smallest_scale)
        case config.Categorical():
            return Categorical(_levels(wanted, columns))
        case config.Ordinal():
            return Ordinal(_levels(wanted, columns), columns.fitted)
        case config.Normal() | config.StudentT() | config.LogNormal() | config.QuantileNormal():
            return _located(wanted, columns)
        case config.ContinuousBernoulli():
            return ContinuousBernoulli()
        case _:
            return _counted(wanted, columns)


def _counted(
    wanted: config.Poisson | config.NegativeBinomial | config.ZeroInflatedNegativeBinomial, columns: Columns
) -> Likelihood:
    columns.hold(columns.every.min(0) >= 0, f"holds a number below 0, which is no count to {wanted.family}")
    match wanted:
        case config.Poisson():
            return Poisson(columns.fitted)
        case config.NegativeBinomial():
            return NegativeBinomial(columns.fitted)
        case config.ZeroInflatedNegativeBinomial():
            return ZeroInflatedNegativeBinomial(columns.fitted)


def _located(
    wanted: config.Normal | config.StudentT | config.LogNormal | config.QuantileNormal, columns: Columns
) -> Likelihood:
    if wanted.scale != "shared":
        varies = columns.fitted.min(0) < columns.fitted.max(0)
        columns.hold(varies, f"never varies among the fitted rows, so {wanted.family} has no scale to learn")
    match wanted:
        case config.Normal():
            return Normal(columns.fitted, wanted.smallest_scale, wanted.scale)
        case config.StudentT():
            return StudentT(columns.fitted, wanted.smallest_scale, wanted.scale)
        case config.QuantileNormal():
            return QuantileNormal(columns.fitted, wanted.smallest_scale, wanted.scale, wanted.knots)
        case config.LogNormal():
            positive = columns.every.min(0) > 0
            columns.hold(positive, "holds a number that isn't above 0, to which lognormal gives no density")
            return LogNormal(columns.fitted, wanted.smallest_scale, wanted.scale)


def _levels(
    wanted: config.DiscretisedLogistic | config.Categorical | config.Ordinal, columns: Columns
) -> tuple[float, float, float]:
    """The lowest and highest level and the step: as the run says, else as the source does, else as the data has them.

    Levels that the data shows are those of all four splits: a level is a thing that is known, not a thing that is
    learned.
    """
    if any(columns.categories):
        if len(set(columns.categories)) > 1:
            raise Unusable(f"likelihood {wanted.family}: its columns differ in their categories; give each a block")
        return 0.0, columns.categories[0] - 1.0, 1.0
    if columns.stated.kind == "levels" and wanted.lowest is None and wanted.highest is None:
        return columns.stated.levels
    lowest = float(columns.every.min()) if wanted.lowest is None else wanted.lowest
    highest = float(columns.every.max()) if wanted.highest is None else wanted.highest
    if lowest >= highest:
        raise Unusable(
            f"likelihood {wanted.family}: column {columns.names[0]} has one level alone; state lowest and highest"
        )
    support = Support(kind="levels", lowest=lowest, highest=highest, step=wanted.step)
    if support.off(columns.every).any() or (highest - lowest) % wanted.step != 0:
        instead = "; use normal for real values" if wanted.lowest is None else ""
        raise Unusable(f"likelihood {wanted.family}: needs data of whole levels, {support.words}{instead}")
    if not isinstance(wanted, config.DiscretisedLogistic) and (highest - lowest) / wanted.step + 1 > MOST_CATEGORIES:
        raise Unusable(f"likelihood {wanted.family}: more than {MOST_CATEGORIES} levels; use discretised_logistic")
    return lowest, highest, wanted.step


def _mixed(wanted: config.Mixed, columns: Columns, data: DataSet) -> Mixed:
    """A family for each block; Unusable unless the blocks hold each column once."""
    if data.event_dtype != "float64" or len(data.event_shape) != 1:
        raise Unusable("likelihood mixed: needs a table of float64, one row a line")
    wanted_blocks = roles.blocks(columns.roles) if wanted.blocks is None else wanted.blocks
    blocks = [(block, [_place(column, columns.names) for column in block.columns]) for block in wanted_blocks]
    places = [place for _, some in blocks for place in some]
    for place, name in enumerate(columns.names):
        if places.count(place) != 1:
            raise Unusable(f"likelihood mixed: column {name} is in {places.count(place)} blocks; each column is in one")
    names = [block.name or block.likelihood.family for block, _ in blocks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise Unusable(f"likelihood mixed: two blocks are named {repeated[0]}; give them a `name` each")
    return Mixed(
        [
            Part(name, tuple(some), one(block.likelihood, columns.some(some), data))
            for name, (block, some) in zip(names, blocks, strict=True)
        ]
    )


def _place(column: int | str, names: tuple[str, ...]) -> int:
    """Where a column is, by its place or by its name."""
    if isinstance(column, int) and column < len(names):
        return column
    if isinstance(column, str) and names.count(column) == 1:
        return names.index(column)
    raise Unusable(f"likelihood mixed: there is no column {column!r} among the {len(names)} of the data")


def _columns(data: DataSet) -> Columns:
    """All numbers of a row, flat."""
    flat = {name: np.asarray(rows, np.float64).reshape(len(rows), -1) for name, rows in data.splits.items()}
    every = np.concatenate(list(flat.values()))
    names = [feature.name for feature in data.features] if data.features else map(str, range(every.shape[1]))
    return Columns(flat["fit"], every, data.support, tuple(names), data.columns)
