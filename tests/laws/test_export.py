"""Laws of every committed artifact's graphs: nothing random or foreign, and a row is a row whatever its batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from service import artifact, noise
from service.artifact import Array, Arrays, Artifact, Graph
from training import exporting as export
from training import independence

FOLDERS = sorted(path.parent for path in Path("exported_models").glob("*/*/manifest.json"))
SMALL = [folder for folder in FOLDERS if folder.parent.name != "mnist"]  # mnist takes its 40 s at export
RANDOM = re.compile("Random|Multinomial|Bernoulli|Dropout")


def named(folder: Path) -> str:
    """name/version."""
    return f"{folder.parent.name}/{folder.name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_graphs_are_plain_onnx(folder: Path) -> None:
    """Only the standard domain, no random op, no external data, no function, no note on where a node came from."""
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        assert [opset.domain for opset in model.opset_import] == [""]
        assert not model.functions
        assert not model.metadata_props
        assert not [node.op_type for node in model.graph.node if node.domain or RANDOM.search(node.op_type)]
        assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]
        assert not [weight for weight in model.graph.initializer if weight.external_data]
        content = path.read_bytes()
        assert not re.search(rb"\.py|site-packages|/home/|/tmp/|/root/", content)
        assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_graphs_answer_to_their_names(folder: Path) -> None:
    """Inputs and outputs are those of the contract, in its dtypes, rows and draws dynamic."""
    found = artifact.read(folder)
    for name, graph in found.manifest.graphs.items():
        session = export.session(found.path(name).read_bytes())
        inputs = {value.name: value for value in session.get_inputs()}
        assert list(inputs) == [*graph.rows, *([graph.bank] if graph.bank else [])]
        assert [value.name for value in session.get_outputs()] == list(graph.outputs)
        for value in session.get_outputs():
            assert list(value.shape[: len(graph.outputs[value.name])]) == list(graph.outputs[value.name])
            assert name in ("encoder", "decoder") or value.type == "tensor(double)"


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_no_rows_and_no_draws_are_answered(folder: Path) -> None:
    """An empty batch and an empty bank give empty answers of the right rank, not a failure in the runtime."""
    found = artifact.read(folder)
    for name, graph in found.manifest.graphs.items():
        session = export.session(found.path(name).read_bytes())
        feeds = inputs(found, graph, 2, 3)
        for rows, draws in ((0, 3), (2, 0), (0, 0)):
            some = independence.cut(graph, feeds, slice(0, rows), slice(0, draws))
            for output, answer in zip(graph.outputs, session.run(None, some), strict=True):
                leading = (rows, draws) if graph.outputs[output] == "nk" else (rows,)
                assert np.asarray(answer).shape[: len(leading)] == leading


@pytest.mark.parametrize("folder", SMALL, ids=named)
def test_a_rows_bits_do_not_depend_on_its_batch(folder: Path) -> None:
    """On the CPU, with one thread: any rows and draws at any place in memory, against the same in larger batches."""
    found = artifact.read(folder)
    sessions = {name: export.session(found.path(name).read_bytes()) for name in found.manifest.graphs}
    for name, graph in found.manifest.graphs.items():

        def run(feeds: Mapping[str, Array], name: str = name) -> Arrays:
            return dict(zip(found.manifest.graphs[name].outputs, sessions[name].run(None, dict(feeds)), strict=True))

        independence.check(graph, run, inputs(found, graph, 300, 9))


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_golden_rows_are_answered(folder: Path) -> None:
    """Every graph gives the golden answers within the manifest's tolerance, on whatever processor this is."""
    found = artifact.read(folder)
    for name, graph in found.manifest.graphs.items():
        session = export.session(found.path(name).read_bytes())
        keys = [*graph.rows, *([graph.bank] if graph.bank else [])]
        answers = session.run(None, {key: found.golden[f"{name}.{key}"] for key in keys})
        for output, answer in zip(graph.outputs, answers, strict=True):
            difference = np.abs(answer - found.golden[f"{name}.{output}"]).max()
            assert difference <= found.manifest.golden.tolerance[f"{name}.{output}"]


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_absurd_rows_are_scored(folder: Path) -> None:
    """Rows as far off as the support allows (a million standard deviations on the real line) have a finite bound."""
    found = artifact.read(folder)
    x = inputs(found, found.manifest.graphs["elbo"], 4, 16)["x"]
    support = found.manifest.support
    if found.manifest.blocks is not None:
        far = x.copy()
        for block in found.manifest.blocks:
            far[:, block.columns] *= 1 if block.support.kind == "levels" else 1e6
    elif support.lowest is not None and support.highest is not None:
        far = (support.lowest + support.highest - x).astype(x.dtype)
    else:
        far = x * 1e6
    bank = noise.bank(0, 16, found.manifest.latent_size).noise
    log_likelihood, log_weight, kl = export.session(found.path("elbo").read_bytes()).run(
        None, {"x": far, "noise": bank}
    )
    for values in (log_likelihood, log_weight, kl):
        assert np.isfinite(values).all()
    assert (kl >= 0).all()


def inputs(found: Artifact, graph: Graph, rows: int, draws: int) -> Arrays:
    """The artifact's golden rows, over and over, and fixed noise, for one of its graphs."""
    manifest = found.manifest
    x = found.golden["elbo.x"]
    shape = (rows, draws, manifest.latent_size) if graph.drawn else (rows, manifest.latent_size)
    every: Arrays = {"x": x[np.arange(rows) % len(x)], "z": noise.normals(3, shape)}
    bank: Arrays = {graph.bank: np.array(noise.bank(0, draws, manifest.latent_size).noise)} if graph.bank else {}
    return {name: every[name] for name in graph.rows} | bank
