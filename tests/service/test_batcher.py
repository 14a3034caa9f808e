"""The batcher's promises, on a stub engine that is held at a gate; no test waits for luck."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from service.artifact import Array, Arrays, Graph
from service.batcher import Answer, Batcher, BatchReport, Work
from service.batcher.tickets import Ticket
from service.cost import Cost
from service.errors import EngineFailed, Late, NotReady, Overloaded, Problem
from service.lanes import Lanes
from tests.kit import until

pytestmark = pytest.mark.anyio

PLAIN = Graph("plain", ("x",), {"y": "n"})
BOUND = Graph("bound", ("x",), {"y": "nk", "kl": "n"}, bank="noise")
JOINT = Graph("joint", ("x", "z"), {"y": "nk"}, drawn=("z",))


class Stubbed(Work):
    """A graph computed by a function of stacked rows."""

    def __init__(self, graph: Graph, function: Callable[[str, Mapping[str, Array]], Arrays]) -> None:
        self.name, self.drawn, self._function = graph.name, graph.drawn, function
        self.wide = frozenset(name for name, lead in graph.outputs.items() if lead == "nk")

    def compute(self, rows: Mapping[str, Sequence[Array]], bank: Array | None, draws: slice) -> Arrays:
        """Stack, and call it."""
        feeds = {name: np.concatenate(parts) for name, parts in rows.items()}
        return self._function(self.name, feeds if bank is None else {**feeds, "noise": bank[draws]})


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio."""
    return "asyncio"


class Known(Cost):
    """A cost that is known and stays what it is."""

    def learn(self, rows: int, seconds: float) -> None:
        """Nothing."""


class Stub:
    """An engine that notes its calls, and waits at a gate while that is closed."""

    def __init__(self) -> None:
        self.calls: list[Arrays] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.gate.set()

    def compute(self, _: str, feeds: Mapping[str, Array]) -> Arrays:
        """y = 2x for plain rows, x + noise for a bank, x + z for draws; a row of 13 is a poisoned one."""
        self.calls.append(dict(feeds))
        self.entered.release()
        assert self.gate.wait(20)
        if (feeds["x"] == 13).any():
            raise RuntimeError("no rows of 13")
        if "noise" in feeds:
            return {"y": feeds["x"][:, :1] + feeds["noise"][:, 0], "kl": feeds["x"][:, 0]}
        if "z" in feeds:
            return {"y": feeds["x"][:, :1] + feeds["z"][:, :, 0]}
        return {"y": feeds["x"] * 2}

    async def busy(self) -> None:
        """Wait until a call has come in."""
        await asyncio.to_thread(self.entered.acquire)


@asynccontextmanager
async def served(
    stub: Stub,
    graph: Graph = PLAIN,
    *,
    size: int = 8,
    room: int = 1000,
    lanes: int = 1,
    pace: float = 1e-9,
    inline: float = 0.0,
    patience: float = math.inf,
) -> AsyncIterator[Batcher]:
    """A batcher at work."""
    pool = Lanes(lanes)
    batcher = Batcher(
        Stubbed(graph, stub.compute), pool, size=size, room=room, cost=Known(row=pace), inline=inline, patience=patience
    )
    task = asyncio.create_task(batcher.serve())
    try:
        yield batcher
    finally:
        stub.gate.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        pool.close()


@asynccontextmanager
async def occupied(
    stub: Stub, *, room: int = 1000, pace: float = 1e-9
) -> AsyncIterator[tuple[Batcher, asyncio.Task[Answer]]]:
    """A batcher whose one lane is held at the gate by a first caller, who is handed over too."""
    stub.gate.clear()
    async with served(stub, room=room, pace=pace) as batcher:
        held = ask(batcher, 0)
        await stub.busy()
        yield batcher, held


def rows(*values: float) -> Arrays:
    """Rows of one number."""
    return {"x": np.array(values, np.float64)[:, None]}


