"""Ahead: artifacts are opened while the rest of the service is imported. Knows no HTTP.

What is imported keeps Python busy, what is opened mostly the runtime: at the same time they take little more than the
longer of the two. Nothing is imported by who opens, so two threads can't wait for one another's modules.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from service.engine import Plan, may_be_cuda, open_engine
from service.lanes import cores
from service.models import Opener, Shelf, on_disk
from service.settings import Settings


class Ahead:
    """What lies in the folder of models, already being opened."""

    def __init__(self, settings: Settings) -> None:
        shelf = on_disk(settings.models, standard_opener(settings), settings.state, settings.drift_false_alarm)
        self._pool = pool = ThreadPoolExecutor(at_once(settings), "ahead")
        self._shelf = {key: pool.submit(take).result for key, take in sorted(shelf.items(), key=lambda item: item[0])}
        pool.shutdown(wait=False)  # its threads go once all is opened

    def look(self) -> Shelf:
        """What there is, once: who has taken an artifact is the only one who holds it."""
        shelf, self._shelf = self._shelf, {}
        return shelf

    def close(self) -> None:
        """Open no more: the interpreter ends once nobody opens anything."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def standard_opener(settings: Settings) -> Opener:
    """What opens an artifact's graphs unless something else is given."""
    memory = settings.gpu_memory_mb * 2**20 or None
    plan = Plan(settings.buckets, settings.batch, settings.cuda_graphs, memory)
    opener = partial(open_engine, device=settings.device)
    return opener if plan == Plan() else partial(opener, plan=plan)


def at_once(settings: Settings) -> int:
    """How many artifacts are opened at the same time at the start; a device's are captured one by one."""
    return 1 if may_be_cuda(settings.device) else min(settings.lanes or cores(), cores())
