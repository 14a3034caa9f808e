"""log p(x) as it is served, against exact truth: how near, how sure, and at what cost.

    python -m benchmarks.evidence

Every number comes from POST …/evidence, in process: linear-Gaussian VAEs and factor analysis with their closed forms,
the committed `tiny` against quadrature, the certified bound over thousands of seeds, and rows a second.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import platform
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.detection import dataset
from benchmarks.linear import Linear, made, write
from service.app import build
from service.http import wire
from service.models import Model
from service.settings import Settings

Array = NDArray[Any]
MODELS = Path(__file__).parents[1] / "exported_models"
LATENTS = (1, 2, 8, 16, 32)
CASES: dict[str, dict[str, Any]] = {
    "PCA, the best diagonal q": {},
    "PCA, q narrow and off": {"stretch": 0.5, "shift": 1.0},
    "PCA, q wide and off": {"stretch": 2.0, "shift": 0.5},
    "factors, q narrow and off": {"noise": (0.2, 1.5), "stretch": 0.7, "shift": 0.5},
}
EXACT_ROWS, TRIALS, TRIAL_DRAWS = 24, 4000, 512
AT_ONCE = 12


class Served:
    """The service on a folder of models, spoken to in process."""

    def __init__(self, client: httpx.AsyncClient, models: dict[str, Model]) -> None:
        self.client, self.models = client, models

    async def evidence(self, model: str, rows: Array, **asked: Any) -> dict[str, Array]:
        """An answer as arrays, a few rows a request."""
        parts = [await self._ask(model, rows[i : i + AT_ONCE], asked) for i in range(0, len(rows), AT_ONCE)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}

    async def _ask(self, model: str, rows: Array, asked: dict[str, Any]) -> dict[str, Array]:
        stream = io.BytesIO()
        np.save(stream, rows)
        headers = {"content-type": wire.NPY, "accept": wire.NPZ, "x-timeout-ms": "300000"}
        path = f"/v1/models/{model}/evidence"
        response = await self.client.post(path, params=asked, content=stream.getvalue(), headers=headers)
        response.raise_for_status()
        with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


@asynccontextmanager
async def serving(models: Path) -> AsyncIterator[Served]:
    """The service, once it is ready."""
    app = build(Settings(_env_file=None, models=models, device="cpu", welcome=False))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://benchmark", timeout=None) as client,
    ):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        yield Served(client, {model.manifest.name: model for model in app.state.models.all()})


async def exact(folder: Path) -> None:
    """Linear models: how far from exact, where reliable, and the gap in its own errors."""
    print("\n| model | latents | exact gap | worst error, reliable | reliable | worst gap error | gaps past 3 errors |")
    print("|---|---|---|---|---|---|---|")
    truths: dict[str, tuple[str, int, Linear]] = {}
    for case, changes in CASES.items():
        for d in LATENTS:
            name = f"linear-{len(truths)}"
            truths[name] = (case, d, made(d, **changes))
            write(truths[name][2], folder, name)
    async with serving(folder) as served:
        for name, (case, d, truth) in truths.items():
            x = truth.sample(EXACT_ROWS, 5)
            found = await served.evidence(name, x)
            sure = found["reliable"].astype(bool)
            off = np.abs(found["log_evidence"] - truth.evidence(x))[sure]
            z = np.abs((found["gap"] - truth.gap(x)) / found["gap_error"])[sure]
            worst, most = off.max(initial=0.0), z.max(initial=0.0)
            row = (
                case,
                d,
                f"{abs(truth.gap(x).mean()):.2f}",
                f"{worst:.4f}",
                f"{sure.mean():.0%}",
                f"{most:.1f} errors",
            )
            print("|", " | ".join(map(str, (*row, int((z > 3).sum())))), "|", flush=True)


async def quadrature(served: Served) -> None:
    """tiny's test rows against a grid over its two latents."""
    rows = np.asarray(dataset(served.models["tiny"]).splits["test"])
    truth = grid(served.models["tiny"], rows)
    print(
        "\n| seed | within 0.1 nat | worst | worst not flagged | flagged | bound past the truth | bound below it by |"
    )
    print("|---|---|---|---|---|---|---|")
    for seed in range(3):
        found = await served.evidence("tiny", rows, seed=seed)
        off, sure = np.abs(found["log_evidence"] - truth), found["reliable"].astype(bool)
        below = truth - found["lower_bound"]
        cells = (f"{(off < 0.1).mean():.1%}", f"{off.max():.3f}", f"{off[sure].max():.3f}", f"{1 - sure.mean():.1%}")
        print("|", seed, "|", " | ".join(cells), f"| {(below < 0).mean():.1%} | {below.mean():.2f} |", flush=True)