def ask(batcher: Batcher, *values: float) -> asyncio.Task[Answer]:
    """A caller with some rows."""
    return asyncio.create_task(batcher.submit(rows(*values)))


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_caller_waits_for_nobody() -> None:
    """One row on an idle engine is computed at once, in a batch of its own."""
    stub = Stub()
    async with served(stub) as batcher:
        answer = await batcher.submit(rows(1, 2))
    assert answer.outputs["y"].tolist() == [[2], [4]]
    assert [len(call["x"]) for call in stub.calls] == [2]


async def test_rows_gather_while_the_engine_is_busy() -> None:
    """What arrives during a call goes together into the next."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub) as batcher:
        first = ask(batcher, 0)
        await stub.busy()
        others = [ask(batcher, value) for value in (1, 2, 3)]
        await settled()
        stub.gate.set()
        answers = await asyncio.gather(first, *others)
    assert [answer.outputs["y"].item() for answer in answers] == [0, 2, 4, 6]
    assert [len(call["x"]) for call in stub.calls] == [1, 3]


async def test_a_batch_is_cut_after_the_turn_is_taken() -> None:
    """Rows that arrive while the lane is held by another graph still share the batch."""
    stub = Stub()
    lanes = Lanes(1)
    batcher = Batcher(Stubbed(PLAIN, stub.compute), lanes, size=8, room=100)
    task = asyncio.create_task(batcher.serve())
    await lanes.take()
    callers = [ask(batcher, 1)]
    await settled()
    callers.append(ask(batcher, 2))
    await settled()
    lanes.give()
    await asyncio.gather(*callers)
    assert [len(call["x"]) for call in stub.calls] == [2]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("during", [False, True], ids=["before its run", "during its run"])
async def test_one_cancelled_caller_costs_its_neighbours_nothing(during: bool) -> None:
    """A caller that leaves, waiting or mid-batch, takes nobody along."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub) as batcher:
        held = None if during else ask(batcher, 0)
        if held:
            await stub.busy()
        leaver, stayer = ask(batcher, 1), ask(batcher, 2)
        await settled()
        if during:
            await stub.busy()
        leaver.cancel()
        await settled()
        stub.gate.set()
        assert (await stayer).outputs["y"].item() == 4
        assert leaver.cancelled()
        assert (await batcher.submit(rows(5))).outputs["y"].item() == 10
        assert held is None or (await held).outputs["y"].item() == 0


async def test_a_departed_ticket_is_never_computed_and_gives_its_room_back() -> None:
    """Rows whose caller has gone before the cut don't reach the engine."""
    stub = Stub()
    async with occupied(stub, room=2) as (batcher, held):
        leaver = ask(batcher, 7, 7)
        await settled()
        assert batcher.waiting == 2
        leaver.cancel()
        await settled()
        assert batcher.waiting == 0
        stayer = ask(batcher, 1, 2)
        await settled()
        stub.gate.set()
        await asyncio.gather(held, stayer)
    assert not any((call["x"] == 7).any() for call in stub.calls)


async def test_a_failing_batch_fails_only_its_culprit_and_the_loop_lives() -> None:
    """Of a batch that fails, each piece is computed alone; only the poisoned one fails."""
    stub = Stub()
    async with occupied(stub) as (batcher, held):
        good, bad, fine = ask(batcher, 1), ask(batcher, 13), ask(batcher, 2, 3)
        await settled()
        stub.gate.set()
        found = await asyncio.gather(held, good, bad, fine, return_exceptions=True)
        assert isinstance(found[2], EngineFailed)
        assert [a.outputs["y"].ravel().tolist() for a in found if isinstance(a, Answer)] == [[0], [2], [4, 6]]
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8


