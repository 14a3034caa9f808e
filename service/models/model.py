"""Model: an artifact that is served: its manifest, a door to each of its graphs, and what its p-values rest on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from service import noise
from service.appraisal import Yardstick
from service.artifact import Array, Arrays, Artifact, Manifest
from service.batcher import Answer, Batcher, BatchReport
from service.calibration import References
from service.engine import Engine
from service.footing import Footing
from service.lanes import Lanes
from service.works import SCORE

Opener = Callable[[Artifact], Engine]
Key = tuple[str, int]  # a name and a version

DEFAULT_DRAWS, DEFAULT_SEED = 16, 0
KEPT = 32  # yardsticks of a model; a bank of 4,096 draws in 32 latents holds 0.5 MB


@dataclass(frozen=True, slots=True)
class Workshop:
    """How models are run: what opens an engine, the lanes, how large a batch and a waiting room are, who is told.

    size is the most decoder rows in an engine call, seconds about how long one may take. Both bound what a batch holds
    in memory, which grows with the work, and how long a small request waits for a piece of a large one. patience and
    inline are those of a Batcher. at_once is how many artifacts are opened at the same time at the start. false_alarm
    is that of the watch for drift; 0: none. state is where calibrations are kept that were made while serving.
    """

    open_engine: Opener
    lanes: Lanes
    size: int = 1024
    seconds: float = 0.025
    room: int = 2_097_152
    patience: float = math.inf
    inline: float = 0.0
    at_once: int = 1
    report: Callable[[Manifest, BatchReport], None] = lambda _manifest, _report: None
    opened: Callable[[Manifest, Engine], None] = lambda _manifest, _engine: None
    closed: Callable[[Model], None] = lambda _model: None
    forgotten: Callable[[str, int], None] = lambda _name, _version: None
    refused: Callable[[str, int], None] = lambda _name, _version: None
    false_alarm: float = 0.0
    state: Path | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A manifest with its digest, a door to each of its graphs, and what its p-values rest on.

    card: README.md and its pictures, if the artifact has them.
    Calibrated again it is another Model on the same doors: a request keeps the one that it began with.
    """

    manifest: Manifest
    engine: Engine
    doors: Mapping[str, Batcher] = field(repr=False)
    golden: Arrays = field(repr=False)
    digest: str
    footing: Footing | None = field(repr=False)
    card: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    yardsticks: dict[tuple[int, int, bool], Yardstick] = field(default_factory=dict, repr=False, init=False)

    @property
    def key(self) -> Key:
        """Its name and version."""
        return self.manifest.name, self.manifest.version

    async def ask(
        self, graph: str, rows: Arrays, *, bank: noise.Bank | None = None, own: bool = False, deadline: float = math.inf
    ) -> Answer:
        """Have one graph computed for some rows; see Batcher.submit. own: the bank is theirs alone."""
        if bank is None:
            return await self.doors[graph].submit(rows, deadline=deadline)
        key = bank if own else (bank.seed, bank.draws)
        return await self.doors[graph].submit(rows, bank=bank.noise, key=key, deadline=deadline)

    async def appraise(self, x: Array, by: Yardstick, *, deadline: float = math.inf) -> Answer:
        """Have rows appraised, in one call together with others that are measured by the same."""
        return await self.doors[SCORE].submit({"x": x}, bank=by, key=by, deadline=deadline)

    @property
    def scores(self) -> Batcher:
        """The door to whole appraisals."""
        return self.doors[SCORE]

    def check(self, deadline: float = math.inf) -> None:
        """Overloaded or Late while who comes now to be scored would wait too long for a turn."""
        self.scores.check(deadline=deadline)

    def close(self) -> None:
        """Refuse newcomers and settle everyone who waits; what serves its doors ends."""
        for door in self.doors.values():
            door.close()

    async def bank(self, seed: int, draws: int) -> noise.Bank:
        """The noise of an estimator: the calibrated bank as stored, others made on demand and kept a while."""
        if self.calibrated and (self.calibrated.seed, self.calibrated.draws) == (seed, draws):
            return self.calibrated
        return await asyncio.to_thread(noise.bank, seed, draws, self.manifest.latent_size)

    async def yardstick(self, seed: int, draws: int, *, served: bool) -> Yardstick:
        """What rows are measured by: one for an estimator, so that requests can share calls."""
        return self.kept(seed, draws, served) or self._keep(await self.bank(seed, draws), served)

    def kept(self, seed: int, draws: int, served: bool) -> Yardstick | None:
        """The yardstick, if it was asked for of late."""
        return self.yardsticks.get((seed, draws, served))

    def _keep(self, bank: noise.Bank, served: bool) -> Yardstick:
        if len(self.yardsticks) >= KEPT:
            del self.yardsticks[next(iter(self.yardsticks))]
        stands = self.footing
        if stands is None:
            made = Yardstick(bank)
        else:
            own = bank is stands.bank
            notice = partial(stands.notice, self.manifest) if own and served and stands.watch else None
            made = Yardstick(bank, stands.references, own, stands.complete, notice)
        self.yardsticks[bank.seed, bank.draws, served] = made
        return made

    @property
    def references(self) -> References | None:
        """The reference scores that its p-values are taken from."""
        return self.footing.references if self.footing else None

    @property
    def calibrated(self) -> noise.Bank | None:
        """The bank that it is calibrated with."""
        return self.footing.bank if self.footing else None

    @property
    def draws(self) -> int:
        """How many draws a score takes unless told otherwise."""
        return self.calibrated.draws if self.calibrated else DEFAULT_DRAWS

    @property
    def seed(self) -> int:
        """The seed of a score's bank unless told otherwise."""
        return self.calibrated.seed if self.calibrated else DEFAULT_SEED