def grid(model: Model, rows: Array, nodes: int = 1500, edge: float = 6.0) -> Array:
    """log p(x) by the midpoints of nodes² squares on [−edge, edge]²; Bernoulli rows, logits from the decoder graph."""
    side = (np.arange(nodes) + 0.5) * (2 * edge / nodes) - edge
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    total = np.full(len(rows), -np.inf)
    for part in np.array_split(side, nodes // 10):
        z = np.stack(np.meshgrid(part, side, indexing="ij"), -1).reshape(-1, 2)
        logits = model.engine.compute("decoder", {"z": z.astype(np.float32)})["logits"].reshape(len(z), -1)
        logits = logits.astype(np.float64)
        joint = flat @ logits.T - np.logaddexp(0.0, logits).sum(1) - 0.5 * (z * z).sum(1)
        top = joint.max(1)
        total = np.logaddexp(total, top + np.log(np.exp(joint - top[:, None]).sum(1)))
    return np.asarray(total + 2 * np.log(2 * edge / nodes) - np.log(2 * np.pi))


async def certificate(folder: Path) -> None:
    """How often the certified bound is past the exact evidence, over seeds, at the fewest draws that adapt."""
    truth = made(4, seed=3, stretch=0.4, shift=1.0)
    write(truth, folder, "certified")
    x = truth.sample(1, 1)
    async with serving(folder) as served:
        bounds = []
        for seed in range(TRIALS):
            found = await served.evidence("certified", x, seed=seed, draws=TRIAL_DRAWS)
            bounds.append(float(found["lower_bound"][0]))
        plain = [
            float((await served.evidence("certified", x, seed=seed, draws=64))["lower_bound"][0])
            for seed in range(TRIALS)
        ]
    for name, values in (("adapted, 512 draws", np.array(bounds)), ("plain draws of a bad q, 64", np.array(plain))):
        past = int((values > truth.evidence(x)[0]).sum())
        below = float(np.mean(truth.evidence(x)[0] - values))
        print(f"| {name} | {past} of {TRIALS} | {past / TRIALS:.2%} | {below:.2f} nat |", flush=True)


async def speed(served: Served) -> None:
    """Rows a second, many rows at once."""
    print("\n| model | latents | rows/s, 4,096 draws | rows/s, 1,024 draws | reliable at 4,096 |")
    print("|---|---|---|---|---|")
    for name, count in (("tiny", 96), ("breast-cancer", 48), ("mnist", 6)):
        model = served.models[name]
        rows = np.asarray(dataset(model).splits["test"])[:count]
        rates, sure = [], 0.0
        for draws in (4096, 1024):
            await served.evidence(name, rows[:1], draws=draws)  # the noise is made once
            started = time.perf_counter()
            found = await served.evidence(name, rows, draws=draws)
            rates.append(f"{len(rows) / (time.perf_counter() - started):.1f}")
            sure = sure or float(found["reliable"].mean())
        print("|", " | ".join((name, str(model.manifest.latent_size), *rates, f"{sure:.0%}")), "|", flush=True)


async def main() -> None:
    """Every table."""
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {versions}; {platform.machine()}")
    print("\n## Rows a second")
    async with serving(MODELS) as served:
        await speed(served)
        print("\n## tiny, d = 2, 200 test rows against quadrature")
        await quadrature(served)
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n## Linear-Gaussian VAEs, {EXACT_ROWS} rows each")
        await exact(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        print("\n## The certified bound, confidence 0.95\n\n| estimate | past the truth | share | below it by |")
        print("|---|---|---|---|")
        await certificate(Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
