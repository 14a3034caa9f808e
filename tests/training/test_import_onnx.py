"""Two ONNX files from anywhere: an artifact like any other, or refused before anything in them is run."""

from __future__ import annotations

import contextlib
import pickle
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

from service import artifact
from service.artifact import Array
from tests import kit
from training import composed
from training.__main__ import app, listed
from training.config import Unusable
from training.own import files, look

DOCS = kit.ROOT / "docs" / "bring-your-own.md"
D, SIDE = 3, 4
GENERATOR = np.random.default_rng(0)
ROWS = (GENERATOR.random((400, SIDE, SIDE)) < 0.3).astype(np.uint8)


def weight(name: str, *shape: int) -> TensorProto:
    """A weight of normal numbers."""
    return numpy_helper.from_array(GENERATOR.normal(size=shape).astype(np.float32) / 3, name)


def model(
    nodes: list[Any], given: list[Any], made: list[str], weights: list[TensorProto], opset: int = 17
) -> onnx.ModelProto:
    """A model with one input `given` and outputs of unknown widths."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in made]
    inputs = [helper.make_tensor_value_info("given", TensorProto.FLOAT, given)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    made_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made_model.ir_version = 8
    return made_model


def encoder() -> onnx.ModelProto:
    """As another tool might write it: opset 13, a convolution, a name for z_mean, and a third output."""
    node = helper.make_node
    return model(
        [
            node("Conv", ["given", "k"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("Flatten", ["r"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["z_mean"]),
            node("Gemm", ["f", "v", "b"], ["z_log_var"]),
            node("Identity", ["f"], ["features"]),
        ],
        ["batch", 1, SIDE, SIDE],
        ["features", "z_log_var", "z_mean"],
        [weight("k", 2, 1, 3, 3), weight("w", 2 * SIDE**2, D), weight("v", 2 * SIDE**2, D), weight("b", D)],
        opset=13,
    )


def decoder() -> onnx.ModelProto:
    """A dense decoder with a sigmoid at its end and logits beyond ±18 before it."""
    node = helper.make_node
    last = numpy_helper.from_array(numpy_helper.to_array(weight("y", 16, SIDE**2)) * 60, "y")
    return model(
        [
            node("Gemm", ["given", "w"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "y"], ["l"]),
            node("Sigmoid", ["l"], ["p"]),
            node("Reshape", ["p", "shape"], ["picture"]),
        ],
        ["batch", D],
        ["picture"],
        [weight("w", D, 16), last, numpy_helper.from_array(np.array([-1, 1, SIDE, SIDE]), "shape")],
    )


def in_numpy(z: Array) -> Array:
    """The decoder's logits."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in DECODER.graph.initializer}
    return np.asarray(np.maximum(z @ weights["w"], 0) @ weights["y"])


