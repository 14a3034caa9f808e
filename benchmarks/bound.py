"""The bound: whether the ELBO's interval holds the exact value as often as it says, and what a bank of noise is worth.

    python -m benchmarks.bound [ARTIFACT …]

Coverage is of the served path: requests over ASGI to the whole service, one for each of 2,000 seeds, against the closed
form of linear-Gaussian VAEs and factor analysis. The variance is taken of the graphs themselves, over 500 banks; the
folders of other artifacts may be named.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.stats import qmc

from benchmarks import linear
from service import artifact, frames, noise
from service.engine import Engine, open_engine
from tests.kit import House, configured, open_house

Doubles = NDArray[np.float64]
Maker = Callable[[int, int, int, int], Doubles]

MODELS = Path(__file__).parents[1] / "exported_models"
SEEDS, AT_ONCE = 2000, 64
ROWS = 8
NOISES: dict[str, float | tuple[float, float]] = {"linear-gaussian": 0.7, "factor-analysis": (0.4, 1.2)}
POSTERIORS = {"good": (1.0, 0.0), "mismatched": (1.4, 0.7)}  # by what q's scale is multiplied and its mean moved
CASES = {
    f"{what}-{d}-{q}": linear.made(d, noise=NOISES[what], stretch=POSTERIORS[q][0], shift=POSTERIORS[q][1])
    for what, d, q in itertools.product(NOISES, (2, 8, 16, 32), POSTERIORS)
}


async def served(house: House, name: str, model: linear.Linear, draws: int) -> str:
    """One line: coverage at three levels, and whether the mean is exact."""
    x = model.sample(1, seed=3)
    answers = []
    for start in range(0, SEEDS, AT_ONCE):
        bodies = [{"inputs": x.tolist(), "seed": s, "draws": draws} for s in range(start, min(start + AT_ONCE, SEEDS))]
        answers += await asyncio.gather(*(house.answer(f"{name}/score", body) for body in bodies))
    again = await house.answer(f"{name}/score", {"inputs": x.tolist(), "seed": 7, "draws": draws})
    elbo, error = (np.array([answer[field][0] for answer in answers]) for field in ("elbo", "elbo_error"))
    exact, freedom = model.elbo(x)[0], answers[0]["elbo_error_df"]
    off = np.abs(elbo - exact) / error
    held = [f"{np.mean(off <= stats.t.ppf(0.5 + level / 2, freedom)):.1%}" for level in (0.8, 0.95, 0.99)]
    p = stats.ttest_1samp(elbo, exact).pvalue
    same = "yes" if again == answers[7] else "NO"
    return f"| {name} | {draws} | {held[0]} | {held[1]} | {held[2]} | {p:.2f} | {elbo.std(ddof=1):.3g} | {same} |"


async def coverage(folder: Path) -> None:
    """The table of coverage."""
    for name, model in CASES.items():
        linear.write(model, folder, name)
    print(f"Served intervals over {SEEDS} seeds, one row\n")
    print("| model and its q | draws | 80 % holds | 95 % holds | 99 % holds | bias p | sd, nats | same twice |")
    print("|---|---|---|---|---|---|---|---|")
    async with open_house(configured(folder)) as house:
        for (name, model), draws in itertools.product(CASES.items(), (16, 64)):
            print(await served(house, name, model, draws), flush=True)


# ---------------------------------------------------------------- what a bank is worth


def framed(seed: int, index: int, size: int, d: int) -> Doubles:
    """A frame."""
    return frames.frame(np.random.default_rng([seed, index]), size, d)


def scrambled(seed: int, index: int, size: int, d: int) -> Doubles:
    """An Owen-scrambled Sobol sequence, as banks were once made of."""
    points = qmc.Sobol(d, scramble=True, bits=30, rng=np.random.default_rng([seed, index])).random(size)
    return np.asarray(special.ndtri(points + 2.0**-31))


def antithetic(seed: int, index: int, size: int, d: int) -> Doubles:
    """Plain draws and their reflections."""
    half = np.random.default_rng([seed, index]).standard_normal((size // 2, d))
    return np.concatenate([half, -half])


MAKERS: dict[str, Maker] = {"antithetic": antithetic, "sobol": scrambled, "frames": framed}


def values(engine: Engine, x: NDArray[np.generic], epsilon: Doubles) -> Doubles:
    """log p(x|z) at each draw, (rows, draws)."""
    parts = [epsilon[start : start + 1024].astype(np.float32) for start in range(0, len(epsilon), 1024)]
    found = [engine.compute("elbo", {"x": x, "noise": part})["log_likelihood"] for part in parts]
    return np.asarray(np.concatenate(found, axis=1), np.float64)


def worth(folder: Path, draws: int, banks: int) -> Iterator[str]:
    """How many times smaller the variance is than that of plain draws: all rows together, and the median row."""
    found = artifact.read(folder)
    engine, x, d = open_engine(found), found.golden["elbo.x"][:ROWS], found.manifest.latent_size
    plain = values(engine, x, noise.normals(99, (banks * 16, d)).astype(np.float64)).var(-1, ddof=1) / draws
    for maker in MAKERS.values():
        size = draws // noise.FRAMES
        epsilon = np.concatenate([maker(seed, 0, size, d) for seed in range(banks)])
        means = values(engine, x, epsilon).reshape(len(x), banks, size).mean(-1)
        variance = means.var(-1, ddof=1) / noise.FRAMES  # of the mean of so many independent groups
        yield f"{plain.mean() / variance.mean():.1f} ({np.median(plain / variance):.1f})"


def variances(folders: list[Path], banks: int = 500) -> None:
    """The table of variances."""
    print("\nVariance of plain draws over that of the bank at equal decoder calls: rows together (the median row)\n")
    print(f"| artifact | d | draws | {' | '.join(MAKERS)} |")
    print("|---|---|---|---|---|---|")
    for folder, draws in itertools.product(folders, (16, 64, 256)):
        d = artifact.read(folder).manifest.latent_size
        name = f"{folder.parent.name}/{folder.name}"
        few = banks if name != "mnist/1" else banks // 4  # a large decoder, and many draws
        print(f"| {name} | {d} | {draws} | {' | '.join(worth(folder, draws, few))} |", flush=True)


def speed() -> None:
    """What a new bank costs."""
    print("\nMaking a bank, ms\n\n| d | 16 draws | 64 | 1024 |\n|---|---|---|---|")
    for d in (2, 16, 128):
        cells = []
        for draws in (16, 64, 1024):
            noise.bank.cache_clear()
            noise.bank(0, draws, d)
            started = time.perf_counter()
            for seed in range(1, 6):
                noise.bank(seed, draws, d)
            cells.append(f"{(time.perf_counter() - started) / 5 * 1e3:.1f}")
        print(f"| {d} | {' | '.join(cells)} |", flush=True)


def main(named: list[Path]) -> None:
    """Print all tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asyncio.run(coverage(folder))
        committed = [MODELS / name / "1" for name in ("tiny", "breast-cancer", "mnist")]
        hard = [folder / f"linear-gaussian-{d}-good" / "1" for d in (2, 8, 32)]
        variances([*committed, *named, *hard])
    speed()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
