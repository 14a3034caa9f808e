"""Own models: two torch modules become an artifact that is served like any other, or are refused with the reason."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import training
from service import artifact
from service.artifact import Array, Graph, Manifest
from service.errors import ArtifactRefused
from tests import kit
from training import blocks, calibrate, config, data, exporting, graphs, independence, likelihoods
from training.__main__ import app
from training.config import Unusable
from training.own import tracing
from training.own.parts import DecoderPart

SIGMA = 0.5
SHIFT, WIDTH = np.array([10.0, -3.0, 0.0, 5.0, 100.0]), np.array([2.0, 0.5, 1.0, 10.0, 30.0])
W = np.random.default_rng(0).normal(size=(5, 2))  # u = W z + σ ε, x = shift + width·u


class Line(nn.Module):
    """The posterior of a linear-Gaussian VAE as it is when W's columns are made orthogonal: exact."""

    def __init__(self) -> None:
        super().__init__()
        q, _ = np.linalg.qr(W)
        self.w = nn.Parameter(torch.from_numpy(2.0 * q).float())
        self.spread = nn.Parameter(torch.tensor(SIGMA**2 / (4.0 + SIGMA**2)).log())

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Wᵀu/(4 + σ²), and the log variance σ²/(4 + σ²)."""
        mean = u @ self.w / (4.0 + SIGMA**2)
        return mean, self.spread.expand(mean.shape)


class Plane(nn.Module):
    """Its decoder's mean."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.w = line.w

    def forward(self, z: Tensor) -> Tensor:
        """W z."""
        return z @ self.w.T


def table(rows: int) -> Array:
    """Rows of that model."""
    generator = np.random.default_rng(1)
    u = generator.normal(size=(rows, 2)) @ Line().w.detach().double().numpy().T + SIGMA * generator.normal(
        size=(rows, 5)
    )
    return np.asarray(SHIFT + WIDTH * u)


