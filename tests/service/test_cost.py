"""The cost of a call: learned from calls, and not spoilt by one that stalls."""

from __future__ import annotations

import numpy as np
import pytest

from service import artifact, engine, works
from service.artifact import Arrays
from service.cost import Cost
from service.engine import Engine
from tests.kit import COMMITTED

CALL, ROW = 2e-4, 3e-5


def test_two_sizes_give_both_of_its_terms() -> None:
    """A line through two points, and how much fits into a time."""
    cost = Cost.measured([(1, CALL + ROW), (64, CALL + 64 * ROW)])
    assert cost.call == pytest.approx(CALL)
    assert cost.row == pytest.approx(ROW)
    assert cost.seconds(100, calls=2) == pytest.approx(2 * CALL + 100 * ROW)
    assert cost.within(CALL + 10.5 * ROW) == 10


def test_it_follows_a_machine_that_becomes_slower() -> None:
    """After some hundred calls at a third of the speed, it expects that."""
    cost = Cost.measured([(1, CALL + ROW), (64, CALL + 64 * ROW)])
    for rows in np.random.default_rng(0).integers(1, 64, 300).tolist():
        cost.learn(rows, 3 * (CALL + rows * ROW))
    assert cost.seconds(32) == pytest.approx(3 * (CALL + 32 * ROW), rel=0.1)


def test_one_stall_teaches_little() -> None:
    """A call that took a minute doesn't make the service refuse what takes a millisecond."""
    cost = Cost.measured([(1, CALL + ROW), (64, CALL + 64 * ROW)])
    for _ in range(50):
        cost.learn(8, CALL + 8 * ROW)
    before = cost.seconds(8)
    cost.learn(8, 60.0)
    assert cost.seconds(8) < 1.5 * before


@pytest.mark.parametrize(("row", "largest"), [(1e-6, 64), (1e-3, 10), (0.1, 2)])
def test_a_slow_graph_is_asked_for_few_rows_at_the_start(
    monkeypatch: pytest.MonkeyPatch, row: float, largest: int
) -> None:
    """A hundredth of a second of calls tells its cost; a start with many models waits for each."""
    found = artifact.read(COMMITTED / "tiny" / "1")
    opened = engine.open_engine(found)
    asked: list[int] = []

    def timed(_: Engine, __: str, feeds: Arrays) -> float:
        asked.append(len(feeds["z"]))
        return row * len(feeds["z"])

    monkeypatch.setattr(works, "_timed", timed)
    assert works.cost(found, opened, "decoder").row == pytest.approx(row)
    assert set(asked) == {1, largest}


@pytest.mark.parametrize("calls", [[(1, 1e-4), (64, 1e-5)], [(4, 1e-3), (4, 1e-3)]], ids=["bent", "one size"])
def test_noise_never_makes_rows_or_calls_cost_less_than_nothing(calls: list[tuple[int, float]]) -> None:
    """Where no line can be had, cost is proportional to rows."""
    cost = Cost.measured(calls)
    assert cost.call >= 0
    assert cost.row > 0