ENCODER, DECODER = encoder(), decoder()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, by the command that the docs' table has, for rows of another shape than the encoder's."""
    folder = tmp_path_factory.mktemp("onnx")
    onnx.save(ENCODER, folder / "encoder.onnx")
    onnx.save(DECODER, folder / "decoder.onnx")
    np.save(folder / "rows.npy", ROWS)
    (line,) = [line for line in DOCS.read_text().splitlines() if line.startswith("| two ONNX files |")]
    words = shlex.split(line.split("|")[2].strip(" `"))
    assert words[:3] == ["python", "-m", "training"]
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, words[3:])
    assert result.exit_code == 0, result.output
    return folder / "exported_models" / "theirs" / "1"


@pytest.mark.anyio
async def test_two_files_from_anywhere_are_served(imported: Path) -> None:
    """Logits are those before the sigmoid, means those of the file, scores finite and calibrated."""
    z = GENERATOR.normal(size=(5, D)).astype(np.float32)
    async with kit.open_house(kit.configured(imported.parents[1])) as house:
        decoded = await house.answer("theirs/decode", {"latents": z.tolist(), "output": "parameters"})
        encoded = await house.answer("theirs/encode", {"inputs": ROWS[:5].tolist()})
        score = await house.answer("theirs/score", {"inputs": ROWS[:5].tolist()})
        evidence = await house.answer("theirs/evidence", {"inputs": ROWS[:5].tolist(), "draws": 512})
    logits = in_numpy(z)
    assert np.abs(logits).max() > 18
    np.testing.assert_allclose(np.reshape(decoded["parameters"]["logits"], (5, -1)), logits, rtol=1e-5, atol=1e-4)
    x = ROWS[:5].reshape(5, 1, SIDE, SIDE).astype(np.float32)
    wanted = composed.session(ENCODER.SerializeToString()).run(["z_mean", "z_log_var"], {"given": x})
    np.testing.assert_allclose(encoded["mean"], wanted[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoded["scale"], np.exp(wanted[1] / 2), rtol=1e-5)
    assert np.isfinite(score["elbo"]).all()
    assert all(score["p_value"])
    assert np.isfinite(evidence["log_evidence"]).all()


def test_the_manifest_says_which_files_they_were(imported: Path) -> None:
    """With their digests; the graphs are whole, and of the standard domain alone."""
    manifest = artifact.read(imported).manifest
    assert re.match(
        r"encoder: ONNX of an unnamed program, sha256 [0-9a-f]{64}; decoder: ", manifest.training.config["made_of"]
    )
    for name in ("encoder", "elbo", "joint"):
        graph = onnx.load(imported / f"{name}.onnx")
        assert {opset.domain for opset in graph.opset_import} == {""}
        assert not [node for node in graph.graph.node if node.domain]


def test_composed_graphs_are_the_same_in_float64(tmp_path: Path) -> None:
    """What parity is measured against is the file in float64, and closer to the truth than float32 is."""
    onnx.save(DECODER, tmp_path / "decoder.onnx")
    part = files.decoder(tmp_path / "decoder.onnx", D, ("logits",))
    assert part.without_last(("Sigmoid",))
    assert not part.without_last(("Sigmoid",))
    z = torch.randn(7, D)
    (single,), (double,) = part(z), part(z.double())
    assert double.dtype == torch.float64
    np.testing.assert_allclose(double.reshape(7, -1).numpy(), in_numpy(z.double().numpy()), rtol=1e-12)
    np.testing.assert_allclose(single.numpy(), double.numpy(), rtol=1e-4, atol=1e-4)


def test_features_a_prior_and_shared_weights_are_options_too(tmp_path: Path) -> None:
    """Names from a file, a mixture from an archive, and a large matrix in weights.bin."""
    node = helper.make_node
    weights = [weight("w", D, 128), weight("v", 128, 128), weight("u", 128, SIDE**2)]
    nodes = [node("MatMul", [one, to], [f"{one}{to}"]) for one, to in (("given", "w"), ("r", "v"), ("t", "u"))]
    nodes[1:1], nodes[3:3] = [node("Relu", ["givenw"], ["r"])], [node("Tanh", ["rv"], ["t"])]
    nodes[-1].output[:] = ["logits"]
    onnx.save(ENCODER, tmp_path / "encoder.onnx")
    onnx.save(model(nodes, ["batch", D], ["logits"], weights), tmp_path / "decoder.onnx")
    np.save(tmp_path / "rows.npy", ROWS[:120])
    np.savez(tmp_path / "prior.npz", mean=np.eye(2, D), scale=np.full((2, D), 0.5))
    (tmp_path / "names.txt").write_text("".join(f"pixel {place}\n" for place in range(SIDE**2)))
    words = [
        "import-onnx",
        "encoder.onnx",
        "decoder.onnx",
        "--likelihood",
        "bernoulli",
        "--sample",
        "rows.npy",
        "--name",
        "theirs",
    ]
    words += ["--features", "names.txt", "--prior", "prior.npz", "--shared-weights"]
    with contextlib.chdir(tmp_path):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    manifest = artifact.read(tmp_path / "exported_models" / "theirs" / "1").manifest
    assert [feature.name for feature in manifest.features or []] == [f"pixel {place}" for place in range(SIDE**2)]
    assert (manifest.prior.family, manifest.training.config["prior"]) == (
        "mixture",
        {"kind": "mixture", "components": 2},
    )
    assert manifest.files[artifact.WEIGHTS]
    assert (tmp_path / "exported_models" / "theirs" / "1" / artifact.WEIGHTS).stat().st_size == 128 * 128 * 4
    assert files.names(" a, b ,c") == ("a", "b", "c")
    assert files.names(",".join(f"a rather long name {place}" for place in range(100)))[99] == "a rather long name 99"
    assert listed("mu, logvar") == ("mu", "logvar")
    assert files.prior(None) == "standard_normal"
    with pytest.raises(Unusable, match=r"rows\.npy: an \.npz of mean, scale and weight is needed, or of rows"):
        files.prior(tmp_path / "rows.npy")


# ---------------------------------------------------------------- names and shapes


def saved(path: Path, given: onnx.ModelProto) -> Path:
    """A model in a file."""
    onnx.save(given, path)
    return path


def renamed(names: dict[str, str]) -> onnx.ModelProto:
    """The encoder with other names for its outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(ENCODER)
    for node in made.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for output in made.graph.output:
        output.name = names.get(output.name, output.name)
    return made