def exact(x: Array) -> Array:
    """log p(x) of that model, in nats, in the units of x."""
    w = Line().w.detach().double().numpy()
    covariance = WIDTH[:, None] * (w @ w.T + SIGMA**2 * np.eye(5)) * WIDTH
    off = x - SHIFT
    square = (off * np.linalg.solve(covariance, off.T).T).sum(1)
    return np.asarray(-0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1]))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear model, exported: a mean whose scale is found, and units of its own."""
    encoder = Line()
    return training.export(
        encoder=encoder,
        decoder=Plane(encoder),
        likelihood="normal",
        decoder_gives="mean",
        preprocessing={"shift": SHIFT, "scale": WIDTH},
        features=list("abcde"),
        sample=table(4000),
        to=tmp_path_factory.mktemp("models"),
        name="line",
    )


class Conv(nn.Module):
    """A picture → the two outputs of an encoder, from a dict-less tuple of heads on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.mean, self.log_scale = nn.Linear(256, 3), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale."""
        h = self.body(x)
        return self.mean(h), 0.1 * self.log_scale(h)


def picture_decoder() -> nn.Sequential:
    """z → 8×8 probabilities; their logits go well beyond ±18, where the runtime's sigmoid is 0."""
    body = nn.Sequential(nn.Linear(3, 30), nn.ELU(), nn.BatchNorm1d(30), nn.Dropout(), nn.Linear(30, 64))
    last = body[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(100.0)
    return nn.Sequential(body, nn.Sigmoid(), nn.Unflatten(1, (8, 8))).eval()


def digits() -> Array:
    """8×8 digits in black and white."""
    splits = data.load(config.Digits(name="digits", binarise=7)).splits
    return np.concatenate(list(splits.values()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Sequential]:
    """Convolutions with a sigmoid at the end, weights fresh, exported; and the decoder."""
    torch.manual_seed(0)
    decoder = picture_decoder()
    folder = training.export(
        encoder=Conv().eval(),
        decoder=decoder,
        encoder_gives="log_scale",
        decoder_gives="probabilities",
        likelihood="bernoulli",
        sample=digits(),
        to=tmp_path_factory.mktemp("models"),
        name="pictures",
    )
    return folder, decoder


def read(folder: Path) -> Manifest:
    """An artifact's manifest."""
    return artifact.read(folder).manifest


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the docs' example makes, run as it stands there."""
    blocks = re.findall(r"```python\n(.*?)```", (kit.ROOT / "docs" / "bring-your-own.md").read_text(), re.DOTALL)
    assert len(blocks[1].strip().splitlines()) <= 10
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("shown")):
        for block in blocks[:2]:
            exec(block, names)
        return Path(names["folder"]).absolute()


@pytest.mark.anyio
async def test_the_example_in_the_docs_is_served(shown: Path) -> None:
    """Ten lines, and there is a calibrated score."""
    assert shown.parts[-3:] == ("exported_models", "mine", "1")
    async with kit.open_house(kit.configured(shown.parents[1])) as house:
        score = await house.answer("mine/score", {"inputs": digits()[:3].tolist()})
    assert np.isfinite(score["elbo"]).all()
    assert score["calibration"]["n"] > 800
    assert all(0 < p <= 1 for p in score["p_value"])


@pytest.mark.anyio
async def test_an_own_model_is_served_and_its_score_is_its_evidence(line: Path) -> None:
    """The encoder is exact, so the bound is log p(x): of x as it is sent, shift, width and scale all in it."""
    rows = table(4100)[4000:]
    async with kit.open_house(kit.configured(line.parents[1])) as house:
        score = await house.answer("line/score", {"inputs": rows.tolist()})
        mean = await house.answer("line/reconstruct", {"inputs": rows[:3].tolist()})
        drawn = await house.answer("line/sample", {"count": 4, "seed": 1, "output": "sample"})
    elbo, error = np.array(score["elbo"]), np.array(score["elbo_error"])
    assert np.abs(elbo.mean() - exact(rows).mean()) < 0.1
    assert np.abs(elbo - exact(rows)).max() < 0.5 + 6 * error.max()
    assert all(0 < p <= 1 for p in score["p_value"])
    assert np.abs((np.array(mean["outputs"]) - rows[:3]) / WIDTH).mean() < 2 * SIGMA
    assert np.array(drawn["outputs"]).shape == (4, 5)


def test_the_scale_of_a_mean_is_found_by_maximum_likelihood(line: Path) -> None:
    """On validation rows, in the units of x, and the manifest says so."""
    given = read(line).training.config
    np.testing.assert_allclose(given["scale"], SIGMA * WIDTH, rtol=0.08)
    assert given["scale_from"] == "maximum likelihood on validation rows, one a feature"
    assert read(line).training.held_out["elbo"] == pytest.approx(exact(table(4000)).mean(), abs=0.5)


def test_the_manifest_says_what_was_given_and_what_was_measured(line: Path) -> None:
    """Nothing about training that nobody told, sums to one, four splits, features, and a calibration."""
    manifest = read(line)
    assert manifest.training.objective == "not known: the model was made elsewhere"
    assert re.match(
        r"p\(x_j\|z\) integrates to 1 within [\de-]+, at 6 latents", manifest.training.config["normalisation"]
    )
    assert {name: split.rows for name, split in manifest.training.splits.items()} == {
        "fit": 500,
        "validation": 1000,
        "calibration": 2000,
        "test": 500,
    }
    assert [feature.name for feature in manifest.features or []] == list("abcde")
    assert manifest.calibration is not None
    assert manifest.calibration.n == 2000


def test_calibrating_again_takes_the_same_rows_and_no_others(line: Path, tmp_path: Path) -> None:
    """By the command, from a file of the sample; without one, or with other rows, one line says what is needed."""
    before = read(line).calibration
    np.save(tmp_path / "rows.npy", table(4000))
    np.save(tmp_path / "others.npy", table(4001))
    np.save(tmp_path / "pickled.npy", np.array([{}], object))
    run = CliRunner().invoke
    assert run(app, ["calibrate", str(line), "--rows", str(tmp_path / "rows.npy")]).exit_code == 0
    assert read(line).calibration == before
    for rows, said in (
        ([], "give those that it was exported with"),
        (["--rows", str(tmp_path / "others.npy")], "no longer the rows that were set aside for validation"),
        (["--rows", str(tmp_path / "pickled.npy")], "nothing in it was unpickled"),
    ):
        result = run(app, ["calibrate", str(line), *rows])
        assert result.exit_code == 2
        assert said in result.output
    with pytest.raises(Unusable, match="own models alone"):
        calibrate.of(read(kit.COMMITTED / "tiny" / "1"), table(100))


@pytest.mark.anyio
async def test_a_last_sigmoid_is_taken_off_and_loses_nothing(pictures: tuple[Path, nn.Sequential]) -> None:
    """The logits that are served are those before it, where their sigmoid is 0 or 1 in float32."""
    folder, decoder = pictures
    z = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    async with kit.open_house(kit.configured(folder.parents[1])) as house:
        answer = await house.answer("pictures/decode", {"latents": z.tolist(), "output": "parameters"})
        score = await house.answer("pictures/score", {"inputs": digits()[:5].tolist()})
    with torch.no_grad():
        logits = decoder[0](torch.from_numpy(z)).reshape(6, 8, 8).numpy()
    assert np.abs(logits).max() > 18
    np.testing.assert_allclose(answer["parameters"]["logits"], logits, rtol=1e-5, atol=1e-4)
    assert np.isfinite(score["elbo"]).all()
    assert np.isfinite(score["bits_per_dim"]).all()
    assert all(score["p_value"])


class Alone(nn.Module):
    """A module as a graph of one output."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> graphs.Outputs:
        """Its one output."""
        return (self.own(x),)


@pytest.mark.parametrize("kind", [nn.ELU, nn.SELU, nn.Softplus, nn.Mish])
def test_activations_of_any_width_keep_a_rows_bits(
    kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the runtime they depend on a row's place; filled up to whole blocks they don't, and no rows are no rows."""
    graph, x = (
        Graph("encoder", ("x",), {"mean": "n"}),
        np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32),
    )
    module = Alone(nn.Sequential(nn.Linear(5, 7), kind(), nn.Linear(7, 3))).eval()

    def checked() -> onnxruntime.InferenceSession:
        content = graphs.export("encoder", module, {"x": torch.from_numpy(x[:3])}, ("mean",))
        session = exporting.session(content)
        independence.check(graph, lambda feeds: {"mean": np.asarray(session.run(None, dict(feeds))[0])}, {"x": x})
        return session

    session = checked()
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x})[0], module(torch.from_numpy(x))[0].numpy(), atol=1e-5)
    assert session.run(None, {"x": x[:0]})[0].shape == (0, 3)
    monkeypatch.setattr(blocks, "UNEVEN", ())
    with pytest.raises(ArtifactRefused, match="other bits"):
        checked()


