"""Drift: whether the rows that are served are still exchangeable with the calibration's. Pure NumPy; knows no models.

The scores of n calibration rows cut the line into n+1 cells. While served rows are exchangeable with them, the cells'
probabilities are Dirichlet(1, …, 1), so that served rows fall into bins of whole cells as balls come from a Pólya urn:

    P(next in bin b | m rows so far, m_b of them in b) = (c_b + m_b) / (n+1 + m)        c_b: cells of bin b

and for bets q_t that rest on earlier rows alone, the wealth Π_t q_t(b_t) / P_t(b_t) is a nonnegative martingale of mean
1, over calibrations and streams together. It ever reaches 1/δ with probability at most δ (Ville 1939). Betting on
p-values as if they were independent isn't valid here: they share one calibration (Bates et al. 2023, section 2).

The bets are a mixture over when a change comes and what it is: a few named shapes, and what was seen of late.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Places = NDArray[np.intp]

# Where bins end, as shares of the calibration rows; finer where strange rows fall.
EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
TAILS = (0.05, 0.95)  # of EDGES: what `recent` takes for low and for high
POWERS = (0.25, 0.5, 0.75)  # κ of the densities κ·u^(κ−1): towards low scores, and mirrored towards high ones
WINDOWS = (32.0, 256.0, 2048.0, 16384.0, math.inf)  # rows that a learned bet remembers
PRIOR = 32.0  # rows that a learned bet's start at P_t weighs
BLOCK = 256  # rows that are counted at once
FEW = 2  # rows that are counted sooner one by one
RECENT = 1  # of WINDOWS: the one that `recent` speaks of
TIES = 7_919  # the seed that ties are broken with


class Watching(Protocol):
    """What is shown scores, and says what they have come to: a Watch, or what stands for one that is elsewhere."""

    @property
    def threshold(self) -> float:
        """−log of the false-alarm rate."""

    @property
    def rows(self) -> int:
        """Rows that were seen."""

    @property
    def log_wealth(self) -> float:
        """What the bet has won, in nats."""

    @property
    def alarm(self) -> bool:
        """Whether the wealth has ever reached the threshold."""

    def see(self, scores: Doubles) -> bool:
        """Take scores in the order in which they came; whether they have raised the alarm."""

    def recent(self) -> tuple[float, float] | None:
        """See Watch.recent."""


class Watch:
    """A bet against exchangeability: the scores that were served, one after another, and what was won on them.

    reference are the calibration's scores (n,), at least one and ascending; false_alarm is δ. Ties are broken at
    random, which keeps the law exact for discrete scores. Memory doesn't grow; a block of rows costs numbers in
    rows × windows × bins.
    """

    def __init__(self, reference: Doubles, false_alarm: float, seed: int = TIES) -> None:
        self.threshold = -math.log(false_alarm)
        self.rows = 0
        self.log_wealth = 0.0
        self.highest = 0.0
        self._ties = np.random.default_rng(seed)
        self._values, group = np.unique(reference, return_inverse=True)
        self._keys = np.sort(group + self._ties.random(len(reference)))  # (n,): a score's place, and its lot among ties
        self._last = _last_cells(len(reference) + 1)  # (bins,)
        self._cells = np.diff(self._last, prepend=-1).astype(np.float64)  # (bins,), c_b
        self._total = float(len(reference) + 1)
        self._low, high = np.searchsorted(self._last, np.ceil(np.multiply(TAILS, len(reference) + 1)) - 1).tolist()
        self._high = min(high + 1, len(self._last) - 1)
        self._shapes = _shapes(self._last)  # (shapes, bins)
        self._decay = np.exp(-1.0 / np.asarray(WINDOWS))  # (windows,)
        self._counts = np.zeros((len(WINDOWS), len(self._cells)))  # rows so far in each bin, the older the fewer
        self._norms = self._shapes @ self._cells  # (shapes,), Σ_b shape[b] · (c_b + m_b)
        self._bets = np.full(len(self._shapes) + len(WINDOWS), -np.inf)  # (bets,), log of what each has won

    @property
    def alarm(self) -> bool:
        """Whether the wealth has ever reached 1/δ."""
        return self.highest >= self.threshold

    @property
    def bins(self) -> Places:
        """The bin of each cell, (n+1,): of the place of a score among the calibration's."""
        return np.searchsorted(self._last, np.arange(self._last[-1] + 1))

    def see(self, scores: Doubles) -> bool:
        """Bet on scores in the order in which they came, NaN left out; whether they have raised the alarm."""
        before = self.alarm
        bins = np.searchsorted(self._last, self.places(scores[~np.isnan(scores)]))
        if len(bins) <= FEW:
            for place in bins.tolist():
                self._bet_one(place)
        else:
            for start in range(0, len(bins), BLOCK):
                self._bet(bins[start : start + BLOCK])
        return self.alarm and not before

    def recent(self) -> tuple[float, float] | None:
        """How often the last few hundred rows fell into the calibration's lowest and its highest 5 %.

        Of what is due: (1, 1) is as calibrated, (2, 1) twice too many low ones. None before the first row.
        """
        if not self.rows:
            return None
        seen, cells = self._counts[RECENT] / self._counts[RECENT].sum(), self._cells / self._cells.sum()
        low, high = slice(self._low + 1), slice(self._high, None)
        return float(seen[low].sum() / cells[low].sum()), float(seen[high].sum() / cells[high].sum())

    def places(self, scores: Doubles) -> Places:
        """How many reference scores lie below each, ties decided by lot; (rows,), 0 to n."""
        place = np.searchsorted(self._values, scores)
        tied = self._values[np.minimum(place, len(self._values) - 1)] == scores
        return np.asarray(np.searchsorted(self._keys, place + tied * self._ties.random(len(scores))))

    def _bet(self, bins: Places) -> None:
        """Bet on a block of rows, and remember them."""
        rows = self.rows + np.arange(len(bins), dtype=np.float64)  # (rows,), m before each
        before, total = self._remember(bins)  # (rows, windows), (rows, windows)
        urn = (self._cells[bins] + before[:, -1]) / (self._total + rows)  # (rows,), P_t(b_t)
        learned = (PRIOR + before / urn[:, None]) / (PRIOR + total)  # q = (PRIOR·P + counts) / (PRIOR + total)
        won = np.log(np.concatenate([self._named(bins, rows), learned], axis=1))  # (rows, bets), log q_t/P_t
        so_far = np.cumsum(won, axis=0)
        # A bet that begins at row s has won so_far[t] − so_far[s−1] at row t, and begins there with probability h(s).
        begun = np.log(_begins(rows) / won.shape[1])[:, None] - (so_far - won)
        bets = so_far + np.logaddexp(self._bets, np.logaddexp.accumulate(begun, axis=0))
        wealth = np.logaddexp(np.logaddexp.reduce(bets, axis=1), np.log(_waits(rows + 1.0)))  # (rows,)
        self._bets = bets[-1]
        self.rows += len(bins)
        self.log_wealth = float(wealth[-1])
        self.highest = max(self.highest, float(wealth.max()))

    def _bet_one(self, place: int) -> None:
        """The same for one row, which most requests are; see `_bet`."""
        cells, before, drawn = self._total + self.rows, self._counts[:, place], self._shapes[:, place]
        urn = (self._cells[place] + before[-1]) / cells
        named, learned = drawn * (cells / self._norms), (PRIOR + before / urn) / (PRIOR + self._counts.sum(1))
        waited, waits = 1.0 / (1.0 + math.log1p(self.rows)), 1.0 / (1.0 + math.log1p(self.rows + 1.0))
        begun = math.log1p(1.0 / (1.0 + self.rows)) * waited * waits / len(self._bets)
        self._bets = np.log(np.concatenate([named, learned])) + np.logaddexp(self._bets, math.log(begun))
        top = max(float(self._bets.max()), 0.0)
        self.log_wealth = top + math.log(float(np.exp(self._bets - top).sum()) + waits * math.exp(-top))
        self.highest = max(self.highest, self.log_wealth)
        self._counts *= self._decay[:, None]
        self._counts[:, place] += 1.0
        self._norms += drawn
        self.rows += 1

    def _remember(self, bins: Places) -> tuple[Doubles, Doubles]:
        """What each window holds before each row: rows in that row's bin, and rows in all; (rows, windows) each."""
        index = np.arange(len(bins))
        faded = self._decay ** index[:, None]  # (rows, windows)
        grown = 1.0 / (faded * self._decay)
        held = np.zeros((len(bins) + 1, *self._counts.shape))  # (rows + 1, windows, bins), each divided by `faded`
        held[0] = self._counts
        held[index + 1, :, bins] = grown
        held = np.cumsum(held, axis=0)
        total = self._counts.sum(1) + np.cumsum(grown, axis=0) - grown
        self._counts = held[-1] * self._decay[:, None] ** len(bins)
        return held[index, :, bins] * faded, total * faded

    def _named(self, bins: Places, rows: Doubles) -> Doubles:
        """q_t/P_t of the named shapes at each row's bin, (rows, shapes): the urn's law times the shape, normalised."""
        drawn = self._shapes[:, bins].T
        norms = np.cumsum(np.concatenate([self._norms[None], drawn]), axis=0)  # (rows + 1, shapes)
        self._norms = norms[-1]
        return np.asarray(drawn * (self._total + rows)[:, None] / norms[:-1])