def test_names_are_found_or_asked_for(tmp_path: Path) -> None:
    """A mean and a log variance by what they are called; where that says nothing, one line says which option would."""
    event = (SIDE, SIDE)
    _, gives = files.encoder(saved(tmp_path / "a.onnx", ENCODER), event)
    assert gives == "log_variance"
    _, gives = files.encoder(saved(tmp_path / "b.onnx", renamed({"z_mean": "mu", "z_log_var": "log_std"})), event)
    assert gives == "log_scale"
    _, gives = files.encoder(saved(tmp_path / "b.onnx", renamed({"z_mean": "mu", "z_log_var": "ln_var"})), event)
    assert gives == "log_variance"  # as Chainer has it
    dumb = saved(tmp_path / "c.onnx", renamed({"z_mean": "17", "z_log_var": "18"}))
    with pytest.raises(Unusable, match=r"gives features, 18, 17; say which .* --encoder-outputs"):
        files.encoder(dumb, event)
    with pytest.raises(Unusable, match=r"is 18 a log_variance, .* --encoder-gives"):
        files.encoder(dumb, event, ("17", "18"))
    with pytest.raises(Unusable, match="2 of its outputs are needed, which are features, 18, 17"):
        files.encoder(dumb, event, ("17", "19"))
    part, gives = files.encoder(dumb, event, ("17", "18"), "variance")
    assert (gives, part.outputs) == ("variance", ((D,), (D,)))
    with pytest.raises(Unusable, match=r"given is \['n', 1, 4, 4\], and a row is \[5\]"):
        files.encoder(dumb, (5,), ("17", "18"), "variance")
    with pytest.raises(
        Unusable,
        match="gives picture; say which of these are loc, scale, in that order, by --decoder-outputs; of a lone mean, ",
    ):
        files.decoder(saved(tmp_path / "d.onnx", DECODER), D, ("loc", "scale"))


# ---------------------------------------------------------------- refused before it is run


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """The decoder with something done to it."""
    made = onnx.ModelProto()
    made.CopyFrom(DECODER)
    change(made)
    return made


def node(*arguments: Any, **attributes: Any) -> Callable[[onnx.ModelProto], object]:
    """One node more, at the start."""
    return lambda made: made.graph.node.insert(0, helper.make_node(*arguments, **attributes))


