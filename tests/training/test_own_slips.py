"""The usual slips with own models: each is one line that says what is wrong and what to do next; some aren't slips."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import training
from service.artifact import Array, Graph
from service.errors import ArtifactRefused
from tests.training.test_import_onnx import DECODER
from tests.training.test_own_models import Alone, Made, two
from training import adapters, exporting, graphs, independence
from training.config import Unusable
from training.own import attention, look, tracing
from training.own.rows import dataset

torch.set_num_threads(1)
ROWS = np.random.default_rng(0).normal(size=(100, 5))


def cast(to: Callable[[Tensor], Any]) -> Made:
    """An encoder that ends in another dtype, or outside of torch."""
    return Made(lambda f, x: tuple(to(one) for one in two(f, x)))


def by_numpy(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """An encoder that leaves torch in between."""
    return two(linear, torch.from_numpy(np.tanh(x.detach().numpy())))


def splits(**rows: int) -> dict[str, Array]:
    """Four splits of forty rows each, unless fewer are said."""
    draw = np.random.default_rng(0).normal
    return {name: draw(size=(rows.get(name, 40), 5)) for name in ("fit", "validation", "calibration", "test")}


def scripted() -> nn.Module:
    """A decoder as older programs keep theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made: nn.Module = torch.jit.trace(nn.Linear(2, 5), torch.zeros(3, 2))  # type: ignore[no-untyped-call]
    return made


SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "half": (
        {"encoder": cast(Tensor.half)},
        r"encoder: gives torch\.float16 where torch\.float32 goes in; .*\.half\(\), .*take it out",
    ),
    "double": ({"encoder": cast(Tensor.double)}, r"encoder: gives torch\.float64 where torch\.float32 goes in"),
    "half mean": (
        {"decoder": Made(lambda f, z: f(z).half(), 2, 5)},
        r"decoder: gives torch\.float16 where torch\.float32 goes in",
    ),
    "numpy between": ({"encoder": Made(by_numpy)}, "encoder: leaves torch for numpy, .*say it in torch's own"),
    "numpy at the end": (
        {"encoder": cast(lambda one: one.detach().numpy())},
        r"encoder: gives a tuple of ndarray, ndarray; a tensor, .*without \.numpy\(\)",
    ),
    "lists": (
        {"encoder": Made(lambda f, x: two(f, torch.tensor(x.tolist())))},
        r"encoder: .*don't leave torch by \.tolist\(\)",
    ),
    "gauss": ({"likelihood": "gauss"}, "likelihood 'gauss' is no family; do you mean 'normal'. There are bernoulli, "),
    "capital": ({"likelihood": "Normal"}, "likelihood 'Normal' is no family; do you mean 'normal'"),
    "misspelt": ({"likelihood": {"family": "bernouli"}}, "do you mean 'bernoulli'"),
    "a loss of torch's": ({"likelihood": "MSE_loss"}, "'MSE_loss' is a loss: .*say likelihood='normal' with decoder_"),
    "with logits": ({"likelihood": "bce_with_logits"}, "'bce_with_logits' is a loss: .*say likelihood='bernoulli'"),
    "nothing like it": ({"likelihood": "xyz"}, r"likelihood 'xyz' is no family\. There are bernoulli"),
    "ragged": ({"sample": [[1.0, 2.0], [1.0]]}, "sample: isn't an array .*: rows of unlike lengths make none; pad"),
    "a path": ({"sample": "rows.npy"}, "sample: 'rows.npy' is a path, and rows are needed: np.load it"),
    "a data set": (
        {"sample": torch.utils.data.TensorDataset(torch.from_numpy(ROWS))},
        r"sample: a TensorDataset is no array .*: torch\.stack\(\[x for x, \*_ in dataset\]\)",
    ),
    "a scale that nobody said is one": (
        {"encoder": Made(lambda f, x: (f(x), F.softplus(f(x))))},
        r"encoder: its second output is from 0\.\d+ to .*; is it a log variance, above 0 .*encoder_gives='scale'",
    ),
    "a scale that is a log variance": (
        {"encoder_gives": "scale"},
        r"encoder: its second output goes down to -\d.*, and a scale is above 0; say what it is by encoder_gives",
    ),
    "logits for probabilities": (
        {"likelihood": "continuous_bernoulli", "decoder_gives": "probabilities", "sample": 1 / (1 + np.exp(-ROWS))},
        "decoder: gives -.* to .* on held-out rows, and probabilities are from 0 to 1; .*decoder_gives='logits'",
    ),
    "a distribution": (
        {"encoder": Made(lambda f, x: torch.distributions.Normal(f(x), F.softplus(f(x))))},
        "encoder: gives Normal; .*; give its parameters, of a Normal its loc and scale .*encoder_gives='scale'",
    ),
    "both in one tensor": ({"encoder": nn.Linear(5, 4)}, r"encoder: gives one tensor, and two .*\.chunk\(2, 1\) makes"),
    "TorchScript": (
        {"decoder": scripted()},
        "decoder: is TorchScript, which isn't traced again; give the torch.nn.Module",
    ),
    "weights alone": ({"decoder": nn.Linear(2, 5).state_dict()}, "not OrderedDict; load the weights into the module"),
    "no weights": ({"decoder": nn.Linear(2, 5, device="meta")}, "decoder: lies on torch's meta device, .*to_empty"),
    "a prior without numbers": (
        {"prior": {"kind": "mixture", "mean": torch.zeros(2, 2, device="meta"), "scale": 1.0}},
        "prior: mean isn't an array of numbers",
    ),
    "a class": ({"decoder": nn.Linear}, "decoder: a torch.nn.Module is needed, not type; call it to make one"),
    "holes": (
        {"sample": np.where(ROWS > 2, np.nan, ROWS)},
        "takes no missing values. Leave such rows out, or fill them",
    ),
    "a word of another library": (
        {"encoder_gives": "logvar"},
        "encoder_gives 'logvar': Input should be 'log_variance'",
    ),
    "a misspelt word": ({"decoder_gives": "means"}, "decoder_gives 'means': Input should be 'parameters', 'logits'"),
    "preprocessing of a pair": ({"preprocessing": (0.0, 1.0)}, "preprocessing: {'shift': …, 'scale': …} is needed"),
    "a shift in words": ({"preprocessing": {"shift": "mean"}}, "preprocessing: shift: a number is needed, or one a"),
    "a scale in words": ({"scale": ["a"]}, "scale: a number is needed, or one a feature"),
    "a ragged scale": ({"scale": [1.0, [2.0]]}, "scale: a number is needed, or one a feature"),
    "numbers for names": ({"features": [1, 2, 3, 4, 5]}, "features: names are text, not 1"),
    "a name twice": ({"features": list("abcda")}, "features: a name is given twice"),
    "version 0": ({"version": 0}, "version 0: whole numbers from 1 on"),
    "no folder": ({"to": None}, "to: the folder of the artifacts is needed"),
    "capitals": ({"name": "Mine"}, "name 'Mine': up to 64 small letters, digits, hyphens and"),
    "a split of one row": (
        {"sample": splits(validation=1)},
        "sample: 1 different rows of validation, and at least 5 of each split are needed; of calibration many more",
    ),
    "a split of one row over again": (
        {"sample": splits() | {"test": np.ones((40, 5))}},
        "sample: 1 different rows of test, and at least 5",
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_a_slip_is_one_line_that_says_what_to_do(case: str, tmp_path: Path) -> None:
    """And nothing is written."""
    changes, wanted = SLIPS[case]
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"encoder": Made(two), "decoder": nn.Linear(2, 5), "sample": ROWS}
    arguments |= {"likelihood": "normal", "decoder_gives": "mean", "name": "mine", "to": tmp_path, **changes}
    with pytest.raises((Unusable, ArtifactRefused)) as refused:
        training.export(**arguments)
    assert re.search(wanted, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("into", "said"),
    [("mine", "into is a str, and the module is needed"), (nn.Linear, r"into is a type, .*; call it: Linear\(…\)")],
)
def test_a_checkpoint_goes_into_a_module(into: Any, said: str) -> None:
    """Not into its name or its class; said before the file is looked for."""
    with pytest.raises(Unusable, match=f"lightning: {said}"):
        adapters.lightning("none.ckpt", into=into)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_file_whose_look_takes_too_much_is_one_line(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever onnx itself runs out of."""

    def out(*_: object, **__: object) -> None:
        raise error

    onnx.save(DECODER, tmp_path / "g.onnx")
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", out)
    with pytest.raises(Unusable, match=r"g\.onnx: takes more memory to look at than there is; is it broken"):
        look.read(tmp_path / "g.onnx")


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """With some bytes changed, lost or put in, it is read or refused, and nothing else happens."""
    random, whole, said = np.random.default_rng(0), DECODER.SerializeToString(), []
    for _ in range(200):
        content = bytearray(whole)
        for place in random.integers(len(content) - 9, size=4).tolist():
            content[place : place + int(random.integers(3))] = random.bytes(int(random.integers(3)))
        (tmp_path / "g.onnx").write_bytes(content)
        with contextlib.suppress(Unusable):
            look.read(tmp_path / "g.onnx")
            continue
        with pytest.raises(Unusable) as refused:
            look.read(tmp_path / "g.onnx")
        said.append(str(refused.value))
    assert len(said) > 100
    assert all(one.startswith(str(tmp_path / "g.onnx")) and "\n" not in one for one in said)


def test_a_tensor_is_taken_for_its_values() -> None:
    """One that asks for gradients too."""
    rows = torch.from_numpy(ROWS).requires_grad_()
    np.testing.assert_array_equal(dataset(rows).splits["test"], dataset(ROWS).splits["test"])  # type: ignore[arg-type]


# ---------------------------------------------------------------- attention


class Attentive(nn.Module):
    """Attention between the numbers of a row, in heads."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lift, self.last = nn.Linear(1, 24), nn.Linear(40, 3)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3)."""
        query, key, value = self.lift(x.unsqueeze(-1)).reshape(x.shape[0], 5, 3, 4, 2).permute(2, 0, 3, 1, 4)
        if self.options.get("enable_gqa"):
            key, value = key[:, :2], value[:, :2]
        found: Tensor = F.scaled_dot_product_attention(query, key, value, **self.options)
        given: Tensor = self.last(found.transpose(1, 2).flatten(1))
        return given


class Transformer(nn.Module):
    """A layer of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.last = nn.Linear(1, 8), nn.Linear(40, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3)."""
        given: Tensor = self.last(self.layer(self.lift(x.unsqueeze(-1))).flatten(1))
        return given


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "plain": Attentive,
    "causal": lambda: Attentive(is_causal=True),
    "mask": lambda: Attentive(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril(1)),
    "added": lambda: Attentive(attn_mask=torch.arange(25.0).reshape(5, 5) / 5),
    "blind": lambda: Attentive(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril(-1)),
    "scale": lambda: Attentive(scale=2.0),
    "grouped": lambda: Attentive(enable_gqa=True),
    "transformer": Transformer,
}


