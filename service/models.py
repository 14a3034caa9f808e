"""Models: what is served, by name and version. Knows how an artifact becomes a model, not what is asked of it."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from service import artifact, footing, noise, works
from service.appraisal import Yardstick
from service.artifact import Array, Arrays, Artifact, Manifest
from service.batcher import Answer, Batcher, BatchReport, Work
from service.calibration import References
from service.cost import Cost
from service.engine import Engine
from service.errors import ArtifactRefused, DeviceUnavailable, NotReady, Unknown
from service.footing import Footing
from service.lanes import Lanes
from service.works import SCORE, Appraising, GraphWork

log = logging.getLogger(__name__)

Opener = Callable[[Artifact], Engine]
Spawn = Callable[[str, Coroutine[Any, Any, None]], None]
State = Literal["served", "loading", "refused"]
Key = tuple[str, int]  # a name and a version

DEFAULT_DRAWS, DEFAULT_SEED = 16, 0
KEPT = 32  # yardsticks of a model; a bank of 4,096 draws in 32 latents holds 0.5 MB
SMALLEST = 16  # decoder rows in a batch, however slow the graph: the draws of one row


@dataclass(frozen=True, slots=True)
class Workshop:
    """How models are run: what opens an engine, the lanes, how large a batch and a waiting room are, who is told.

    size is the most decoder rows in an engine call, seconds about how long one may take. Both bound what a batch holds
    in memory, which grows with the work, and how long a small request waits for a piece of a large one. patience and
    inline are those of a Batcher. false_alarm is
    that of the watch for drift; 0: none. state is where calibrations are kept that were made while serving.
    """

    open_engine: Opener
    lanes: Lanes
    size: int = 1024
    seconds: float = 0.025
    room: int = 2_097_152
    patience: float = math.inf
    inline: float = 0.0
    report: Callable[[Manifest, BatchReport], None] = lambda _manifest, _report: None
    opened: Callable[[Manifest, Engine], None] = lambda _manifest, _engine: None
    refused: Callable[[str, int], None] = lambda _name, _version: None
    false_alarm: float = 0.0
    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A manifest with its digest, a door to each of its graphs, and what its p-values rest on.

    Calibrated again it is another Model on the same doors: a request keeps the one that it began with.
    """

    manifest: Manifest
    engine: Engine
    doors: Mapping[str, Batcher] = field(repr=False)
    golden: Arrays = field(repr=False)
    digest: str
    footing: Footing | None = field(repr=False)
    yardsticks: dict[tuple[int, int, bool], Yardstick] = field(default_factory=dict, repr=False, init=False)

    async def ask(
        self, graph: str, rows: Arrays, *, bank: noise.Bank | None = None, deadline: float = math.inf
    ) -> Answer:
        """Have one graph computed for some rows; see Batcher.submit."""
        if bank is None:
            return await self.doors[graph].submit(rows, deadline=deadline)
        key = (bank.seed, bank.draws)
        return await self.doors[graph].submit(rows, bank=bank.noise, key=key, deadline=deadline)

    async def appraise(self, x: Array, by: Yardstick, *, deadline: float = math.inf) -> Answer:
        """Have rows appraised, in one call together with others that are measured by the same."""
        return await self.doors[SCORE].submit({"x": x}, bank=by, key=by, deadline=deadline)

    @property
    def scores(self) -> Batcher:
        """The door to whole appraisals."""
        return self.doors[SCORE]

    def check(self) -> None:
        """Overloaded while who comes now to be scored would wait too long for a turn."""
        self.scores.check()

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


@dataclass(frozen=True, slots=True)
class Opened:
    """An artifact that was read, opened, verified and warmed: a model without its doors.

    It belongs to no event loop, so that a process may open it and those that it forks may serve it. costs are by
    work: what a call of each takes.
    """

    found: Artifact = field(repr=False)
    engine: Engine
    costs: dict[str, Cost]
    digest: str
    footing: Footing | None = field(repr=False)


# What can be served: what opens each, or says why it is refused, which is in the log by then. It may block.
Shelf = Mapping[Key, Callable[[], Opened | str]]


