"""Embeddings: columns of levels as vectors that are learned. Know no likelihood.

A row's levels come as ones among zeros, and a vector is their product with a matrix: the row of it where the one is.
The product is exact, so no bit depends on the batch, and it is linear: a missing level, which is given by what a row
differs from its stand-in, and a VampPrior's rows, which lie between levels, have vectors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class OneHot:
    """Where levels are among a row's numbers: from `start` on, each column has 1 at its level and 0 at the others."""

    start: int
    columns: int
    levels: int

    @property
    def stop(self) -> int:
        """Where they end."""
        return self.start + self.columns * self.levels

    def moved(self, by: int) -> OneHot:
        """The same, so many numbers further on."""
        return OneHot(self.start + by, self.columns, self.levels)


class Embedded(nn.Module):
    """Rows, (n, numbers), with `size` numbers for each column of levels in place of its ones and zeros, (n, width)."""

    def __init__(self, numbers: int, spans: Sequence[OneHot], size: int) -> None:
        """spans: where the levels are, in their order."""
        super().__init__()
        self.spans = tuple(spans)
        self.vectors = nn.ParameterList(torch.randn(span.columns, span.levels, size) for span in spans)
        self.width = numbers + sum(span.columns * (size - span.levels) for span in spans)

    def forward(self, x: Tensor) -> Tensor:
        """Each number and vector in the place where it was."""
        parts, done = [], 0
        for span, vectors in zip(self.spans, self.vectors, strict=True):
            ones = x[:, span.start : span.stop].reshape(-1, span.columns, span.levels)
            found = torch.matmul(ones.transpose(0, 1), vectors)  # (columns, n, size)
            parts += [x[:, done : span.start], found.transpose(0, 1).flatten(1)]
            done = span.stop
        return torch.cat((*parts, x[:, done:]), -1)