def traced(case: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A module, what it is traced to, and rows."""
    torch.manual_seed(0)
    module = Alone(ATTENTION[case]()).eval().requires_grad_(False)
    x = torch.randn(300, 5)
    return module, tracing.traced("encoder", module, x[:8], x[8:16]), x


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_that_drops_nothing_is_no_random_operation(case: str) -> None:
    """Written out, it gives torch's numbers."""
    module, plain, x = traced(case)
    assert isinstance(plain, torch.fx.GraphModule)
    targets = {node.target for node in plain.graph.nodes}
    assert attention.attention in targets
    assert attention.FUSED not in targets
    torch.testing.assert_close(plain(x)[0], module(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["mask", "transformer"])
def test_attention_on_the_runtime_keeps_a_rows_bits(case: str) -> None:
    """What a row attends to is in it, and nothing of its neighbours."""
    module, plain, x = traced(case)
    session = exporting.session(graphs.export("encoder", plain, {"x": x[:3]}, ("mean",)))
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x)[0].numpy(), rtol=1e-4, atol=1e-5)
    graph = Graph("encoder", ("x",), {"mean": "n"})
    independence.check(graph, lambda feeds: {"mean": session.run(None, dict(feeds))[0]}, {"x": x.numpy()})


def test_attention_that_drops_something_is_refused() -> None:
    """It gives other numbers each time."""
    with pytest.raises(Unusable, match="encoder: gives other numbers each time it is called"):
        tracing.traced("encoder", Alone(Attentive(dropout_p=0.5)).eval(), torch.randn(8, 5), torch.randn(8, 5))


@pytest.mark.parametrize(
    ("given", "kept"), [("float16", "float32"), ("uint16", "int32"), ("int8", "int32"), ("uint32", "int64")]
)
def test_a_dtype_that_no_artifact_has_becomes_the_narrowest_that_holds_it(given: str, kept: str) -> None:
    """Value by value; a tensor in bfloat16 too, which NumPy hasn't."""
    rows = np.arange(200).reshape(100, 2).astype(given)
    found = dataset(rows).splits
    assert {part.dtype.name for part in found.values()} == {kept}
    assert sorted(row for part in found.values() for row in part.tolist()) == sorted(rows.tolist())
    halves: Any = torch.arange(200).reshape(100, 2).bfloat16()
    assert {part.dtype.name for part in dataset(halves).splits.values()} == {"float32"}


def test_a_version_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    """Nothing is looked at, and the way out is said as Python and as the command line have it."""
    (tmp_path / "mine" / "3").mkdir(parents=True)
    said: list[str] = []
    with pytest.raises(
        Unusable, match=r"without --replace \(replace=True\), and where no version is said the next free"
    ):
        training.export(
            encoder=Made(two),
            decoder=nn.Linear(2, 5),
            likelihood="normal",
            decoder_gives="mean",
            sample=ROWS,
            name="mine",
            to=tmp_path,
            version=3,
            say=said.append,
        )
    assert not said


def test_adapters_are_there_once_training_is_imported() -> None:
    """As the table of libraries in the docs calls them; and torch isn't brought along before."""
    said = "import sys, training; assert 'torch' not in sys.modules; print(training.adapters.pythae.__name__)"
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout == "pythae\n", ended.stderr
