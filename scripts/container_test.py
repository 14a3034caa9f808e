"""The container test: build the cpu image, run it locked down as production would, and hold it to its promises.

It takes the Docker engine that answers and can have the base image. Where there is none, on Debian and as root, it
starts one for as long as the test takes, with Debian's own Python in the place of the base image. Where none can be
had it says so in one line and passes. Python's standard library alone.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "vae-serve:container-test"
DOCKER, DOCKERD, MMDEBSTRAP = "/usr/bin/docker", "/usr/sbin/dockerd", "/usr/bin/mmdebstrap"  # where Debian has them
LOCKED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
LIMITED = ["--memory", "1g", "--cpus", "1", "--pids-limit", "256"]
DIGIT = ["00011000", "00011000", "00110000", "00110000", "00111100", "00100110", "00110110", "00011100"]
INSIDE = """
import importlib.util, json, os, pathlib, shutil
def written(path):
    try:
        pathlib.Path(path, "written").touch()
    except OSError:
        return False
    return True
print(json.dumps({
    "user": os.getuid(),
    "group": os.getgid(),
    "writes": [path for path in ("/", "/app", "/models", "/opt/venv", "/var/tmp", "/tmp") if written(path)],
    "modules": [name for name in ("torch", "pip", "setuptools") if importlib.util.find_spec(name)],
    "programs": [name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)],
    "capabilities": next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")),
    "first": pathlib.Path("/proc/1/cmdline").read_bytes().decode().split("\\0")[:-1],
}))
"""


class NoEngine(Exception):
    """Why there is no Docker engine to be had here."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers: how it is called, and how what runs in it reaches the network."""

    command: list[str]
    own: bool

    def __call__(self, *arguments: str, fails: bool = False, limit: float = 600) -> subprocess.CompletedProcess[str]:
        """Run `docker …`; an error, with what it said, unless it may fail."""
        return ran([*self.command, *arguments], fails=fails, limit=limit)

    @property
    def network(self) -> list[str]:
        """Our own engine makes no bridges; what it builds and runs uses the machine's network."""
        return ["--network", "host"] if self.own else []

    def published(self, port: int) -> list[str]:
        """Options that make the service answer on this port of the machine."""
        if self.own:
            return [*self.network, "--env", f"VAE_SERVE_PORT={port}"]
        return ["--publish", f"127.0.0.1:{port}:8000"]


def main() -> int:
    """The whole test; the exit status."""
    started = time.monotonic()
    base = base_image()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vae-serve-container-")))
        try:
            engine = engine_here(base) or stack.enter_context(engine_of_our_own(scratch, base))
        except NoEngine as reason:
            say(f"container test skipped: {reason}")
            return 0
        build(engine, scratch, base)
        stack.callback(engine, "image", "rm", "--force", IMAGE, fails=True)
        name = f"vae-serve-test-{os.getpid()}"
        stack.callback(engine, "rm", "--force", name, fails=True)
        hold(engine, name)
    say(f"container test passed in {time.monotonic() - started:.0f} s")
    return 0


