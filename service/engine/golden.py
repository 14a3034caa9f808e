"""Golden rows: what a graph must answer before it is served. Knows no session, and not how an answer came about."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from service.artifact import Array, Arrays, Artifact, Graph
from service.engine.plain import Engine
from service.errors import ArtifactRefused, EngineFailed

# A golden tolerance may be this much of max(1, the largest |answer|): past it golden rows would prove nothing. Our
# exports state at most 8e-5; where a sum's terms cancel they state more, and this leaves room for twelve times that.
LOOSEST = 1e-3


def check_golden(engine: Engine, artifact: Artifact) -> None:
    """Refuse an engine that does not answer the golden rows as the manifest says."""
    for graph in artifact.manifest.graphs.values():
        try:
            answers = engine.compute(graph.name, feeds(graph, artifact.golden))
        except EngineFailed as error:
            raise ArtifactRefused(f"{graph.file} fails on its golden rows") from error
        hold(answers, wanted(graph, artifact.golden), graph, artifact.manifest.golden.tolerance)


def feeds(graph: Graph, golden: Mapping[str, Array]) -> Arrays:
    """A graph's golden inputs."""
    inputs = (*graph.rows, graph.bank) if graph.bank else graph.rows
    return {name: golden[f"{graph.name}.{name}"] for name in inputs}


def wanted(graph: Graph, golden: Mapping[str, Array]) -> Arrays:
    """What it must answer them."""
    return {name: golden[f"{graph.name}.{name}"] for name in graph.outputs}


def hold(answers: Mapping[str, Array], wanted: Mapping[str, Array], graph: Graph, stated: Mapping[str, float]) -> None:
    """ArtifactRefused where an answer is further from what is wanted than the manifest's tolerances, `stated`."""
    for output, right in wanted.items():
        key = f"{graph.name}.{output}"
        ceiling = LOOSEST * max(1.0, float(np.abs(right).max(initial=0.0)))
        if stated[key] > ceiling:
            raise ArtifactRefused(
                f"golden.tolerance of {key} is {stated[key]:.3g}, past {ceiling:.3g}: golden rows would prove nothing"
            )
        off = difference(answers.get(output), right)
        if not off <= stated[key]:
            raise ArtifactRefused(f"golden rows: {key} is off by {off:.3g} where the manifest allows {stated[key]:.3g}")


def difference(found: Array | None, wanted: Array) -> float:
    """The largest absolute difference; infinite where the arrays don't match or only one is a number."""
    if found is None or found.shape != wanted.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    return float(np.max(np.nan_to_num(np.where(same, 0.0, off), nan=np.inf), initial=0.0))