async def test_who_leaves_while_a_culprit_is_looked_for_is_not_computed() -> None:
    """After a batch that failed each is computed alone, one after the other: not who has gone by its turn."""
    stub = Stub()
    async with occupied(stub) as (batcher, held):
        told: list[Answer | Problem] = []

        def failed(found: Answer | Problem) -> None:
            told.append(found)
            batcher.drop(gone)

        batcher.post(rows(13), failed)
        stays, gone = batcher.post(rows(2), told.append), batcher.post(rows(3), told.append)
        await settled()
        stub.gate.set()
        await held
        await until(lambda: stays.settled)
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8
    assert [type(found) for found in told] == [EngineFailed, Answer]
    assert [3.0] not in [call["x"].ravel().tolist() for call in stub.calls]


async def test_when_all_of_a_large_failed_batch_have_gone_the_lane_is_free_again() -> None:
    """However many they are: each gives its turn on."""
    stub, count = Stub(), 1000
    async with served(stub, size=count + 1, room=2 * count) as batcher:
        others: list[Ticket] = []

        def failed(_: Answer | Problem) -> None:
            for ticket in others:
                batcher.drop(ticket)

        batcher.post(rows(13), failed)
        others += [batcher.post(rows(value), lambda _: None) for value in (2, *[3] * count)]
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8
        assert (await batcher.submit(rows(5))).outputs["y"].item() == 10


async def test_rows_that_do_not_fit_together_fail_their_culprit_not_the_loop() -> None:
    """A ticket of another width breaks the stacking; it alone is answered with the failure that it causes."""

    class Strict(Stub):
        def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
            found = super().compute(graph, feeds)
            if feeds["x"].shape[1] != 1:
                raise RuntimeError("wrong width")
            return found

    stub = Strict()
    async with occupied(stub) as (batcher, held):
        good = ask(batcher, 1)
        wide = asyncio.create_task(batcher.submit({"x": np.ones((1, 2))}))
        await settled()
        stub.gate.set()
        found = await asyncio.gather(held, good, wide, return_exceptions=True)
        assert isinstance(found[2], EngineFailed)
        assert isinstance(found[1], Answer)
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8


async def test_an_engine_that_loses_rows_fails_the_ticket() -> None:
    """Another number of rows out than in is a failure, never somebody else's answer."""
    stub = Stub()
    lanes = Lanes(1)
    batcher = Batcher(Stubbed(PLAIN, lambda _, feeds: {"y": feeds["x"][1:]}), lanes, size=8, room=100)
    async with served(stub):
        task = asyncio.create_task(batcher.serve())
        with pytest.raises(EngineFailed, match="2 rows went in"):
            await batcher.submit(rows(1, 2))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_full_waiting_room_refuses_at_the_door() -> None:
    """What there is no room for is refused at once, with the time it would have taken."""
    stub = Stub()
    async with occupied(stub, room=3, pace=2.0) as (batcher, held):
        waiting = ask(batcher, 1, 2)
        await settled()
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(rows(3, 4))
        assert refused.value.retry_after == 4.0
        stub.gate.set()
        await asyncio.gather(held, waiting)


async def test_an_expired_ticket_is_never_computed() -> None:
    """A ticket whose deadline passes while it waits is settled as late and left out of the batch."""
    stub = Stub()
    async with occupied(stub) as (batcher, held):
        soon = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(Late):
            await batcher.submit(rows(7), deadline=soon)
        stub.gate.set()
        await held
        assert (await batcher.submit(rows(1))).outputs["y"].item() == 2
    assert not any((call["x"] == 7).any() for call in stub.calls)


async def test_those_before_a_newcomer_are_taken_to_need_more_than_of_late() -> None:
    """Where all that are let in make it just in time by what calls cost, a little more makes all of them late."""
    async with occupied(Stub(), pace=0.01) as (batcher, held):
        others = ask(batcher, *range(8))
        await settled()
        now = asyncio.get_running_loop().time()
        with pytest.raises(Late):
            batcher.check(deadline=now + 0.1)
        with pytest.raises(Late):
            await batcher.submit(rows(9), deadline=now + 0.1)
        batcher.check(deadline=now + 5)
        batcher.check()
        others.cancel()
        await settled()
        batcher.check(deadline=now + 0.1)
        held.cancel()


