"""Servers: ours and its peers as programs on free ports, each from an environment of its own. Measures no speed.

A peer's environment is made once under .venv-peers/, with the versions below and the onnxruntime and NumPy that we run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"
PATIENCE = 60.0  # seconds in which a server must begin to answer
SHARED = ("onnxruntime", "numpy")  # the graph must cost everyone the same
LEAN = ("starlette==1.10.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")
FAST = ("orjson==3.13.0", "pysimdjson==7.0.2")
OURS = "ours"


@dataclass(frozen=True)
class Kind:
    """How a server is started. `burns` says that it computes while nobody asks, so it is stopped while others work."""

    name: str
    command: tuple[str, ...]
    environment: str = ""
    packages: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    burns: bool = False

    @property
    def ours(self) -> bool:
        """Whether this is the service."""
        return self.name.partition(":")[0] == OURS


UVICORN = (
    *("-m", "uvicorn", "benchmarks.peers.fastapi_app:app", "--host", "127.0.0.1", "--port", "{port}"),
    *("--workers", "2", "--no-access-log", "--log-level", "warning"),
)
MOSEC = ("mosec==0.9.8", *FAST)
PEERS = {
    kind.name: kind
    for kind in (
        Kind("mosec", ("-m", "benchmarks.peers.mosec_server"), "mosec", MOSEC, {"PEER_BATCH": "16"}),
        Kind("mosec-unbatched", ("-m", "benchmarks.peers.mosec_server"), "mosec", MOSEC, {"PEER_BATCH": "1"}),
        Kind(
            "litserve",
            ("-m", "benchmarks.peers.litserve_server"),
            "litserve",
            ("litserve==0.2.19", "fastapi==0.165.0", *LEAN, *FAST),
            burns=True,
        ),
        Kind("lean", ("-m", "benchmarks.peers.lean_app"), "lean", (*LEAN, *FAST)),
        Kind(
            "fastapi",
            UVICORN,
            "fastapi",
            ("fastapi==0.165.0", *LEAN, *FAST),
        ),
    )
}


def kind(name: str, settings: str = "") -> Kind:
    """A server by its name, with settings of its own after a colon: ours:workers=2+lanes=1, mosec:batch=32.

    settings are those of every server of ours. SystemExit where there is no such server.
    """
    base, _, own = name.partition(":")
    if base == OURS:
        return Kind(name, ("-m", "service"), env=told("VAE_SERVE_", settings) | told("VAE_SERVE_", own))
    if base not in PEERS:
        raise SystemExit(f"there is no server {base}; there are {OURS}, {', '.join(PEERS)}")
    return replace(PEERS[base], name=name, env={**PEERS[base].env, **told("PEER_", own)})


def told(prefix: str, settings: str) -> dict[str, str]:
    """Environment variables from words like `workers=2,lanes=1`."""
    pairs = (pair.partition("=") for pair in settings.replace("+", ",").replace(" ", ",").split(",") if pair)
    return {prefix + name.upper(): value for name, _, value in pairs}


def python(kind: Kind) -> str:
    """The interpreter that runs a server: ours is this one's; a peer's environment is made where there is none."""
    if not kind.environment:
        return sys.executable
    folder = ENVIRONMENTS / kind.environment
    wanted = [*kind.packages, *(f"{name}=={importlib.metadata.version(name)}" for name in SHARED)]
    mark = folder / "ready"
    if not mark.exists() or mark.read_text() != "\n".join(wanted):
        subprocess.run([sys.executable, ROOT / "scripts" / "environment.py", folder], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([folder / "bin" / "python", "-m", "pip", *quiet, "install", *wanted], check=True)
        mark.write_text("\n".join(wanted))
    return str(folder / "bin" / "python")


@dataclass
class Running:
    """A server that was started, and everything that it started: they share a session, which is its process's id."""

    kind: Kind
    port: int
    started: float  # time.perf_counter() when it was spawned
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def pids(self) -> list[int]:
        """All its processes."""
        return [pid for pid, (state, *_) in self._session().items() if state != "Z"]

    def _session(self) -> dict[int, list[str]]:
        """What /proc says of all its processes, of those too that have ended and for whom nobody has waited yet."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = folder.joinpath("stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == self.process.pid:
                    found[int(folder.name)] = stat
        return found

    def memory(self) -> float:
        """Resident memory of all its processes in MiB, pages that they share counted once (PSS)."""
        return sum(_pss(pid)["Pss"] for pid in self.pids()) / 1024

    def own_memory(self) -> float:
        """The same without the pages of files, whose share falls and rises with who else has them open."""
        return sum(found["Pss"] - found["Pss_File"] for found in map(_pss, self.pids())) / 1024

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used, those that have ended too: who waited for one says what it used.

        Where one comes or goes during the look it might be counted twice or not at all, so then there is another look.
        """
        before, found, after = (self._session() for _ in range(3))
        while not before.keys() == found.keys() == after.keys():
            before, found, after = found, after, self._session()
        return sum(sum(map(int, stat[11:15])) for stat in found.values()) / os.sysconf("SC_CLK_TCK")

    def settle(self, seconds: float = 1.0, patience: float = 10.0) -> None:
        """Wait until no process has come or gone for so long: some start more than they keep."""
        end = time.perf_counter() + patience
        since, before = time.perf_counter(), self.pids()
        while time.perf_counter() < min(since + seconds, end):
            time.sleep(0.05)
            if (now := self.pids()) != before:
                since, before = time.perf_counter(), now

    def pause(self) -> None:
        """Keep a server that burns from disturbing others."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.kind.burns:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def said(self) -> str:
        """The end of what it printed."""
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")[-2000:]

    def end(self) -> None:
        """Ask it to end; what has not in time is made to, process by process."""
        self.resume()
        self.process.terminate()
        deadline = time.perf_counter() + 10
        while self.pids() and time.perf_counter() < deadline:
            self.process.poll()
            time.sleep(0.02)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.log.close()
        Path(self.log.name).unlink(missing_ok=True)


def start(kind: Kind, models: Path, graph: Path, noise: Path) -> Running:
    """Start a server for a model: models is a folder of artifacts, graph its elbo.onnx, noise an npy file."""
    port = free_port()
    dropped = ("VAE_SERVE_", "PEER_", "MOSEC_", "PYTHONDONTWRITEBYTECODE")  # the last would compile at every start
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    env |= {"PEER_GRAPH": str(graph), "PEER_NOISE": str(noise), "PEER_PORT": str(port), "ORT_DISABLE_TELEMETRY": "1"}
    env |= {"MOSEC_PORT": str(port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_MAX_REQUEST_SIZE": str(64 * 2**20)}
    env |= {"MOSEC_LOG_LEVEL": "warning", "MOSEC_TIMEOUT": "30000", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env |= {"VAE_SERVE_PORT": str(port), "VAE_SERVE_MODELS": str(models), "VAE_SERVE_DEVICE": "cpu"}
    env |= {"VAE_SERVE_WELCOME": "false", "VAE_SERVE_DRAIN_GRACE_MS": "0", **kind.env}
    command = [python(kind), *(part.format(port=port) for part in kind.command)]
    log = tempfile.NamedTemporaryFile(prefix=f"{kind.name.partition(':')[0]}-", suffix=".log", delete=False)  # noqa: SIM115
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    return Running(kind, port, begun, process, log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pss(pid: int) -> Counter[str]:
    """A process's proportional set sizes in KiB, by their kinds; 0 for one that has gone."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.startswith("Pss"):
                found[name] = int(rest.split()[0])
    return found
