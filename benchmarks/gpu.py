"""What a GPU gives: the score graph by the runtime and by torch, at each bucket, and the service over loopback.

    python -m benchmarks.gpu [--device cuda|cpu] [--models mlp conv] [--rows 1 16 64 256 1024] [--draws 16] [--write]

Ways to compute a batch, each from NumPy arrays to NumPy arrays, copies both ways included, without TF32:

    runtime plain      session.run
    runtime bound      buckets: buffers made once, bound to the session
    runtime captured   the same, replayed as a CUDA graph
    torch eager        the module, its inputs through pinned memory
    torch compiled     torch.compile of it
    torch captured     the same module, replayed as a CUDA graph

Every way's answers are held to those of the CPU before it is timed. The last line of a model's table is one row at
4,096 draws. Then the service on the same device: closed loops of callers that ask one after another, and one-row
requests at half the load that they reached. `cpu` is what the server process took of one core: where it nears 100 %
the process is the limit, its event loop above all, and not the device.

The environment must hold torch for the device, and onnxruntime-gpu (not onnxruntime beside it); docs/gpu.md says how.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from benchmarks.overhead import closed_loop
from service import artifact, noise
from service.artifact import Array, Arrays, Artifact
from service.engine import Engine, Plan, open_engine
from service.lanes import cores

RESULTS = Path(__file__).parent / "results" / "gpu.md"
MANY = 4096  # draws of the last line
WARM = 3
WARMING, PATIENCE = 0.5, 300.0  # seconds: of asking before it counts; until models are opened and captured
WAYS = ("runtime plain", "runtime bound", "runtime captured", "torch eager", "torch compiled", "torch captured")
CROWDED = 8192  # rows that all callers together may ask for at once; larger crowds are left out
SLACK = 4.0  # of the manifest's tolerance, which is stated for its golden rows

Compute = Callable[[Arrays], Arrays]
Device = Literal["cpu", "cuda"]


class Skipped(Exception):
    """A way that isn't to be had here; its text says why."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of each call, and the rows of one."""

    seconds: list[float]
    rows: int

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows * len(self.seconds) / sum(self.seconds)

    @property
    def cell(self) -> str:
        """Rows a second and the p50 of a call."""
        return f"{self.rate:,.0f} ({statistics.median(self.seconds) * 1e3:.3g} ms)"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, and write them where that is asked for."""
    asked = parser().parse_args(arguments)
    said: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        said.append(line)

    say(f"`python -m benchmarks.gpu`, {time.strftime('%Y-%m-%d')}: {device_name(asked.device)}")
    say(f"\n{platform.machine()}, {cores()} cores, {', '.join(versions())}")
    best = {name: in_process(name, asked, say) for name in asked.models}
    served(asked, best, say)
    if asked.write:
        RESULTS.write_text("\n".join(said) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- in process


def in_process(name: str, asked: argparse.Namespace, say: Callable[[str], None]) -> float:
    """One model's table; the most rows a second that any way of the runtime's or torch's gives."""
    found = artifact.read(subject(name, asked.folder))
    right = open_engine(found)
    say(f"\n{name}, in process: rows/s (p50 of a call)\n")
    say(f"| rows | draws | {' | '.join(WAYS)} |\n|{'---|' * (2 + len(WAYS))}")
    best, skipped = 0.0, dict[str, str]()
    for rows, draws in [*((rows, asked.draws) for rows in asked.rows), (1, asked.many)]:
        feeds = batch(found, rows, draws)
        cells = []
        for way in WAYS:
            try:
                taken = measure(found, right, way, feeds, asked)
            except Skipped as why:
                skipped[way] = str(why)
                cells.append("–")
                continue
            best = max(best, taken.rate) if draws == asked.draws else best
            cells.append(taken.cell)
        say(f"| {rows} | {draws} | {' | '.join(cells)} |")
    for way, reason in skipped.items():
        say(f"\n{way}: skipped, {reason}")
    return best