class Models:
    """Every model by name and version, those that were refused with the reason, and whether the required are ready."""

    def __init__(self, required: tuple[str, ...] = ()) -> None:
        self._required = required
        self._found: set[Key] = set()
        self._served: dict[Key, Model] = {}
        self._refused: dict[Key, str] = {}
        self._looked = False
        self._calibrating: dict[Key, asyncio.Lock] = {}

    def found(self, keys: set[Key]) -> None:
        """Say what lies on disk and will be opened."""
        self._found |= keys
        self._looked = True

    @property
    def settled(self) -> bool:
        """Whether all that was found is served or refused."""
        return self._looked and self._found <= self._served.keys() | self._refused.keys()

    def serve(self, model: Model) -> None:
        """Serve a model from now on."""
        key = (model.manifest.name, model.manifest.version)
        self._served[key] = model
        self._refused.pop(key, None)

    def calibrating(self, model: Model) -> asyncio.Lock:
        """Held while a model is calibrated, which is done once at a time."""
        return self._calibrating.setdefault((model.manifest.name, model.manifest.version), asyncio.Lock())

    def hold(self, model: Model) -> None:
        """NotReady unless these graphs are still the ones that are served by the model's name and version."""
        served = self._served.get((model.manifest.name, model.manifest.version))
        if served is None or served.engine is not model.engine:
            raise NotReady(f"{model.manifest.name}/{model.manifest.version} was replaced in the meantime")

    def refuse(self, name: str, version: int, reason: str) -> None:
        """Remember why a model isn't served."""
        self._refused[name, version] = reason

    def get(self, name: str, version: int | None = None) -> Model:
        """A model; without a version the highest that is loaded. Unknown, or NotReady with the reason."""
        if version is None:
            loaded = [number for other, number in self._served if other == name]
            version = max(loaded or [number for other, number in self._found if other == name], default=None)
        if version is not None and (model := self._served.get((name, version))):
            return model
        if not self._looked:
            raise NotReady("the models are still being looked for")
        if version is None or (name, version) not in self._found:
            raise Unknown(self._unknown(name, version))
        raise NotReady(f"{name}/{version} {self._why((name, version))}")

    def _unknown(self, name: str, version: int | None) -> str:
        names = sorted({other for other, _ in self._served})
        versions = sorted(number for other, number in self._served if other == name)
        if version is not None and versions:
            return f"{name} has no version {version}; it has {', '.join(map(str, versions))}"
        return f"there is no model {name[:64]!r}; there is {', '.join(names) or 'none yet'}"

    def _why(self, key: Key) -> str:
        if key in self._refused:
            return f"was refused: {self._refused[key]}"
        return "is still being loaded"

    def states(self) -> list[tuple[str, int, State, str]]:
        """Every name and version that was found, how it is, and why it isn't served."""
        found: list[tuple[str, int, State, str]] = []
        for key in sorted(self._found | self._served.keys()):
            if key in self._served:
                found.append((*key, "served", ""))
            else:
                found.append((*key, "refused" if key in self._refused else "loading", self._why(key)))
        return found

    def catalogue(self) -> list[tuple[str, list[int]]]:
        """Names and their loaded versions, ascending."""
        names = sorted({name for name, _ in self._served})
        return [(name, sorted(v for other, v in self._served if other == name)) for name in names]

    def all(self) -> list[Model]:
        """Every model that is served, by name and version."""
        return [self._served[key] for key in sorted(self._served)]

    def close(self) -> None:
        """Refuse newcomers at every model, and settle everyone who waits."""
        for model in self._served.values():
            for door in model.doors.values():
                door.close()

    def unready(self) -> list[str]:
        """Why the service isn't ready; empty when it is.

        A name is ready when its newest version on disk is served, and when the newest was refused and an older one is
        served: one bad upload takes no service out of rotation. While the newest is being loaded it isn't ready.
        """
        if not self._looked:
            return ["the models are still being looked for"]
        newest: dict[str, int] = {}
        for name, version in self._found:
            newest[name] = max(version, newest.get(name, 0))
        wanted = self._required or tuple(sorted(newest))
        if not wanted:
            return ["no models were found where VAE_SERVE_MODELS points; export one there"]
        absent = [f"{name} is required and was not found" for name in wanted if name not in newest]
        keys = [(name, newest[name]) for name in wanted if name in newest]
        return absent + [f"{n}/{v} {self._why((n, v))}" for n, v in keys if not self._answers(n, v)]

    def _answers(self, name: str, newest: int) -> bool:
        """Whether a name's newest version is served, or an older one in place of a newest that was refused."""
        older = any(other == name for other, _ in self._served)
        return (name, newest) in self._served or ((name, newest) in self._refused and older)


@asynccontextmanager
async def serve(models: Models, look: Callable[[], Shelf], workshop: Workshop, spawn: Spawn) -> AsyncIterator[None]:
    """Serve every artifact of a shelf; they are opened in the background, and put away with this context.

    spawn runs what must go on as long as the service does, and is told its name.
    """
    spawn("loader", _load_all(models, look, workshop, spawn))
    try:
        yield
    finally:
        models.close()