def outside(location: str) -> Callable[[onnx.ModelProto], object]:
    """A weight that lies in another file."""

    def change(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def huge(made: onnx.ModelProto) -> None:
    """A weight of 10⁹ elements that isn't there."""
    made.graph.initializer.append(TensorProto(name="huge", dims=[1000, 1000, 1000], data_type=TensorProto.FLOAT))


def swelling(made: onnx.ModelProto) -> None:
    """A constant that is made as the graph runs, of 10¹² elements."""
    made.graph.initializer.append(numpy_helper.from_array(np.array([10**6, 10**6]), "size"))
    node("ConstantOfShape", ["size"], ["ones"])(made)


def short(made: onnx.ModelProto) -> None:
    """A weight with fewer bytes than its shape."""
    made.graph.initializer[0].raw_data = b"\0" * 8


def nested() -> onnx.GraphProto:
    """A graph for a branch."""
    return helper.make_graph([helper.make_node("Identity", ["given"], ["r2"])], "branch", [], [])


def looped(made: onnx.ModelProto) -> None:
    """A loop of 2⁶³ − 1 turns."""
    made.graph.initializer.append(numpy_helper.from_array(np.array(2**63 - 1), "turns"))
    node("Loop", ["turns", ""], ["r2"], body=nested())(made)


def dropped(made: onnx.ModelProto) -> None:
    """Dropout that is still in training mode."""
    made.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    node("Dropout", ["given", "ratio", "training"], ["dropped"])(made)


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "custom op": (
        node("Evil", ["given"], ["e"], domain="com.evil"),
        "the operator Evil of the domain 'com.evil'; only",
    ),
    "function": (lambda made: made.functions.add(name="f", domain="pkg"), "has functions of its own; .* onnx.inliner"),
    "loop": (looped, r"has control flow \(Loop\), so how long it runs isn't known"),
    "branch": (
        node("If", ["given"], ["r2"], then_branch=nested(), else_branch=nested()),
        r"has control flow \(If\)",
    ),
    "random": (
        node("RandomNormalLike", ["given"], ["e"]),
        r"draws random numbers \(RandomNormalLike\).* up to its mean",
    ),
    "dropout": (dropped, r"draws random numbers \(Dropout\)"),
    "10⁹ elements": (huge, "declares 1,000,000,000 elements of 'huge'; at most 100,000,000 are read"),
    "10¹² elements": (swelling, r"asks for a tensor of 1,000,000,000,000 elements \(ConstantOfShape\)"),
    "short": (short, r"declares \[3, 16\] for 'w' and holds something else"),
    "parent": (outside("../weights.bin"), r"keeps weights in '\.\./weights\.bin', outside its folder"),
    "absolute": (outside("/etc/passwd"), "keeps weights in '/etc/passwd', outside its folder"),
    "link": (outside("link.bin"), "keeps weights in 'link.bin', which is no file beside it"),
    "short beside": (outside("short.bin"), "'w' doesn't lie in 'short.bin' as it says"),
    "invalid": (node("Relu", ["nothing"], ["e"]), "isn't a valid graph"),
    "fixed batch": (
        lambda made: made.graph.input[0].CopyFrom(helper.make_tensor_value_info("given", TensorProto.FLOAT, [1, D])),
        r"given has the shape \[1, 3\], and \(rows, …\) with any number of rows is needed; export it",
    ),
    "two inputs": (
        lambda made: made.graph.input.append(helper.make_tensor_value_info("label", TensorProto.FLOAT, ["n", 1])),
        r"has 2 inputs \(given, label\), and one is needed",
    ),
    "half": (
        lambda made: made.graph.input[0].CopyFrom(
            helper.make_tensor_value_info("given", TensorProto.FLOAT16, ["n", D])
        ),
        "isn't a valid graph|given is FLOAT16, and FLOAT is needed",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_before_it_is_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session is made of it, and one line says why."""
    change, said = HOSTILE[case]
    (tmp_path / "secret.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "short.bin").write_bytes(b"\0" * 8)

    def never(_: bytes) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(composed, "session", never)
    path = tmp_path / "decoder.onnx"
    path.write_bytes(changed(change).SerializeToString())
    with pytest.raises(Unusable, match=said):
        files.decoder(path, D, ("logits",))


def test_weights_in_a_file_beside_the_graph_are_read(tmp_path: Path) -> None:
    """As torch writes them by itself; the same numbers as in one file."""
    onnx.save(DECODER, tmp_path / "one.onnx")
    apart = changed(lambda _: None)
    onnx.save(apart, tmp_path / "two.onnx", save_as_external_data=True, location="two.onnx.data", size_threshold=0)
    assert (tmp_path / "two.onnx.data").exists()
    one, two = (files.decoder(tmp_path / f"{name}.onnx", D, ("logits",)) for name in ("one", "two"))
    z = torch.randn(3, D)
    assert torch.equal(one(z)[0], two(z)[0])


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size on disk, before a byte of it is."""
    monkeypatch.setattr(look, "MOST_BYTES", 100)
    with pytest.raises(Unusable, match="GB are read"):
        look.read(saved(tmp_path / "decoder.onnx", DECODER))


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave a mark."""
        return Path.touch, (self.path,)


def test_a_pickle_is_never_unpickled(tmp_path: Path) -> None:
    """Neither as a graph, nor as a checkpoint, nor as rows: the code in it doesn't run."""
    mark = tmp_path / "ran"
    run, bomb = CliRunner().invoke, Bomb(mark)
    (tmp_path / "plain.onnx").write_bytes(pickle.dumps(bomb))
    torch.save({"run": bomb}, tmp_path / "best.ckpt")
    np.save(tmp_path / "rows.npy", np.array([bomb], object), allow_pickle=True)
    onnx.save(DECODER, tmp_path / "decoder.onnx")
    for name in ("plain.onnx", "best.ckpt"):
        with pytest.raises(Unusable, match=r"is a pickle or a torch checkpoint, .* weights_only=True"):
            look.read(tmp_path / name)
    result = run(app, ["export", str(tmp_path)])
    assert (result.exit_code, "not a checkpoint of this trainer" in result.output) == (2, True)
    words = [
        "import-onnx",
        *[str(tmp_path / "decoder.onnx")] * 2,
        "--likelihood",
        "bernoulli",
        "--name",
        "x",
        "--sample",
    ]
    result = run(app, [*words, str(tmp_path / "rows.npy")])
    assert (result.exit_code, "nothing in it was unpickled" in result.output) == (2, True)
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb))
    assert mark.exists(), "the bomb is a real one"


def test_what_torch_exports_is_taken(tmp_path: Path) -> None:
    """Both files as `torch.onnx.export` writes them, weights beside them or not."""
    module = nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 5)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        torch.onnx.export(
            module,
            (torch.randn(3, D),),
            tmp_path / "decoder.onnx",
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    part = files.decoder(tmp_path / "decoder.onnx", D, ("mean",))
    z = torch.randn(4, D)
    np.testing.assert_allclose(part(z)[0].numpy(), module(z).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(part(z.double())[0].numpy(), module.double()(z.double()).detach().numpy(), atol=1e-6)
