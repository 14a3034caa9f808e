"""Opening: how an artifact becomes a model. Knows not what is asked of it, nor what else is served."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from service import artifact, footing, works
from service.artifact import Artifact
from service.batcher import Batcher, Work
from service.cost import Cost
from service.engine import Engine
from service.errors import ArtifactRefused, DeviceUnavailable
from service.footing import Footing
from service.models.model import Key, Model, Opener, Workshop
from service.works import SCORE, Appraising, GraphWork

log = logging.getLogger(__name__)

SMALLEST = 16  # decoder rows in a batch, however slow the graph: the draws of one row


@dataclass(frozen=True, slots=True)
class Opened:
    """An artifact that was read, opened, verified and warmed: a model without its doors.

    It belongs to no event loop, so that a process may open it and those that it forks may serve it. costs are by
    work: what a call of each takes.
    """

    found: Artifact = field(repr=False)
    engine: Engine
    costs: dict[str, Cost]
    footing: Footing | None = field(repr=False)

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest."""
        return self.found.digest


# What can be served: what opens each, or says why it is refused, which is in the log by then. It may block.
Shelf = Mapping[Key, Callable[[], Opened | str]]


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
    tiles = {name: works.tile(cost, engine) for name, cost in costs.items()}
    done: list[Work] = [GraphWork(graph, engine, tiles[name]) for name, graph in manifest.graphs.items()]
    done.append(Appraising(engine, manifest, tiles[SCORE]))
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
    found = opened.found
    return Model(manifest, engine, doors, found.golden, opened.digest, opened.footing, found.card)


def open_artifact(folder: Path, opener: Opener, state: Path | None = None, false_alarm: float = 0.0) -> Opened:
    """Read, open, verify and warm one artifact; blocks. What can be wrong with it is ArtifactRefused."""
    found = artifact.read(folder)
    engine = opener(found)
    costs = {name: works.cost(found, engine, name) for name in found.manifest.graphs}
    costs[SCORE] = replace(costs["elbo"])  # of its own: each learns from its calls
    return Opened(found, engine, costs, footing.find(found, found.digest, state, false_alarm))


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
