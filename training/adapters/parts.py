"""Parts: what every adapter hands over, and how a module is taken from a library without touching it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from training.config import Unusable
from training.own.parts import check_loaded

Units = Mapping[str, float | Sequence[float] | NDArray[np.float64]]


class Arguments(TypedDict):
    """Arguments of `training.export`; what is left out is the user's: the rows and the name, and where to write."""

    encoder: nn.Module
    decoder: nn.Module
    encoder_gives: Literal["log_variance", "log_scale"]
    decoder_gives: Literal["parameters", "probabilities", "mean"]
    likelihood: str
    description: str
    scale: NotRequired[float]
    preprocessing: NotRequired[Units]
    prior: NotRequired[Mapping[str, str | Tensor]]


def settled(module: nn.Module) -> nn.Module:
    """A copy in eval mode and float32 on the CPU, without gradients."""
    check_loaded(type(module).__name__, module)
    return copy.deepcopy(module).cpu().float().eval().requires_grad_(False)


def library(model: object) -> str:
    """The package that a model's class comes from."""
    return type(model).__module__.partition(".")[0]


def expect(model: object, wanted: type | tuple[type, ...], what: str) -> None:
    """Unusable unless a model is of one of these classes."""
    if not isinstance(model, wanted):
        raise Unusable(f"{what} is needed, not {type(model).__module__}.{type(model).__qualname__}")
