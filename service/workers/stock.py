"""The stock: artifacts that the supervisor opened once, for the workers that it forks, and the watches over them.

What onnxruntime holds of a graph lies in memory that nobody writes, so every worker's is the same pages. One watch for
drift sees the rows of all workers. Watches of their own could not be put together so simply: they would share one
calibration, so each one's wealth is a martingale for whoever sees its rows alone, and the mean of them is none for
whoever sees them all. Knows no process and no message.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from service import artifact, footing
from service.footing import Doubles, Footing
from service.models import Key, Opened, Opener, find, open_or_refuse

log = logging.getLogger(__name__)

_tags = count(1)


@dataclass(frozen=True, slots=True)
class Source:
    """Where artifacts and calibrations lie, what opens them, and the false-alarm rate of their watches."""

    folder: Path
    opener: Opener
    state: Path | None
    false_alarm: float


@dataclass
class Stock:
    """What is opened, or why it isn't, and a tag for each calibration in use: what its scores are known by."""

    source: Source
    entries: dict[Key, Opened | str] = field(default_factory=dict)
    tags: dict[Key, int] = field(default_factory=dict)

    def restocked(self) -> Generator[None, None, Stock]:
        """Another stock, of what lies in the folder now; it takes one artifact a step.

        What hasn't changed is taken over as it is, its watch too; what was replaced by something that is refused stays.
        """
        new = Stock(self.source)
        for key in sorted(find(self.source.folder)):
            new._put(key, *self._kept(key))
            yield
        return new

    def _kept(self, key: Key) -> tuple[Opened | str, int | None]:
        """What is had of an artifact already if it is the same, else what opening it comes to."""
        had, source = self.entries.get(key), self.source
        if isinstance(had, Opened) and had.digest == _digest(source.folder, key):
            found = footing.find(had.found, had.digest, source.state, source.false_alarm)
            if _same(found, had.footing):
                return had, self.tags.get(key)
            return replace(had, footing=found), None
        opened = open_or_refuse(source.folder, key, source.opener, source.state, source.false_alarm)
        if isinstance(opened, str) and isinstance(had, Opened):
            log.error("%s/%s as it was goes on being served", *key)
            return had, self.tags.get(key)
        return opened, None

    def _put(self, key: Key, opened: Opened | str, tag: int | None) -> None:
        self.entries[key] = opened
        self.tags[key] = next(_tags) if tag is None else tag

    def recalibrated(self, key: Key) -> Opened | None:
        """A model on the calibration that the state keeps for it now, if any; from here on it is the one in use."""
        opened, source = self.entries.get(key), self.source
        if not isinstance(opened, Opened) or source.state is None:
            return None
        found = footing.find(opened.found, opened.digest, source.state, source.false_alarm)
        if found is None or found.source != "state":
            return None
        found = replace(found, since=found.made or found.since)
        renewed = replace(opened, footing=found)
        self._put(key, renewed, None)
        return renewed

    def adopt(self, key: Key, other: Stock) -> None:
        """Take over the calibration that another stock has for a model, where its artifact is the same."""
        ours, theirs = self.entries.get(key), other.entries.get(key)
        if isinstance(ours, Opened) and isinstance(theirs, Opened) and ours.digest == theirs.digest:
            self._put(key, replace(ours, footing=theirs.footing), other.tags[key])

    def see(self, tag: int, scores: Doubles) -> bool:
        """Show scores of a calibration to its watch; False where it isn't in use any more."""
        for key, known in self.tags.items():
            opened = self.entries[key]
            if known == tag and isinstance(opened, Opened) and opened.footing:
                opened.footing.show(scores, opened.found.manifest)
                return True
        return False

    def watch(self, tag: int) -> dict[str, Any] | None:
        """What the watch over a calibration has come to."""
        for key, known in self.tags.items():
            opened = self.entries[key]
            if known == tag and isinstance(opened, Opened) and opened.footing and (watch := opened.footing.watch):
                said = {"rows": watch.rows, "log_wealth": watch.log_wealth, "alarm": watch.alarm}
                return {**said, "recent": watch.recent()}
        return None

    def served(self) -> dict[Key, str | None]:
        """What there is, by the digest of its manifest; None for what is refused."""
        return {key: opened.digest if isinstance(opened, Opened) else None for key, opened in self.entries.items()}


def _digest(folder: Path, key: Key) -> str | None:
    """The digest of a manifest as it lies there."""
    try:
        return artifact.describe(folder / key[0] / str(key[1]) / artifact.MANIFEST).sha256
    except OSError:
        return None


def _same(one: Footing | None, other: Footing | None) -> bool:
    """Whether two calibrations are one."""
    if one is None or other is None:
        return one is other
    return (one.source, one.made) == (other.source, other.made)
