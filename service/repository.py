"""The repository: how versions come and go while the service serves. Knows no HTTP, and not how a model is opened."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from service import artifact
from service.errors import DeviceUnavailable, Unknown
from service.models import Key, Model, Models, Opened, Shelf, Workshop, find, on_disk, open_or_refuse, put_up

log = logging.getLogger(__name__)

Spawn = Callable[[str, Coroutine[Any, Any, None]], None]
Mark = frozenset[tuple[str, int, int]]  # a folder's files as a glance tells them apart: name, bytes, time of change


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a repository: versions that are served from now on, that no longer are, and that were refused."""

    loaded: tuple[Key, ...] = ()
    retired: tuple[Key, ...] = ()
    refused: Mapping[Key, str] = field(default_factory=dict)


class Repository:
    """The artifacts below a folder, and which of them are served: one change at a time.

    A version that is opened takes requests once it has answered its golden rows, and not before. Where it takes
    another's place, or one is let go, nobody finds the old one any more, and it goes on for those who have it: until
    passed() says that everyone has left who was inside. spawn runs what must go on, and is told its name.
    """

    def __init__(
        self,
        models: Models,
        folder: Path,
        workshop: Workshop,
        spawn: Spawn,
        passed: Callable[[], Awaitable[None]],
        look: Callable[[], Shelf] | None = None,
    ) -> None:
        """look: what there is at the start, where it isn't to be opened from the folder."""
        self._models, self._folder, self._workshop = models, folder, workshop
        self._spawn, self._passed = spawn, passed
        self._first = look or self._on_disk
        self._turn = asyncio.Lock()
        self._working: set[asyncio.Task[Change]] = set()
        self._seen: dict[Key, Mark] = {}  # as it was when it was last opened, or refused
        self._missed: set[Key] = set()  # known, and not there at the last look

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve every artifact; they are opened in the background, and put away with this context."""
        self._spawn("loader", self._load_all())
        try:
            yield
        finally:
            for task in list(self._working):
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)
            self._models.close()

    async def load(self, name: str) -> Change:
        """Look at a name's versions: open those that are new or changed, let go of those that aren't there any more.

        What is refused leaves what was served; then nothing is let go either. Unknown where there is no such name.
        A change that was begun is carried through, whoever stops waiting for it.
        """
        return await self._through(self._load(name))

    async def unload(self, name: str, version: int | None = None) -> Change:
        """Serve a version no more, or all of a name, until it is loaded again; Unknown where there is none."""
        return await self._through(self._unload(name, version))

    async def refresh(self) -> Change:
        """Look at every name that wasn't unloaded, as `load` does; what looks as it did is not opened again.

        A version is let go once two looks in a row have missed it: who writes an artifact anew moves it away first.
        """
        return await self._through(self._refresh())

    async def poll(self, pause: Callable[[], Awaitable[object]]) -> None:
        """Refresh again and again, with a pause before each."""
        while True:
            await pause()
            try:
                await self.refresh()
            except OSError as error:
                log.error("the repository can't be looked at: %s", error)

    # ------------------------------------------------------------ changes

    async def _through(self, change: Coroutine[Any, Any, Change]) -> Change:
        """Carry a change through, though the caller may stop waiting."""
        task = asyncio.create_task(change)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return await asyncio.shield(task)

    async def _load_all(self) -> None:
        """Open all that there is, some at once; one that is refused costs the others nothing."""
        shelf = self._first()
        self._models.found(set(shelf))
        free = asyncio.Semaphore(self._workshop.at_once)

        async def open_one(key: Key, take: Callable[[], Opened | str]) -> None:
            async with free:
                digest = await asyncio.to_thread(self._look, key)
                await self._open(key, take)
                served = self._models.served(key)
                if served is None or served.digest != digest:  # opened before that look, it may have changed since
                    del self._seen[key]

        async with self._turn:
            opening = [asyncio.create_task(open_one(*item)) for item in sorted(shelf.items(), key=lambda item: item[0])]
            try:
                await asyncio.gather(*opening)
            finally:
                for task in opening:
                    task.cancel()
                await asyncio.gather(*opening, return_exceptions=True)
        for reason in self._models.unready():  # nobody may be asking /readyz
            log.warning("not ready: %s", reason)

    def _on_disk(self) -> Shelf:
        shop = self._workshop
        return on_disk(self._folder, shop.open_engine, shop.state, shop.false_alarm)

    async def _load(self, name: str) -> Change:
        async with self._turn:
            there = [key for key in await asyncio.to_thread(find, self._folder) if key[0] == name]
            if not there:
                raise Unknown(f"there is no artifact {name[:64]!r} in the repository; what is served still is")
            gone = [key for key in self._known() if key[0] == name and key not in there]
            return await self._changed(there, gone)

    async def _unload(self, name: str, version: int | None) -> Change:
        async with self._turn:
            known = sorted(key for key in self._known() if key[0] == name and version in (None, key[1]))
            keys = [key for key in known if not self._models.unloaded(key)]
            if not keys:
                asked = name[:64] if version is None else f"{name[:64]}/{version}"
                raise Unknown(f"there is no model {asked!r} to unload")
            retired = [model for key in keys if (model := self._let_go(key, self._models.unload(key)))]
            return Change(retired=tuple(model.key for model in retired))

    async def _refresh(self) -> Change:
        async with self._turn:
            there = await asyncio.to_thread(find, self._folder)
            if not there:  # a disk that has gone away, as like as not
                raise FileNotFoundError("no artifact lies there; what is served still is")
            missed = self._known() - set(there)
            gone, self._missed = missed & self._missed, missed
            marks = await asyncio.to_thread(lambda: {key: mark(self._path(key)) for key in there})
            keys = [key for key in there if marks[key] != self._seen.get(key) and not self._models.unloaded(key)]
            return await self._changed(keys, sorted(gone))

    async def _changed(self, keys: Iterable[Key], gone: Iterable[Key]) -> Change:
        """Open what is new or has another manifest; if nothing was refused, let go of what is gone."""
        loaded, refused = [], {}
        for key in sorted(keys):
            digest = await asyncio.to_thread(self._look, key)
            if (served := self._models.served(key)) and served.digest == digest:
                continue
            self._models.begin(key)
            if reason := await self._open(key, partial(self._take, key)):
                refused[key] = reason
            else:
                loaded.append(key)
        retired = [] if refused else [model for key in gone if (model := self._forget(key))]
        return Change(tuple(loaded), tuple(model.key for model in retired), refused)

    def _forget(self, key: Key) -> Model | None:
        """Let go of a version that isn't there any more; of a pinned default only by unloading it."""
        if self._models.pinned(key):
            return None
        self._seen.pop(key, None)
        return self._let_go(key, self._models.forget(key))

    def _let_go(self, key: Key, model: Model | None) -> Model | None:
        """The model, if it was served."""
        if model:
            self._put_away(model)
        self._workshop.forgotten(*key)
        return model

    # ------------------------------------------------------------ one version

    async def _open(self, key: Key, take: Callable[[], Opened | str]) -> str | None:
        """Open a version and serve it; why it was refused, if it was: what was served before still is then."""
        started = time.perf_counter()
        opened = await asyncio.to_thread(take)
        if isinstance(opened, str):
            self._models.refuse(*key, opened)
            self._workshop.refused(*key)
            return opened
        model = put_up(opened, self._workshop)
        self._serve(model)
        seconds = time.perf_counter() - started
        log.info("serving %s/%s on %s after %.2f s", *key, model.engine.device, seconds)
        if model.engine.fallback:
            log.warning("%s/%s fell back to the CPU: %s", *key, model.engine.fallback)
        return None

    def _take(self, key: Key) -> Opened | str:
        """A version as it lies in the folder now; a device that isn't there refuses it, and ends nothing."""
        shop = self._workshop
        try:
            return open_or_refuse(self._folder, key, shop.open_engine, shop.state, shop.false_alarm)
        except DeviceUnavailable as error:
            log.error("refused %s/%s: %s", *key, error)
            return str(error)

    def _serve(self, model: Model) -> None:
        """Serve a model from now on, in place of one of the same name and version if there is one."""
        before = self._models.served(model.key)
        for graph, door in model.doors.items():
            self._spawn(f"{model.key[0]}/{model.key[1]} {graph}", door.serve())
        self._models.serve(model)
        if before:
            self._models.leave(before)
            self._put_away(before)
        self._workshop.opened(model.manifest, model.engine)

    def _put_away(self, model: Model) -> None:
        """Let a model go that nobody finds any more, once nobody has it."""
        log.info("%s/%s is put away: no new request gets it", *model.key)
        self._workshop.closed(model)
        self._spawn(f"{model.key[0]}/{model.key[1]} leaves", self._leave(model))

    async def _leave(self, model: Model) -> None:
        await self._passed()
        self._models.left(model)
        await asyncio.to_thread(model.engine.release)

    # ------------------------------------------------------------ the folder

    def _path(self, key: Key) -> Path:
        return self._folder / key[0] / str(key[1])

    def _look(self, key: Key) -> str | None:
        """The SHA-256 of a version's manifest, None where it can't be read; and remember what its files look like."""
        self._seen[key] = mark(self._path(key))
        try:
            return artifact.describe(self._path(key) / artifact.MANIFEST).sha256
        except OSError:
            return None

    def _known(self) -> set[Key]:
        """What is served, and what was refused or unloaded."""
        return {(name, version) for name, version, _, _ in self._models.states()}


def mark(folder: Path) -> Mark:
    """What a glance tells of a folder's files."""
    found = []
    for path in folder.glob("*"):
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
