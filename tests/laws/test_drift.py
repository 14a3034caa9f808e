"""The drift watch: a bet that can't be won while served rows are exchangeable with the calibration's."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from service.drift import BLOCK, Doubles, Watch

Draw = Callable[[int], Doubles]


def wealth(watch: Watch, scores: Doubles) -> float:
    """What a watch has won once it has seen scores."""
    watch.see(scores)
    return math.exp(watch.log_wealth)


@pytest.mark.parametrize(("n", "rows"), [(1, 5), (2, 4), (3, 3), (5, 1)])
def test_the_mean_wealth_is_one_over_every_order(n: int, rows: int) -> None:
    """Exactly: while all orders of calibration and served rows are equally likely, nothing is won on average."""
    orders = [np.array(order, np.float64) for order in permutations(range(n + rows))]
    won = [wealth(Watch(np.sort(order[:n]), 0.01), order[n:]) for order in orders]
    assert np.mean(won) == pytest.approx(1, abs=1e-12)
    assert np.std(won) > 0.01  # and something was staked


def test_no_bet_wins_on_average_whatever_came_before() -> None:
    """One row on: Σ_b P(b) · M(… b) = M(…), with the urn's law worked out by hand, after rows that had drifted."""
    g = np.random.default_rng(1)
    reference = np.sort(g.normal(size=30))
    for rows in (0, 1, 40, 700):
        seen = g.normal(-0.5, size=rows)
        places = np.searchsorted(reference, seen)
        after = []
        for cell in range(31):
            inside = np.concatenate([[reference[0] - 1], (reference[1:] + reference[:-1]) / 2, [reference[-1] + 1]])
            after.append(wealth(Watch(reference, 0.01), np.append(seen, inside[cell])))
        # A cell's own share counts only with its bin: rows of a bin are exchangeable among its cells.
        groups = Watch(reference, 0.01).bins
        held = np.array([(groups[places] == group).sum() for group in groups]) / np.bincount(groups)[groups]
        law = (1 + held) / (31 + rows)
        assert law.sum() == pytest.approx(1)
        before = wealth(Watch(reference, 0.01), seen)
        assert law @ np.array(after) == pytest.approx(before, rel=1e-9)


def draws(shape: str, g: np.random.Generator) -> Draw:
    """Scores of one law: continuous, with heavy tails, or of four levels."""
    laws: dict[str, Draw] = {
        "normal": lambda size: g.normal(size=size),
        "cauchy": lambda size: g.standard_cauchy(size),
        "levels": lambda size: g.choice([-3.0, 0.0, 1.0, 2.0], size, p=[0.03, 0.27, 0.3, 0.4]),
        "one level": lambda size: np.zeros(size),
    }
    return laws[shape]


