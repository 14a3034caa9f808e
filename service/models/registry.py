"""Registry: what is served, by name and version, what isn't and why, and who is ready. Knows no folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from service.errors import NotReady, Unknown
from service.models.model import Key, Model

State = Literal["served", "loading", "refused", "unloaded"]


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
        self._defaults: dict[str, Model] = {}  # what answers without a version; asked at every request
        self.changes = 0  # so often has what is found here changed: who keeps what it found looks at this

    # ------------------------------------------------------------ as they come and go

    def found(self, keys: set[Key]) -> None:
        """Say what lies on disk at the start and will be opened: what readiness waits for."""
        self._change()
        self._found |= keys
        self._first |= {name for name, _ in keys}
        self._looked = True

    def _change(self) -> None:
        self._defaults.clear()
        self.changes += 1

    @property
    def settled(self) -> bool:
        """Whether all that was found is served, refused or unloaded."""
        return self._looked and self._found <= self._served.keys() | self._refused.keys() | self._unloaded

    def begin(self, key: Key) -> None:
        """Say what is being opened while others are served; it has no part in readiness until it is."""
        self._change()
        self._loading.add(key)

    def serve(self, model: Model) -> None:
        """Serve a model from now on."""
        self._change()
        self._served[model.key] = model
        self._found.add(model.key)
        self._loading.discard(model.key)
        self._unloaded.discard(model.key)
        self._refused.pop(model.key, None)

    def refuse(self, name: str, version: int, reason: str) -> None:
        """Remember why a model isn't served; one that was served already still is."""
        self._change()
        self._found.add((name, version))
        self._loading.discard((name, version))
        self._refused[name, version] = reason

    def unload(self, key: Key) -> Model | None:
        """Serve a version no more, though it lies on disk; the model that was served, which is to be put away."""
        self._change()
        self._unloaded.add(key)
        self._refused.pop(key, None)
        return self._retire(key)

    def forget(self, key: Key) -> Model | None:
        """The same of a version that isn't on disk any more."""
        self._change()
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
            if model := self._defaults.get(name):
                return model
            version = self.default(name)
            if version is not None and (model := self._served.get((name, version))):
                self._defaults[name] = model
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

    def states(self) -> list[tuple[str, int, State, str]]:
        """Every name and version that was found, how it is, and why it isn't served."""
        keys = sorted(self._found | self._served.keys() | self._loading)
        return [(*key, self._state(key), "" if key in self._served else self._why(key)) for key in keys]

    def _state(self, key: Key) -> State:
        if key in self._served:
            return "served"
        if key in self._loading:
            return "loading"
        return "refused" if key in self._refused else "unloaded" if key in self._unloaded else "loading"

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
        return absent + [f"{n}/{v} {self._why((n, v))}{self._hope((n, v))}" for n, v in keys if not self._answers(n, v)]

    def _absent(self, name: str) -> str:
        return "was unloaded" if any(other == name for other, _ in self._unloaded) else "was not found"

    def _hope(self, key: Key) -> str:
        """What may still take the place of a version that was refused."""
        coming = self._found - self._served.keys() - self._refused.keys() - self._unloaded
        waiting = key in self._refused and not self.pinned(key) and any(name == key[0] for name, _ in coming)
        return "; an older one is still being loaded" if waiting else ""

    def _answers(self, name: str, newest: int) -> bool:
        """Whether a name's newest version is served, or an older one in place of a newest that was refused."""
        older = any(other == name for other, _ in self._served) and not self.pinned((name, newest))
        return (name, newest) in self._served or ((name, newest) in self._refused and older)
