"""The engine: golden rows, devices that are what they say, and the cores that a container grants."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service import artifact, engine
from service.artifact import Arrays, Artifact
from service.engine import opening, sessions
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


def elsewhere(location: str, **more: str) -> bytes:
    """A tensor that says it lies in another file."""
    pairs = {"location": location, **more}
    return TENSOR + b"".join(field(13, field(1, k.encode()) + field(2, v.encode())) for k, v in pairs.items())


ELSEWHERE = elsewhere("weights.bin", length="4") + field(14, 1)
NODE = field(4, b"Constant")
OUTSIDE = "keeps tensors in other files"
BRANCHES = r"has control flow \(Loop, Scan or If\)"


def whole(*values: int, name: str = "s", also: bytes = b"") -> bytes:
    """An initialiser of whole numbers, as a field of a graph; also: what else it has."""
    listed = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return field(5, field(1, len(values)) + field(2, 7) + field(8, name.encode()) + field(9, listed) + also)


def hollow(*dims: int, name: str) -> bytes:
    """An initialiser that has an axis of no length, and so no element."""
    axes = b"".join(field(1, dim) for dim in dims)
    return field(5, axes + field(2, 1) + field(8, name.encode()))


def sized(*dims: int, name: str) -> bytes:
    """An initialiser of zeros, as a field of a graph: all of it is there."""
    axes = b"".join(field(1, dim) for dim in dims)
    return field(5, axes + field(2, 1) + field(8, name.encode()) + field(9, bytes(4 * int(np.prod(dims)))))


def node(op: str, inputs: str, output: str, more: bytes = b"") -> bytes:
    """A node, as a field of a graph."""
    names = b"".join(field(1, name.encode()) for name in inputs.split())
    return field(1, names + field(2, output.encode()) + field(4, op.encode()) + more)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (field(7, field(5, ELSEWHERE)), OUTSIDE),
        (field(7, field(5, TENSOR + field(14, 1))), OUTSIDE),
        (field(7, field(5, elsewhere("/etc/passwd"))), f"{OUTSIDE}: '/etc/passwd', and the manifest lists no weights"),
        (field(7, field(5, elsewhere("../../other/1/elbo.onnx"))), rf"{OUTSIDE}: '\.\./\.\./other"),
        (field(7, field(15, field(1, ELSEWHERE))), "keeps (sparse )?tensors"),
        (field(7, field(1, NODE + field(5, field(5, ELSEWHERE)))), OUTSIDE),
        (field(20, field(1, field(5, ELSEWHERE))), OUTSIDE),
        (field(7, field(15, b"")), "keeps sparse tensors"),
        (field(7, field(1, NODE + field(5, field(22, b"")))), "keeps sparse tensors"),
        (field(8, field(1, b"my.domain") + field(2, 1)), "needs operators outside the standard domain: 'my.domain'"),
        (field(7, node("Gelu", "x", "y", field(7, b"com.microsoft"))), "needs operators .*: 'com.microsoft'"),
        (field(7, node("Loop", "", "y", field(5, field(6, b"")))), BRANCHES),
        (field(7, node("Scan", "x", "y", field(5, field(11, b"")))), BRANCHES),
        (field(7, node("If", "x", "y", field(5, field(6, b"")))), BRANCHES),
        (field(25, field(7, NODE)), "defines functions of its own; inline them"),
        (field(7, node("RandomNormalLike", "x", "y")), "draws random numbers of its own"),
        (field(7, field(5, field(1, 10**9) + field(2, 1))), "declares a tensor of 1,000,000,000 elements"),
        (field(7, field(5, field(1, 2**63) + field(2, 1))), "declares a tensor of a negative size"),
        (field(7, field(5, field(1, 1) * 65)), "declares a tensor of .* more than 64 axes"),
        (field(7, whole(1) + whole(2)), "has two tensors of one name: 's'"),
        (
            field(7, field(11, field(2, field(1, field(2, field(1, field(1, 10**9))))))),
            "declares a value of 1,000,000,000",
        ),
        (field(7, whole(10**9) + node("ConstantOfShape", "s", "y")), r"asks for a tensor of 1,000,000,000 .*OfShape"),
        (field(7, whole(1, 10**9) + node("Expand", "x s", "y")), "asks for a tensor of 1,000,000,000"),
        (
            field(
                7,
                whole(40_000)
                + whole(40_000, name="t")
                + node("Concat", "s t", "u")
                + node("Cast", "u", "v")
                + node("ConstantOfShape", "v", "y"),
            ),
            "asks for a tensor of 1,600,000,000 elements",
        ),
        (
            field(7, whole(9) + node("Pow", "s s", "t") + node("ConstantOfShape", "t", "y")),
            r"asks for a tensor of more than 10\^18",
        ),
        (
            field(7, sized(40_000, 1, name="a") + sized(1, 40_000, name="b") + node("Mul", "a b", "y")),
            r"makes 1,600,000,000 elements of its constants \(Mul\)",
        ),
        (
            field(7, sized(40_000, 1, name="a") + sized(1, 40_000, name="b") + node("MatMul", "a b", "y")),
            r"makes 1,600,000,000 elements of its constants \(MatMul\)",
        ),
        (field(7, whole(10**10) + node("HannWindow", "s", "y")), r"asks for a tensor of 10,000,000,000 .*HannWindow"),
        (
            field(
                7,
                whole(-(10**10), name="a") + whole(0, name="b") + whole(1, name="c") + node("Range", "a b c", "y"),
            ),
            r"asks for a tensor of 10,000,000,000 elements \(Range\)",
        ),
        (
            field(7, whole(5) + node("Neg", "s", "t") + node("Range", "t s s", "y")),
            r"asks for a tensor of more than 10\^18 elements \(Range\)",
        ),
        (
            field(7, sized(1, 1, 2, 2, name="a") + sized(4, name="b") + node("Resize", "a b b", "y")),
            r"makes a tensor of constants whose size isn't known \(Resize\)",
        ),
        (
            field(7, whole(2**27) + b"".join(node("ConstantOfShape", "s", f"y{i}") for i in range(3))),
            "makes 402,653,184 elements of its constants",
        ),
        (
            field(7, hollow(40_000, 0, name="a") + hollow(0, 40_000, name="b") + node("MatMul", "a b", "y")),
            r"makes 1,600,000,000 elements of its constants \(MatMul\)",
        ),
        (
            field(7, hollow(2**29, 0, name="a") + node("ReduceSum", "a", "y")),
            r"makes 536,870,912 elements of its constants \(ReduceSum\)",
        ),
        (
            field(7, hollow(0, name="a") + whole(2**29, -1) + node("Reshape", "a s", "y")),
            r"asks for a tensor of 536,870,912 elements \(Reshape\)",
        ),
        (
            field(7, sized(40_000, 1, name="a") + sized(1, 40_000, name="b") + node("Sum", "a b", "y")),
            r"makes 1,600,000,000 elements of its constants \(Sum\)",
        ),
        (
            field(7, sized(1, name="a") + node("Conv", "a a", "y")),
            r"makes a tensor of constants whose size isn't known \(Conv\)",
        ),
        (
            field(7, sized(40_000, name="a") + node("Shape", "a", "t") + node("Concat", "t t", "u"))
            + field(7, node("ConstantOfShape", "u", "y")),
            r"asks for a tensor of 1,600,000,000 elements \(ConstantOfShape\)",
        ),
        (
            field(
                7, whole(40_000) + whole(1, 1, name="t") + node("Mul", "s t", "u") + node("ConstantOfShape", "u", "y")
            ),
            r"asks for a tensor of 1,600,000,000 elements \(ConstantOfShape\)",
        ),
        (
            field(7, whole(-1) + node("Cast", "s", "t") + node("Cast", "t", "u") + node("ConstantOfShape", "u", "y")),
            r"asks for a tensor of more than 10\^18 elements \(ConstantOfShape\)",
        ),
        (
            field(7, whole(1, also=field(4, np.zeros(2, "<f4").tobytes())) + node("ConstantOfShape", "s", "y")),
            r"asks for a tensor of more than 10\^18 elements \(ConstantOfShape\)",
        ),
        (
            field(7, node("Constant", "", "s", field(5, field(8, 9) + field(5, field(2, 7))))),
            "has a value that is given twice, or in two ways",
        ),
        (
            field(7, node("Constant", "", "s", field(5, field(5, field(2, 7)) + field(5, field(2, 7))))),
            "has a value that is given twice, or in two ways",
        ),
        (field(7, b"\x30\x00" * 1_000_001), "is made of more than 1,000,000 parts"),
        (b"\x3a\xff", "is not a graph"),
        (b"\x80" * 12, "is not a graph"),
        (b"\x0b", "is not a graph"),
    ],
)
def test_a_graph_that_could_harm_who_opens_it_is_refused(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: bytes, reason: str
) -> None:
    """Other files, custom domains, control flow, and sizes out of all proportion: found before the runtime looks."""
    content = tiny.graph("elbo")
    assert engine.onnx_fault(content) is None
    found = swapped(tiny, tmp_path, "elbo", content + more)
    opened = []
    monkeypatch.setattr(ort, "InferenceSession", lambda given, *_, **__: opened.append(given))
    with pytest.raises(ArtifactRefused, match=rf"elbo\.onnx {reason}"):
        sessions.open_session(found.manifest.graphs["elbo"], found.graph("elbo"))
    assert not opened


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "exported_models").iterdir())])
def test_what_we_export_is_none_of_that(name: str) -> None:
    """Every committed graph passes, with all its nodes seen."""
    found = artifact.read(ROOT / "exported_models" / name / "1")
    for graph in found.manifest.graphs:
        seen = engine.look(found.graph(graph))
        assert len(seen.nodes) > 5
        assert set(found.manifest.graphs[graph].outputs) <= {name for node in seen.nodes for name in node.outputs}


LARGE = sized(49_152, name="a") + sized(1, name="one")
FOLDED = {
    "a scale": LARGE
    + node("Cast", "a", "b")
    + node("Tanh", "b", "c")
    + node("Mul", "a c", "d")
    + node("Log", "d", "y"),
    "by a number": LARGE + node("Sub", "a one", "b") + node("Exp", "b", "c") + node("Div", "a c", "y"),
    "reshaped": LARGE
    + field(5, field(1, 3) + field(2, 7) + field(8, b"to") + field(9, np.array([3, -1, 128], "<i8").tobytes()))
    + node("Reshape", "a to", "b")
    + node("Exp", "b", "c")
    + node("Add", "b c", "y"),
    "of what is no number": LARGE
    + field(5, field(1, 1) + field(2, 1) + field(8, b"no") + field(9, np.array([np.nan], "<f4").tobytes()))
    + field(5, field(1, 1) + field(2, 1) + field(8, b"all") + field(9, np.array([-np.inf], "<f4").tobytes()))
    + node("Concat", "a no", "b")
    + node("GreaterOrEqual", "a all", "y"),
    "a column": LARGE + whole(-1, name="last") + node("Unsqueeze", "a last", "b") + node("Mul", "b b", "y"),
}


@pytest.mark.parametrize("constants", FOLDED.values(), ids=FOLDED)
def test_constants_as_large_as_a_picture_are_no_harm(tiny: Artifact, constants: bytes) -> None:
    """What a graph makes of constants of 3×128×128, element by element, stays as large as that."""
    assert engine.onnx_fault(tiny.graph("elbo") + field(7, constants)) is None


def test_a_column_and_a_row_are_still_multiplied_out(tiny: Artifact) -> None:
    """Shapes that are followed make no product look small."""
    column = whole(-1, name="last") + node("Unsqueeze", "a last", "b")
    fault = engine.onnx_fault(tiny.graph("elbo") + field(7, LARGE + column + node("Mul", "b a", "y")))
    assert fault is not None
    assert fault.startswith("makes 2,415,968,256 elements of its constants (Mul)")


def test_a_graph_nested_without_end_costs_no_stack() -> None:
    """Graphs within graphs, thousands deep, are walked like any other."""
    graph = field(5, ELSEWHERE)
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))
    assert "control flow" in (engine.onnx_fault(field(7, graph)) or "")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"location": "weights.bin", "offset": "60", "length": "4"}, None),
        ({"location": "weights.bin", "offset": "61", "length": "4"}, "takes bytes 61 to 65 of the 64 in weights.bin"),
        ({"location": "weights.bin", "offset": "-4", "length": "4"}, "takes bytes -4 to 0 of the 64"),
        ({"location": "weights.bin", "offset": "0", "length": "8"}, "for 1 elements"),
        ({"location": "weights.bin", "offset": "zero", "length": "4"}, "is not a graph"),
        ({"location": "./weights.bin", "length": "4"}, r"'\./weights\.bin'; tensors may lie in weights\.bin beside it"),
        ({"location": "../1/weights.bin", "length": "4"}, r"'\.\./1/weights\.bin'"),
        ({"location": "/dev/zero", "length": "4"}, "'/dev/zero'"),
        ({"location": "elbo.onnx", "length": "4"}, "'elbo.onnx'"),
    ],
)
def test_tensors_may_lie_in_the_artifacts_one_file_of_weights(place: dict[str, str], reason: str | None) -> None:
    """And there only where they are, whole."""
    fault = engine.onnx_fault(field(7, field(5, elsewhere(**place))), weights=64)
    assert (fault is None) if reason is None else re.search(reason, fault or "")


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
