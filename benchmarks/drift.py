"""What the watch for drift promises and what it finds: false alarms, delays, and what it costs.

    python -m benchmarks.drift [trials]

False alarms are counted over calibrations and streams together, as the promise is made: each trial draws its own
calibration, and its stream from the same law. Beside it, the same bets on p-values that are taken for independent: what
a conformal martingale with a fixed calibration amounts to. Nothing is chosen here, and every seed is fixed.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from service.drift import Doubles, Watch

TRIALS, ROWS = 4000, 5000
RATES = (0.05, 0.01, 0.001)
FALSE_ALARM, REPEATS, PATIENCE = 0.001, 40, 5000
CASES = (("continuous", 20), ("continuous", 99), ("continuous", 1000), ("4 levels", 99))  # laws, calibration rows
Draw = Callable[[np.random.Generator, int], Doubles]


class Plain(Watch):
    """The same bets as if the calibration's law were known: p-values are taken for independent and uniform."""

    def __init__(self, reference: Doubles, false_alarm: float, seed: int = 0) -> None:
        super().__init__(reference, false_alarm, seed)
        many = 1e12  # cells so many that no served row changes what the urn expects
        self._cells, self._norms, self._total = self._cells * many, self._norms * many, self._total * many


LAWS: dict[str, Draw] = {
    "continuous": lambda g, size: g.normal(size=size),
    "4 levels": lambda g, size: g.choice([-3.0, 0.0, 1.0, 2.0], size, p=[0.03, 0.27, 0.3, 0.4]),
}
CHANGES: dict[str, Draw] = {
    "all lower by 3 standard deviations": lambda g, size: g.normal(-3, size=size),
    "all lower by 1": lambda g, size: g.normal(-1, size=size),
    "all lower by 0.5": lambda g, size: g.normal(-0.5, size=size),
    "all lower by 0.25": lambda g, size: g.normal(-0.25, size=size),
    "all higher by 0.5": lambda g, size: g.normal(0.5, size=size),
    "spread × 1.5": lambda g, size: 1.5 * g.normal(size=size),
    "spread × 0.5": lambda g, size: 0.5 * g.normal(size=size),
    "one in ten strange": lambda g, size: np.where(g.random(size) < 0.1, -6.0, g.normal(size=size)),
    "one in a hundred strange": lambda g, size: np.where(g.random(size) < 0.01, -6.0, g.normal(size=size)),
    "one row again and again": lambda _, size: np.zeros(size),
}


def highest(kind: type[Watch], draw: Draw, n: int, trials: int) -> Doubles:
    """The highest log wealth of each stream, (trials,)."""
    g = np.random.default_rng(n)
    found = []
    for trial in range(trials):
        watch = kind(np.sort(draw(g, n)), FALSE_ALARM, seed=trial)
        watch.see(draw(g, ROWS))
        found.append(watch.highest)
    return np.array(found)


def alarms(found: Doubles, rate: float) -> str:
    """How often a level was passed, with its 99 % Clopper–Pearson interval."""
    count = int((found >= -math.log(rate)).sum())
    low, high = stats.binomtest(count, len(found)).proportion_ci(0.99)
    return f"{count / len(found):.2%} ({low:.2%}–{high:.2%})"


def delays(change: Draw, n: int, start: int) -> Doubles:
    """Rows from a change to the alarm, (repeats,); infinite where there was none in time, NaN where it came before."""
    g = np.random.default_rng(n + start)
    found = []
    for trial in range(REPEATS):
        watch = Watch(np.sort(g.normal(size=n)), FALSE_ALARM, seed=trial)
        watch.see(g.normal(size=start))
        found.append(math.nan if watch.alarm else _delay(watch, g, change))
    return np.array(found)


def _delay(watch: Watch, g: np.random.Generator, change: Draw) -> float:
    rows, step = 0, 5
    while rows < PATIENCE:
        watch.see(change(g, step))
        rows += step
        if watch.alarm:
            return float(rows)
        step = max(5, rows // 50)
    return math.inf


def shown(found: Doubles) -> str:
    """The median delay and the one that nine in ten don't pass; "never" is beyond PATIENCE."""
    known = found[~np.isnan(found)]
    ends = np.quantile(known, (0.5, 0.9), method="higher")
    return " / ".join(f"{rows:.0f}" if math.isfinite(rows) else "never" for rows in ends)


def costs() -> Iterator[str]:
    """CPU time of a call, with one row and with 256: the least of five rounds, so that other load matters little."""
    g = np.random.default_rng(0)
    watch = Watch(np.sort(g.normal(size=1000)), FALSE_ALARM)
    for size, calls in ((1, 2000), (256, 100)):
        rows, rounds = g.normal(size=size), []
        for _ in range(5):
            started = time.thread_time()
            for _ in range(calls):
                watch.see(rows)
            rounds.append((time.thread_time() - started) / calls)
        yield f"| {size} | {1e6 * min(rounds):.0f} µs | {1e6 * min(rounds) / size:.1f} µs |"


def main() -> None:
    """Print the tables."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    print(f"False alarms in {trials} streams of {ROWS} rows, each with a calibration of its own (99 % interval);")
    print("a tenth as many for p-values as if independent\n")
    print(f"| bets | scores | calibration rows | {' | '.join(f'δ = {rate:g}' for rate in RATES)} |")
    print("|---|---|---|" + "---|" * len(RATES))
    for kind, name, most in ((Watch, "the watch's", trials), (Plain, "p-values as if independent", trials // 10)):
        for law, n in CASES:
            found = highest(kind, LAWS[law], n, most)
            print(f"| {name} | {law} | {n} | {' | '.join(alarms(found, rate) for rate in RATES)} |", flush=True)
    print(f"\nRows until the alarm at δ = {FALSE_ALARM}: median / nine in ten of {REPEATS} streams\n")
    print("| change | calibration rows | from the start | after 5,000 rows |")
    print("|---|---|---|---|")
    for change, draw in CHANGES.items():
        for n in (99, 1000):
            cells = " | ".join(shown(delays(draw, n, start)) for start in (0, 5000))
            print(f"| {change} | {n} | {cells} |", flush=True)
    print("\nWhat it costs in CPU time, with 1,000 calibration rows\n")
    print("| rows at once | a call | a row |\n|---|---|---|")
    for line in costs():
        print(line)


if __name__ == "__main__":
    main()
