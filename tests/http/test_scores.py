"""Score: what its fields are, that they add up, and that a row's score is a function of the row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service import artifact
from tests.kit import COMMITTED, NPY, NPZ, House, answered, configured, digits, golden_rows, npy, open_house, refused

pytestmark = pytest.mark.anyio

MODELS = ["tiny", "mnist", "breast-cancer"]


async def scored(house: House, model: str, rows: Any, **asked: Any) -> dict[str, Any]:
    """A score as arrays."""
    query = "&".join(f"{name}={str(value).lower()}" for name, value in asked.items())
    return answered(await house.send(f"{model}/score?{query}", npy(np.asarray(rows)), content_type=NPY, accept=NPZ))


@pytest.mark.parametrize("model", MODELS)
async def test_a_score_has_its_fields_one_entry_a_row(house: House, model: str) -> None:
    """Model, version, seed and draws are echoed; the rest is one number a row, finite or null."""
    rows = golden_rows(model)
    found = await house.answer(f"{model}/score", {"inputs": rows.tolist()})
    manifest = artifact.read(COMMITTED / model / "1").manifest
    per_row = {"elbo", "elbo_error", "log_likelihood", "kl", "p_value", "anomaly"}
    per_row |= {"bits_per_dim"} if manifest.discrete else set()
    assert set(found) == per_row | {"model", "version", "elbo_error_df", "calibration", "seed", "draws"}
    assert (found["model"], found["version"], found["seed"], found["draws"]) == (model, 1, 0, 16)
    assert found["elbo_error_df"] == 3
    assert all(len(found[name]) == len(rows) for name in per_row)
    assert all(error > 0 for error in found["elbo_error"])
    assert all(kl >= 0 for kl in found["kl"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("draws", [1, 2, 15, 16, 18, 64])
async def test_elbo_is_log_likelihood_minus_kl_to_the_last_bit(house: House, model: str, draws: int) -> None:
    """As doubles, in JSON and in npz, whatever the number of draws."""
    rows = golden_rows(model)
    found = await scored(house, model, rows, draws=draws)
    assert_array_equal(found["elbo"], found["log_likelihood"] - found["kl"])
    by_json = await house.answer(f"{model}/score", {"inputs": rows.tolist(), "draws": draws})
    for name in ("elbo", "log_likelihood", "kl"):
        assert_array_equal(np.asarray(by_json[name]), found[name])


@pytest.mark.parametrize(("draws", "freedom"), [(1, 0), (2, 1), (15, 14), (16, 3), (17, 3), (256, 3)])
async def test_the_error_has_its_degrees_of_freedom(house: House, draws: int, freedom: int) -> None:
    """Four scrambles from 16 draws on; below, plain draws; with one there is no error, and null says so."""
    found = await house.answer("tiny/score", {"inputs": digits(2).tolist(), "draws": draws})
    assert found["elbo_error_df"] == freedom
    assert all((error is None) == (draws == 1) for error in found["elbo_error"])


async def test_bits_per_dim_is_the_bound_as_a_code_length(house: House) -> None:
    """−elbo / (D ln 2), where the family is discrete."""
    found = await scored(house, "mnist", golden_rows("mnist"))
    np.testing.assert_allclose(found["bits_per_dim"], -found["elbo"] / (784 * np.log(2)), rtol=1e-14)


# ---------------------------------------------------------------- the same answer


async def test_the_same_request_has_the_same_answer(house: House, small: Path) -> None:
    """To the last byte, by this process and by another."""
    body = {"inputs": digits(5).tolist(), "draws": 33, "seed": 4, "explain": True}
    first = await house.ask("tiny/score", body)
    assert first.content == (await house.ask("tiny/score", body)).content
    async with open_house(configured(small, lanes=1, batch=7)) as other:
        assert first.content == (await other.ask("tiny/score", body)).content


@pytest.mark.parametrize("model", MODELS)
async def test_a_rows_score_does_not_depend_on_its_place_or_company(house: House, model: str) -> None:
    """Alone, anywhere in a request of any size, and beside other callers: the same bits."""
    rows = golden_rows(model)
    generator = np.random.default_rng(1)
    alone = [(await scored(house, model, row[None]))["elbo"][0] for row in rows]
    picks = [generator.integers(0, len(rows), generator.integers(1, 40)) for _ in range(24)]
    answers = await asyncio.gather(*(scored(house, model, rows[pick]) for pick in picks))
    for pick, found in zip(picks, answers, strict=True):
        assert_array_equal(found["elbo"], np.asarray(alone)[pick])


@pytest.mark.parametrize("draws", [15, 16, 100, 1500, 4096])
async def test_cutting_a_request_does_not_change_its_bits(house: House, small: Path, draws: int) -> None:
    """Rows × draws past one engine call are cut along rows and draws, and the numbers stay."""
    rows = digits(3)
    whole = await scored(house, "tiny", rows, draws=draws)
    async with open_house(configured(small, batch=37)) as other:
        cut = await scored(other, "tiny", rows, draws=draws)
    for name, array in whole.items():
        assert_array_equal(cut[name], array)


async def test_explanations_do_not_depend_on_company(house: House) -> None:
    """What each feature adds is a function of the row too."""
    rows = digits(7)
    together = await scored(house, "tiny", rows, explain=True)
    for index, row in enumerate(rows):
        alone = await scored(house, "tiny", row[None], explain=True)
        assert_array_equal(alone["feature_log_likelihood"][0], together["feature_log_likelihood"][index])
        assert_array_equal(alone["latent_kl"][0], together["latent_kl"][index])


async def test_another_seed_or_number_of_draws_is_another_score(house: House) -> None:
    """Both name the noise bank, and both are echoed."""
    rows = digits(2)
    base, seeded, drawn = [
        await scored(house, "tiny", rows, **asked) for asked in ({}, {"seed": 2**53 - 1}, {"draws": 32})
    ]
    assert (int(seeded["seed"]), int(seeded["draws"])) == (2**53 - 1, 16)
    assert (int(drawn["seed"]), int(drawn["draws"])) == (0, 32)
    assert not (base["elbo"] == seeded["elbo"]).any()
    assert not (base["elbo"] == drawn["elbo"]).any()
    assert_array_equal(base["kl"], seeded["kl"])


# ---------------------------------------------------------------- explanations


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("draws", [1, 16, 50])
async def test_explanations_sum_to_the_two_terms(house: House, model: str, draws: int) -> None:
    """feature_log_likelihood to log_likelihood and latent_kl to kl, within 5e-6 × Σ|terms|."""
    rows = golden_rows(model)
    found = await scored(house, model, rows, draws=draws, explain=True)
    manifest = artifact.read(COMMITTED / model / "1").manifest
    assert found["feature_log_likelihood"].shape == rows.shape
    assert found["latent_kl"].shape == (len(rows), manifest.latent_size)
    for terms, total in (("feature_log_likelihood", "log_likelihood"), ("latent_kl", "kl")):
        flat = found[terms].reshape(len(rows), -1)
        assert (np.abs(flat.sum(1) - found[total]) <= 5e-6 * np.abs(flat).sum(1)).all()


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
async def test_p_values_are_ranks_among_the_held_out_scores(house: House, model: str, alpha: float) -> None:
    """p = (1 + #{reference ≤ elbo}) / (n + 1), and an anomaly is p ≤ alpha."""
    found = await house.answer(f"{model}/score", {"inputs": golden_rows(model).tolist(), "alpha": alpha})
    calibration = artifact.read(COMMITTED / model / "1").calibration
    assert calibration is not None
    reference = calibration["scores"]
    ranks = [(1 + int((reference <= elbo).sum())) / (len(reference) + 1) for elbo in found["elbo"]]
    assert found["p_value"] == ranks
    assert found["anomaly"] == [p <= alpha for p in ranks]
    facts = {"n": len(reference), "seed": 0, "draws": 16, "smallest_p": 1 / (len(reference) + 1), "reason": None}
    assert found["calibration"] == facts


async def test_the_calibrated_estimator_may_be_named(house: House) -> None:
    """draws 16 and seed 0, spelt out, are the calibrated ones."""
    rows = digits(2).tolist()
    spelt = await house.answer("tiny/score", {"inputs": rows, "draws": 16, "seed": 0})
    assert spelt == await house.answer("tiny/score", {"inputs": rows})
    assert None not in spelt["p_value"]


@pytest.mark.parametrize("asked", [{"seed": 1}, {"draws": 17}, {"draws": 1}, {"draws": 32, "seed": 5}])
async def test_another_estimator_has_no_p_value_and_says_why(house: House, asked: dict[str, int]) -> None:
    """Another seed or number of draws is another score; p_value and anomaly are null, calibration stays."""
    found = await house.answer("tiny/score", {"inputs": digits(2).tolist(), **asked})
    assert found["p_value"] is None
    assert found["anomaly"] is None
    assert found["calibration"]["n"] == 400
    assert (found["calibration"]["seed"], found["calibration"]["draws"]) == (0, 16)
    assert found["calibration"]["reason"]


async def test_an_uncalibrated_model_scores_without_p_values(house: House) -> None:
    """The object is there and says that there is no calibration; the score is the same."""
    rows = digits(2).tolist()
    found = await house.answer("plain/score", {"inputs": rows})
    assert found["p_value"] is None
    assert found["anomaly"] is None
    assert set(found["calibration"]) == {"n", "seed", "draws", "smallest_p", "reason"}
    assert found["calibration"]["reason"]
    plain, tiny = [await house.answer(f"{name}/score", {"inputs": rows, "seed": 1}) for name in ("plain", "tiny")]
    assert plain["elbo"] == tiny["elbo"]


async def test_an_unlikely_row_is_an_anomaly(house: House) -> None:
    """A chessboard is no digit."""
    chessboard = np.indices((8, 8)).sum(0) % 2
    found = await house.answer("tiny/score", {"inputs": [chessboard.tolist()]})
    assert found["anomaly"] == [True]
    assert found["p_value"] == [found["calibration"]["smallest_p"]]


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("draws", 0),
        ("draws", -3),
        ("draws", 1.5),
        ("draws", "16"),
        ("draws", True),
        ("draws", None),
        ("draws", [16]),
        ("seed", -1),
        ("seed", 2**53),
        ("seed", 10**30),
        ("seed", 0.5),
        ("seed", None),
        ("alpha", 0),
        ("alpha", 1),
        ("alpha", -0.1),
        ("alpha", "0.05"),
        ("alpha", None),
        ("alpha", False),
        ("explain", 1),
        ("explain", "true"),
        ("explain", None),
        ("draw", 16),
        ("temperature", 1),
        ("count", 1),
    ],
)
async def test_a_field_out_of_its_range_is_a_422_that_points_at_it(house: House, field: str, value: object) -> None:
    """Null is not a number, text is not a number, a boolean is not a number, and unknown names are refused."""
    body = refused(await house.ask("tiny/score", {"inputs": digits(1).tolist(), field: value}), 422)
    assert body["errors"][0]["pointer"].startswith(f"/{field}")
    assert body["errors"][0]["reason"]


@pytest.mark.parametrize(
    "asked", [{"seed": 0}, {"seed": 2**53 - 1}, {"alpha": 1e-9}, {"alpha": 0.999}, {"draws": 4096}]
)
async def test_the_ends_of_the_ranges_are_taken(house: House, asked: dict[str, Any]) -> None:
    """What the contract allows is answered."""
    await house.answer("tiny/score", {"inputs": digits(1).tolist(), **asked})


async def test_the_version_that_answers_is_named(house: House) -> None:
    """Without a version the highest answers, with one that one; both are echoed."""
    rows = digits(1).tolist()
    assert (await house.answer("plain/score", {"inputs": rows}))["version"] == 2
    assert (await house.answer("plain/versions/1/score", {"inputs": rows}))["version"] == 1