def hold(engine: Engine, name: str) -> None:
    """Run the image locked down and hold it to what we promise."""
    port = free_port()
    engine("run", "--detach", "--name", name, *LOCKED, *LIMITED, *engine.published(port), IMAGE)
    started = time.monotonic()
    wait(lambda: state(engine, name)["Health"]["Status"] == "healthy", 90, lambda: logs(engine, name))
    say(f"  healthy after {time.monotonic() - started:.1f} s, with 1 core, 1 GiB, no capabilities, a read-only root")

    status, score = ask(port, "POST", "/v1/models/tiny/score", {"inputs": [[[int(c) for c in row] for row in DIGIT]]})
    require(status == 200, f"the score's status is {status}: {score}")
    (elbo,), (p_value,) = score["elbo"], score["p_value"]
    require(elbo == score["log_likelihood"][0] - score["kl"][0] and 0 < p_value <= 1, f"the score is {score}")
    say(f"  scores a digit over HTTP: ELBO {elbo:.2f} nats, p = {p_value:.2f}")

    found = json.loads(engine("exec", name, "python", "-c", INSIDE).stdout)
    require(found["user"] != 0 and found["group"] != 0, "it runs as root")
    require(found["writes"] == ["/tmp"], f"it can write to {found['writes']}")
    require(not found["modules"] and not found["programs"], f"it holds {found['modules'] + found['programs']}")
    require(int(found["capabilities"], 16) == 0, f"it has the capabilities {found['capabilities']}")
    require(found["first"] == ["python", "-m", "service"], f"process 1 is {found['first']}")
    say(f"  user {found['user']}, writes to /tmp alone, no capabilities; no torch, pip or compiler inside")

    stopped = time.monotonic()
    engine("kill", "--signal", "TERM", name)
    wait(lambda: ask(port, "GET", "/readyz")[0] == 503, 2, lambda: "/readyz does not turn 503 on SIGTERM")
    wait(lambda: not state(engine, name)["Running"], 45, lambda: "it does not end on SIGTERM")
    require(state(engine, name)["ExitCode"] == 0, f"it ended with {state(engine, name)['ExitCode']} on SIGTERM")
    say(f"  on SIGTERM it drains, and ends with 0 after {time.monotonic() - stopped:.1f} s")


def build(engine: Engine, scratch: Path, base: str) -> None:
    """Build the cpu target; pip's own settings on this machine go along as secrets, and stay out of the image."""
    os.environ["DOCKER_BUILDKIT"] = "1"
    started = time.monotonic()
    secrets = pip_secrets(scratch)
    engine("build", "--target", "cpu", "--tag", IMAGE, *engine.network, *proxies(), *secrets, str(ROOT), limit=900)
    size = int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout)
    say(f"  built the cpu image on {base}: {size / 1e6:.0f} MB, in {time.monotonic() - started:.0f} s")


