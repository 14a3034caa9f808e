"""How much memory the service takes with a model of 111 MB, and what sharing its weights costs in time.

    python -m benchmarks.memory [--models FOLDER] [--repeats 7] [--ours batch_ms=200]

The model has random weights (benchmarks/subjects.py) and passes every check of an export, twice: with the weights in
every graph that needs them, and with shared weights. Each artifact is served by `python -m service` on the CPU with one
lane. Memory is that of all its processes, after it is ready and again after requests; without: the service with `tiny`
alone. Seconds are of CPU, for on a busy machine the clock measures others: the least of some repeats, asked of the two
services in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import load, servers, subjects
from benchmarks.load import Ask
from benchmarks.servers import Running
from benchmarks.serving import until_first

NPY = "application/x-npy"
WAYS = ("inline", "shared")
MIB = 2**20
TINY = Path("exported_models") / "tiny"


@dataclass(frozen=True)
class Served:
    """A service with its figures so far: memory in MiB as (PSS, RSS), CPU seconds by request."""

    server: Running
    ready: float
    at_first: tuple[float, float]
    seconds: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the artifacts where they aren't there, serve them, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="where the two artifacts are kept; a scratch folder unless given")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ours", default="", help="settings of the service, as in lanes=2,batch_ms=200")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        models = asked.models or Path(scratch)
        folders = dict(zip(WAYS, subjects.large(*(models / way for way in WAYS)), strict=True))
        (Path(scratch) / "without").mkdir()
        (Path(scratch) / "without" / "tiny").symlink_to(TINY.resolve())
        with served(Path(scratch) / "without", asked.ours) as bare:
            without = bare.at_first
        with contextlib.ExitStack() as stack:
            each = {way: stack.enter_context(served(models / way, asked.ours)) for way in WAYS}
            measure(each, asks(), asked.repeats)
            print(report(folders, each, without))


@contextlib.contextmanager
def served(models: Path, settings: str) -> Iterator[Served]:
    """A folder of artifacts as a service that is ready."""
    server = servers.start(servers.kind(servers.OURS, f"lanes=1,{settings}"), models, models, models)
    try:
        ready = until_first(server, Ask("/readyz", {}, b""))
        yield Served(server, ready, memory(server), {})
    finally:
        server.end()


def asks() -> dict[str, Ask]:
    """The requests that are timed, by what the table calls them."""
    rows = subjects.fitted_large().data.splits["test"]
    latents = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    return {
        "encode, 1 row": _ask("encode", rows[:1]),
        "encode, 64 rows": _ask("encode", rows[:64]),
        "decode, 64 rows": _ask("decode", latents),
        "score, 1 row × 16 draws": _ask("score?draws=16", rows[:1]),
        "score, 16 rows × 16 draws": _ask("score?draws=16", rows[:16]),
        "score, 64 rows × 16 draws": _ask("score?draws=16", rows[:64]),
    }


def _ask(operation: str, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Ask:
    content = io.BytesIO()
    np.save(content, rows)
    return Ask(f"/v1/models/large/{operation}", {"Content-Type": NPY}, content.getvalue())


def measure(each: Mapping[str, Served], wanted: Mapping[str, Ask], repeats: int) -> None:
    """The least CPU seconds of every request, the services taking turns."""
    for name, ask in wanted.items():
        for _ in range(repeats):
            for one in each.values():
                before = cpu(one.server)
                status, _, body = load.send(one.server.port, ask)
                if status != 200:
                    raise SystemExit(f"{name}: {status} {body[:300]!r}")
                one.seconds[name] = min(one.seconds.get(name, np.inf), spent(before, cpu(one.server)))


def cpu(server: Running) -> dict[int, float]:
    """Seconds of CPU that each of its processes has used, to the nanosecond where /proc counts in ticks of 10 ms."""
    used = {}
    for pid in server.pids():
        with contextlib.suppress(OSError):
            used[pid] = time.clock_gettime((~pid << 3) | 2)  # the clock of a process: clock_getcpuclockid(3)
    return used


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds of CPU between two looks, of the processes that were there at both."""
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys())


def memory(server: Running) -> tuple[float, float]:
    """PSS and RSS of all its processes in MiB."""
    found = {"Pss:": 0, "Rss:": 0}
    for pid in server.pids():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                kind, _, rest = line.partition(" ")
                if kind in found:
                    found[kind] += int(rest.split()[0])
    return found["Pss:"] / 1024, found["Rss:"] / 1024


def report(folders: Mapping[str, Path], each: Mapping[str, Served], without: tuple[float, float]) -> str:
    """The two tables."""
    lines = ["| | without | inline | shared |", "|---|---|---|---|"]
    disk = {way: sum(path.stat().st_size for path in folder.iterdir()) / MIB for way, folder in folders.items()}
    later = {way: memory(one.server) for way, one in each.items()}
    table: list[tuple[str, str, Mapping[str, float]]] = [
        ("on disk, MiB", "", disk),
        ("ready: PSS, MiB", f"{without[0]:.0f}", {way: one.at_first[0] for way, one in each.items()}),
        ("ready: RSS, MiB", f"{without[1]:.0f}", {way: one.at_first[1] for way, one in each.items()}),
        ("after requests: PSS, MiB", "", {way: value[0] for way, value in later.items()}),
        ("after requests: RSS, MiB", "", {way: value[1] for way, value in later.items()}),
        ("seconds to ready", "", {way: one.ready for way, one in each.items()}),
    ]
    for name, first, values in table:
        lines.append(f"| {name} | {first} | " + " | ".join(_short(values[way]) for way in WAYS) + " |")
    lines += ["", "| CPU ms of | inline | shared | shared / inline |", "|---|---|---|---|"]
    inline, shared = (each[way].seconds for way in WAYS)
    for name in inline:
        figures = f"{inline[name] * 1e3:.0f} | {shared[name] * 1e3:.0f} | {shared[name] / inline[name]:.2f}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 20 else f"{value:.0f}"


if __name__ == "__main__":
    main()
