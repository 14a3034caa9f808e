"""Models: what is served, by name and version. Knows how an artifact becomes a model, not what is asked of it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from service import artifact, footing, noise, works
from service.appraisal import Yardstick
from service.artifact import Array, Arrays, Artifact, Manifest
from service.batcher import Answer, Batcher, BatchReport, Work
from service.calibration import References
from service.cost import Cost
from service.engine import Engine
from service.errors import NotReady, Unknown
from service.footing import Footing
from service.lanes import Lanes
from service.works import SCORE, Appraising, GraphWork

Opener = Callable[[Artifact], Engine]
Key = tuple[str, int]  # name and version

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
    closed: Callable[[Model], None] = lambda _model: None
    forgotten: Callable[[str, int], None] = lambda _name, _version: None
    refused: Callable[[str, int], None] = lambda _name, _version: None
    false_alarm: float = 0.0
    state: Path | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
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

    @property
    def key(self) -> Key:
        """Its name and version."""
        return self.manifest.name, self.manifest.version

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

    def check(self) -> None:
        """Overloaded while who comes now to be scored would wait too long for a turn."""
        self.doors[SCORE].check()

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


class Models:
    """Every model by name and version, those that were refused with the reason, and whether the required are ready.

    pinned names the version that answers where a request names none; without, it is the highest that is loaded.
    """

    def __init__(self, required: tuple[str, ...] = (), pinned: Mapping[str, int] | None = None) -> None:
        self._required = required
        self._pinned = dict(pinned or {})
        self._found: set[Key] = set()
        self._served: dict[Key, Model] = {}
        self._refused: dict[Key, str] = {}
        self._unloaded: set[Key] = set()
        self._loading: set[Key] = set()
        self._leaving: list[Model] = []  # nobody finds them any more, and whoever has one is still answered
        self._first: set[str] = set()  # the names that were there at the start
        self._looked = False
        self._calibrating: dict[Key, asyncio.Lock] = {}

    # ------------------------------------------------------------ as they come and go

    def found(self, keys: set[Key]) -> None:
        """Say what lies on disk at the start and will be opened: what readiness waits for."""
        self._found |= keys
        self._first |= {name for name, _ in keys}
        self._looked = True

    def begin(self, key: Key) -> None:
        """Say what is being opened while others are served; it has no part in readiness until it is."""
        self._loading.add(key)

    def serve(self, model: Model) -> None:
        """Serve a model from now on."""
        self._served[model.key] = model
        self._found.add(model.key)
        self._loading.discard(model.key)
        self._unloaded.discard(model.key)
        self._refused.pop(model.key, None)

    def refuse(self, name: str, version: int, reason: str) -> None:
        """Remember why a model isn't served; one that was served already still is."""
        self._found.add((name, version))
        self._loading.discard((name, version))
        self._refused[name, version] = reason

    def unload(self, key: Key) -> Model | None:
        """Serve a version no more, though it lies on disk; the model that was served, which is to be put away."""
        self._unloaded.add(key)
        self._refused.pop(key, None)
        return self._retire(key)

    def forget(self, key: Key) -> Model | None:
        """The same of a version that isn't on disk any more."""
        self._found.discard(key)
        self._unloaded.discard(key)
        self._refused.pop(key, None)
        return self._retire(key)

    def _retire(self, key: Key) -> Model | None:
        if model := self._served.pop(key, None):
            self._leaving.append(model)
        return model

    def leave(self, model: Model) -> None:
        """Another was opened in this one's place, and whoever has this one is still answered."""
        self._leaving.append(model)

    def left(self, model: Model) -> None:
        """Nobody has a model any more: let it go."""
        model.close()
        self._leaving = [other for other in self._leaving if other is not model]

    def calibrating(self, model: Model) -> asyncio.Lock:
        """Held while a model is calibrated, which is done once at a time."""
        return self._calibrating.setdefault(model.key, asyncio.Lock())

    def hold(self, model: Model) -> None:
        """NotReady unless these graphs are still the ones that are served by the model's name and version."""
        served = self._served.get(model.key)
        if served is None or served.engine is not model.engine:
            raise NotReady(f"{model.manifest.name}/{model.manifest.version} was replaced in the meantime")

    def close(self) -> None:
        """Refuse newcomers at every model, and settle everyone who waits."""
        for model in (*self._served.values(), *self._leaving):
            model.close()

    # ------------------------------------------------------------ looked up

    def get(self, name: str, version: int | None = None) -> Model:
        """A model; without a version the pinned one, else the highest that is loaded. Unknown, or NotReady with why."""
        if version is None:
            version = self.default(name)
        if version is not None and (model := self._served.get((name, version))):
            return model
        if not self._looked:
            raise NotReady("the models are still being looked for")
        if version is None or not self._awaited((name, version)):
            raise Unknown(self._unknown(name, version))
        raise NotReady(f"{name}/{version} {self._why((name, version))}")

    def default(self, name: str) -> int | None:
        """The version that answers where none is named: the pinned one, else the highest loaded, else the highest."""
        if name in self._pinned and any(other == name for other, _ in self._found | self._loading):
            return self._pinned[name]
        loaded = [number for other, number in self._served if other == name]
        awaited = [number for other, number in self._found | self._loading if other == name]
        return max(loaded or [number for number in awaited if self._awaited((name, number))], default=None)

    def _awaited(self, key: Key) -> bool:
        """Whether a version that isn't served may be, as things are: it is there, and nobody has unloaded it."""
        return key in self._loading or (key in self._found and key not in self._unloaded) or self._pins(key)

    def _pins(self, key: Key) -> bool:
        """Whether a version is the pinned default of a name that there is."""
        return self._pinned.get(key[0]) == key[1] and any(other == key[0] for other, _ in self._served)

    def _unknown(self, name: str, version: int | None) -> str:
        names = sorted({other for other, _ in self._served})
        versions = sorted(number for other, number in self._served if other == name)
        if version is not None and versions:
            return f"{name} has no version {version}; it has {', '.join(map(str, versions))}"
        return f"there is no model {name[:64]!r}; there is {', '.join(names) or 'none yet'}"

    def _why(self, key: Key) -> str:
        if key in self._loading:
            return "is still being loaded"
        if key in self._refused:
            return f"was refused: {self._refused[key]}"
        if key in self._unloaded:
            return "was unloaded"
        return "is still being loaded" if key in self._found else "is the default version, and isn't there"

    def states(self) -> list[tuple[str, int, str | None]]:
        """Every name and version that was found, and why it isn't served; None where it is."""
        keys = sorted(self._found | self._served.keys() | self._loading)
        return [(*key, None if key in self._served else self._why(key)) for key in keys]

    def unloaded(self, key: Key) -> bool:
        """Whether a version was unloaded, and not loaded again."""
        return key in self._unloaded

    def pinned(self, key: Key) -> bool:
        """Whether it is this version that answers where a request names none, whatever else is loaded."""
        return self._pinned.get(key[0]) == key[1]

    def catalogue(self) -> list[tuple[str, list[int]]]:
        """Names and their loaded versions, ascending."""
        names = sorted({name for name, _ in self._served})
        return [(name, sorted(v for other, v in self._served if other == name)) for name in names]

    def all(self) -> list[Model]:
        """Every model that is served, by name and version."""
        return [self._served[key] for key in sorted(self._served)]

    def served(self, key: Key) -> Model | None:
        """The model that is served by a name and version, if any."""
        return self._served.get(key)

    # ------------------------------------------------------------ ready

    def unready(self) -> list[str]:
        """Why the service isn't ready; empty when it is.

        A name is ready when its newest version on disk is served, and when the newest was refused and an older one is
        served: one bad upload takes no service out of rotation. While the newest is being loaded at the start it isn't
        ready; what is loaded later never makes it so. Names wanted are the required ones, else those found at the
        start that weren't unloaded. A pinned version must be served itself.
        """
        if not self._looked:
            return ["the models are still being looked for"]
        newest: dict[str, int] = {}
        for name, version in self._found - self._unloaded:
            newest[name] = max(version, newest.get(name, 0))
        wanted = self._required or tuple(sorted(newest.keys() & self._first))
        if not wanted and not self._served:
            if self._unloaded:
                return ["every model was unloaded; load one"]
            return ["no models were found where VAE_SERVE_MODELS points; export one there"]
        absent = [f"{name} is required and {self._absent(name)}" for name in wanted if name not in newest]
        keys = [(name, self._pinned.get(name, newest[name])) for name in wanted if name in newest]
        return absent + [f"{n}/{v} {self._why((n, v))}" for n, v in keys if not self._answers(n, v)]

    def _absent(self, name: str) -> str:
        return "was unloaded" if any(other == name for other, _ in self._unloaded) else "was not found"

    def _answers(self, name: str, newest: int) -> bool:
        """Whether a name's newest version is served, or an older one in place of a newest that was refused."""
        older = any(other == name for other, _ in self._served) and not self.pinned((name, newest))
        return (name, newest) in self._served or ((name, newest) in self._refused and older)


def find(folder: Path) -> list[Key]:
    """The names and versions of the artifacts below a folder."""
    manifests = folder.glob(f"*/*/{artifact.MANIFEST}")
    parts = [(path.parent.parent.name, path.parent.name) for path in manifests]
    return [(n, int(v)) for n, v in parts if re.fullmatch(artifact.NAME, n) and re.fullmatch(r"[1-9][0-9]{0,8}", v)]


async def load(folder: Path, workshop: Workshop) -> Model:
    """Read, open, verify and warm one artifact, off the event loop. Its doors are not served yet."""
    found, engine, costs = await asyncio.to_thread(_open, folder, workshop.open_engine)
    manifest, digest = found.manifest, found.digest
    stands = await asyncio.to_thread(footing.find, found, digest, workshop.state, workshop.false_alarm)
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
    return Model(manifest, engine, doors, found.golden, digest, stands)


def _open(folder: Path, opener: Opener) -> tuple[Artifact, Engine, dict[str, Cost]]:
    found = artifact.read(folder)
    engine = opener(found)
    costs = {name: works.cost(found, engine, name) for name in found.manifest.graphs}
    return found, engine, costs | {SCORE: works.cost(found, engine, "elbo")}


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