def subject(name: str, folder: Path) -> Path:
    """Where a model is: one that benchmarks/subjects.py makes, made if it must be, or any other artifact there."""
    if name not in ("mlp", "conv"):
        return max((folder / name).iterdir(), key=lambda path: int(path.name))
    from benchmarks import subjects  # here, since it brings torch, which the callers' processes don't need

    return subjects.mlp(folder) if name == "mlp" else subjects.conv(folder)


def batch(found: Artifact, rows: int, draws: int) -> Arrays:
    """Golden rows over again, and a bank."""
    x = found.golden["elbo.x"]
    bank = noise.bank(0, draws, found.manifest.latent_size).noise
    return {"x": np.ascontiguousarray(x[np.arange(rows) % len(x)]), "noise": np.array(bank)}


def measure(found: Artifact, right: Engine, way: str, feeds: Arrays, asked: argparse.Namespace) -> Timed:
    """A way's time on a batch, once its answers are those of the CPU; Skipped where it isn't to be had."""
    kind, _, how = way.partition(" ")
    if how in ("captured", "compiled") and asked.device == "cpu":
        raise Skipped("it is CUDA's alone" if how == "captured" else "it is measured on CUDA alone")
    make = runtime_way if kind == "runtime" else torch_way
    compute = make(found, how, feeds, asked.device)
    hold(found, compute(feeds), right.compute("elbo", feeds), way)
    for _ in range(WARM):
        compute(feeds)
    return Timed(list(calls(partial(compute, feeds), asked.seconds)), len(feeds["x"]))


def calls(call: Callable[[], object], seconds: float) -> Iterator[float]:
    """How long each of many calls takes; at least one."""
    end = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        call()
        now = time.perf_counter()
        yield now - started
        if now >= end:
            return


def hold(found: Artifact, answers: Mapping[str, Array], wanted: Mapping[str, Array], way: str) -> None:
    """Refuse to measure what doesn't answer right."""
    for name, array in wanted.items():
        allowed = SLACK * found.manifest.golden.tolerance[f"elbo.{name}"]
        off = float(np.abs(answers[name] - array).max())
        if not off <= allowed:
            raise SystemExit(f"{way}: {name} is off by {off:.3g}, and {allowed:.3g} is allowed")


def runtime_way(found: Artifact, how: str, feeds: Arrays, device: Device) -> Compute:
    """An engine without buckets, with them, or with CUDA graphs of them."""
    rows, draws = len(feeds["x"]), len(feeds["noise"])
    buckets: Literal["off"] | tuple[int, ...] = "off" if how == "plain" else (rows,)
    plan = Plan(buckets, size=rows * draws, graphs=how == "captured", draws=draws)
    engine = open_engine(found, device, plan)
    if how == "plain":
        return lambda given: engine.compute("elbo", given)
    return lambda given: engine.run("elbo", {"x": [given["x"]]}, {"noise": given["noise"]})


def torch_way(found: Artifact, how: str, feeds: Arrays, device: Device) -> Compute:
    """The same weights as a torch module."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module: Any = torch_module(found).to(device)
    if how == "compiled":
        module = torch.compile(module)
    sides = {name: Side(array, device) for name, array in feeds.items()}
    run = captured(module, sides) if how == "captured" else (lambda: module(*(side.there for side in sides.values())))

    @torch.no_grad()
    def compute(given: Arrays) -> Arrays:
        for name, side in sides.items():
            side.put(given[name])
        outputs = [output.cpu().numpy() for output in run()]
        return dict(zip(("log_likelihood", "log_weight", "kl"), outputs, strict=True))

    return compute


def torch_module(found: Artifact) -> Any:
    """The score graph as it was before it was exported."""
    from benchmarks import subjects
    from training import graphs

    if found.manifest.name not in ("mlp", "conv"):
        raise Skipped(f"the weights of {found.manifest.name} are in its graphs alone")
    fitted = subjects.fitted_mlp() if found.manifest.name == "mlp" else subjects.fitted_conv()
    return graphs.modules(fitted.vae)["elbo"]


class Side:
    """An input's place on the device, and the pinned one that it is copied from."""

    def __init__(self, array: Array, device: Device) -> None:
        import torch

        self._here = torch.from_numpy(array.copy())
        if device == "cuda":
            self._here = self._here.pin_memory()
        self.there = self._here.to(device)

    def put(self, array: Array) -> None:
        """Copy an array there."""
        import torch

        self._here.copy_(torch.from_numpy(array))
        self.there.copy_(self._here, non_blocking=True)


