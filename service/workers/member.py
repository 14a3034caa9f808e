"""The member: a worker's side of the group. Knows its supervisor by messages alone, and nothing of how it is spoken to.

The porter is one too: it answers while nothing is opened yet, and goes once workers serve.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from service import footing
from service.debts import Debts
from service.drift import Doubles
from service.engine import check_golden
from service.errors import ArtifactRefused
from service.models import Key, Model, Models, Opened, Shelf
from service.workers.channel import Channel, Message
from service.workers.stock import Stock

if TYPE_CHECKING:
    from service.door import Door
    from service.lanes import Lanes

log = logging.getLogger(__name__)

BEAT = 0.1  # seconds between two signs of life
SOON = 0.005  # the same until the worker serves
CHUNK = 8192  # scores in one message
MOST = 1_000_000  # scores that wait for a supervisor that doesn't take them; what comes then isn't watched
PATIENCE = 2.0  # seconds that a calibration waits for the other workers to have it


@dataclass
class Relay:
    """What stands for the group's watch in a worker: it passes scores on, and repeats what the watch said last."""

    tag: int
    threshold: float
    rows: int
    log_wealth: float
    alarm: bool
    last: tuple[float, float] | None
    waiting: list[Doubles] = field(default_factory=list)
    held: int = 0

    def see(self, scores: Doubles) -> bool:
        """Pass scores on with the next beat; the alarm is raised where the watch is."""
        if self.held < MOST:
            self.waiting.append(scores)
            self.held += len(scores)
        return False

    def recent(self) -> tuple[float, float] | None:
        """What the watch said last."""
        return self.last

    def taken(self) -> list[bytes]:
        """What waits, as messages' payloads."""
        scores = np.concatenate(self.waiting) if self.waiting else np.empty(0)
        self.waiting, self.held = [], 0
        return [scores[start : start + CHUNK].tobytes() for start in range(0, len(scores), CHUNK)]


@dataclass(frozen=True, slots=True)
class House:
    """The parts of a process that serves, as far as the group has to do with them."""

    door: Door
    models: Models
    lanes: Lanes
    count: Callable[[int], None]
    listens: Callable[[], bool]
    stop_listening: Callable[[], None]
    hang_up: Callable[[], bool]
    greet: Callable[[], Coroutine[Any, Any, None]]
    limit: float