def _last_cells(cells: int) -> Places:
    """The last cell of each bin, (bins,), ascending and ending with the last of all; no bin is empty."""
    inner = np.ceil(np.asarray(EDGES) * cells).astype(np.intp) - 1
    return np.unique(np.append(inner[inner < cells - 1], cells - 1))


def _shapes(last: Places) -> Doubles:
    """Named alternatives, (shapes, bins): densities of a uniform u, each averaged over the bins' cells.

    Towards low scores, towards high ones, towards both ends, and towards the middle.
    """
    high = (last + 1.0) / (last[-1] + 1.0)
    low = np.concatenate([[0.0], high[:-1]])
    down = np.array([high**power - low**power for power in POWERS])
    up = np.array([(1 - low) ** power - (1 - high) ** power for power in POWERS])
    middle = 3 * (high**2 - low**2) - 2 * (high**3 - low**3)
    return np.asarray(np.vstack([down, up, (down + up) / 2, middle]) / (high - low), np.float64)


def _waits(row: Doubles) -> Doubles:
    """The prior's probability that no change comes before this row; it falls slowly, so that late ones are found."""
    return np.asarray(1.0 / (1.0 + np.log1p(row)), np.float64)


def _begins(row: Doubles) -> Doubles:
    """The prior's probability that a change comes at this row: the difference of `_waits`, about 1/(row·log²row)."""
    return np.asarray(np.log1p(1.0 / (1.0 + row)) * _waits(row) * _waits(row + 1.0), np.float64)