async def test_what_would_be_late_before_it_is_computed_is_not() -> None:
    """Calls cost more by now than when it was let in: its time is left to those who can still make it."""
    stub, told = Stub(), list[Problem | Answer]()
    async with occupied(stub, pace=60.0) as (batcher, held):
        batcher.post(rows(7), told.append, deadline=asyncio.get_running_loop().time() + 90.0)
        batcher._cost.row = 120.0
        stub.gate.set()
        await held
        async with asyncio.timeout(20):
            assert (await batcher.submit(rows(2))).outputs["y"].item() == 4
    assert [type(found) for found in told] == [Late]
    assert not any((call["x"] == 7).any() for call in stub.calls)


async def past(moment: float) -> None:
    """Wait until the loop's clock says so."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_at(moment, passed.set)
    await passed.wait()


async def test_who_drops_a_ticket_when_told_that_it_is_late_holds_up_nobody() -> None:
    """As a request does that is answered then and lets go of all it has: the lane and the room are given back."""
    stub, told = Stub(), list[Problem | Answer]()
    async with occupied(stub) as (batcher, held):
        soon = asyncio.get_running_loop().time() + 0.01

        def tell(found: Answer | Problem) -> None:
            told.append(found)
            batcher.drop(late)

        late = batcher.post(rows(7), tell, deadline=soon)
        await past(soon)
        assert not told
        stub.gate.set()
        await held
        async with asyncio.timeout(20):
            assert (await batcher.submit(rows(1))).outputs["y"].item() == 2
        assert [type(found) for found in told] == [Late]
        assert batcher.waiting == 0


async def test_a_mistake_in_telling_ends_its_room_and_gives_the_lane_back() -> None:
    """Loudly; rooms of other engines go on, on the same lane."""
    stub, pool = Stub(), Lanes(1)
    one, other = (Batcher(Stubbed(PLAIN, stub.compute), pool, size=8, room=9, cost=Known(row=1e-9)) for _ in range(2))
    tasks = [asyncio.create_task(batcher.serve()) for batcher in (one, other)]
    await settled()
    stub.gate.clear()
    held = ask(other, 0)
    await stub.busy()
    soon = asyncio.get_running_loop().time() + 0.01

    def tell(_: Answer | Problem) -> None:
        raise ZeroDivisionError

    one.post(rows(7), tell, deadline=soon)
    await past(soon)
    stub.gate.set()
    await held
    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await tasks[0]
        assert (await other.submit(rows(1))).outputs["y"].item() == 2
    tasks[1].cancel()
    pool.close()


async def test_a_deadline_that_cannot_be_met_is_refused_before_work_is_spent() -> None:
    """At a known pace, work that would end too late isn't begun."""
    stub = Stub()
    async with served(stub, pace=1.0) as batcher:
        with pytest.raises(Late, match="can't be met"):
            await batcher.submit(rows(1, 2, 3), deadline=asyncio.get_running_loop().time() + 2.0)
    assert not stub.calls


async def test_several_lanes_meet_a_deadline_that_one_could_not() -> None:
    """The pieces of a request are shared by the lanes, and so is the time they take; one piece is not."""
    stub = Stub()
    async with served(stub, pace=1.0, lanes=4, size=2) as batcher:
        answer = await batcher.submit(rows(1, 2, 3, 4, 5, 6), deadline=asyncio.get_running_loop().time() + 2.5)
        assert len(answer.outputs["y"]) == 6
    async with served(stub, pace=1.0, lanes=4, size=8) as batcher:
        with pytest.raises(Late, match="can't be met"):
            await batcher.submit(rows(1, 2, 3, 4, 5, 6), deadline=asyncio.get_running_loop().time() + 2.5)


