"""Shared weights: large matrices on disk and in memory once, and every promise kept."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from typer.testing import CliRunner

from service import artifact, engine
from service.artifact import WEIGHTS, Arrays, Artifact, Graph
from service.engine import sessions
from service.errors import ArtifactRefused
from training import calibrate, graphs, independence, weights
from training import exporting as export
from training.__main__ import app
from training.config import Unusable
from training.exporting import Exported
from training.fit import Fitted

SMALL = 1024  # bytes of a matrix that is taken out of `tiny` here


@pytest.fixture(scope="module")
def shared(made: dict[str, Exported]) -> dict[str, Exported]:
    """The graphs of `tiny`, sharing all but its smallest matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "LEAST", SMALL)
        return export.sharing(made)


@pytest.fixture(scope="module")
def calibrated(shared: dict[str, Exported], fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These graphs as an artifact, which its export held to bits and golden rows, and calibrated."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1"
    export.write(shared, fitted, folder, say=lambda _: None)
    calibrate.calibrate(folder)
    return folder


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    copy = tmp_path / "models" / "tiny" / "1"
    copy.mkdir(parents=True)
    for path in calibrated.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def asked(found: Artifact, name: str) -> Arrays:
    """The golden inputs of a graph."""
    graph = found.manifest.graphs[name]
    names = (*graph.rows, *([graph.bank] if graph.bank else []))
    return {key: found.golden[f"{name}.{key}"] for key in names}


def test_each_large_matrix_is_on_disk_once(made: dict[str, Exported], shared: dict[str, Exported]) -> None:
    """The shared file is as large as the matrices that differ, and no graph has one of them."""
    matrices = set[bytes]()
    for name, one in made.items():
        for tensor in onnx.load_from_string(one.content).graph.initializer:
            if len(tensor.dims) == 2 and len(tensor.raw_data) >= SMALL:
                matrices.add(tensor.raw_data)
                assert tensor.raw_data not in shared[name].content
    (content,) = {one.weights for one in shared.values()}
    assert all(matrix in content for matrix in matrices)
    assert len(content) < sum(map(len, matrices)) + len(matrices) * weights.PAGE


def test_shared_weights_answer_as_those_in_the_graphs_do(made: dict[str, Exported], calibrated: Path) -> None:
    """Within the manifest's tolerance of the graphs that they were taken from; no rows, one row and many."""
    found = artifact.read(calibrated)
    opened = engine.open_engine(found)
    for name, one in made.items():
        feeds = asked(found, name)
        for count in (0, 1, len(feeds[one.graph.rows[0]])):
            some = {key: value[:count] if key in one.graph.rows else value for key, value in feeds.items()}
            answers, wanted = opened.compute(name, some), one.run(some)
            for key, value in wanted.items():
                assert answers[key].shape == value.shape
                off = np.abs(answers[key].astype(float) - value).max(initial=0.0)
                assert off <= found.manifest.golden.tolerance[f"{name}.{key}"]


@pytest.mark.parametrize("name", ["encoder", "decoder", "elbo", "joint", "terms"])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(calibrated: Path, name: str) -> None:
    """As the service opens them: no matrix is packed, and no row is multiplied by itself."""
    found = artifact.read(calibrated)
    opened, feeds = engine.open_engine(found), asked(found, name)
    graph = found.manifest.graphs[name]
    whole = opened.compute(name, feeds)
    for row in range(len(feeds[graph.rows[0]])):
        alone = opened.compute(name, independence.cut(graph, feeds, slice(row, row + 1), slice(None)))
        for key in graph.outputs:
            assert alone[key].tobytes() == whole[key][row : row + 1].tobytes()


def test_a_session_borrows_the_weights(calibrated: Path) -> None:
    """There is one copy, whoever opens how many graphs: what is written there changes what they all answer."""
    found = artifact.read(calibrated)
    assert found.weights is not None
    writable = bytearray(found.weights)
    graph = found.manifest.graphs["encoder"]
    session = sessions.open_session(graph, found.graph("encoder"), None, cast(bytes, writable))
    feeds = asked(found, "encoder")
    before = session.run(["mean"], feeds)[0]
    writable[:] = bytes(len(writable))
    assert not np.array_equal(before, session.run(["mean"], feeds)[0])


def test_what_becomes_of_the_file_later_changes_no_answer(folder: Path) -> None:
    """The bytes that were hashed are those that are used, for as long as the engine is."""
    opened = engine.open_engine(artifact.read(folder))
    feeds = asked(artifact.read(folder), "elbo")
    before = opened.compute("elbo", feeds)
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    gc.collect()
    after = opened.compute("elbo", feeds)
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def listing(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the files that the manifest lists."""
    path = folder / artifact.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest["files"])
    manifest["calibration"] = None
    path.write_text(json.dumps(manifest))


def relisted(folder: Path, name: str) -> None:
    """List a file as it is now."""
    described = artifact.describe(folder / name).model_dump()
    listing(folder, lambda files: files.update({name: described}))


def test_other_weights_are_refused(folder: Path) -> None:
    """One bit off; and with the manifest's blessing too, since they answer golden rows wrong."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[2] ^= 0xFF
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactRefused, match=r"weights\.bin is not the file that the manifest lists"):
        artifact.read(folder)
    (folder / WEIGHTS).write_bytes(bytes(len(content)))
    relisted(folder, WEIGHTS)
    with pytest.raises(ArtifactRefused, match="golden rows"):
        engine.open_engine(artifact.read(folder))


def test_weights_that_are_a_link_are_refused(folder: Path, tmp_path: Path) -> None:
    """Even to a file of the right bytes: what lies elsewhere isn't the artifact's."""
    (folder / WEIGHTS).rename(tmp_path / "elsewhere.bin")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ArtifactRefused, match=r"weights\.bin is listed in the manifest and is not a file"):
        artifact.read(folder)