async def _load_all(models: Models, look: Callable[[], Shelf], workshop: Workshop, spawn: Spawn) -> None:
    """Open all that lies on the shelf, one after another; one that is refused costs the others nothing."""
    shelf = look()
    models.found(set(shelf))
    for (name, version), take in sorted(shelf.items(), key=lambda item: item[0]):
        started = time.perf_counter()
        opened = await asyncio.to_thread(take)
        if isinstance(opened, str):
            models.refuse(name, version, opened)
            workshop.refused(name, version)
            continue
        model = put_up(opened, workshop)
        for graph, door in model.doors.items():
            spawn(f"{name}/{version} {graph}", door.serve())
        models.serve(model)
        workshop.opened(model.manifest, model.engine)
        seconds = time.perf_counter() - started
        log.info("serving %s/%s on %s after %.2f s", name, version, model.engine.device, seconds)
        if model.engine.fallback:
            log.warning("%s/%s fell back to the CPU: %s", name, version, model.engine.fallback)


def on_disk(folder: Path, opener: Opener, state: Path | None = None, false_alarm: float = 0.0) -> Shelf:
    """What lies below a folder; see Workshop."""
    return {key: partial(open_or_refuse, folder, key, opener, state, false_alarm) for key in find(folder)}


def open_or_refuse(folder: Path, key: Key, opener: Opener, state: Path | None, false_alarm: float) -> Opened | str:
    """One artifact below a folder, or why it is refused, which the log says too; blocks.

    DeviceUnavailable where the device isn't there: that is no fault of the artifact, and the service ends.
    """
    name, version = key
    try:
        opened = open_artifact(folder / name / str(version), opener, state, false_alarm)
        if (opened.found.manifest.name, opened.found.manifest.version) != key:
            said = f"{opened.found.manifest.name}/{opened.found.manifest.version}"
            raise ArtifactRefused(f"manifest.json says that this is {said}")
    except DeviceUnavailable:
        raise
    except Exception as error:
        known = isinstance(error, ArtifactRefused)
        reason = str(error) if known else "it could not be opened; the service's log says why"
        log.error("refused %s/%s: %s", name, version, reason, exc_info=None if known else error)
        return reason
    return opened


def find(folder: Path) -> list[Key]:
    """The names and versions of the artifacts below a folder."""
    manifests = folder.glob(f"*/*/{artifact.MANIFEST}")
    parts = [(path.parent.parent.name, path.parent.name) for path in manifests]
    return [(n, int(v)) for n, v in parts if re.fullmatch(artifact.NAME, n) and re.fullmatch(r"[1-9][0-9]{0,8}", v)]


async def load(folder: Path, workshop: Workshop) -> Model:
    """Read, open, verify and warm one artifact, off the event loop. Its doors are not served yet."""
    work = partial(open_artifact, folder, workshop.open_engine, workshop.state, workshop.false_alarm)
    return put_up(await asyncio.to_thread(work), workshop)


def put_up(opened: Opened, workshop: Workshop) -> Model:
    """A model of what was opened, with a door to each of its graphs, which is not served yet."""
    manifest, engine, costs = opened.found.manifest, opened.engine, opened.costs
    done: list[Work] = [GraphWork(graph, engine) for graph in manifest.graphs.values()]
    done.append(Appraising(engine, manifest))
    doors = {
        work.name: Batcher(
            work,
            workshop.lanes,
            size=max(min(SMALLEST, workshop.size), min(workshop.size, costs[work.name].within(workshop.seconds))),
            room=workshop.room,
            cost=costs[work.name],
            patience=workshop.patience,
            inline=workshop.inline if engine.device == "cpu" else 0.0,  # on a device a call may wait for others
            report=lambda report: workshop.report(manifest, report),
        )
        for work in done
    }
    return Model(manifest, engine, doors, opened.found.golden, opened.digest, opened.footing)


def open_artifact(folder: Path, opener: Opener, state: Path | None = None, false_alarm: float = 0.0) -> Opened:
    """Read, open, verify and warm one artifact; blocks. What can be wrong with it is ArtifactRefused."""
    found = artifact.read(folder)
    engine = opener(found)
    costs = {name: works.cost(found, engine, name) for name in found.manifest.graphs}
    costs[SCORE] = works.cost(found, engine, "elbo")
    digest = artifact.describe(folder / artifact.MANIFEST).sha256
    return Opened(found, engine, costs, digest, footing.find(found, digest, state, false_alarm))


@asynccontextmanager
async def open_one(folder: Path, workshop: Workshop) -> AsyncIterator[Model]:
    """One model, served for as long as the context lasts: for work without a server."""
    model = await load(folder, workshop)
    serving = [asyncio.create_task(door.serve()) for door in model.doors.values()]
    try:
        yield model
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