class Member:
    """One process of the group, in that process. number is its seat, slot where it counts; see metrics.group."""

    def __init__(
        self,
        number: int,
        slot: int,
        channel: Channel,
        listeners: list[socket.socket],
        stock: Stock | None,
        keys: Iterable[Key],
        folder: Path,
        debts: Debts | None,
    ) -> None:
        self.number = number
        self.slot = slot
        self.listeners = listeners
        self.folder = folder
        self.keys = set(keys)
        self.debts = debts  # which somebody settles when this process dies
        self.porter = stock is None
        self.may_listen = asyncio.Event()  # until then whoever comes waits at the listener
        self.name = "porter" if stock is None else str(number)
        self.bereaved = False  # whether the supervisor has gone, and can't clear up
        self._channel = channel
        self._supervisor = os.getppid()
        self._said: dict[str, Any] = {"pids": [], "heirs": [], "serving": 0, "replaced": 0}
        self._relays: dict[int, Relay] = {}
        self._entries = (
            {key: self._relayed(opened, stock.tags[key]) for key, opened in stock.entries.items()} if stock else {}
        )
        self._telling: dict[int, asyncio.Future[None]] = {}
        self._serials = count(1)  # none is used again: what is said late of one calibration isn't said of the next
        self._house: House | None = None
        self._said_ready = self._said_serving = False
        if self.porter:
            self.may_listen.set()

    # ------------------------------------------------------------ what it serves

    def look(self) -> Shelf:
        """What the supervisor opened; each answers its golden rows here again before it is served."""
        return {key: partial(self._take, key) for key in self._entries}

    def _take(self, key: Key) -> Opened | str:
        opened = self._entries[key]
        if isinstance(opened, str):
            return opened
        try:
            check_golden(opened.engine, opened.found)
        except ArtifactRefused as error:
            log.error("refused %s/%s in this worker: %s", *key, error)
            return str(error)
        return self._entries[key]  # which may have been calibrated meanwhile

    def _relayed(self, opened: Opened | str, tag: int) -> Opened | str:
        """An artifact whose scores go to the group's watch."""
        if isinstance(opened, str) or opened.footing is None or (watch := opened.footing.watch) is None:
            return opened
        relay = Relay(tag, watch.threshold, watch.rows, watch.log_wealth, watch.alarm, watch.recent())
        self._relays[tag] = relay
        return replace(opened, footing=replace(opened.footing, watch=relay))

    # ------------------------------------------------------------ what it is told

    def attend(self, house: House) -> None:
        """Listen to the supervisor from now on, and give signs of life."""
        self._house = house
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._hear)
        house.door.spawn("beat", self._beat(house))

    def _hear(self) -> None:
        assert self._house
        does = {
            "listen": self._listen,
            "drain": self._drain,
            "leave": self._leave,
            "end": self._end,
            "greet": self._greet,
            "group": self._group,
            "watch": self._watch,
            "changed": self._changed,
            "told": self._told,
        }
        try:
            for message in self._channel.receive():
                does[message.kind](message, self._house)
        except EOFError:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            log.critical("the supervisor is gone")
            self.bereaved = True
            self._house.door.fault = "the supervisor is gone"
            self._drain(Message("drain", {"grace": 0.0}), self._house)

    def _listen(self, _: Message, __: House) -> None:
        self.may_listen.set()

    def _drain(self, message: Message, house: House) -> None:
        self.may_listen.set()  # or one that rises would wait for ever to be told, and never end
        if house.door.state == "open":
            house.door.spawn("drain", house.door.drain(message.facts["grace"], house.limit))

    def _leave(self, message: Message, house: House) -> None:
        house.stop_listening()
        self._channel.send("deaf")
        house.door.spawn("leave", house.door.leave(message.facts["grace"], message.facts["limit"], house.hang_up))

    def _end(self, _: Message, house: House) -> None:
        self.may_listen.set()
        house.door.ended.set()

    def _greet(self, _: Message, house: House) -> None:
        async def greet() -> None:
            await house.greet()
            self._channel.send("greeted")

        house.door.spawn("welcome", greet())

    def _group(self, message: Message, _: House) -> None:
        self._said = message.facts

    def _watch(self, message: Message, _: House) -> None:
        said = message.facts
        if relay := self._relays.get(said["tag"]):
            relay.rows, relay.log_wealth, relay.alarm = said["rows"], said["log_wealth"], said["alarm"]
            relay.last = tuple(said["recent"]) if said["recent"] else None

    # ------------------------------------------------------------ calibrations

    async def told(self, model: Model) -> None:
        """Have all workers rest a model's p-values on the calibration that the state keeps for it by now."""
        serial = next(self._serials)
        told = self._telling[serial] = asyncio.get_running_loop().create_future()
        self._channel.send("calibrated", key=[model.manifest.name, model.manifest.version], serial=serial)
        try:
            await asyncio.wait_for(told, PATIENCE)
        except TimeoutError:
            log.warning("not every worker has said that it has the new calibration")
        finally:
            del self._telling[serial]

    def _told(self, message: Message, _: House) -> None:
        told = self._telling.get(message.facts["serial"])
        if told and not told.done():
            told.set_result(None)

    def _changed(self, message: Message, house: House) -> None:
        house.door.spawn("calibration", self._recalibrate(message.facts, house.models))

    async def _recalibrate(self, said: dict[str, Any], models: Models) -> None:
        """Rest a model's p-values on what the state keeps for it."""
        key, state = (said["key"][0], said["key"][1]), Path(said["state"])
        opened = self._entries.get(key)
        if isinstance(opened, Opened) and opened.digest == said["digest"]:
            found = await asyncio.to_thread(footing.find, opened.found, opened.digest, state, said["false_alarm"])
            if found and found.source == "state":
                found = replace(found, since=found.made or found.since)
                self._renew(key, replace(opened, footing=found), said["tag"], models)
        self._channel.send("has", change=said["change"])

    def _renew(self, key: Key, opened: Opened, tag: int, models: Models) -> None:
        """Serve a model on another calibration; scores of the one before are nobody's from now on."""
        before = self._entries[key]
        if isinstance(before, Opened) and before.footing and isinstance(before.footing.watch, Relay):
            self._relays.pop(before.footing.watch.tag, None)
        self._entries[key] = renewed = self._relayed(opened, tag)
        for model in models.all():
            if (model.manifest.name, model.manifest.version) == key and isinstance(renewed, Opened):
                models.serve(replace(model, footing=renewed.footing))

    # ------------------------------------------------------------ signs of life

    async def _beat(self, house: House) -> None:
        while True:
            for relay in self._relays.values():
                for payload in relay.taken():
                    self._channel.send("scores", payload, tag=relay.tag)
            if not self._said_ready and house.models.settled:
                self._said_ready = True
                self._channel.send("ready")
            if not self._said_serving and house.listens():
                self._said_serving = True
                self._channel.send("serves")
            house.count(house.door.inside)
            self._channel.flush()
            self._channel.mention("beat", computing=house.lanes.longest())
            await asyncio.sleep(BEAT if self._said_serving else SOON)

    def terminated(self) -> None:
        """This process alone was asked to end: the supervisor sees to it that another takes its place."""
        self._channel.send("terminated")

    # ------------------------------------------------------------ what is said of the group

    def processes(self) -> Iterable[Metric]:
        """What is said of all processes together."""
        from service.metrics.group import processes

        said = self._said
        yield from processes(said["pids"], self._supervisor, said["heirs"])
        yield GaugeMetricFamily("vae_serve_workers", "Worker processes that serve", value=said["serving"])
        replaced = "Worker processes that died or stalled, and were replaced"
        yield CounterMetricFamily("vae_serve_workers_replaced", replaced, value=said["replaced"])
