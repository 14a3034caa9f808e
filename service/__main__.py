"""python -m service: settings → logging → uvicorn; and what is done without a server, by a name of its own."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from service import inventory, logs
from service.ahead import Ahead, standard_opener
from service.artifact import Manifest
from service.engine import bound_heaps, may_be_cuda
from service.errors import Problem
from service.lanes import cores
from service.settings import Settings, SettingsError, load
from service.workers import Member, Source, Stock, Supervisor, count, obstacle, share

# Seconds for which who imports keeps Python's lock from who opens, and comes out of the runtime a hundred times: the
# usual 5 ms each time took away all that was won (three models: 1.4 s in place of 1.7).
TURN = 0.0002
OFFLINE = {
    "score": ("draws", "seed", "alpha", "fdr", "correction", "confidence", "explain", "conditionals"),
    "evidence": ("draws", "seed", "confidence"),
}


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
        return alone(settings, listeners)
    return together(settings, listeners)


def alone(settings: Settings, listeners: list[socket.socket]) -> int:
    """Serve in this process; the exit status. Models are opened while what serves them is imported.

    Not on a device, whose calls are timed by the clock: who imports would hold them up.
    """
    share_heaps(settings)
    ahead = None if may_be_cuda(settings.device) else Ahead(settings)
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(TURN)
        from service.serving import work

        sys.setswitchinterval(usual)
        return work(settings, listeners, ahead=ahead)
    finally:
        if ahead:
            ahead.close()  # or the interpreter would wait for all that isn't opened yet


def together(settings: Settings, listeners: list[socket.socket]) -> int:
    """Serve in a process for each listener; the exit status. What they share is imported before they are forked."""
    from service.http.interrupted import interrupted
    from service.serving import work

    def member_work(member: Member) -> int:
        logs.configure(settings.log_level, settings.log_format, worker=member.name, pid=os.getpid())
        own = share(settings, len(listeners))
        share_heaps(own)
        return work(own, member.listeners, member=member)

    source = Source(settings.models, standard_opener(settings), settings.state, settings.drift_false_alarm)
    return Supervisor(settings, Stock(source), listeners, member_work, interrupted).run()


def share_heaps(settings: Settings) -> None:
    """Where one lane computes, threads share a heap for it and one for the loop.

    Several lanes would wait for one another's: 512 rows a request took 17 % longer with three heaps for two of them.
    """
    if (settings.lanes or cores()) == 1:
        bound_heaps(2)


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
