"""How fast rows are scored over HTTP, beside what a user would pick instead, and beside the graph without a server.

    python -m benchmarks.serving [--quick] [--models mlp,conv] [--servers ours,mosec,…] [--only S1,S3] [--write]

A closed loop of wrk on the same two cores as the server: S1 one-row JSON at 1, 16 and 64 connections, S2 64-row JSON at
4, S3 one-row binary at 1, 16 and 64, S4 512-row binary at 4. Everyone computes the same elbo.onnx with the same noise,
one draw a row, in one-thread sessions, and answers the ELBO. Bodies are compared with the graph's own answer before any
load, and a failure under load ends the run. Servers take turns within each scenario, in another order each time.

A model may also be the folder of an artifact, exported_models/mnist/1, and a server ours with settings, ours:workers=2.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks import asks, load, report, servers
from benchmarks.asks import Subject
from benchmarks.inprocess import Graph, parsing
from benchmarks.load import Ask, Load, LoadFailed
from benchmarks.servers import Kind, Running
from service import artifact
from service.artifact import Array
from service.noise import bank

RESULTS = Path(__file__).parent / "results" / "serving.md"
SUBJECTS = servers.ROOT / "runs" / "subjects"  # kept: the convolutions take two minutes to export
TOLERANCE = 1e-6  # of an ELBO, relative: sums of float32 terms
MODELS = ("mlp", "conv")
SERVERS = (servers.OURS, *servers.PEERS)


@dataclass(frozen=True)
class Cell:
    """One scenario at one concurrency."""

    scenario: str
    rows: int
    form: str
    connections: int

    def __str__(self) -> str:
        return f"{self.scenario} c={self.connections}"


CELLS = (
    *(Cell("S1", 1, "json", connections) for connections in (1, 16, 64)),
    Cell("S2", 64, "json", 4),
    *(Cell("S3", 1, "binary", connections) for connections in (1, 16, 64)),
    Cell("S4", 512, "binary", 4),
)


@dataclass(frozen=True)
class Plan:
    """How long to measure: repeats of so many seconds, after a warm-up, and how often each server is started."""

    repeats: int = 3
    seconds: float = 4.0
    starts: int = 3
    warm: float = 1.0
    binary: str = "oip"


@dataclass
class Found:
    """What one model's servers have shown."""

    name: str
    graph_p50: float
    peaks: dict[int, tuple[float, int]]  # sessions → rows/s, batch
    parse: float  # of the one-row JSON body
    starts: dict[str, list[float]] = field(default_factory=dict)
    idle: dict[str, tuple[float, float]] = field(default_factory=dict)  # MiB, cores' share
    inside: dict[Cell, list[float]] = field(default_factory=dict)
    loads: dict[Cell, dict[str, list[Load]]] = field(default_factory=dict)
    memory: dict[Cell, dict[str, float]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    asked = parser().parse_args(arguments)
    plan = Plan(asked.repeats, asked.seconds, asked.starts, binary=asked.binary)
    if asked.quick:
        plan = Plan(repeats=2, seconds=1.0, starts=1, warm=0.5, binary=asked.binary)
    kinds = [servers.kind(name, asked.ours) for name in asked.servers]
    cells = [cell for cell in CELLS if not asked.only or {cell.scenario, str(cell)} & set(asked.only)]
    with on_cores(asked.cores):
        pieces = [report.heading(plan.repeats, plan.seconds, plan.binary, kinds)]
        for name in asked.models:
            with subject(name) as (folder, found):
                pieces.append(report.tables(measure(folder, found, kinds, cells, plan)))
        if asked.three:
            pieces.append(report.three(three_models(plan.starts)))
    text = "\n".join(pieces)
    print(text)
    if asked.write:
        RESULTS.write_text(text)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep this process, and all that it starts, to so many cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---------------------------------------------------------------- what is served


@contextmanager
def subject(name: str) -> Iterator[tuple[Path, Subject]]:
    """A folder with one model's artifact alone, and the rows to ask it for."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        made = make(name, models)
        yield models, opened(made)


def make(name: str, models: Path) -> Path:
    """Copy an artifact into a folder of models; one of ours is exported where it has not been yet, into runs/."""
    there = Path(name).resolve()
    if name in MODELS and not (there := SUBJECTS / name / "1").exists():
        from benchmarks import subjects  # it imports the trainer

        say(f"{name} is exported to {SUBJECTS}; this happens once")
        there = {"mlp": subjects.mlp, "conv": subjects.conv}[name](SUBJECTS)
    return Path(shutil.copytree(there, models / there.parent.name / there.name))


def opened(folder: Path) -> Subject:
    """An artifact's name, rows, and the noise of one draw."""
    found = artifact.read(folder)
    noise = bank(asks.SEED, 1, found.manifest.latent_size).noise
    return Subject(found.manifest.name, found.manifest.version, found.golden["elbo.x"], noise)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Bench:
    """One model as it is measured: its files, its graph in process, what is asked for, and what was found."""

    models: Path
    file: Path
    noise: Path
    graph: Graph
    subject: Subject
    plan: Plan
    found: Found

    def asked(self, kind: Kind, x: Array, form: str) -> Ask:
        """The request for some rows in the form that a server takes."""
        if kind.ours:
            return asks.to_us(x, form, self.plan.binary, self.subject)
        return asks.to_peer(x, form, kind.name)

    def started(self, kind: Kind) -> Running:
        """A server that has answered, started as often as is to be measured; the last one stays."""
        say(f"{self.subject.name}: {kind.name} starts")
        one = self.subject.some(1)
        ask = self.asked(kind, one, "json")
        times = self.found.starts[kind.name] = []
        for start in range(self.plan.starts):
            server = servers.start(kind, self.models, self.file, self.noise)
            try:
                times.append(until_first(server, ask))
                check(server, ask, self.graph.elbo(one))
            except BaseException:
                server.end()
                raise
            if start < self.plan.starts - 1:
                server.end()
        busy, memory = idle(server, min(1.0, self.plan.seconds / 2)), server.memory()
        self.found.idle[kind.name] = memory, busy
        server.pause()
        return server

    def fill(self, cell: Cell, running: Mapping[str, Running]) -> None:
        """One cell: everyone in turn, again and again, in another order each time."""
        x, best = self.subject.some(cell.rows), self.subject.some(self.found.peaks[2][1])
        wanted = {name: self.asked(server.kind, x, cell.form) for name, server in running.items()}
        loads = self.found.loads[cell] = {name: [] for name in running}
        memory = self.found.memory[cell] = dict.fromkeys(running, 0.0)
        for repeat in range(self.plan.repeats):
            self.found.inside.setdefault(cell, []).append(self.graph.rate(best, self.plan.seconds / 4))
            order = list(running)
            random.Random(f"{cell} {repeat}").shuffle(order)
            for name in order:
                server = running[name]
                say(f"{self.subject.name}: {cell}, {repeat + 1} of {self.plan.repeats}: {name}")
                server.resume()
                if not repeat:
                    check(server, wanted[name], self.graph.elbo(x))
                loads[name].append(run(server, wanted[name], cell, self.plan))
                memory[name] = max(memory[name], server.memory())
                server.pause()


def measure(models: Path, subject: Subject, kinds: Sequence[Kind], cells: Sequence[Cell], plan: Plan) -> Found:
    """All servers in all cells for one model."""
    file = models / subject.name / str(subject.version) / "elbo.onnx"
    with ExitStack() as stack:
        noise = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "noise.npy"
        np.save(noise, subject.noise)
        graph = Graph(file, subject.noise)
        bench = Bench(models, file, noise, graph, subject, plan, in_process(graph, subject, plan))
        running = {}
        for kind in kinds:
            running[kind.name] = bench.started(kind)
            stack.callback(running[kind.name].end)
        for cell in cells:
            bench.fill(cell, running)
    return bench.found


def in_process(graph: Graph, subject: Subject, plan: Plan) -> Found:
    """The graph without a server, to begin with."""
    say(f"{subject.name}: the graph in process")
    one, short = subject.some(1), min(0.4, plan.seconds / 4)
    peaks = {sessions: graph.best(one, short, sessions) for sessions in (1, 2)}
    body = asks.in_json(one, draws=1, seed=asks.SEED)
    return Found(subject.name, graph.p50(one, 2 * short), peaks, parsing(body, one.dtype, short))


def idle(server: Running, seconds: float) -> float:
    """The cores that a server keeps busy while nobody asks, once it has started whatever it starts."""
    server.settle()
    before, started = server.cpu(), time.perf_counter()
    time.sleep(seconds)
    return (server.cpu() - before) / (time.perf_counter() - started)


def run(server: Running, ask: Ask, cell: Cell, plan: Plan) -> Load:
    """Warm up, then a measured closed loop, longer for slow answers; SystemExit where one was refused."""
    warm = load.wrk(server.port, ask, cell.connections, plan.warm)
    long = min(5 * plan.seconds, max(plan.seconds, 32 * cell.connections / max(warm.rate, 0.1)))
    before = server.cpu()
    seen = replace(load.wrk(server.port, ask, cell.connections, long), cpu=server.cpu() - before)
    if seen.failed:
        said = f"{seen.failed} of {seen.requests} requests failed under load"
        raise SystemExit(f"{server.kind.name}, {cell}: {said}\n{server.said()}")
    return seen


def until_first(server: Running, ask: Ask) -> float:
    """Seconds from the spawn to the first answer of 200; SystemExit where none comes."""
    while time.perf_counter() < server.started + servers.PATIENCE:
        try:
            if load.send(server.port, ask)[0] == 200:
                return time.perf_counter() - server.started
        except OSError:
            pass
        if server.process.poll() is not None:
            break
        time.sleep(0.002)
    raise SystemExit(f"{server.kind.name} does not answer:\n{server.said()}")


def check(server: Running, ask: Ask, expected: Array) -> None:
    """SystemExit unless a server answers what the graph does."""
    status, headers, body = load.send(server.port, ask)
    if status != 200:
        hint = "; is there no /v2 yet? then --binary npy" if status == 404 and "/v2/" in ask.path else ""
        raise SystemExit(f"{server.kind.name} answers {ask.path} with {status}{hint}: {body[:500]!r}\n{server.said()}")
    elbo = asks.answered(ask, headers, body)
    if elbo.shape != expected.shape or not np.allclose(elbo, expected, rtol=TOLERANCE, atol=0):
        raise SystemExit(f"{server.kind.name} answers {elbo[:3]}…, and the graph {expected[:3]}…")


def three_models(starts: int) -> tuple[list[float], list[float]]:
    """Ours with mlp, conv and mnist: seconds from the spawn until each has answered a score, and until it is ready."""
    scored, ready = [], []
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        committed = artifact_folder("mnist")
        made = [opened(make(name, models)) for name in (*MODELS, str(committed))]
        for start in range(starts):
            say(f"three models: start {start + 1} of {starts}")
            server = servers.start(servers.kind(servers.OURS), models, models, models)
            try:
                for found in made:
                    first = until_first(server, asks.to_us(found.some(1), "json", "npy", found))
                scored.append(first)
                ready.append(until_first(server, Ask("/readyz", {}, b"")))
            finally:
                server.end()
    return scored, ready


def artifact_folder(name: str) -> Path:
    """A committed artifact's newest version."""
    folder = servers.ROOT / "exported_models" / name
    return max(folder.iterdir(), key=lambda version: int(version.name))


def say(line: str) -> None:
    """Tell a person how far it is, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def listed(text: str) -> list[str]:
    """A comma list's words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Speed over HTTP, beside others'.")
    top.add_argument("--models", type=listed, default=list(MODELS), help="mlp, conv, or folders of artifacts")
    top.add_argument(
        "--servers", type=listed, default=list(SERVERS), help=f"of {', '.join(SERVERS)}; with settings: ours:workers=2"
    )
    top.add_argument("--only", type=listed, help="scenarios or cells: S1, 'S3 c=64'")
    top.add_argument("--ours", default="", help="settings of ours: workers=2,lanes=1 are VAE_SERVE_WORKERS and so on")
    top.add_argument("--binary", choices=("oip", "npy"), default="oip", help="how ours is spoken to in S3 and S4")
    top.add_argument("--repeats", type=int, default=3, help="turns of each server in each cell (default 3)")
    top.add_argument("--seconds", type=float, default=4.0, help="of each turn, in whole seconds for wrk (default 4)")
    top.add_argument("--starts", type=int, default=3, help="of each server (default 3)")
    top.add_argument("--cores", type=int, default=2, help="cores for client and server together (default 2)")
    top.add_argument("--three", action="store_true", help="also how long a start with three models takes")
    top.add_argument("--quick", action="store_true", help="two turns of a second: does it run, not how fast is it")
    top.add_argument("--write", action="store_true", help="also write benchmarks/results/serving.md")
    return top


if __name__ == "__main__":
    try:
        main()
    except LoadFailed as error:
        sys.exit(str(error))
