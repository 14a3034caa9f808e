"""Graphs: the five ONNX graphs of an artifact by name, and the axes that lead what goes in and out. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph's shape. `rows`: inputs with one entry a row; `bank`: the input that all rows share, (draws, d).

    `outputs` says of each output which axes lead it: "n" (rows) or "nk" (rows, draws). `drawn` are the inputs of
    `rows` whose second axis is the draws.
    """

    name: str
    rows: tuple[str, ...]
    outputs: Mapping[str, Literal["n", "nk"]]
    bank: str | None = None
    drawn: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The graph's file in the artifact's folder."""
        return f"{self.name}.onnx"


def graphs(parameters: tuple[str, ...]) -> dict[str, Graph]:
    """The five graphs of an artifact whose decoder gives these parameters; all leading axes are dynamic."""
    bounds: Mapping[str, Literal["n", "nk"]] = {"log_likelihood": "nk", "log_weight": "nk", "kl": "n"}
    each = (
        Graph("encoder", ("x",), {"mean": "n", "log_scale": "n"}),
        Graph("decoder", ("z",), {"mean": "n", **dict.fromkeys(parameters, "n")}),
        Graph("elbo", ("x",), bounds, bank="noise"),
        Graph("joint", ("x", "z"), {"log_likelihood": "nk", "log_prior": "nk"}, drawn=("z",)),
        Graph("terms", ("x",), {"feature_log_likelihood": "nk", "latent_kl": "n"}, bank="noise"),
    )
    return {graph.name: graph for graph in each}