def pip_secrets(scratch: Path) -> list[str]:
    """Where pip gets its packages on this machine, as a pip.conf, and the certificates that it trusts."""
    settings: dict[str, str] = {}
    listed = ran([sys.executable, "-m", "pip", "config", "list"], fails=True).stdout
    for name, value in re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE):
        words = [word for word in value.replace("\\n", " ").split() if not word.startswith("file:")]
        if name in {"index-url", "extra-index-url", "trusted-host", "proxy", "cert"} and words:
            settings[name] = "\n    ".join(words)
    trusted = [settings.pop("cert", None), os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"]
    certificates = next((path for path in trusted if path and Path(path).is_file()), None)
    options = []
    if certificates:
        settings["cert"] = "/etc/pip-certificates.crt"
        options += ["--secret", f"id=certificates,src={certificates}"]
    file = scratch / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return [*options, "--secret", f"id=pip,src={file}"]


def proxies() -> list[str]:
    """The machine's proxies, which Docker knows by name and keeps out of the image."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    return [f"--build-arg={name}" for each in names for name in (each, each.upper()) if name in os.environ]


def base_image() -> str:
    """The base that the Dockerfile names."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    require(found is not None, "the Dockerfile has no ARG PYTHON_IMAGE")
    assert found
    return found[1]


def engine_here(base: str) -> Engine | None:
    """The engine that answers on this machine, if it has the base image or can pull it."""
    engine = Engine(["docker"], own=False)

    def answers(*arguments: str) -> bool:
        return engine(*arguments, fails=True, limit=180).returncode == 0

    try:
        has_base = answers("version") and (answers("image", "inspect", base) or answers("pull", "--quiet", base))
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return engine if has_base else None


@contextmanager
def engine_of_our_own(scratch: Path, base: str) -> Iterator[Engine]:
    """An engine with all its state in the scratch folder; ended and cleared away with the context."""
    install()
    (scratch / "engine").mkdir()
    address, log = f"unix://{scratch}/engine/d.sock", scratch / "engine.log"
    options = ["--data-root", f"{scratch}/engine/data", "--exec-root", f"{scratch}/engine/exec"]
    options += ["--pidfile", f"{scratch}/engine/d.pid", "--host", address]
    options += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    with log.open("w") as out:
        daemon = subprocess.Popen([DOCKERD, *options], stdout=out, stderr=subprocess.STDOUT)
    engine = Engine([DOCKER, "--host", address], own=True)
    try:
        try:
            wait(lambda: daemon.poll() is not None or engine("version", fails=True).returncode == 0, 60, log.read_text)
        except Broken as error:
            raise NoEngine("dockerd is installed and does not answer") from error
        if daemon.poll() is not None:
            raise NoEngine(f"dockerd is installed and does not start here: {log.read_text().splitlines()[-1]}")
        import_base(engine, scratch, base)
        yield engine
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        unmount(scratch)


def install() -> None:
    """Debian's Docker engine, and what makes a base image without pulling one; NoEngine where that can't be."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoEngine("no Docker engine answers, and only as root on Debian could we start one")
    packages = {DOCKERD: "docker.io", DOCKER: "docker.io", MMDEBSTRAP: "mmdebstrap"}
    missing = {package for program, package in packages.items() if not Path(program).exists()}
    if not missing:
        return
    say(f"  installing {' and '.join(sorted(missing))} with apt")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    try:
        ran(["apt-get", "update", "-qq"], limit=120)
        ran(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *sorted(missing)], limit=300)
    except (Broken, subprocess.TimeoutExpired) as error:
        raise NoEngine("no Docker engine answers, and apt can't install one") from error


def import_base(engine: Engine, scratch: Path, base: str) -> None:
    """A minimal Debian with its own Python, under the name of the base image."""
    sources = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    suite = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    source = next((path for path in sources if path.exists()), None)
    if not suite or not source:
        raise NoEngine("the engine can't pull, and this is no Debian to make a base image from")
    started, tar = time.monotonic(), scratch / "base.tar"
    include = "--include=python3,python3-venv,ca-certificates"
    link = '--customize-hook=ln -s python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED'
    try:
        ran([MMDEBSTRAP, "--variant=minbase", include, link, suite[1], str(tar), str(source)], limit=300)
    except (Broken, subprocess.TimeoutExpired) as error:
        raise NoEngine("the engine can't pull, and mmdebstrap can't make a base image") from error
    engine("import", str(tar), base)
    tar.unlink()
    say(f"  a stand-in for {base} from Debian {suite[1]}, in {time.monotonic() - started:.0f} s")


def unmount(folder: Path) -> None:
    """Unmount whatever the engine left mounted below its folder, the innermost first."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((path for path in mounted if path.startswith(f"{folder}/")), key=len, reverse=True):
        ran(["umount", path], fails=True)


class Broken(Exception):
    """What we promise and do not hold, or a command that fails."""


def require(holds: bool, otherwise: str) -> None:
    """Go on where it holds."""
    if not holds:
        raise Broken(otherwise)


def wait(until: Callable[[], bool], limit: float, otherwise: Callable[[], str]) -> None:
    """Ask again and again; Broken, with what there is to say, after the limit in seconds."""
    deadline = time.monotonic() + limit
    while not until():
        if time.monotonic() > deadline:
            raise Broken(otherwise())
        time.sleep(0.1)


def state(engine: Engine, name: str) -> dict[str, Any]:
    """How a container is."""
    return dict(json.loads(engine("inspect", "--format", "{{json .State}}", name).stdout))


def logs(engine: Engine, name: str) -> str:
    """What a container that is not healthy says."""
    said = engine("logs", name, fails=True)
    return f"it is not healthy: {json.dumps(state(engine, name))}\n{said.stdout}{said.stderr}"


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request; the status and the body's JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ran(command: Sequence[str], *, fails: bool = False, limit: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; Broken, with the end of what it said, unless it may fail."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode and not fails:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise Broken(f"{' '.join(command[:4])} … ended with {done.returncode}:\n{said}")
    return done


def say(line: str) -> None:
    """Tell whoever runs this."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as broken:
        sys.exit(f"container test FAILED: {broken}")
