"""Cost: how long a call to a graph takes, by its decoder rows. Learned from calls; knows no queue.

    seconds = call + row · decoder_rows

A decayed least squares fit to relative errors, held to what was measured at load by two observations that never fade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DECAY = 0.98  # of what each call weighs, with every further call: about 50 are remembered
FARTHEST = 4.0  # times as long as expected that one call is taken to have been: a stall teaches little


Sums = tuple[float, float, float, float, float]  # of w, w·n, w·n², w·t, w·n·t


@dataclass(slots=True)
class Cost:
    """What a call costs: `call` seconds however small it is, and `row` seconds for each decoder row.

    >>> cost = Cost.measured([(1, 0.0002), (64, 0.0012)])
    >>> round(cost.seconds(64), 6)
    0.0012
    """

    row: float = 0.0
    call: float = 0.0
    _first: Sums = (0.0, 0.0, 0.0, 0.0, 0.0)
    _sums: Sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def measured(cls, calls: Sequence[tuple[int, float]]) -> Cost:
        """From calls of a few sizes: (decoder rows, seconds) each."""
        cost = cls()
        terms = [_terms(rows, seconds, seconds) for rows, seconds in calls]
        w, wn, wnn, wt, wnt = (sum(column) for column in zip(*terms, strict=True))
        cost._first = (w, wn, wnn, wt, wnt)
        cost._solve()
        return cost

    def seconds(self, rows: int, calls: float = 1.0) -> float:
        """How long decoder rows take in so many calls."""
        return self.call * calls + self.row * rows

    def within(self, seconds: float) -> int:
        """How many decoder rows one call can do in a time."""
        return int((seconds - self.call) / self.row) if self.row > 0 else 1 << 40

    def learn(self, rows: int, seconds: float) -> None:
        """A call was made, and took so long."""
        expected = self.seconds(rows)
        taken = min(seconds, FARTHEST * expected) if expected > 0 else seconds
        # Written out, as is what follows: every small call waits for it.
        w, wn, wnn, wt, wnt = self._sums
        d, dn, dnn, dt, dnt = _terms(rows, taken, expected or taken)
        self._sums = (DECAY * w + d, DECAY * wn + dn, DECAY * wnn + dnn, DECAY * wt + dt, DECAY * wnt + dnt)
        self._solve()

    def _solve(self) -> None:
        (fw, fn, fnn, ft, fnt), (w, wn, wnn, wt, wnt) = self._first, self._sums
        w, wn, wnn, wt, wnt = fw + w, fn + wn, fnn + wnn, ft + wt, fnt + wnt
        spread = w * wnn - wn * wn
        if spread > 1e-9 * w * wnn:
            row, call = (w * wnt - wn * wt) / spread, (wnn * wt - wn * wnt) / spread
            if row >= 0 and call >= 0:
                self.row, self.call = row, call
                return
        # All calls were of one size, or noise bent the line: it goes through the origin then.
        self.row, self.call = (wnt / wnn if wnn > 0 else 0.0), 0.0


def _terms(rows: int, seconds: float, expected: float) -> Sums:
    """One observation's share of the sums; its error counts relative to what was expected."""
    weight = 1.0 / max(expected, 1e-9) ** 2
    return weight, weight * rows, weight * rows * rows, weight * seconds, weight * rows * seconds
