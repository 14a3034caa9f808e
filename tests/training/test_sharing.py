"""Shared weights: one file on disk and one array in memory for all graphs, with every promise kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service import artifact, engine
from service.artifact import Array, Arrays, Artifact
from service.engine import Weights
from service.errors import ArtifactRefused
from tests import kit
from training import config, data, exporting, independence, sharing, vae
from training.exporting import Exported
from training.fit import Fitted


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    """Tiny with layers wide enough to be shared, its weights fresh."""
    plain = config.read(Path("configs/tiny.yaml")).plain()
    wide = {"kind": "mlp", "sizes": [128, 96]}
    run = config.check({**plain, "name": "wide", "encoder": wide, "decoder": wide}, "wide")
    dataset = data.of(run)
    return Fitted(run, dataset, vae.build(run, dataset).eval().requires_grad_(False), [])


@pytest.fixture(scope="module")
def wide(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """It, exported with shared weights: row independence, parity and golden rows were held by that."""
    return artifact.read(exporting.export(fitted, tmp_path_factory.mktemp("models"), shared=True, say=silent))


@pytest.fixture(scope="module")
def plain(fitted: Fitted) -> dict[str, Exported]:
    """Its graphs, each with weights of its own."""
    return exporting.build(fitted.vae, fitted, silent)


def test_weights_are_on_disk_once(wide: Artifact) -> None:
    """Three of the matrices are 16 KiB or more; graphs that have the same one name the same place."""
    content = wide.weights()
    assert content is not None
    seen = {name: engine.look(wide.graph(name), len(content)).outside for name in wide.manifest.graphs}
    places = {place for each in seen.values() for place in each.values()}
    sizes = sorted(place.length for place in places)
    assert sizes == [4 * 64 * 96, 4 * 64 * 128, 4 * 96 * 128, 4 * 96 * 128]
    assert set(seen["encoder"].values()) | set(seen["decoder"].values()) == places
    assert set(seen["elbo"].values()) == places
    with pytest.raises(ArtifactRefused, match=r"keeps tensors in other files: 'weights\.bin'"):
        engine.sessions.open_session(wide.manifest.graphs["elbo"], wide.graph("elbo"))


def test_every_session_is_given_the_same_arrays(wide: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the engine answers its golden rows with them."""
    given: dict[str, set[int]] = {}
    put = Weights.put

    def watched(self: Weights, options: ort.SessionOptions, seen: engine.Look, *, in_place: bool) -> None:
        put(self, options, seen, in_place=in_place)
        for place in seen.outside.values():
            given.setdefault(str(place), set()).add(self.made[place].data_ptr())

    monkeypatch.setattr(Weights, "put", watched)
    opened = engine.open_engine(wide)
    assert [len(places) for places in given.values()] == [1, 1, 1, 1]
    assert {id(session.weights) for session in opened.sessions.values()} == {id(opened.sessions["elbo"].weights)}


def test_the_numbers_are_those_of_graphs_with_their_own(wide: Artifact, plain: dict[str, Exported]) -> None:
    """To the tolerance that golden rows are held to; on a device, where each session has a copy, too."""
    weights = Weights(wide.weights() or b"")
    for name, one in plain.items():
        feeds = engine.golden.feeds(one.graph, wide.golden)
        content, options = wide.graph(name), ort.SessionOptions()
        weights.put(options, engine.look(content, len(weights.content)), in_place=False)
        copied = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for output, own, copy in zip(one.graph.outputs, one.run(feeds).values(), copied.run(None, feeds), strict=True):
            tolerance = wide.manifest.golden.tolerance[f"{name}.{output}"]
            assert engine.difference(wide.golden[f"{name}.{output}"], own) <= tolerance
            assert engine.difference(copy, own) <= tolerance


def test_without_company_a_row_alone_has_other_bits(
    plain: dict[str, Exported], fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why each product is given one row more; and export would refuse the graphs, and not keep quiet."""
    monkeypatch.setattr(sharing, "_in_company", lambda node: [onnx.NodeProto.FromString(node.SerializeToString())])
    contents, content = sharing.share({"encoder": plain["encoder"].content})
    opened, graph = exporting.session(contents["encoder"], Weights(content)), plain["encoder"].graph

    def run(feeds: Mapping[str, Array]) -> Arrays:
        return dict(zip(graph.outputs, opened.run(None, dict(feeds)), strict=True))

    x = fitted.data.splits["fit"][:300]
    if np.array_equal(run({"x": x[:1]})["mean"], run({"x": x[:9]})["mean"][:1]):
        pytest.skip("this processor multiplies a single row as it does several")
    with pytest.raises(ArtifactRefused, match="have other bits by themselves"):
        independence.check(graph, run, {"x": x})


@pytest.mark.parametrize("what", ["link", "bytes", "short", "unlisted"])
def test_weights_are_held_to_the_manifest(wide: Artifact, tmp_path: Path, what: str) -> None:
    """A link, other bytes, fewer of them, or a file that no manifest lists: refused before anything is opened."""
    folder = tmp_path / "wide" / "1"
    folder.mkdir(parents=True)
    for name in (*wide.manifest.files, artifact.MANIFEST):
        (folder / name).write_bytes((wide.folder / name).read_bytes())
    path = folder / artifact.WEIGHTS
    content = path.read_bytes()
    if what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "unlisted":
        manifest = json.loads((folder / artifact.MANIFEST).read_text())
        del manifest["files"][artifact.WEIGHTS]
        (folder / artifact.MANIFEST).write_text(json.dumps(manifest))
    else:
        path.write_bytes(content[:-1] if what == "short" else content[:-1] + bytes([content[-1] ^ 1]))
    reason = {"link": "is not a file in the folder", "unlisted": "the manifest lists no weights"}
    with pytest.raises(ArtifactRefused, match=reason.get(what, r"weights\.bin is not the file")):
        engine.open_engine(artifact.read(folder))


@pytest.mark.anyio
async def test_shared_weights_are_served_like_any_other(wide: Artifact) -> None:
    """A row's score is the same bits alone and in company; the card, written last, has kept the file."""
    rows = wide.golden["encoder.x"]
    async with kit.open_house(kit.configured(wide.folder.parents[1])) as house:
        whole = await house.answer("wide/score", {"inputs": rows.tolist(), "draws": 4})
        for row in range(3):
            alone = await house.answer("wide/score", {"inputs": rows[row : row + 1].tolist(), "draws": 4})
            assert alone["elbo"] == whole["elbo"][row : row + 1]
            lone = await house.answer("wide/encode", {"inputs": rows[row : row + 1].tolist()})
            assert lone["mean"] == (await house.answer("wide/encode", {"inputs": rows.tolist()}))["mean"][row : row + 1]
    assert {artifact.CARD, artifact.WEIGHTS} <= set(wide.manifest.files)