async def test_a_newcomer_waits_for_no_more_of_others_than_it_brings() -> None:
    """Tickets take turns, so a small one can meet a deadline behind a large one that would take far longer."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub, pace=0.1, size=4) as batcher:
        large = ask(batcher, *range(100, 200))
        await stub.busy()
        soon = asyncio.get_running_loop().time() + 5.0
        small = asyncio.create_task(batcher.submit(rows(1), deadline=soon))
        await settled()
        assert not small.done()
        with pytest.raises(Late, match="can't be met"):
            await batcher.submit(rows(*range(60)), deadline=soon)
        stub.gate.set()
        assert (await small).outputs["y"].item() == 2
        assert len((await large).outputs["y"]) == 100


@pytest.mark.parametrize("lanes", [1, 2, 4])
async def test_the_door_and_the_room_agree_on_what_a_newcomer_waits(lanes: int) -> None:
    """Who is refused before its body is read would be refused with it; and who is let in there is for its own rows."""
    stub, pace, size = Stub(), 1.0, 8
    stub.gate.clear()

    def refused(asks: Callable[[float], Ticket | None], seconds: float) -> bool:
        try:
            found = asks(asyncio.get_running_loop().time() + seconds)
        except Late:
            return True
        if found is not None:
            batcher.drop(found)
        return False

    def door(deadline: float) -> None:
        batcher.check(1, deadline)

    def post(count: int) -> Callable[[float], Ticket]:
        return lambda deadline: batcher.post(rows(*range(count)), lambda _: None, deadline=deadline)

    async with served(stub, size=size, lanes=lanes, pace=pace, room=10**6) as batcher:
        asked = []
        for _ in range(lanes):
            asked.append(ask(batcher, *[0.0] * size))
            await settled()
            await until(lambda: batcher.waiting == 0)
        told: set[bool] = set()
        for more in (1, size - 1, size, 1, 3 * size, 20 * size):
            asked.append(ask(batcher, *[0.0] * more))
            await settled()
            batcher.beside = more  # who waits to become a ticket comes behind one that is posted now
            for seconds in np.geomspace(0.5, 500, 60).tolist():
                early = refused(door, seconds)
                told.add(early)
                assert not early or all(refused(post(count), seconds) for count in (1, size, size + 1, 50))
                assert early or not refused(post(1), seconds + pace + 1e-3)
        assert told == {True, False}
        stub.gate.set()
        await asyncio.gather(*asked)


async def test_where_lanes_come_free_one_after_the_other_one_call_before_is_not_waited_for_to_its_end() -> None:
    """Two lanes are taken and one call waits: a newcomer begins with the second lane that comes free, in that time."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub, pace=0.1, size=4, lanes=2) as batcher:
        taken = [ask(batcher, *range(4)) for _ in range(2)]
        await settled()
        await until(lambda: batcher.waiting == 0)
        taken.append(ask(batcher, *range(4)))
        await settled()
        deadline = asyncio.get_running_loop().time() + 0.85  # two calls of 0.4 s, one after the other, fit into it
        batcher.check(1, deadline)
        batcher.drop(batcher.post(rows(*range(4)), lambda _: None, deadline=deadline))
        stub.gate.set()
        await asyncio.gather(*taken)


