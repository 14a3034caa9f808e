"""Mixed: p(x|z) of a table whose blocks of columns have a family each. Knows none of the families."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.artifact import Block, Support, joint_measure
from training.config import Unusable
from training.embeddings import OneHot
from training.likelihoods.base import Likelihood, Parameters


@dataclass(frozen=True, slots=True)
class Part:
    """A block before it is put together: its name, the columns that it holds, and their likelihood."""

    name: str
    columns: tuple[int, ...]
    likelihood: Likelihood


class Mixed(Likelihood):
    """Columns in blocks, each with its family: log p(x) = Σ over columns of their own families' log p.

    The measure of p is the product of the blocks' measures, counting for some and Lebesgue for others: a mass in the
    former columns times a density in the latter, in the units of x as sent. Parameters: those of each block for its
    columns, named `block.parameter`. The decoder's heads lie in one row, block after block.
    """

    family, heads = "mixed", 1
    support = Support(kind="mixed")
    order: Tensor

    def __init__(self, parts: Sequence[Part]) -> None:
        """parts: which hold each column once, together."""
        super().__init__()
        self.likelihoods = nn.ModuleList([part.likelihood for part in parts])
        self.parts = tuple(parts)
        self.blocks = [_stated(part) for part in parts]
        self.parameter_names = tuple(f"{block.name}.{name}" for block in self.blocks for name in block.parameters)
        self.base_measure = joint_measure([block.base_measure for block in self.blocks])
        self.units = _units(self.blocks)
        places = torch.tensor([column for part in parts for column in part.columns])
        self.register_buffer("order", torch.argsort(places), persistent=False)
        for index, part in enumerate(parts):
            self.register_buffer(f"columns_{index}", torch.tensor(part.columns), persistent=False)

    def head_shape(self, size: int) -> tuple[int, int]:  # noqa: ARG002  the parts know theirs
        """All heads of all columns in one row."""
        return 1, sum(part.likelihood.heads * len(part.columns) for part in self.parts)

    def input_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002
        """What the blocks give the encoder, one after another."""
        return (sum(self._inputs()),)

    def by_level(self) -> None:
        """In every block that has levels."""
        for part in self.parts:
            part.likelihood.by_level()

    def one_hot(self, event_shape: tuple[int, ...]) -> tuple[OneHot, ...]:  # noqa: ARG002
        """Those of each block, where it stands among the others."""
        starts = itertools.accumulate(self._inputs(), initial=0)
        own = [part.likelihood.one_hot((len(part.columns),)) for part in self.parts]
        return tuple(span.moved(start) for start, spans in zip(starts, own, strict=False) for span in spans)

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002
        """That of the block's family for the block's columns."""
        block, _, own = name.partition(".")
        part = next(part for part in self.parts if part.name == block)
        return part.likelihood.parameter_shape(own, (len(part.columns),))

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Each block's, one after another."""
        each = [part.likelihood.standardised(self._of(x, i), dtype) for i, part in enumerate(self.parts)]
        return torch.cat(each, -1)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Each block's, from its part of the one row."""
        parameters: Parameters = {}
        start = 0
        for part in self.parts:
            shape = part.likelihood.heads, len(part.columns)
            stop = start + shape[0] * shape[1]
            own = heads[..., 0, start:stop].reshape(*heads.shape[:-2], *shape)
            found = part.likelihood.parameters_of(own)
            parameters |= {f"{part.name}.{name}": value for name, value in found.items()}
            start = stop
        return parameters

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Each column's by its own family, (…, D)."""
        each = [
            part.likelihood.log_prob(self._of(x, i), _own(part, parameters)).double()
            for i, part in enumerate(self.parts)
        ]
        return torch.cat(each, -1).index_select(-1, self.order)

    def mean(self, parameters: Parameters) -> Tensor:
        """Each column's expectation, in float64."""
        each = [part.likelihood.mean(_own(part, parameters)).double() for part in self.parts]
        return torch.cat(each, -1).index_select(-1, self.order)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """Each column's draw."""
        each = [part.likelihood.sample(_own(part, parameters), generator).double() for part in self.parts]
        return torch.cat(each, -1).index_select(-1, self.order)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse rows off any block's support, and say which block."""
        for part in self.parts:
            try:
                part.likelihood.check(rows[:, list(part.columns)])
            except Unusable as error:
                raise Unusable(f"block {part.name}: {error}") from error

    def _inputs(self) -> list[int]:
        """How many numbers each block gives the encoder."""
        return [part.likelihood.input_shape((len(part.columns),))[0] for part in self.parts]

    def _of(self, x: Tensor, index: int) -> Tensor:
        """A block's columns of x."""
        return x.index_select(-1, self.get_buffer(f"columns_{index}"))


def _own(part: Part, parameters: Parameters) -> Parameters:
    """A block's parameters under their own names."""
    return {name: parameters[f"{part.name}.{name}"] for name in part.likelihood.parameter_names}


def _stated(part: Part) -> Block:
    """What the manifest says of a block."""
    likelihood = part.likelihood
    return Block.model_validate(
        {
            "name": part.name,
            "columns": list(part.columns),
            "family": likelihood.family,
            "parameters": list(likelihood.parameter_names),
            "support": likelihood.support,
            "base_measure": likelihood.base_measure,
        }
    )


def _units(blocks: Sequence[Block]) -> str:
    """What a row's log p is of."""
    counted, dense = (
        ", ".join(block.name for block in blocks if block.base_measure == measure)
        for measure in ("counting", "lebesgue")
    )
    parts = [f"counting measure on the columns of {counted}"] if counted else []
    parts += [f"Lebesgue measure, in the units of x as sent, on those of {dense}"] if dense else []
    return f"nats; log of p(x) of a row against {' times '.join(parts)}"
