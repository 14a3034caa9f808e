"""Families in graphs: each holds to float64 and gives a row the same bits in any batch, at rows however absurd."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.artifact import Array, Arrays, Feature, Graph, Support
from training import config, graphs, independence, likelihoods
from training import exporting as export
from training.config import Unusable
from training.data import DataSet, split
from training.likelihoods import Likelihood, Mixed, total

ROWS, WIDTH = 320, 5
RANDOM = np.random.default_rng(0)
SCALES = np.array([1e-3, 1.0, 30.0, 1e5, 7.0])
RATES = np.array([0.05, 1.0, 30.0, 2e4, 300.0]) * np.exp(RANDOM.normal(0, 0.5, (ROWS, WIDTH)))
REAL, COUNTS = Support(kind="real"), Support(kind="counts")


def levels(lowest: int, highest: int) -> tuple[NDArray[Any], Support]:
    """Rows of levels, and what their source says of them."""
    rows = RANDOM.integers(lowest, highest + 1, (ROWS, WIDTH)).astype(np.uint8)
    return rows, Support(kind="levels", lowest=lowest, highest=highest, step=1)


TAILED = RANDOM.standard_t(3, (ROWS, WIDTH)) * SCALES + 10 * SCALES
COUNTED = RANDOM.poisson(RATES).astype(np.int64)
DATA: dict[str, tuple[NDArray[Any], Support]] = {
    "bernoulli": levels(0, 1),
    "discretised_logistic": levels(0, 16),
    "categorical": levels(1, 5),
    "ordinal": levels(0, 6),
    "normal": (TAILED, REAL),
    "student_t": (TAILED, REAL),
    "lognormal": (np.exp(RANDOM.normal(1, 1, (ROWS, WIDTH))) * SCALES, REAL),
    "quantile_normal": (np.where(TAILED > 10 * SCALES, TAILED, TAILED / 20), REAL),
    "poisson": (COUNTED, COUNTS),
    "negative_binomial": (COUNTED, COUNTS),
    "zero_inflated_negative_binomial": (COUNTED * (RANDOM.random((ROWS, WIDTH)) < 0.6), COUNTS),
    "continuous_bernoulli": (RANDOM.beta(0.4, 0.6, (ROWS, WIDTH)), REAL),
}
# bernoulli, discretised_logistic and normal are in the committed artifacts; negative_binomial is in the story.
FAMILIES = ["categorical", "ordinal", "lognormal", "quantile_normal", "poisson", "zero_inflated_negative_binomial"]
FAMILIES += ["continuous_bernoulli"]
WANTED: list[dict[str, object]] = [{"family": "student_t", "scale": "decoder"}, {"family": "normal", "scale": "shared"}]
WANTED += [{"family": family} for family in FAMILIES]


class Alone(nn.Module):
    """A likelihood without networks: rows and the decoder's heads → their log-likelihood and the mean."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log_likelihood (n,), mean (n, D), and what the encoder is given."""
        parameters = self.likelihood.parameters_of(z)
        log_likelihood = total(self.likelihood.log_prob(x, parameters))
        return log_likelihood, self.likelihood.mean(parameters), self.likelihood.standardised(x, torch.float32)


