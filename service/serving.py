"""Serving: a process that serves, from its settings to its exit status. Knows uvicorn, and no request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import uvicorn
import uvloop
from fastapi import FastAPI

from service import welcome
from service.ahead import Ahead
from service.app import build
from service.door import Door
from service.lanes import Lanes
from service.settings import Settings
from service.workers import House, Member

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would close its listener at once, and we drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us."""
        yield


def work(
    settings: Settings, listeners: list[socket.socket], *, ahead: Ahead | None = None, member: Member | None = None
) -> int:
    """Serve in this process; the exit status."""
    settle()
    return uvloop.run(run(settings, listeners, ahead=ahead, member=member))


def settle() -> None:
    """Have Python look for garbage seldom, and not among what is loaded by now."""
    gc.collect()
    gc.freeze()  # it stays; going through it again and again would only hold requests up
    # A request leaves few cycles behind. 5,000 objects are looked through in 0.3 ms; 50,000 take 17, in which nobody is
    # answered, and are 5 MB that are waited for after the start is long over.
    gc.set_threshold(5_000, 20, 50)


async def run(
    settings: Settings, listeners: list[socket.socket], *, ahead: Ahead | None = None, member: Member | None = None
) -> int:
    """Serve until told to stop, as one process or as a member of a group; the exit status."""
    door = Door()
    app = build(settings, door=door, ahead=ahead, member=member)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=app.state.front.protocol(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the idle timeout of common load balancers, which then close first
        timeout_graceful_shutdown=1,  # whoever is inside has been told by then
    )
    server = Server(config)
    watch(app.state.lanes, settings.stall_ms / 1e3)
    serving = asyncio.create_task(server.serve(listeners))
    if member:
        join(member, app, server, settings)
    else:
        own_signals(door, settings)
        if settings.welcome:
            door.spawn("welcome", welcome.greet(app.state.models, server))
    ended = asyncio.create_task(door.ended.wait())
    await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ahead:
        ahead.close()
    app.state.models.close()
    server.should_exit = True
    await serving
    app.state.front.books.end()
    status = 1 if door.fault or not server.started else 0
    if door.fault:
        print(f"vae-serve: {door.fault}", file=sys.stderr)
    if not await idle(app.state.lanes):
        leave(status)
    return status


def watch(lanes: Lanes, limit: float) -> None:
    """End the process if the loop itself computes for longer than an engine call may: nobody can be answered then.

    Small batches are computed there. One that stalls would stop the signals and /livez with it.
    """

    def look() -> None:
        while lanes.longest_here() < limit:
            time.sleep(min(1.0, limit / 4))
        log.critical("an engine call on the event loop has taken more than %.3g s; ending", limit)
        leave(1)

    threading.Thread(target=look, name="watch", daemon=True).start()


def join(member: Member, app: FastAPI, server: Server, settings: Settings) -> None:
    """Be looked after by the group's supervisor."""
    door: Door = app.state.door
    door.leaving = member.porter  # so that nobody keeps a connection to it

    def stop_listening() -> None:
        for listening in server.servers:
            listening.close()

    def hang_up() -> bool:
        for connection in list(server.server_state.connections):
            connection.shutdown()
        return bool(server.server_state.connections)

    def count_inside(inside: int) -> None:
        app.state.metrics.inside.set(inside)
        app.state.metrics.share()

    house = House(
        door,
        app.state.models,
        app.state.lanes,
        count_inside,
        lambda: server.started,
        stop_listening,
        hang_up,
        partial(welcome.greet, app.state.models, server),
        settings.drain_limit_ms / 1e3,
    )
    member.attend(house)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, member.terminated)


async def idle(lanes: Lanes, patience: float = 1.0) -> bool:
    """Whether the engine calls end by themselves; a last one, whose caller has gone, is given a moment."""
    clock = asyncio.get_running_loop().time
    end = clock() + patience
    while lanes.longest() > 0 and clock() < end:  # noqa: ASYNC110  a call can't say that it ends
        await asyncio.sleep(0.01)
    return lanes.longest() <= 0


def leave(status: int) -> NoReturn:
    """End the process though an engine call has not ended: the interpreter would wait for its thread for ever."""
    log.warning("an engine call would not end and is left behind")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def own_signals(door: Door, settings: Settings) -> None:
    """SIGTERM drains, with its grace; ^C drains without; either, again, ends it now."""
    loop = asyncio.get_running_loop()
    grace, limit = settings.drain_grace_ms / 1e3, settings.drain_limit_ms / 1e3

    def stop(name: str, grace: float) -> None:
        if door.state != "open":
            log.warning("%s again: ending now", name)
            door.ended.set()
            return
        log.info("%s", name)
        door.spawn("drain", door.drain(grace, limit))

    loop.add_signal_handler(signal.SIGTERM, stop, "SIGTERM", grace)
    loop.add_signal_handler(signal.SIGINT, stop, "SIGINT", 0.0)