def test_weights_that_the_manifest_does_not_list_are_refused(folder: Path) -> None:
    """No digest, no weights: the file that lies there is never opened."""
    listing(folder, lambda files: files.pop(WEIGHTS))
    with pytest.raises(ArtifactRefused, match=r"keeps tensors in other files: 'weights\.bin', and the manifest lists"):
        engine.open_engine(artifact.read(folder))


@pytest.mark.parametrize("location", ["../1/weights.bin", "/etc/passwd", "golden.npz", "./weights.bin"])
def test_weights_are_looked_for_nowhere_else(folder: Path, location: str) -> None:
    """Neither above the folder, nor in another file of it, nor by another spelling."""
    model = onnx.load(folder / "encoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())
    relisted(folder, "encoder.onnx")
    with pytest.raises(ArtifactRefused, match=rf"encoder\.onnx keeps tensors in other files: '{location}'"):
        engine.open_engine(artifact.read(folder))


def test_weights_that_end_too_early_are_refused(folder: Path) -> None:
    """Before a session would read past them."""
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    relisted(folder, WEIGHTS)
    with pytest.raises(ArtifactRefused, match=r"takes bytes [\d,]+ to [\d,]+ of the [\d,]+ in weights\.bin"):
        engine.open_engine(artifact.read(folder))


def test_a_calibration_is_of_its_weights(folder: Path) -> None:
    """The graphs' digests don't tell models apart whose weights lie elsewhere; those of the weights do."""
    found = artifact.read(folder)
    assert found.manifest.calibration is not None
    assert found.manifest.calibration.graphs[WEIGHTS] == found.manifest.files[WEIGHTS].sha256
    with pytest.raises(ValidationError, match=r"the calibration was made with another weights\.bin"):
        artifact.rewrite(found, {}, {WEIGHTS: bytes(len(found.weights or b""))})


class Filters(nn.Module):
    """Convolutions there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Conv2d(1, 24, 3, 2, 1), nn.ConvTranspose2d(24, 8, 4, 2, 1)
        self.along, self.last = nn.Conv1d(8, 16, 3), nn.Linear(16 * 62, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(n, 3)."""
        h = torch.relu(self.back(torch.relu(self.there(x.unsqueeze(1)))))
        return (self.last(torch.relu(self.along(h.flatten(2))).flatten(1)),)


def test_filters_of_convolutions_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once on disk, whatever way they go, and a row's bits are its own all the same."""
    monkeypatch.setattr(weights, "LEAST", 800)
    torch.manual_seed(0)
    module, x = Filters().eval().requires_grad_(False), torch.randn(300, 8, 8)
    content = graphs.export("encoder", module, {"x": x[:3]}, ("mean",))
    contents, shared = weights.share({"encoder": content, "elbo": content})
    filters = [part.weight for part in (module.there, module.back, module.along)]
    assert all(weight.numpy().tobytes() in shared for weight in filters)
    assert len(shared) < sum(part.weight.nbytes for part in (module.back, module.along, module.last)) + 5 * weights.PAGE
    assert contents["encoder"] == contents["elbo"]
    assert not any(weight.numpy().tobytes() in contents["encoder"] for weight in filters)
    session = export.session(contents["encoder"], shared)
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x)[0].numpy(), atol=1e-5)
    graph = Graph("encoder", ("x",), {"mean": "n"})
    independence.check(graph, lambda feeds: {"mean": session.run(None, dict(feeds))[0]}, {"x": x.numpy()})


def test_a_model_without_large_matrices_is_told_so(made: dict[str, Exported]) -> None:
    """Nothing would be saved, and something lost."""
    with pytest.raises(Unusable, match="no layer has weights of 64 KiB; export without"):
        export.sharing(made)


def test_the_command_line_shares_weights_where_it_is_asked_to(
    made: dict[str, Exported], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`export RUN --shared-weights`; without it, weights stay in the graphs."""
    monkeypatch.setattr(export, "build", lambda *_: made)
    monkeypatch.setattr(weights, "LEAST", SMALL)
    command = ["export", str(run_folder), "--to", str(tmp_path)]
    for more, there in (([], False), (["--shared-weights"], True)):
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exit_code == 0, result.output
        newest = max((tmp_path / "tiny").iterdir(), key=lambda path: int(path.name))
        assert (newest / WEIGHTS).exists() is there
