"""Check: whether a model is what it says, by rows drawn from the model itself, for which the answers are known.

    z* ~ p(z),  x ~ p(x|z*)          then z* is an exact draw from the posterior p(z|x) of x

From that alone, with forward passes only: ELBO ≤ log p̂ ≤ upper in expectation, z* ranks uniformly among posterior
draws, and an encoder that knows the posterior ranks it uniformly too. A doorstep, like `offline`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from service import artifact, models
from service.artifact import Manifest
from service.check.picture import draw
from service.check.trial import Say, Trial, trial
from service.check.verdict import Finding, judge
from service.engine import open_engine
from service.errors import ArtifactRefused
from service.lanes import Lanes, cores
from service.models import Opener, Workshop

__all__ = ["Finding", "Report", "Trial", "check", "draw", "judge", "trial"]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of a model. measured is None where it could not even be opened."""

    manifest: Manifest
    measured: Trial | None
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is broken; advice breaks nothing."""
        return not any(finding.kind == "failure" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The last word, in one line."""
        name = f"{self.manifest.name}/{self.manifest.version}"
        failures, advice = ([f for f in self.findings if f.kind == kind] for kind in ("failure", "advice"))
        if failures:
            return f"{name} is BROKEN: {'; '.join(finding.what for finding in failures)}"
        if advice:
            return f"{name} is sound, with {len(advice)} piece{'s' * (len(advice) > 1)} of advice"
        return f"{name} is sound"

    def text(self) -> str:
        """All of it for a person."""
        marks = {"holds": "holds  ", "advice": "advice ", "failure": "BROKEN "}
        lines = []
        for finding in self.findings:
            lines.append(f"  {marks[finding.kind]} {finding.what}: {finding.detail}")
            lines += [f"           → {finding.remedy}"] if finding.remedy else []
        return "\n".join([*lines, "", self.verdict])

    def picture(self) -> str:
        """The same as an SVG."""
        return draw(self.manifest, self.measured, self.findings, self.verdict)


def check(
    folder: Path,
    *,
    rows: int = 100,
    draws: int = 1024,
    seed: int = 0,
    say: Say = lambda _done, _of: None,
    opener: Opener = open_engine,
    lanes: int | None = None,
) -> Report:
    """Check the artifact in a folder with so many rows of its own, and decoder calls for each; ArtifactRefused."""
    found = artifact.read(folder)
    try:
        measured = asyncio.run(_measure(folder, rows, draws, seed, say, opener, lanes or cores()))
    except ArtifactRefused as error:  # its files are what its manifest says, and still it doesn't answer as it says
        remedy = "the service would refuse this model; export it again"
        return Report(found.manifest, None, (Finding("failure", "it can't be served", str(error), remedy),))
    return Report(found.manifest, measured, judge(found.manifest, measured))


async def _measure(folder: Path, rows: int, draws: int, seed: int, say: Say, opener: Opener, lanes: int) -> Trial:
    workshop = Workshop(opener, Lanes(lanes))
    try:
        async with models.open_one(folder, workshop) as model:
            return await trial(model, rows, draws, seed, say)
    finally:
        workshop.lanes.close()