def captured(module: Any, sides: Mapping[str, Side]) -> Callable[[], Any]:
    """A module as a CUDA graph, as torch's documentation has it: warmed on another stream, then captured."""
    import torch

    inputs = [side.there for side in sides.values()]
    with torch.no_grad():
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                module(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = module(*inputs)

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


# ---------------------------------------------------------------- served


def served(asked: argparse.Namespace, best: Mapping[str, float], say: Callable[[str], None]) -> None:
    """The service's table: every model, sizes of request and numbers of callers, then one row at half load."""
    say("\nServed: scores of npy bodies over loopback, closed loop; last, one row at half the load that was reached\n")
    say("| model | rows a request | callers | rows/s | share of the best in process | p50 | p99 | cpu |")
    say("|---|---|---|---|---|---|---|---|")
    with server(asked) as (process, port), ProcessPoolExecutor(clients(), multiprocessing.get_context("spawn")) as pool:
        for name in asked.models:
            found = artifact.read(subject(name, asked.folder))
            crowd(pool, port, post(port, name, batch(found, 1, 1)["x"], asked.draws), clients(), WARMING)
            rates = {}
            for rows in asked.requests:
                request = post(port, name, batch(found, rows, 1)["x"], asked.draws)
                for callers in [callers for callers in asked.callers if callers * rows <= CROWDED]:
                    with usage(process) as used:
                        times = crowd(pool, port, request, callers, asked.seconds)
                    rates[rows, callers] = rate = rows * callers / statistics.fmean(times)
                    say(
                        f"| {name} | {rows} | {callers} | {rate:,.0f} | {rate / best[name]:.0%} | {span(times, used)} |"
                    )
            fewest = min(asked.requests)
            half = max(rate for (rows, _), rate in rates.items() if rows == fewest) / fewest / 2
            request = post(port, name, batch(found, fewest, 1)["x"], asked.draws)
            with usage(process) as used:
                times = paced(pool, port, request, half, asked.seconds)
            rate = fewest * len(times) / asked.seconds
            say(f"| {name} | {fewest} | {half:,.0f}/s | {rate:,.0f} | half load | {span(times, used)} |")


def span(times: list[float], used: list[float]) -> str:
    """p50, p99, and the share of a core."""
    ordered = sorted(times)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{p50 * 1e3:.3g} ms | {p99 * 1e3:.3g} ms | {used[0]:.0%}"


def clients() -> int:
    """Processes that ask: as many as leave the service half of the cores."""
    return max(1, min(8, cores() // 2))


def post(port: int, name: str, rows: Array, draws: int) -> bytes:
    """A score of rows as it goes over the wire."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, rows, allow_pickle=False)
    body = stream.getvalue()
    head = f"POST /v1/models/{name}/score?draws={draws} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    return f"{head}Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def crowd(pool: ProcessPoolExecutor, port: int, request: bytes, callers: int, seconds: float) -> list[float]:
    """How long each request took, callers shared out among the processes that ask."""
    shares = [callers // clients() + (place < callers % clients()) for place in range(clients())]
    asking = [pool.submit(_crowd, port, request, share, seconds) for share in shares if share]
    return [seconds for one in asking for seconds in one.result()]


def _crowd(port: int, request: bytes, callers: int, seconds: float) -> list[float]:
    return asyncio.run(closed_loop(port, request, callers, seconds))


def paced(pool: ProcessPoolExecutor, port: int, request: bytes, rate: float, seconds: float) -> list[float]:
    """How long each request took from when it was to be sent, at random times so many of them a second."""
    share = rate / clients()
    asking = [pool.submit(_paced, port, request, share, seconds, seed) for seed in range(clients())]
    return [seconds for one in asking for seconds in one.result()]


def _paced(port: int, request: bytes, rate: float, seconds: float, seed: int) -> list[float]:
    return asyncio.run(open_loop(port, request, rate, seconds, seed))


async def open_loop(port: int, request: bytes, rate: float, seconds: float, seed: int) -> list[float]:
    """Requests at the times of a Poisson process, whether or not those before have been answered."""
    generator = random.Random(seed)
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    times: list[float] = []

    async def ask(due: float) -> None:
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        times.append(time.perf_counter() - due)
        free.append((reader, writer))

    due = time.perf_counter()
    end = due + seconds
    async with asyncio.TaskGroup() as asking:
        while (due := due + generator.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.create_task(ask(due))
    for _, writer in free:
        writer.close()
    return times


@contextmanager
def server(asked: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The service on the device, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"PORT": port, "MODELS": asked.folder.resolve(), "DEVICE": asked.device, "WELCOME": "false"}
    settings |= {"DRAIN_GRACE_MS": 0, "LOG_LEVEL": "warning", "REQUIRED": ",".join(asked.models)}
    settings |= {"BATCH": max(asked.rows) * asked.draws}
    # The crowds are to be answered, late or not, and never turned away.
    settings |= {"TIMEOUT_MS": 300_000, "WAITING_MS": 600_000, "MAX_HELD_BYTES": 16 * 2**30}
    environment = {**os.environ, **{f"VAE_SERVE_{name}": str(value) for name, value in settings.items()}}
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, cwd=root)
    try:
        wait_until_ready(process, port)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Ask /readyz until it says yes."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready")


@contextmanager
def usage(process: subprocess.Popen[bytes]) -> Iterator[list[float]]:
    """What a process takes of one core meanwhile; one number, there once it is over."""

    def taken() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime

    used: list[float] = []
    before, started = taken(), time.perf_counter()
    yield used
    used.append((taken() - before) / (time.perf_counter() - started))


# ---------------------------------------------------------------- where


def device_name(device: Device) -> str:
    """The device's own name, and its driver's version."""
    if device == "cpu":
        return "the CPU; this shows that the benchmark runs, and nothing of a GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> list[str]:
    """What computes."""
    import torch

    cuda = [f"CUDA {torch.version.cuda} (torch's)"] if torch.version.cuda else []
    return [
        f"Python {platform.python_version()}",
        f"onnxruntime {onnxruntime.__version__}",
        f"torch {torch.__version__}",
        *cuda,
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(description="What a GPU gives, in process and served.")
    described.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu shows only that it runs")
    described.add_argument(
        "--models", nargs="+", default=["mlp", "conv"], help="mlp, conv, or names of artifacts in --folder"
    )
    described.add_argument(
        "--folder", type=Path, default=Path("runs/subjects"), help="where artifacts are, or are made"
    )
    described.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64, 256, 1024], help="of a batch")
    described.add_argument("--draws", type=int, default=16, help="of a row")
    described.add_argument("--many", type=int, default=MANY, help="draws of the last line")
    described.add_argument("--requests", nargs="+", type=int, default=[1, 64, 512], help="rows of a request")
    described.add_argument("--callers", nargs="+", type=int, default=[1, 16, 64, 256])
    described.add_argument("--seconds", type=float, default=3.0, help="a measurement")
    described.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(RESULTS.parents[2])}")
    return described


if __name__ == "__main__":
    main()