def test_blocks_end_where_a_row_does() -> None:
    """Numbers (n, k, 5) are filled up by row and draw; without rows or without draws nothing is left of them."""
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Log", ["x"], ["y"])]
    ports = [value("x", onnx.TensorProto.DOUBLE, ["n", "k", 5])], [value("y", onnx.TensorProto.DOUBLE, ["n", "k", 5])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", *ports), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    session = exporting.session(blocks.filled_up(model).SerializeToString())
    for shape in ((2, 3, 5), (0, 3, 5), (2, 0, 5)):
        x = np.random.default_rng(0).random(shape)
        (y,) = session.run(None, {"x": x})
        np.testing.assert_allclose(y, np.log(x))
    assert len(session.run(None, {"x": np.ones((1, 1, 5))})) == 1
    assert [node.op_type for node in model.graph.node] == ["Shape", "Flatten", "Pad", "Log", "Slice", "Reshape"]


# ---------------------------------------------------------------- refusals


class Made(nn.Module):
    """A module of a function, with a weight."""

    def __init__(self, function: Callable[[nn.Linear, Tensor], Any], size: int = 5, out: int = 2) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(size, out), function

    def forward(self, given: Tensor) -> Any:
        """The function's."""
        return self.function(self.linear, given)


def two(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """A sound encoder's outputs."""
    return linear(x), 0.1 * linear(x)


def noisy(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that draws z itself."""
    mean, log_variance = two(linear, x)
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean), log_variance


def branching(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that looks at a value."""
    return two(linear, x if bool(x.sum() > 0) else -x)


def frozen(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that looks at values by way of numpy."""
    mean, log_variance = two(linear, x)
    return mean + float(np.abs(x.numpy()[..., 0]).sum() > 1e9), log_variance


def sociable(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that centres a batch."""
    return two(linear, x - x.mean(0))


def squeezed(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that drops the leading axis of a lone row."""
    return tuple(one.squeeze() for one in two(linear, x))  # type: ignore[return-value]


def halved(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One whose dtype is another for few rows."""
    return tuple(one.half() if len(x) < 2 else one for one in two(linear, x))  # type: ignore[return-value]


def counting(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One that does something else for many rows."""
    return two(linear, x if x.shape[0] < 100 else 2 * x)


def exploding(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """One whose log variance grows with the square of x."""
    return linear(x), 100.0 * linear(x) ** 2


def silent(linear: nn.Linear, z: Tensor) -> Tensor:
    """A decoder whose last number is always 0."""
    return linear.forward(z) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written by mistake is written elsewhere."""
    monkeypatch.chdir(tmp_path)


def refusal(**changes: Any) -> str:
    """What is said of an export that is refused."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "encoder": Made(two),
        "decoder": nn.Linear(2, 5),
        "likelihood": "normal",
        "decoder_gives": "mean",
        "sample": np.random.default_rng(0).normal(size=(100, 5)),
        "name": "mine",
        "to": "nowhere",
        **changes,
    }
    with pytest.raises((Unusable, ArtifactRefused)) as refused:
        training.export(**arguments)
    assert not Path("nowhere").exists()
    return str(refused.value)


MODULES: dict[str, tuple[dict[str, Any], str]] = {
    "draws z": ({"encoder": Made(noisy)}, "encoder: gives other numbers each time .* noise is an input"),
    "dropout": (
        {"decoder": nn.Sequential(nn.Linear(2, 5), nn.Dropout())},
        r"decoder: 1 \(Dropout\) is in training mode .* call \.eval\(\)",
    ),
    "dropout of a function": (
        {"decoder": Made(lambda f, z: nn.functional.dropout(f(z), 1e-9), 2, 5)},
        r"decoder: dropout drops values at random; call \.eval\(\), or hand it training=self\.training",
    ),
    "batch norm": (
        {"encoder": nn.Sequential(nn.BatchNorm1d(5), Made(two))},
        r"encoder: 0 \(BatchNorm1d\) is in training mode, where a row's numbers depend on its batch; call \.eval",
    ),
    "branch": ({"encoder": Made(branching)}, "encoder: .*depends on the values in it.* Use torch.where"),
    "numpy": ({"encoder": Made(frozen)}, "encoder: leaves torch for numpy, which no graph can follow"),
    "batch statistics": (
        {"encoder": Made(sociable)},
        "encoder: a row's numbers depend on the rows that share its batch",
    ),
    "squeeze": ({"encoder": Made(squeezed)}, r"encoder: .*\[2\] for .*|its shape moves with the batch.*squeeze"),
    "dtype": ({"encoder": Made(halved)}, "encoder: its dtype moves with the batch: torch.float16 for 1 rows"),
    "rows": ({"encoder": Made(counting)}, r"encoder: does something else for other numbers of rows.*x\.shape\[0\]"),
    "explodes": ({"encoder": Made(exploding)}, r"encoder: its log variance explodes on the sample.*clamp\(-12, 4\)"),
    "wrong word": (
        {"encoder": Made(two), "encoder_gives": "variance"},
        r"encoder: its second output goes down to -\d.*, and a variance is above 0; say what it is by encoder_gives",
    ),
    "one output": (
        {"encoder": nn.Linear(5, 4)},
        "encoder: gives one tensor, and two are needed: the mean, and a log var",
    ),
    "three outputs": (
        {"encoder": Made(lambda f, x: (f(x), f(x), f(x)))},
        "encoder: gives 3 tensors, and two are needed",
    ),
    "unlike outputs": ({"encoder": Made(lambda f, x: (f(x), f(x)[:, :1]))}, "two of one shape are needed"),
    "wrong rows": (
        {"sample": np.ones((100, 4)) * np.arange(100)[:, None]},
        r"encoder: fails on rows of shape \[8, 4\], as the sample has them; give the sample the shape that it takes",
    ),
    "wrong shape": ({"decoder": nn.Linear(2, 4)}, r"decoder: gives \[4\] for the mean of a row, and \[5\] is needed"),
    "wrong number": (
        {"decoder_gives": "parameters"},
        "decoder: gives 1 tensors, and 2 are needed: loc, scale",
    ),
    "wrong names": (
        {"decoder": Made(lambda f, z: {"mu": f(z), "sigma": f(z)}, 2, 5), "decoder_gives": "parameters"},
        "decoder: gives a dict of mu, sigma; a dict of loc, scale is needed",
    ),
    "log scale": (
        {"decoder": Made(lambda f, z: (f(z), f(z)), 2, 5), "decoder_gives": "parameters"},
        r"decoder: scale is -.* and it is above 0; give it by softplus or exp",
    ),
    "no module": ({"encoder": two}, "encoder: a torch.nn.Module is needed, not function"),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_no_graph_can_hold_is_refused_with_the_reason(case: str) -> None:
    """Before anything is written, and with what to do about it."""
    changes, wanted = MODULES[case]
    said = refusal(**changes)
    assert re.search(wanted, said), said


WIDE = np.random.default_rng(1).random((100, 8))
GREY = np.random.default_rng(0).random((100, 5)).astype(np.float32)
LIKELIHOODS: dict[str, tuple[dict[str, Any], str]] = {
    "mse": (
        {"likelihood": "mse"},
        "'mse' is a loss: a squared error is a normal's density without its scale.* estimated",
    ),
    "bce": ({"likelihood": "bce"}, "'bce' is a loss: .*continuous_bernoulli"),
    "grey": (
        {"likelihood": "bernoulli", "sample": GREY, "decoder_gives": "logits"},
        r"bernoulli: 100\.0% of the sample's values are neither 0 nor 1, such as .* continuous_bernoulli .*binarise",
    ),
    "levels": (
        {"likelihood": "bernoulli", "sample": (GREY * 255).astype(np.uint8), "decoder_gives": "logits"},
        "Say discretised_logistic .*, or binarise the rows",
    ),
    "dense": (
        {"sample": (GREY * 255).astype(np.uint8)},
        "normal: a density over data of whole levels can grow without",
    ),
    "off support": ({"likelihood": "continuous_bernoulli", "decoder_gives": "logits"}, "off its support"),
    "no such family": ({"likelihood": "beta"}, r"likelihood 'beta' is no family\. There are bernoulli"),
    "no mean": ({"likelihood": "student_t"}, "a mean doesn't make a student_t; give its parameters, loc, scale, df"),
    "no logits": ({"decoder_gives": "logits"}, "normal has no logits; its parameters are loc, scale"),
    "prior": ({"prior": "vamp"}, "prior: has no rows; say 'standard_normal'"),
    "scale": ({"scale": -1.0}, "scale: is finite and above 0"),
    "scales": ({"scale": [1.0, 2.0]}, r"scale: of shape \[2\] for rows of \[5\]"),
    "preprocessing": ({"preprocessing": {"mean": 0}}, r"preprocessing: u = \(x − shift\)/scale; there is no mean"),
    "width": ({"preprocessing": {"scale": 0.0}}, "preprocessing: .*above 0"),
    "unknown units": (
        {
            "likelihood": "continuous_bernoulli",
            "sample": GREY,
            "decoder_gives": "logits",
            "preprocessing": {"scale": 2},
        },
        "preprocessing: the parameters of continuous_bernoulli can't be undone",
    ),
    "copied back": (
        {"decoder": Made(silent, 2, 5), "sample": np.random.default_rng(0).normal(size=(100, 5)) * [1, 1, 1, 1, 0]},
        "scale: the decoder gives feature 4 back to the last digits on held-out rows, or it never varies",
    ),
    "sigmoid for logits": (
        {
            "likelihood": "bernoulli",
            "sample": (WIDE < 0.5).astype(np.uint8),
            "encoder": Made(two, 8),
            "decoder": nn.Sequential(nn.Linear(2, 8), nn.Sigmoid()),
            "decoder_gives": "parameters",
        },
        r"decoder: ends in a sigmoid, .* say decoder_gives='probabilities'",
    ),
    "few": ({"sample": np.ones((100, 5))}, "sample: 1 different rows, and at least 40 are needed"),
    "holes": ({"sample": np.full((100, 5), np.nan)}, "sample: holds NaN"),
    "long doubles": ({"sample": np.ones((100, 5), np.longdouble)}, "sample: holds float128"),
    "splits": ({"sample": {"fit": np.ones((9, 5))}}, "sample: the splits are fit, validation, calibration, test"),
    "name": ({"name": "No Name"}, "name .No Name.: up to 64 small letters, digits, hyphens and underscores"),
    "names": ({"features": ["a"]}, "features: 1 names for 5 numbers a row"),
}


def test_a_last_softmax_is_taken_off() -> None:
    """Behind whatever leaves its axis as it is: the logits are those before it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)), nn.Softmax(-1)).eval()
    z = torch.randn(8, 2)
    graph = tracing.traced("decoder", DecoderPart(module, (2,), {"logits": (2, 3)}), z, torch.randn(5, 2))
    assert tracing.without_last(graph, ("softmax",), last_axis=True)
    assert torch.equal(graph(z)[0], module[:2](z))


@pytest.mark.parametrize("case", LIKELIHOODS)
def test_a_likelihood_that_has_no_normalisation_is_refused_with_the_fix(case: str) -> None:
    """And rows, scales and units that don't go with it."""
    changes, wanted = LIKELIHOODS[case]
    said = refusal(**changes)
    assert re.search(wanted, said), said


def test_rows_in_two_splits_are_refused() -> None:
    """A row that was calibrated on is no test row."""
    rows = np.random.default_rng(0).normal(size=(160, 5))
    splits = dict(zip(data.SPLITS, np.split(rows, 4), strict=True))
    splits["test"] = splits["test"].copy()
    splits["test"][3] = rows[0]
    assert "a row of test is in another split too" in refusal(sample=splits)


class Careless(likelihoods.ContinuousBernoulli):
    """Binary cross-entropy on grey values, taken for a density."""

    def log_prob(self, x: Tensor, parameters: likelihoods.Parameters) -> Tensor:
        """x log p + (1 − x) log(1 − p)."""
        logits = parameters["logits"].double()
        return logits * x.double() - torch.nn.functional.softplus(logits)


def test_a_density_that_does_not_integrate_to_one_is_refused() -> None:
    """Whoever brings a likelihood of their own is held to its integral."""
    said = refusal(likelihood=Careless(), sample=GREY, decoder_gives="logits")
    assert re.search(r"p\(x\|z\) integrates to 0\.\d+, not to 1", said), said


@pytest.mark.parametrize(
    ("family", "rows", "parameters"),
    [
        ("bernoulli", WIDE > 0.5, ("logits",)),
        ("discretised_logistic", (GREY * 16).astype(np.uint8), ("loc", "scale")),
        ("poisson", (GREY * 16).astype(np.int64), ("rate",)),
        ("continuous_bernoulli", GREY, ("logits",)),
        ("student_t", GREY.astype(float), ("loc", "scale", "df")),
        ("lognormal", GREY.astype(float) + 0.1, ("loc", "scale")),
    ],
)
def test_every_family_is_summed_or_integrated(family: str, rows: Array, parameters: tuple[str, ...]) -> None:
    """To 1 within 1e-6, at latents of held-out rows."""
    from training.own import assembly, given, measures
    from training.own.rows import dataset

    torch.manual_seed(0)
    decoder = Made(lambda f, z: tuple(torch.exp(f(z)) + 2.5 * (name == "df") for name in parameters), 2, rows.shape[1])
    sample = dataset(np.asarray(rows))
    likelihood = likelihoods.build(given.family(family), sample)
    pair = assembly.assembled(Made(two, rows.shape[1]), decoder, likelihood, sample, None, "log_variance", "parameters")
    assert re.search(r"to 1 within [\de-]+, at 6 latents", measures.normalisation(pair, sample))
