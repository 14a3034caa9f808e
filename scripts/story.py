"""The story: fit → export → calibrate → serve → score, on real data: python scripts/story.py [CONFIG].

Everything lands in runs/story, so that what exported_models/ serves stays as it is. The score of the served model is
asked for over HTTP, of rows that no step before has seen, as they are and spoiled in two ways.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training import config, data

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("runs/story")
AT_ONCE = 10  # rows in a request
console = Console(highlight=False, soft_wrap=True)


def main(path: Path) -> None:
    """All of it in one go."""
    os.chdir(ROOT)
    run = config.read(path)
    models, artifact = FOLDER / "models", FOLDER / "models" / run.name / "1"
    shutil.rmtree(FOLDER, ignore_errors=True)
    tell("training", "fit", str(path), "--runs", str(FOLDER))
    tell("training", "export", str(FOLDER / run.name), "--to", str(models), "--version", "1")
    tell("training", "calibrate", str(artifact))
    held_out = data.load(run.data).splits["test"]
    with served(models) as address, httpx.Client(base_url=address, timeout=60) as client:
        scores = {name: score(client, run.name, name, rows) for name, rows in kinds(held_out).items()}
    show(run.name, held_out, scores)


def kinds(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Held-out rows as they are, and two kinds that hold the same values in another order."""
    flat = rows.reshape(len(rows), -1)
    shuffled = np.random.default_rng(0).permuted(flat, axis=1).reshape(rows.shape)
    return {"held out": rows, "the same, backwards": flat[:, ::-1].reshape(rows.shape), "the same, shuffled": shuffled}


def score(client: httpx.Client, model: str, kind: str, rows: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """What the service says of every row."""
    answers = []
    for start in track(range(0, len(rows), AT_ONCE), f"score {kind}", console=console, transient=True):
        answer = client.post(f"/v1/models/{model}/score", json={"inputs": rows[start : start + AT_ONCE].tolist()})
        answers.append(answer.raise_for_status().json())
    return {name: np.concatenate([answer[name] for answer in answers]) for name in ("elbo", "elbo_error", "p_value")}


def show(model: str, rows: NDArray[Any], scores: dict[str, dict[str, NDArray[np.float64]]]) -> None:
    """One line a kind of rows."""
    table = Table(
        title=f"{model}: {len(rows)} rows that no step has seen, and what becomes of them", title_justify="left"
    )
    for name in ("rows", "ELBO, nats a row", "error of a row", "called anomalous at 5 %"):
        table.add_column(name, justify="left" if name == "rows" else "right")
    for kind, found in scores.items():
        flagged = np.mean(found["p_value"] <= 0.05)
        table.add_row(kind, f"{found['elbo'].mean():.1f}", f"{found['elbo_error'].mean():.2f}", f"{flagged:.1%}")
    console.print(table)
    console.print(f"Serve it yourself   VAE_SERVE_MODELS={FOLDER}/models make serve")


def tell(*command: str) -> None:
    """Say a command and run it; where it fails, so do we."""
    console.print(f"[bold]$ python -m {shlex.join(command)}[/bold]")
    if status := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(status)


@contextmanager
def served(models: Path) -> Iterator[str]:
    """The service on a free port for as long as the context lasts; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {"PORT": str(port), "MODELS": str(models), "WELCOME": "false", "LOG_LEVEL": "error", "DRAIN_GRACE_MS": "0"}
    settings = {f"VAE_SERVE_{name}": value for name, value in ours.items()}
    console.print(f"[bold]$ VAE_SERVE_MODELS={models} VAE_SERVE_PORT={port} python -m service[/bold]")
    server = subprocess.Popen([sys.executable, "-m", "service"], env={**os.environ, **settings})
    address = f"http://127.0.0.1:{port}"
    try:
        await_ready(server, f"{address}/readyz")
        yield address
    finally:
        server.terminate()
        server.wait(60)


def await_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the service is ready; it says itself why it ends."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit("the service ended before it was ready")
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the service was not ready within a minute")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "configs/digits.yaml"))
