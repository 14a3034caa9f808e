"""In time: a long request that can't be is told so by the rows that are done, not when its deadline is past."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from service.errors import Late
from service.operations import Errand, errand
from service.operations.errand import chunks, in_time, refuse_late


def test_rows_that_would_be_late_are_refused_by_the_pace_of_those_done() -> None:
    """Ten rows in 2 s: ninety more need 18 s, which a deadline 10 s away doesn't leave, and one 20 s away does."""
    refuse_late(10, 100, now=102.0, began=100.0, errand=Errand(deadline=122.0))
    with pytest.raises(Late, match="10 of 100 rows took 2 s, and the others would take about 18 s") as caught:
        refuse_late(10, 100, now=102.0, began=100.0, errand=Errand(deadline=112.0))
    assert caught.value.retry_after == 18.0


@pytest.mark.parametrize("done", [-12, 0])
def test_before_any_row_tells_the_pace_nothing_is_refused(done: int) -> None:
    """The first rows also pay for what is made once, and tell nothing."""
    refuse_late(done, 100, now=102.0, began=0.0, errand=Errand(deadline=103.0))


def test_parts_are_given_until_their_pace_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 1 s each: with time for the last of twenty it goes through, with less it ends where that shows."""
    for deadline, wanted in ((117.0, [0, 5, 10, 15]), (112.0, [0, 5])):
        now = [100.0]
        monkeypatch.setattr(errand, "asyncio", SimpleNamespace(get_running_loop=lambda now=now: Clock(now)))
        seen = []
        try:
            for part in in_time(chunks(20, step=5), 20, Errand(deadline=deadline)):
                seen.append(part.start)
                now[0] += 5.0 if part.start else 2.0
        except Late:
            assert deadline == 112.0
        assert seen == wanted


class Clock:
    """A loop whose time is told."""

    def __init__(self, now: list[float]) -> None:
        self._now = now

    def time(self) -> float:
        """What it is."""
        return self._now[0]
