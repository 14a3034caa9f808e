"""The engine: golden rows, devices that are what they say, and the cores that a container grants."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service import artifact, engine
from service.artifact import Arrays, Artifact
from service.engine import opening
from service.errors import ArtifactRefused, DeviceUnavailable, EngineFailed

ROOT = Path(__file__).parents[2]
HAS_CUDA = engine.CUDA in ort.get_available_providers()


@pytest.fixture(scope="module")
def tiny() -> Artifact:
    """The committed tiny/1."""
    return artifact.read(ROOT / "exported_models" / "tiny" / "1")


def spoilt(found: Artifact, key: str, off: float) -> Artifact:
    """The artifact with one golden answer moved."""
    golden: Arrays = {**found.golden, key: found.golden[key] + np.asarray(off, found.golden[key].dtype)}
    return dataclasses.replace(found, golden=golden)


@pytest.mark.parametrize(
    "key", ["encoder.mean", "decoder.mean", "elbo.log_likelihood", "elbo.kl", "joint.log_prior", "terms.latent_kl"]
)
def test_an_engine_that_answers_golden_rows_wrong_is_refused(tiny: Artifact, key: str) -> None:
    """Past the manifest's tolerance in any output of any graph the artifact isn't served; within it, it is."""
    tolerance = tiny.manifest.golden.tolerance[key]
    engine.open_engine(spoilt(tiny, key, tolerance / 4))
    with pytest.raises(ArtifactRefused, match=rf"golden rows: {key} is off by"):
        engine.open_engine(spoilt(tiny, key, 3 * tolerance))
    with pytest.raises(ArtifactRefused, match="is off by inf"):
        engine.open_engine(spoilt(tiny, key, np.nan))


@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False)])
def test_a_golden_tolerance_that_proves_nothing_is_refused(tiny: Artifact, share: float, passes: bool) -> None:
    """Past a thousandth of the largest answer (of 1, where that is more) golden rows would hold nobody to anything."""
    key = "joint.log_likelihood"
    loose = share * engine.LOOSEST * float(np.abs(tiny.golden[key]).max())
    stated = tiny.manifest.golden.model_copy(update={"tolerance": {**tiny.manifest.golden.tolerance, key: loose}})
    found = dataclasses.replace(tiny, manifest=tiny.manifest.model_copy(update={"golden": stated}))
    with nullcontext() if passes else pytest.raises(ArtifactRefused, match="prove nothing"):
        engine.open_engine(found)


def swapped(found: Artifact, folder: Path, name: str, content: bytes) -> Artifact:
    """The artifact with other bytes for a graph, under their true digest."""
    for graph in found.manifest.graphs.values():
        (folder / graph.file).write_bytes(content if graph.name == name else found.graph(graph.name))
    listed = {**found.manifest.files, f"{name}.onnx": artifact.describe(folder / f"{name}.onnx")}
    return dataclasses.replace(found, folder=folder, manifest=found.manifest.model_copy(update={"files": listed}))


def field(number: int, content: bytes | int) -> bytes:
    """One protobuf field, so that a graph can be spoilt without a library."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)

    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


TENSOR = field(1, 1) + field(2, 1) + field(8, b"w")  # dims, data_type, name
ELSEWHERE = TENSOR + field(13, field(1, b"location") + field(2, b"weights.bin")) + field(14, 1)
NODE = field(4, b"Constant")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (field(7, field(5, ELSEWHERE)), "keeps tensors in other files"),
        (field(7, field(5, TENSOR + field(14, 1))), "keeps tensors in other files"),
        (field(7, field(15, field(1, ELSEWHERE))), "keeps tensors in other files"),
        (field(7, field(1, NODE + field(5, field(5, ELSEWHERE)))), "keeps tensors in other files"),
        (field(7, field(1, NODE + field(5, field(6, field(5, ELSEWHERE))))), "keeps tensors in other files"),
        (field(25, field(7, NODE + field(5, field(10, ELSEWHERE)))), "keeps tensors in other files"),
        (field(20, field(1, field(5, ELSEWHERE))), "keeps tensors in other files"),
        (field(8, field(1, b"my.domain") + field(2, 1)), "needs operators outside the standard domain"),
        (b"\x3a\xff", "is not a graph"),
        (b"\x80" * 12, "is not a graph"),
        (b"\x0b", "is not a graph"),
    ],
)
def test_a_graph_that_is_more_than_its_file_is_refused(
    tiny: Artifact, tmp_path: Path, more: bytes, reason: str
) -> None:
    """External data and custom domains, wherever they hide, are found before the runtime looks for them."""
    content = tiny.graph("elbo")
    assert engine.onnx_fault(content) is None
    with pytest.raises(ArtifactRefused, match=rf"elbo\.onnx {reason}"):
        engine.open_engine(swapped(tiny, tmp_path, "elbo", content + more))


