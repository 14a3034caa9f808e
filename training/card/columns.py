"""Columns: of a table, where the values of each lie in rows that are held out and in rows from the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from service.artifact import Feature

Doubles = NDArray[np.float64]
ACROSS, MOST = 4, 24  # columns that are drawn side by side, and in all
BINS = 24  # at most; about the root of twice the number of rows
NAMED = 12  # values of a column that are few enough for a bar each
FAINT, ORANGE = "#b8c2cc", "#d9772b"


def histograms(rows: Doubles, drawn: Doubles, features: Sequence[Feature], kind: str) -> Figure:
    """One a column, (n, columns) each; missing values are left out. kind: of the rows."""
    count = min(rows.shape[1], MOST)
    down = -(-count // ACROSS)
    figure = Figure(figsize=(9.6, 0.5 + 1.5 * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, squeeze=False).flatten()
    for column, axis in enumerate(grid):
        if column >= count:
            axis.set_axis_off()
            continue
        _histogram(axis, *(part[np.isfinite(part[:, column]), column] for part in (rows, drawn)))
        axis.set_title(f"column {column}", fontsize=8)
        if features:
            _named(axis, features[column])
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    more = "" if count == rows.shape[1] else f"; the first {count} of {rows.shape[1]} columns"
    handles, _ = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, [kind, f"drawn from the model{more}"], loc="outside upper right", ncols=2, frameon=False, fontsize=8
    )
    return figure


def _histogram(axis: Axes, rows: Doubles, drawn: Doubles) -> None:
    """Shares of both: a bar for each of a few values, or bins between the outermost half per cents of both."""
    values = np.unique(rows)
    if len(values) <= NAMED and np.isin(drawn, values).mean() > 0.9:
        edges = np.append(values - _gap(values) / 2, values[-1:] + _gap(values) / 2)
        axis.set_xticks(values)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))
        every = np.concatenate([part for part in (rows, drawn) if len(part)] or [np.zeros(1)])
        low, high = np.quantile(every, (0.005, 0.995))
        edges = np.linspace(low, high if high > low else low + 1.0, min(BINS, int(np.sqrt(2 * len(rows))) + 1) + 1)
    for part, colour, filled in ((rows, FAINT, True), (drawn, ORANGE, False)):
        shares = np.full(len(part), 1.0 / max(1, len(part)))
        kind: Literal["bar", "step"] = "bar" if filled else "step"
        axis.hist(part, edges.tolist(), weights=shares, label=" ", color=colour, histtype=kind)


def _named(axis: Axes, feature: Feature) -> None:
    """A column by its name and unit, its codes by what they stand for."""
    axis.set_title((feature.name + (f" ({feature.unit})" if feature.unit else ""))[:32], fontsize=8)
    if feature.categories and len(codes := axis.get_xticks()) <= NAMED:
        axis.set_xticks(codes, [feature.categories[int(code)][:8] for code in codes])


def _gap(values: Doubles) -> float:
    return float(np.diff(values).min()) if len(values) > 1 else 1.0
