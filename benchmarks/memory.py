"""What a large model takes of memory and disk, and of time, with weights in each graph and with shared ones.

    python -m benchmarks.memory [--megabytes 100] [--folder FOLDER]

A VAE of digits with dense layers so wide that its weights have so many megabytes, not fitted: memory and time don't
depend on their values. Both artifacts pass export's checks. Memory is the service's, from /proc, once it is ready and
after it has scored; times are of graphs in process, in turns, and their ratio is what to read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from service import artifact, engine, noise
from service.artifact import Artifact
from training import config, data, exporting, vae
from training.fit import Fitted

WAYS = ("inline", "shared")
ROWS = (1, 4, 16, 64)
TURNS = 15


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100.0, help="of weights")
    parser.add_argument("--folder", type=Path, help="where artifacts are kept; what lies there is taken as it is")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        fitted = wide(asked.megabytes)
        found = {way: exported(fitted, folder / way, way == "shared") for way in WAYS}
        print("| weights | on disk, MB | PSS ready, MB | RSS | private | PSS after scoring | start, s |")
        print("|---|---|---|---|---|---|---|")
        for way, where in (("none (tiny/1)", Path("exported_models")), *((way, folder / way) for way in WAYS)):
            served(way, where)
        print("\n| rows | graph | inline, ms | shared, ms | shared / inline |\n|---|---|---|---|---|")
        timed({way: artifact.read(path) for way, path in found.items()})


def wide(megabytes: float) -> Fitted:
    """The model: encoder and decoder have two hidden layers of one width, 4·2·(64 + width)·width bytes and a little."""
    width = round(((megabytes * 1e6 / 8) ** 0.5) - 40)
    body = {"kind": "mlp", "sizes": [width, width]}
    plain = config.read(Path("configs/tiny.yaml")).plain()
    run = config.check({**plain, "name": "wide", "encoder": body, "decoder": body}, "wide")
    dataset = data.of(run)
    return Fitted(run, dataset, vae.build(run, dataset).eval().requires_grad_(False), [])


def exported(fitted: Fitted, models: Path, shared: bool) -> Path:
    """The artifact; one that is there already is taken as it is."""
    folder = models / fitted.run.name / "1"
    if not folder.exists():
        exporting.export(fitted, models, version=1, shared=shared, say=lambda said: print(f"  {said}", file=sys.stderr))
    return folder


def served(way: str, models: Path) -> None:
    """One line: what the service takes that serves a folder's one model."""
    one = "tiny" if way.startswith("none") else "wide"
    size = sum(path.stat().st_size for path in (models / one / "1").iterdir()) / 1e6
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / one).symlink_to((models / one).resolve())
        with serving(Path(alone)) as (pid, address, seconds):
            ready = memory(pid)
            with np.load(models / one / "1" / artifact.GOLDEN) as golden:
                rows = golden["encoder.x"].tolist()
            for count in (1, 3, 8):
                httpx.post(f"{address}/v1/models/{one}/score", json={"inputs": rows[:count]}).raise_for_status()
            after = memory(pid)
    cells = (size, ready["Pss"], ready["Rss"], ready["Private"], after["Pss"])
    print(f"| {way} | {' | '.join(f'{cell:.0f}' for cell in cells)} | {seconds:.1f} |", flush=True)


@contextmanager
def serving(models: Path) -> Iterator[tuple[int, str, float]]:
    """The service as it is started by anyone; its process, its address, and the seconds until it was ready."""
    settings = {"VAE_SERVE_MODELS": str(models), "VAE_SERVE_PORT": "0", "VAE_SERVE_DEVICE": "cpu"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "service"]
    process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = next(line for line in iter(process.stdout.readline, "") if "ready at " in line)
        yield process.pid, line.partition("ready at ")[2].split()[0], time.perf_counter() - started
    finally:
        process.terminate()
        process.communicate()


def memory(pid: int) -> dict[str, float]:
    """A process's memory in MB, from /proc/<pid>/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    each = {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in (line.partition(":") for line in lines)}
    return {**each, "Private": each["Private_Dirty"] + each["Private_Clean"]}


def timed(found: dict[str, Artifact]) -> None:
    """Lines of medians over turns, in which the ways take one call each after the other."""
    opened = {way: engine.open_engine(one) for way, one in found.items()}
    manifest = found["inline"].manifest
    bank = np.array(noise.bank(0, 16, manifest.latent_size).noise)
    golden = found["inline"].golden["encoder.x"]
    for count in ROWS:
        x = golden[np.arange(count) % len(golden)]
        for graph, feeds in (("encoder", {"x": x}), ("elbo", {"x": x, "noise": bank})):
            taken: dict[str, list[float]] = {way: [] for way in opened}
            for _ in range(TURNS):
                for way, one in opened.items():
                    started = time.perf_counter()
                    one.compute(graph, feeds)
                    taken[way].append(time.perf_counter() - started)
            inline, shared = (statistics.median(taken[way]) * 1e3 for way in WAYS)
            ratio = statistics.median(np.divide(taken["shared"], taken["inline"]))
            print(f"| {count} | {graph} | {inline:.2f} | {shared:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