def built(wanted: dict[str, object], rows: NDArray[Any], support: Support, **names: Any) -> Likelihood:
    """The likelihood that a config names, on these rows."""
    plain = {"name": "t", "data": {"name": "digits"}, "latent_size": 2, "likelihood": wanted}
    mlp = {"kind": "mlp", "sizes": [4]}
    run = config.check({**plain, "encoder": mlp, "decoder": mlp}, "a test")
    count = len(rows) // 4
    data = DataSet("made up", support, split(rows, (len(rows) - 3 * count, count, count, count), 0), **names)
    torch.manual_seed(0)
    return likelihoods.build(run.likelihood, data).requires_grad_(False)


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: "-".join(wanted.values()))
def test_a_family_holds_in_the_runtime(wanted: dict[str, object]) -> None:
    """Against torch in float64 within 5e-6 of the terms; the same bits in any batch and at any address."""
    rows, support = DATA[str(wanted["family"])]
    alone = Alone(built(wanted, rows, support))
    generator = torch.Generator().manual_seed(1)
    heads = 2 * torch.randn((ROWS, *alone.likelihood.head_shape(WIDTH)), generator=generator)
    feeds: Arrays = {"x": rows[::-1].copy(), "z": heads.numpy()}
    outputs = ("log_likelihood", "mean", "encoded")
    example = {name: torch.from_numpy(value[:3]) for name, value in feeds.items()}
    session = export.session(graphs.export("alone", alone, example, outputs))

    def run(some: Mapping[str, Array]) -> Arrays:
        return dict(zip(outputs, session.run(None, dict(some)), strict=True))

    independence.check(Graph("alone", ("x", "z"), dict.fromkeys(outputs, "n")), run, feeds)
    exact = Alone(copy.deepcopy(alone.likelihood).double())
    x, doubled = torch.from_numpy(feeds["x"]), heads.double()
    terms = exact.likelihood.log_prob(x, exact.likelihood.parameters_of(doubled)).abs().sum(-1).numpy()
    found, wanted_outputs = run(feeds), [value.double().numpy() for value in exact(x, doubled)]
    assert (np.abs(found["log_likelihood"] - wanted_outputs[0]) <= export.OF_SUM * np.maximum(1, terms)).all()
    np.testing.assert_allclose(found["mean"], wanted_outputs[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["encoded"], wanted_outputs[2], rtol=1e-6, atol=1e-6)


TABLE = np.column_stack((COUNTED[:, 1], TAILED[:, 2], COUNTED[:, 2] % 3, np.full(ROWS, 2.0))).astype(np.float64)
NAMES = {"features": tuple(Feature(name=name) for name in ("visits", "height", "kind", "same"))}
VISITS: dict[str, object] = {"columns": ["visits"], "family": "poisson"}
HEIGHT: dict[str, object] = {"columns": ["height"], "family": "normal"}
KIND: dict[str, object] = {"columns": [2], "family": "categorical"}
SAME: dict[str, object] = {"columns": ["same"], "family": "negative_binomial"}


def test_a_mixed_table_is_its_blocks() -> None:
    """Each column's log p is its own family's, in the columns' own order, and the manifest's blocks say which."""
    both = {"columns": [3, "visits"], "family": "poisson"}
    mixed = built({"family": "mixed", "blocks": [KIND, both, HEIGHT]}, TABLE, REAL, **NAMES)
    assert isinstance(mixed, Mixed)
    assert [(block.name, block.columns) for block in mixed.blocks] == [
        *(("categorical", [2]), ("poisson", [3, 0]), ("normal", [1]))
    ]
    assert mixed.base_measure == "mixed"
    assert mixed.head_shape(4) == (1, 3 + 2 + 1)
    heads = torch.randn((7, 1, 6), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(TABLE[:7])
    parameters = mixed.parameters_of(heads)
    found = mixed.log_prob(x, parameters)
    for column, name, own in ((0, "poisson", 1), (1, "normal", 0), (2, "categorical", 0), (3, "poisson", 0)):
        part = next(part for part in mixed.parts if part.name == name)
        each = {key.partition(".")[2]: value for key, value in parameters.items() if key.startswith(name)}
        alone = part.likelihood.log_prob(x[:, list(part.columns)], each)
        assert torch.equal(found[:, column], alone[:, own])
    assert mixed.mean(parameters).shape == (7, 4)
    mixed.check(mixed.sample(parameters, torch.Generator().manual_seed(0)).numpy())


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([VISITS, HEIGHT, KIND], "column same is in 0 blocks"),
        ([VISITS, HEIGHT, KIND, SAME, {"columns": [0], "family": "ordinal"}], "column visits is in 2 blocks"),
        ([VISITS, HEIGHT, KIND, {**SAME, "columns": ["other"]}], "no column 'other'"),
        ([VISITS, HEIGHT, KIND, {**SAME, "columns": [4]}], "no column 4"),
        ([VISITS, HEIGHT, KIND, {**SAME, "family": "poisson"}], "two blocks are named poisson"),
        ([VISITS, HEIGHT, KIND, {**SAME, "family": "normal", "name": "b"}], "column same never varies"),
        ([VISITS, HEIGHT, KIND, {**SAME, "family": "categorical", "name": "b"}], "column same has one level alone"),
        ([{**VISITS, "family": "lognormal"}, HEIGHT, KIND, SAME], "column visits holds a number that isn't above 0"),
        (
            [VISITS, {**HEIGHT, "family": "zero_inflated_negative_binomial"}, KIND, SAME],
            "block zero_inflated.* whole numbers from 0",
        ),
        ([VISITS, {**HEIGHT, "family": "ordinal"}, KIND, SAME], "needs data of whole levels"),
        (
            [VISITS, {**HEIGHT, "family": "continuous_bernoulli"}, KIND, SAME],
            "off its support: it takes numbers from 0",
        ),
    ],
)
def test_blocks_that_do_not_go_with_the_table_are_refused(blocks: list[dict[str, object]], reason: str) -> None:
    """One line names the column and says why."""
    with pytest.raises(Unusable, match=reason) as refused:
        built({"family": "mixed", "blocks": blocks}, TABLE, REAL, **NAMES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("family", "rows", "support", "reason"),
    [
        ("poisson", DATA["bernoulli"][0], DATA["bernoulli"][1], "keep them as int32 or int64"),
        ("poisson", TAILED, REAL, "below 0|off its support"),
        ("negative_binomial", np.abs(TAILED), REAL, "off its support: it takes whole numbers"),
        ("lognormal", COUNTED, COUNTS, "use negative_binomial"),
        ("student_t", *DATA["ordinal"], "use discretised_logistic"),
        ("mixed", COUNTED, COUNTS, "needs a table of float64"),
    ],
)
def test_data_off_a_familys_support_is_refused(family: str, rows: NDArray[Any], support: Support, reason: str) -> None:
    """Before anything is fitted, in one line."""
    wanted: dict[str, object] = {"family": family}
    if family == "mixed":
        wanted["blocks"] = [{"columns": [0], "family": "poisson"}]
    with pytest.raises(Unusable, match=reason):
        built(wanted, rows, support)