@pytest.mark.parametrize("shape", ["normal", "levels"])
@pytest.mark.parametrize("n", [20, 99, 1000])
def test_false_alarms_come_at_most_as_often_as_is_said(n: int, shape: str) -> None:
    """Over calibrations and streams together, ever reaching 1/δ has probability at most δ."""
    g = np.random.default_rng(n)
    draw, false_alarm, alarms, trials = draws(shape, g), 0.1, 0, 300
    for trial in range(trials):
        watch = Watch(np.sort(draw(n)), false_alarm, seed=trial)
        watch.see(draw(500))
        alarms += watch.alarm
    assert stats.binomtest(alarms, trials, false_alarm, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("workers", [2, 4])
def test_rows_of_several_workers_raise_no_more_false_alarms(workers: int) -> None:
    """A group's one watch takes each worker's rows in chunks, as they come: in any order they are exchangeable."""
    g = np.random.default_rng(workers)
    false_alarm, alarms, trials = 0.1, 0, 250
    for trial in range(trials):
        watch = Watch(np.sort(g.normal(size=99)), false_alarm, seed=trial)
        shares = [list(share) for share in np.array_split(g.normal(size=400), workers)]
        while any(shares):
            share = shares[g.integers(workers)]
            chunk, share[:] = share[: (size := int(g.integers(1, 60)))], share[size:]
            watch.see(np.array(chunk))
        assert watch.rows == 400
        alarms += watch.alarm
    assert stats.binomtest(alarms, trials, false_alarm, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("shape", ["normal", "cauchy", "levels", "one level"])
def test_a_watch_sees_ranks_that_are_uniform(shape: str) -> None:
    """Whatever the scores' law, ties or not: a served row falls into each bin as often as the bin has cells."""
    g = np.random.default_rng(3)
    draw, counts = draws(shape, g), np.zeros(10)
    for trial in range(2000):
        watch = Watch(np.sort(draw(9)), 0.01, seed=trial)
        counts[watch.places(draw(1))[0]] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


CHANGES: dict[str, tuple[Callable[[np.random.Generator, int], Doubles], int]] = {
    "one off": (lambda g, size: g.normal(-1, size=size), 200),
    "half a one off": (lambda g, size: g.normal(-0.5, size=size), 600),
    "higher": (lambda g, size: g.normal(0.5, size=size), 600),
    "wider": (lambda g, size: 1.5 * g.normal(size=size), 400),
    "narrower": (lambda g, size: 0.5 * g.normal(size=size), 300),
    "a tenth is strange": (lambda g, size: np.where(g.random(size) < 0.1, -5.0, g.normal(size=size)), 400),
    "all alike": (lambda _, size: np.zeros(size), 100),
    "in the middle alone": (lambda g, size: g.uniform(0.7, 1.3, size), 200),
}


@pytest.mark.parametrize("start", [0, 300, 20_000])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_early_or_late(change: str, start: int) -> None:
    """At δ = 0.001 with 1,000 calibration rows, within as many rows as its size calls for, whenever it comes."""
    g = np.random.default_rng(4)
    watch = Watch(np.sort(g.normal(size=1000)), 0.001)
    assert not watch.see(g.normal(size=start))
    draw, patience = CHANGES[change]
    assert watch.see(draw(g, patience)), watch.log_wealth
    assert not watch.see(draw(g, 100))  # it is raised once
    watch.see(g.normal(size=20_000))
    assert watch.alarm  # and stays


def test_how_rows_are_cut_changes_nothing_but_rounding() -> None:
    """A thousand rows one by one, in small parts, or at once."""
    g = np.random.default_rng(5)
    reference, scores = np.sort(g.normal(size=99)), g.normal(0.1, size=3 * BLOCK + 7)
    whole = Watch(reference, 0.01)
    whole.see(scores)
    for size in (1, 2, 3, 7, 100):
        parts = Watch(reference, 0.01)
        for start in range(0, len(scores), size):
            parts.see(scores[start : start + size])
        assert parts.rows == whole.rows == len(scores)
        assert parts.log_wealth == pytest.approx(whole.log_wealth, abs=1e-9)
        assert parts.highest == pytest.approx(whole.highest, abs=1e-9)


def test_a_watch_stays_finite_however_strange_the_rows() -> None:
    """−∞, ∞ and no rows at all are seen; NaN, which says nothing, isn't; a long drift overflows nothing."""
    watch = Watch(np.arange(20.0), 0.001)
    assert watch.recent() is None
    assert not watch.see(np.array([]))
    assert not watch.see(np.full(50, np.nan))
    assert watch.rows == 0
    assert watch.see(np.full(50_000, -np.inf))
    watch.see(np.full(500, np.inf))
    for _ in range(500):
        watch.see(np.array([0.5]))
    assert watch.rows == 51_000
    assert math.isfinite(watch.log_wealth)
    assert watch.highest >= watch.threshold == pytest.approx(math.log(1000))


def test_recent_rows_show_where_the_scores_went() -> None:
    """In shares of what is due: (1, 1) as calibrated, and which end has too many."""
    g = np.random.default_rng(6)
    watch = Watch(np.sort(g.normal(size=1000)), 0.001)
    watch.see(g.normal(size=5000))
    assert watch.recent() == pytest.approx((1, 1), abs=0.5)
    watch.see(g.normal(-1, size=1000))
    low, high = watch.recent() or (0, 0)
    assert low > 3
    assert high < 0.5
    watch.see(np.full(3000, 9.0))
    assert watch.recent() == pytest.approx((0, 20), abs=1.5)


@pytest.mark.parametrize("n", [1, 2, 19])
def test_a_small_calibration_has_a_low_and_a_high_end(n: int) -> None:
    """As few cells as there are, the ends are bins of their own."""
    watch = Watch(np.arange(float(n)), 0.01)
    watch.see(np.array([-1.0, n + 1.0]))
    low, high = watch.recent() or (0, 0)
    assert low > 0
    assert high > 0
