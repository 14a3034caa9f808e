"""Cost: how long a call to a graph takes, by its decoder rows. Learned from calls; knows no queue.

    seconds = call + row · decoder_rows

A decayed least squares fit to relative errors, held to what was measured at load by two observations that never fade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

DECAY = 0.98  # of what each call weighs, with every further call: about 50 are remembered
FARTHEST = 4.0  # times as long as expected that one call is taken to have been: a stall teaches little


@dataclass(slots=True)
class Cost:
    """What a call costs: `call` seconds however small it is, and `row` seconds for each decoder row.

    >>> cost = Cost.measured([(1, 0.0002), (64, 0.0012)])
    >>> round(cost.seconds(64), 6)
    0.0012
    """

    row: float = 0.0
    call: float = 0.0
    _first: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # w, w·n, w·n², w·t, w·n·t

    @classmethod
    def measured(cls, calls: Sequence[tuple[int, float]]) -> Cost:
        """From calls of a few sizes: (decoder rows, seconds) each."""
        cost = cls()
        first = [0.0] * 5
        for rows, seconds in calls:
            for index, term in enumerate(_terms(rows, seconds, seconds)):
                first[index] += term
        cost._first = tuple(first)
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
        for index, term in enumerate(_terms(rows, taken, expected or taken)):
            self._sums[index] = DECAY * self._sums[index] + term
        self._solve()

    def _solve(self) -> None:
        w, wn, wnn, wt, wnt = (first + found for first, found in zip(self._first, self._sums, strict=True))
        spread = w * wnn - wn * wn
        if spread > 1e-9 * w * wnn:
            row, call = (w * wnt - wn * wt) / spread, (wnn * wt - wn * wnt) / spread
            if row >= 0 and call >= 0:
                self.row, self.call = row, call
                return
        # All calls were of one size, or noise bent the line: it goes through the origin then.
        self.row, self.call = (wnt / wnn if wnn > 0 else 0.0), 0.0


def _terms(rows: int, seconds: float, expected: float) -> tuple[float, ...]:
    """One observation's share of the sums; its error counts relative to what was expected."""
    weight = 1.0 / max(expected, 1e-9) ** 2
    return weight, weight * rows, weight * rows * rows, weight * seconds, weight * rows * seconds
