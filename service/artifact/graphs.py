"""Graphs: the ONNX graphs of an artifact by name, and the axes that lead what goes in and out. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


PriorFamily = Literal["standard_normal", "mixture", "flow"]
PosteriorFamily = Literal["diagonal_normal", "full_normal", "flow"]
Outputs = Mapping[str, Literal["n", "nk"]]


@dataclass(frozen=True, slots=True)
class Form:
    """The forms of p(z) and q(z|x), on which it depends what graphs there are."""

    prior: PriorFamily = "standard_normal"
    posterior: PosteriorFamily = "diagonal_normal"

    @property
    def kl(self) -> Literal["exact", "sampled"]:
        """Whether KL(q(z|x) ‖ p(z)) has a closed form, or is a mean over draws."""
        return "exact" if self.prior == "standard_normal" and self.posterior != "flow" else "sampled"


USUAL = Form()


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph's shape. `rows`: inputs with one entry a row; `bank`: the input that all rows share, (draws, d).

    `outputs` says of each output which axes lead it: "n" (rows) or "nk" (rows, draws). `drawn` are the inputs of
    `rows` whose second axis is the draws.
    """

    name: str
    rows: tuple[str, ...]
    outputs: Outputs
    bank: str | None = None
    drawn: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The graph's file in the artifact's folder."""
        return f"{self.name}.onnx"


def graphs(parameters: tuple[str, ...], form: Form = USUAL) -> dict[str, Graph]:
    """The graphs of an artifact whose decoder gives these parameters; all leading axes are dynamic.

    Five, and what can't be said without a graph: draws from a posterior or a prior that isn't a diagonal normal.
    """
    kl: Outputs = {"kl": "n"} if form.kl == "exact" else {}
    shares: Outputs = {"latent_kl": "n"} if form.kl == "exact" else {}
    each = [
        Graph("encoder", ("x",), {"mean": "n", "log_scale": "n"}),
        Graph("decoder", ("z",), {"mean": "n", **dict.fromkeys(parameters, "n")}),
        Graph("elbo", ("x",), {"log_likelihood": "nk", "log_weight": "nk", **kl}, bank="noise"),
        Graph("joint", ("x", "z"), {"log_likelihood": "nk", "log_prior": "nk"}, drawn=("z",)),
        Graph("terms", ("x",), {"feature_log_likelihood": "nk", **shares}, bank="noise"),
    ]
    if form.posterior != "diagonal_normal":
        each.append(Graph("posterior", ("x", "epsilon"), {"z": "nk", "log_density": "nk"}, drawn=("epsilon",)))
    if form.prior != "standard_normal":
        uniform = ("uniform",) if form.prior == "mixture" else ()
        each.append(Graph("prior", ("epsilon", *uniform), {"z": "n"}))
    return {graph.name: graph for graph in each}
