"""python -m service: settings → logging → uvicorn; and what is done without a server, by a name of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from service import app as parts
from service import inventory, logs, welcome
from service.app import build
from service.artifact import Manifest
from service.door import Door
from service.engine import bound_heaps
from service.errors import Problem
from service.http.interrupted import interrupted
from service.lanes import Lanes, cores
from service.settings import Settings, SettingsError, load
from service.workers import House, Member, Source, Stock, Supervisor, count, obstacle, share

log = logging.getLogger(__name__)

OFFLINE = {
    "score": ("draws", "seed", "alpha", "fdr", "correction", "confidence", "explain", "conditionals"),
    "evidence": ("draws", "seed", "confidence"),
}


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would close its listener at once, and we drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us."""
        yield


async def run(settings: Settings, listeners: list[socket.socket], member: Member | None = None) -> int:
    """Serve until told to stop, as one process or as a member of a group; the exit status."""
    door = Door()
    app = build(settings, door=door, member=member)
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
    app.state.models.close()
    server.should_exit = True
    await serving
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


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; OSError where there is none to be had, which uvicorn would make a traceback of.

    shared: others listen there too, and whoever comes is sent to one of them.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)  # as clients do with `localhost`
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=both, reuse_port=shared)


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets on one port."""
    with listen(host, port) as probe:  # which fails where another listens, also one that would share
        port = probe.getsockname()[1]
    return [listen(host, port, shared=True) for _ in range(count)]


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


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    asked = parser().parse_args(arguments)
    try:
        settings = load()
    except SettingsError as error:
        print(f"vae-serve: {error}", file=sys.stderr)
        return 2
    if asked.command == "schema":
        print(json.dumps(Manifest.model_json_schema(), indent=2, ensure_ascii=False))
        return 0
    logs.configure(settings.log_level, settings.log_format)
    if asked.command in OFFLINE:
        return offline(settings, asked)
    if asked.command == "check":
        return check(settings, asked)
    if asked.command == "artifacts":
        return artifacts(settings, asked)
    workers = getattr(asked, "workers", None)
    return serve(settings if workers is None else settings.model_copy(update={"workers": workers}))


def serve(settings: Settings) -> int:
    """Serve in this process, or in several that this one looks after; the exit status."""
    workers = count(settings)
    if workers > 1 and (reason := obstacle(settings)):
        print(f"vae-serve: VAE_SERVE_WORKERS={workers}: {reason}", file=sys.stderr)
        return 2
    try:
        if workers > 1:
            listeners = listen_together(settings.host, settings.port, workers)
        else:
            listeners = [listen(settings.host, settings.port)]
    except (OSError, UnicodeError) as error:  # the latter where a name is none
        said = getattr(error, "strerror", None) or error
        print(f"vae-serve: can't listen on {settings.host}:{settings.port}: {said}", file=sys.stderr)
        return 1
    if workers == 1:
        return work(settings, listeners)
    source = Source(settings.models, parts.standard_opener(settings), settings.state, settings.drift_false_alarm)
    return Supervisor(
        settings, Stock(source), listeners, partial(member_work, share(settings, workers)), interrupted
    ).run()


def member_work(settings: Settings, member: Member) -> int:
    """What a process of the group does; its exit status."""
    logs.configure(settings.log_level, settings.log_format, worker=member.name, pid=os.getpid())
    return work(settings, member.listeners, member)


def work(settings: Settings, listeners: list[socket.socket], member: Member | None = None) -> int:
    """Serve in this process; the exit status."""
    import uvloop

    settle(settings.lanes or cores())
    return uvloop.run(run(settings, listeners, member))


def settle(lanes: int) -> None:
    """Have Python look for garbage seldom, and not among what is loaded by now; a heap for the loop and each lane."""
    bound_heaps(1 + lanes)
    gc.collect()
    gc.freeze()  # it stays; going through it again and again would only hold requests up
    # A request leaves few cycles behind. 5,000 objects are looked through in 0.3 ms; 50,000 take 17, in which nobody is
    # answered, and are 5 MB that are waited for after the start is long over.
    gc.set_threshold(5_000, 20, 50)


def offline(settings: Settings, asked: argparse.Namespace) -> int:
    """Answer for a file's rows; the exit status."""
    from service import offline

    logging.getLogger().setLevel(logging.ERROR)
    work = {"score": offline.score, "evidence": offline.measure}[asked.command]
    wanted = {name: getattr(asked, name) for name in OFFLINE[asked.command]}
    try:
        answer = work(settings, asked.model, asked.rows, **wanted)
        offline.save(answer, asked.out)
    except Problem as error:
        print(f"vae-serve: {error}", file=sys.stderr)
        return 2
    print(offline.summary(answer))
    print(f"  written  {asked.out}")
    return 0