def test_a_graph_nested_without_end_costs_no_stack() -> None:
    """Graphs within graphs, thousands deep, are walked like any other; what lies at the bottom is found."""
    graph = field(5, ELSEWHERE)
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))
    assert engine.onnx_fault(field(7, graph)) == "keeps tensors in other files"


def test_a_file_that_is_no_graph_is_refused(tiny: Artifact, tmp_path: Path) -> None:
    """The runtime's own message, with its paths, stays inside."""
    for content in (b"not a graph", b"", tiny.graph("elbo")[:-1]):
        with pytest.raises(ArtifactRefused, match="is not a graph that onnxruntime can open") as refused:
            engine.open_engine(swapped(tiny, tmp_path, "terms", content))
        assert str(tmp_path) not in str(refused.value)


def test_a_graph_of_other_inputs_or_outputs_is_refused(tiny: Artifact, tmp_path: Path) -> None:
    """One input or output more or less than the manifest's is found when it is opened, not in a request."""
    with pytest.raises(ArtifactRefused, match=r"elbo\.onnx takes x, not noise, x"):
        engine.open_engine(swapped(tiny, tmp_path, "elbo", tiny.graph("encoder")))
    uint8 = field(1, field(1, 2) + field(2, b""))
    more = field(7, field(12, field(1, b"x") + field(2, uint8)))  # protobuf adds a second graph's outputs to the first
    with pytest.raises(ArtifactRefused, match=r"encoder\.onnx gives"):
        engine.open_engine(swapped(tiny, tmp_path, "encoder", tiny.graph("encoder") + more))


def test_the_bytes_of_a_graph_are_let_go(tiny: Artifact) -> None:
    """Once it is open the runtime has its own."""
    for session in engine.open_engine(tiny).sessions.values():
        assert session._model_bytes is None


def test_what_the_runtime_cannot_compute_is_an_engine_failure(tiny: Artifact) -> None:
    """A wrong width is reported as ours, and the session goes on working."""
    opened = engine.open_engine(tiny)
    with pytest.raises(EngineFailed):
        opened.compute("decoder", {"z": np.zeros((1, 99), np.float32)})
    assert len(opened.compute("decoder", {"z": np.zeros((1, 2), np.float32)})["mean"]) == 1


@pytest.mark.skipif(HAS_CUDA, reason="tests what happens without CUDA, and this onnxruntime has it")
def test_cuda_is_strict_and_auto_is_not(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA, `cuda` is an error, `auto` is the CPU, and says why where CUDA was to be expected."""
    with pytest.raises(DeviceUnavailable, match="onnxruntime-gpu"):
        engine.open_engine(tiny, "cuda")
    assert engine.open_engine(tiny, "auto").device == "cpu"
    monkeypatch.setattr(opening, "_expected_cuda", lambda: True)
    fallen = engine.open_engine(tiny, "auto")
    assert fallen.providers == [engine.CPU]
    assert fallen.fallback is not None


@pytest.mark.skipif(HAS_CUDA, reason="tests what happens without CUDA, and this onnxruntime has it")
def test_a_session_that_landed_on_the_cpu_is_not_cuda(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that lists CUDA and opens on the CPU, as it does without a device, is found out."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [engine.CUDA, engine.CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda **_: None, raising=False)
    with pytest.raises(DeviceUnavailable), pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        engine.open_engine(tiny, "cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a CUDA device")
@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
def test_cuda_answers_the_golden_rows(name: str) -> None:
    """On a device, every graph is placed there and answers within the manifest's tolerance."""
    opened = engine.open_engine(artifact.read(ROOT / "exported_models" / name / "1"), "cuda")
    assert opened.device == "cuda"
    assert opened.providers[0] == engine.CUDA