async def test_newcomers_who_would_wait_too_long_for_their_turn_are_refused() -> None:
    """However much room there is, whoever is let in has its turn soon; the refusal says when to come again."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub, pace=1.0, patience=3.0) as batcher:
        held = ask(batcher, 0)
        await stub.busy()
        waiting = [ask(batcher, value) for value in range(4)]
        await settled()
        with pytest.raises(Overloaded, match="newcomers wait 4 s") as refused:
            batcher.check()
        assert refused.value.retry_after == 1.0
        with pytest.raises(Overloaded):
            await batcher.submit(rows(9))
        stub.gate.set()
        await asyncio.gather(held, *waiting)
        batcher.check()


async def test_what_is_quick_is_computed_on_the_loop_with_all_that_came_in_the_same_turn() -> None:
    """No thread is woken for a small batch; a large one goes to a lane all the same."""
    stub = Stub()
    threads: list[str] = []

    class Noted(Stub):
        def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
            threads.append(threading.current_thread().name)
            return super().compute(graph, feeds)

    stub = Noted()
    async with served(stub, pace=1e-4, inline=4.5e-4) as batcher:
        answers = await asyncio.gather(*[ask(batcher, value) for value in (1, 2, 3)])
        assert [answer.outputs["y"].item() for answer in answers] == [2, 4, 6]
        assert [len(call["x"]) for call in stub.calls] == [3]
        assert threads == [threading.current_thread().name]
        await batcher.submit(rows(*range(8)))
        assert threads[1].startswith("lane")


async def test_a_batch_that_fails_on_the_loop_fails_only_its_culprit() -> None:
    """The blame is laid in lanes, wherever the batch was computed."""
    stub = Stub()
    async with served(stub, pace=1e-6, inline=1e-3) as batcher:
        found = await asyncio.gather(*[ask(batcher, value) for value in (1, 13, 3)], return_exceptions=True)
        assert [isinstance(each, EngineFailed) for each in found] == [False, True, False]
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError(), KeyboardInterrupt()])
async def test_whatever_a_call_dies_of_its_caller_is_told_and_the_lane_goes_on(error: BaseException) -> None:
    """A lane outlives what would end a thread."""

    class Dying(Stub):
        def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
            if (feeds["x"] == 13).any():
                raise error
            return super().compute(graph, feeds)

    async with served(Dying()) as batcher:
        with pytest.raises(EngineFailed):
            await batcher.submit(rows(13))
        assert (await batcher.submit(rows(4))).outputs["y"].item() == 8


async def test_closing_settles_everyone_and_then_refuses() -> None:
    """No caller hangs: those who wait and those being computed are told, and newcomers are refused."""
    stub = Stub()
    async with occupied(stub) as (batcher, held):
        waiting = ask(batcher, 1)
        await settled()
        batcher.close()
        found = await asyncio.gather(held, waiting, return_exceptions=True)
        assert all(isinstance(error, NotReady) for error in found)
        with pytest.raises(NotReady):
            await batcher.submit(rows(2))


async def test_cancelling_the_loop_settles_everyone() -> None:
    """The same holds when the loop itself is cancelled in the middle of a call."""
    stub = Stub()
    stub.gate.clear()
    pool = Lanes(1)
    batcher = Batcher(Stubbed(PLAIN, stub.compute), pool, size=8, room=100)
    task = asyncio.create_task(batcher.serve())
    held = ask(batcher, 0)
    await stub.busy()
    waiting = ask(batcher, 1)
    await settled()
    task.cancel()
    found = await asyncio.gather(held, waiting, return_exceptions=True)
    assert all(isinstance(error, NotReady) for error in found)
    stub.gate.set()


async def test_a_small_ticket_waits_for_one_piece_of_a_large_one() -> None:
    """A large ticket goes to the back of the queue after each piece."""
    stub = Stub()
    stub.gate.clear()
    async with served(stub, size=4) as batcher:
        large = ask(batcher, *range(100, 140))
        await stub.busy()
        small = ask(batcher, 1)
        await settled()
        stub.gate.set()
        assert (await small).outputs["y"].item() == 2
        assert (await large).outputs["y"].ravel().tolist() == [2 * value for value in range(100, 140)]
    at = next(index for index, call in enumerate(stub.calls) if (call["x"] == 1).any())
    assert at == 1
    assert all(len(call["x"]) <= 4 for call in stub.calls)


@pytest.mark.parametrize(("count", "draws"), [(5, 3), (2, 20), (1, 9), (7, 8), (3, 1)])
async def test_large_requests_are_cut_along_rows_and_then_along_draws(count: int, draws: int) -> None:
    """However a ticket is cut, its answer is that of the whole, and no call holds more than the batch size."""
    stub = Stub()
    noise = np.arange(draws, dtype=np.float64)[:, None]
    values = np.arange(count, dtype=np.float64)[:, None] * 100
    async with served(stub, BOUND, size=8) as batcher:
        answer = await batcher.submit({"x": values}, bank=noise, key=("bank", draws))
    assert np.array_equal(answer.outputs["y"], values + noise[:, 0])
    assert np.array_equal(answer.outputs["kl"], values[:, 0])
    assert all(len(call["x"]) * len(call["noise"]) <= 8 for call in stub.calls)


@pytest.mark.parametrize(("count", "draws"), [(5, 3), (2, 20)])
async def test_draws_of_each_row_are_cut_too(count: int, draws: int) -> None:
    """A graph whose draws differ from row to row is cut along both axes."""
    stub = Stub()
    z = np.arange(count * draws, dtype=np.float64).reshape(count, draws, 1)
    async with served(stub, JOINT, size=8) as batcher:
        answer = await batcher.submit({"x": np.zeros((count, 1)), "z": z})
    assert np.array_equal(answer.outputs["y"], z[:, :, 0])


async def test_only_tickets_with_the_same_bank_run_together() -> None:
    """A bank is shared by its batch, so tickets of two banks never share a call."""
    stub = Stub()
    stub.gate.clear()
    one, two = np.ones((2, 1)), np.full((2, 1), 2.0)
    async with served(stub, BOUND, size=64) as batcher:
        held = asyncio.create_task(batcher.submit(rows(0), bank=one, key=1))
        await stub.busy()
        banks = [(1, one), (2, two), (1, one), (2, two)]
        callers = [asyncio.create_task(batcher.submit(rows(10), bank=bank, key=key)) for key, bank in banks]
        await settled()
        stub.gate.set()
        answers = await asyncio.gather(held, *callers)
    assert [answer.outputs["y"][0, 0] for answer in answers] == [1, 11, 12, 11, 12]
    assert [(len(call["x"]), call["noise"][0, 0]) for call in stub.calls] == [(1, 1), (2, 1), (2, 2)]


async def test_every_one_of_many_callers_gets_its_own_rows() -> None:
    """Random sizes, random leavers, several lanes: exactly one answer each, and the right one."""
    generator = np.random.default_rng(0)
    stub = Stub()
    reports: list[BatchReport] = []
    pool = Lanes(3)
    batcher = Batcher(Stubbed(PLAIN, stub.compute), pool, size=16, room=10_000, report=reports.append)
    task = asyncio.create_task(batcher.serve())
    sizes = generator.integers(1, 40, 300)
    wanted = [generator.integers(100, 10_000, size) for size in sizes]
    callers = [ask(batcher, *values.tolist()) for values in wanted]
    await settled()
    leavers = set(generator.choice(300, 60, replace=False).tolist())
    for index in leavers:
        callers[index].cancel()
    found = await asyncio.gather(*callers, return_exceptions=True)
    for index, (values, answer) in enumerate(zip(wanted, found, strict=True)):
        if isinstance(answer, Answer):
            assert answer.outputs["y"].ravel().tolist() == (2 * values).tolist()
        else:
            assert index in leavers
    assert batcher.waiting == 0
    assert sum(report.tickets for report in reports) >= 240
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    pool.close()


async def test_a_settled_ticket_is_let_go() -> None:
    """Whoever is told and doesn't drop it, is kept nothing of here."""
    stub = Stub()
    async with served(stub) as batcher:
        told: list[Answer | Problem] = []
        every = asyncio.Event()

        def tell(found: Answer | Problem) -> None:
            told.append(found)
            if len(told) == 3:
                every.set()

        brought = [rows(value) for value in (1, 2, 3)]
        for each in brought:
            batcher.post(each, tell)
        await every.wait()
        await settled()
        stub.calls.clear()
        assert not batcher._held
        assert len(told) == 3