def check(settings: Settings, asked: argparse.Namespace) -> int:
    """Check a model against rows of its own; 0 where it is sound, 1 where it is broken, 2 where it can't be read."""
    from service import check as checking
    from service.engine import open_engine

    logging.getLogger().setLevel(logging.ERROR)
    opener = partial(open_engine, device=settings.device)
    wanted = {name: getattr(asked, name) for name in ("rows", "draws", "seed")}
    try:
        report = checking.check(asked.folder, say=progress, opener=opener, lanes=settings.lanes, **wanted)
        out = asked.out or Path(f"{report.manifest.name}-{report.manifest.version}-check.svg")
        out.write_text(report.picture(), encoding="utf-8")
    except Problem as error:
        print(f"vae-serve: {asked.folder}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"vae-serve: {error.filename} can't be written: {error.strerror}", file=sys.stderr)
        return 2
    print(report.text())
    print(f"picture: {out}")
    return 0 if report.sound else 1


def artifacts(settings: Settings, asked: argparse.Namespace) -> int:
    """Look after the artifacts on disk; 0 where all is well, 1 where something was found, 2 where there is nothing."""
    logging.getLogger().setLevel(logging.ERROR)
    try:
        return inventory.run(settings, asked, partial(print, flush=True))
    except (Problem, OSError) as error:
        print(f"vae-serve: {error}", file=sys.stderr)
        return 2


def progress(done: int, rows: int) -> None:
    """Say on standard error how far a check is: on one line before a person, a line each in a log."""
    ahead, end = ("\r", "\n" if done == rows else "") if sys.stderr.isatty() else ("", "\n")
    print(f"{ahead}checked {done} of {rows} rows", end=end, file=sys.stderr, flush=True)


def ranged(low: int, high: int) -> Callable[[str], int]:
    """What reads a whole number from low to high."""

    def number(word: str) -> int:
        if not (word.isascii() and word.isdecimal() and len(word) < 20 and low <= int(word) <= high):
            raise argparse.ArgumentTypeError(f"{word} is not a whole number from {low} to {high}")
        return int(word)

    return number


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    top = argparse.ArgumentParser(prog="python -m service", description="Serve trained variational autoencoders.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve over HTTP (the default); settings are VAE_SERVE_* variables")
    serve.add_argument("--workers", type=ranged(0, 256), help="processes that serve; default: VAE_SERVE_WORKERS")
    commands.add_parser("schema", help="print the manifest's JSON Schema")
    score = commands.add_parser("score", help="score the rows of an npy file, without a server")
    evidence = commands.add_parser("evidence", help="log p(x) of the rows of an npy file, without a server")
    for rows in (score, evidence):
        rows.add_argument("model", help="NAME or NAME/VERSION in VAE_SERVE_MODELS")
        rows.add_argument("rows", type=Path, help="npy file, [n, *event]")
        rows.add_argument("-o", "--out", type=Path, required=True, help="npz file for the answer")
    score.add_argument("--draws", type=int, help="draws a row; default: as calibrated")
    score.add_argument("--seed", type=int, help="of the noise bank; default: as calibrated")
    score.add_argument("--alpha", type=float, default=0.05, help="anomaly is p_value ≤ alpha (default 0.05)")
    score.add_argument("--fdr", type=float, help="decide all rows together at this false discovery rate; then no alpha")
    score.add_argument("--correction", choices=("none", "simes"), help="p-values for the calibration set at hand")
    score.add_argument("--confidence", type=float, help="of the correction (default 0.9)")
    score.add_argument("--explain", action="store_true", help="also what each feature and latent adds")
    score.add_argument("--conditionals", action="store_true", help="also how likely each feature is given the others")
    evidence.add_argument("--draws", type=int, default=4096, help="decoder calls a row, all together (default 4096)")
    evidence.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    evidence.add_argument("--confidence", type=float, default=0.95, help="of lower_bound, over seeds (default 0.95)")
    own = commands.add_parser("check", help="check a model against rows drawn from itself; writes a picture")
    own.add_argument("folder", type=Path, help="an artifact: exported_models/NAME/VERSION")
    own.add_argument("--rows", type=ranged(20, 4096), default=100, help="rows to draw (default 100)")
    own.add_argument("--draws", type=ranged(256, 16384), default=1024, help="decoder calls a row (default 1024)")
    own.add_argument("--seed", type=ranged(0, 2**53 - 1), default=0, help="of rows and draws (default 0)")
    own.add_argument("-o", "--out", type=Path, help="the picture (default NAME-VERSION-check.svg, here)")
    inventory.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
