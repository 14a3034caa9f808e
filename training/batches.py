"""Batches: rows cut at once, the part of each that a process takes, and means over rows of all parts. Know no model.

Of n processes, the i-th takes rows i, i + n, i + 2n, … of every batch, so that together they take what one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from training import objective
from training.data import Rows

Means = dict[str, float]


class Batch(NamedTuple):
    """Rows of a batch of `whole` rows, and their places in it, (rows,).

    weight: what their mean counts in the mean over processes, so that this is the mean over the whole batch. 0 where
    there are fewer rows than processes: then x is a row of another's, and counts for nothing.
    """

    x: Tensor
    places: Tensor
    whole: int
    weight: float


class Batches:
    """Rows cut into batches at once: a data loader takes them one by one, which costs as much as the arithmetic."""

    def __init__(self, rows: Rows, size: int) -> None:
        self.parts: tuple[Tensor, ...] = torch.split(torch.from_numpy(rows), size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        process, processes = place()
        return (share(part, process, processes) for part in self.parts)


def share(rows: Tensor, process: int, processes: int) -> Batch:
    """What one of the processes takes of a batch.

    >>> share(torch.arange(5), 1, 2)
    Batch(x=tensor([1, 3]), places=tensor([1, 3]), whole=5, weight=0.8)
    """
    whole = len(rows)
    if processes == 1:
        return Batch(rows, torch.arange(whole), whole, 1.0)
    places = torch.arange(process, whole, processes)
    weight = len(places) * processes / whole
    places = places if len(places) else torch.zeros(1, dtype=torch.int64)
    return Batch(rows[places], places, whole, weight)


def place() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class Tally:
    """Means over rows that come a batch at a time, to all processes together."""

    def __init__(self) -> None:
        self.sums, self.rows = np.zeros(3), 0

    def add(self, terms: objective.Terms, batch: Batch) -> None:
        """Count a batch."""
        if batch.weight == 0:
            return
        sums = torch.stack([each.detach().sum() for each in (terms.log_likelihood, terms.kl, terms.bound)])
        self.sums, self.rows = self.sums + sums.cpu().numpy(), self.rows + len(terms.kl)

    def means(self, device: torch.device) -> Means:
        """The means so far, nats a row; every process must ask for them. device: what processes speak through."""
        sums = together(np.append(self.sums, self.rows), device)
        return dict(zip(("log_likelihood", "kl", "bound"), (sums[:3] / sums[3]).tolist(), strict=True))

    def take(self, device: torch.device) -> Means:
        """The means so far, and begin anew."""
        means = self.means(device)
        self.__init__()  # type: ignore[misc]  # final, and without arguments
        return means


def together(sums: Rows, device: torch.device) -> Rows:
    """Sums over all processes, added in their order, so that it is always the same."""
    _, processes = place()
    if processes == 1:
        return sums
    own = torch.from_numpy(sums).to(device)
    each = [torch.zeros_like(own) for _ in range(processes)]
    distributed.all_gather(each, own)
    return np.asarray(np.stack([one.cpu().numpy() for one in each]).sum(0))
