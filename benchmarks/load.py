"""Load: one request again and again over some connections, by wrk, and how long each took. Knows no server."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

MARK = "measured "  # what the script's line begins with
SCRIPT = f"""
function init(arguments)
   local file = assert(io.open(arguments[1], "rb"))
   wrk.method, wrk.body = "POST", file:read("*a")
   file:close()
   for i = 2, #arguments, 2 do wrk.headers[arguments[i]] = arguments[i + 1] end
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '{MARK}{{"requests":%d,"seconds":%.6f,"p50":%.6f,"p99":%.6f,"status":%d,"socket":%d}}\\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
      e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Ask:
    """A POST: where, with which headers, and what; whether JSON is what comes back."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    to_json: bool = True


@dataclass(frozen=True)
class Load:
    """What a closed loop has seen. Times in seconds; failed counts answers of 400 and more, and broken connections.

    cpu is what the server's processes computed for it, in seconds; on a shared machine it moves less than the clock.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class LoadFailed(Exception):
    """wrk isn't there, or didn't say what it saw."""


def send(port: int, ask: Ask, timeout: float = 60.0) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers by lower-case names, body. OSError where none comes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST" if ask.body else "GET", ask.path, ask.body or None, dict(ask.headers))
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def wrk(port: int, ask: Ask, connections: int, seconds: float) -> Load:
    """A closed loop of one wrk thread. Its latencies count what a stall would have kept others waiting."""
    if not shutil.which("wrk"):
        raise LoadFailed("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script, body = Path(folder, "closed.lua"), Path(folder, "body")
        script.write_text(SCRIPT)
        body.write_bytes(ask.body)
        told = [part for header in ask.headers.items() for part in header]
        limits = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        command = ["wrk", *limits, "-s", str(script), f"http://127.0.0.1:{port}{ask.path}", "--", str(body), *told]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    return parsed(said.stdout or said.stderr)


def parsed(said: str) -> Load:
    """What wrk printed; LoadFailed where the script's line isn't in it."""
    for line in said.splitlines():
        if line.startswith(MARK):
            seen = json.loads(line.removeprefix(MARK))
            failed = seen["status"] + seen["socket"]
            return Load(seen["requests"], seen["seconds"], seen["p50"], seen["p99"], failed)
    raise LoadFailed(f"wrk said nothing that could be read: {said.strip()[:500]}")
