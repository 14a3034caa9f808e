"""Score: what its fields are, that they add up, and that a row's score is a function of the row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service import artifact
from tests.kit import (
    COMMITTED,
    NPY,
    NPZ,
    Gate,
    House,
    answered,
    configured,
    copied,
    digits,
    golden_rows,
    npy,
    open_house,
    refused,
)

pytestmark = pytest.mark.anyio

MODELS = ["tiny", "mnist", "breast-cancer"]
NAMES = ["elbo", "log_likelihood", "kl", "iwae_gap", "typicality", "density_of_states"]


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
    assert set(found) == per_row | {"model", "version", "elbo_error_df", "calibration", "seed", "draws", "scores"}
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
    alone = [await scored(house, model, row[None]) for row in rows]
    picks = [generator.integers(0, len(rows), generator.integers(1, 40)) for _ in range(24)]
    answers = await asyncio.gather(*(scored(house, model, rows[pick]) for pick in picks))
    for pick, found in zip(picks, answers, strict=True):
        for name in ("elbo", *(f"scores.{score}.value" for score in NAMES)):
            assert_array_equal(found[name], [alone[place][name][0] for place in pick])


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
        assert_array_equal(alone["feature_deviation"][0], together["feature_deviation"][index])
        assert_array_equal(alone["latent_deviation"][0], together["latent_deviation"][index])


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
    """p = (1 + #{reference as strange, or stranger}) / (n + 1); p ≤ alpha by the score that is named flags."""
    found = await house.answer(f"{model}/score", {"inputs": golden_rows(model).tolist(), "alpha": alpha})
    read = artifact.read(COMMITTED / model / "1")
    assert read.calibration is not None
    assert read.manifest.calibration is not None
    named = read.manifest.calibration.named
    assert list(found["scores"]) == list(named) == NAMES
    for name, one in found["scores"].items():
        reference = read.calibration["scores" if name == "elbo" else f"scores.{name}"]
        sign = 1 if named[name].strange == "low" else -1
        ranks = [(1 + int((sign * reference <= sign * value).sum())) / (len(reference) + 1) for value in one["value"]]
        assert one["p_value"] == ranks
    chosen, n = read.manifest.calibration.chosen, read.manifest.calibration.n
    assert found["p_value"] == found["scores"][chosen]["p_value"]
    assert found["anomaly"] == [p <= alpha for p in found["p_value"]]
    warning = None if alpha >= 1 / (n + 1) else f"no row can have p ≤ {alpha}: the least is {1 / (n + 1):.3g}"
    facts = {"n": n, "seed": 0, "draws": 16, "smallest_p": 1 / (n + 1), "reason": None}
    assert found["calibration"] == {**facts, "score": chosen, "warning": warning}


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
    assert list(found["scores"]) == NAMES
    assert all(one["p_value"] is None and None not in one["value"] for one in found["scores"].values())
    assert found["calibration"]["n"] == 400
    assert (found["calibration"]["seed"], found["calibration"]["draws"]) == (0, 16)
    assert found["calibration"]["reason"]


async def test_an_uncalibrated_model_scores_without_p_values(house: House) -> None:
    """The object is there and says that there is no calibration; the score is the same."""
    rows = digits(2).tolist()
    found = await house.answer("plain/score", {"inputs": rows})
    assert found["p_value"] is None
    assert found["anomaly"] is None
    assert set(found["calibration"]) == {"n", "seed", "draws", "smallest_p", "reason", "score", "warning"}
    assert found["calibration"]["reason"]
    assert list(found["scores"]) == ["elbo", "log_likelihood", "kl", "iwae_gap"]
    assert all(one["p_value"] is None and len(one["value"]) == 2 for one in found["scores"].values())
    plain, tiny = [await house.answer(f"{name}/score", {"inputs": rows, "seed": 1}) for name in ("plain", "tiny")]
    assert plain["elbo"] == tiny["elbo"]


async def test_an_unlikely_row_is_an_anomaly(house: House) -> None:
    """A chessboard is no digit."""
    chessboard = np.indices((8, 8)).sum(0) % 2
    found = await house.answer("tiny/score", {"inputs": [chessboard.tolist()]})
    assert found["anomaly"] == [True]
    assert found["p_value"] == [found["calibration"]["smallest_p"]]


# ---------------------------------------------------------------- several scores


async def test_the_scores_are_what_they_are_called(house: House) -> None:
    """elbo, log_likelihood and kl are the fields of those names; gaps and distances are never negative."""
    found = await scored(house, "tiny", digits(9))
    for name in ("elbo", "log_likelihood", "kl"):
        assert_array_equal(found[f"scores.{name}.value"], found[name])
    assert (found["scores.iwae_gap.value"] >= 0).all()
    assert (found["scores.typicality.value"] >= 0).all()


async def test_the_gap_is_that_of_averaged_weights(house: House) -> None:
    """log mean w − mean log w over the same draws, by the graph's own weights."""
    rows = digits(4)
    model = house.app.state.models.get("tiny")
    bank = await model.bank(0, 32)
    answer = await model.ask("elbo", {"x": rows}, bank=bank)
    log_weight = answer.outputs["log_weight"].astype(np.float64)
    gap = np.log(np.exp(log_weight).mean(-1)) - log_weight.mean(-1)
    found = await scored(house, "tiny", rows, draws=32)
    np.testing.assert_allclose(found["scores.iwae_gap.value"], gap, rtol=1e-9, atol=1e-12)


async def test_the_encoder_is_asked_only_where_a_score_needs_it(models: Path) -> None:
    """An artifact without a density of states costs one graph; with one, two, at the same time."""
    gate = Gate()
    async with open_house(configured(models, required="tiny,plain"), opener=gate.opener) as house:
        for model, graphs in (("plain", {"elbo"}), ("tiny", {"elbo", "encoder"})):
            gate.calls.clear()
            await house.answer(f"{model}/score", {"inputs": digits(1).tolist()})
            assert {graph for graph, _ in gate.calls} == graphs


async def test_what_was_calibrated_before_there_were_several_scores_is_served(tmp_path: Path) -> None:
    """Its elbo has p-values, what needs no calibration has values, and the rest isn't there."""
    folder = copied("older", tmp_path)
    found = artifact.read(folder)
    assert found.manifest.calibration is not None
    assert found.calibration is not None
    new = {"scores": None, "anomaly": None, "validation": None, "terms": None}
    arrays = {name: found.calibration[name] for name in ("scores", "noise")}
    changes = {"calibration": found.manifest.calibration.model_dump() | new}
    artifact.rewrite(found, changes, {artifact.CALIBRATION: artifact.pack(arrays)})
    async with open_house(configured(tmp_path)) as house:
        answer = await house.answer("older/score", {"inputs": digits(3).tolist(), "explain": True})
    ranked = {name: one["p_value"] is not None for name, one in answer["scores"].items()}
    assert ranked == {"elbo": True, "log_likelihood": False, "kl": False, "iwae_gap": False}
    assert answer["p_value"] == answer["scores"]["elbo"]["p_value"]
    assert answer["calibration"]["score"] == "elbo"
    assert not {"feature_deviation", "latent_deviation"} & set(answer)


async def test_deviations_are_larger_the_stranger_a_term_is(house: House) -> None:
    """Less likely than held-out rows' features, or costing more than their latents, is above 0; they have names."""
    rows = golden_rows("breast-cancer")
    found = await house.answer("breast-cancer/score", {"inputs": rows.tolist(), "explain": True})
    stored = artifact.read(COMMITTED / "breast-cancer" / "1").calibration
    assert stored is not None
    features, latents = np.array(found["feature_log_likelihood"]), np.array(found["latent_kl"])
    away = (stored["terms.feature.centre"] - features) / stored["terms.feature.scale"]
    np.testing.assert_allclose(found["feature_deviation"], away)
    away = (latents - stored["terms.latent.centre"]) / stored["terms.latent.scale"]
    np.testing.assert_allclose(found["latent_deviation"], away)
    assert found["feature_names"][0] == "mean radius"
    assert len(found["feature_names"]) == 30
    spoilt = rows[:1].copy()
    spoilt[0, 3] *= 10
    changed = await house.answer("breast-cancer/score", {"inputs": spoilt.tolist(), "explain": True})
    assert np.argmax(changed["feature_deviation"][0]) == 3


async def test_explanations_in_npz_hold_what_json_holds(house: House) -> None:
    """Names of columns too, as text and never as pickles."""
    rows = golden_rows("breast-cancer")[:2]
    by_npz = await scored(house, "breast-cancer", rows, explain=True)
    by_json = await house.answer("breast-cancer/score", {"inputs": rows.tolist(), "explain": True})
    assert by_npz["feature_names"].tolist() == by_json["feature_names"]
    for name in ("feature_deviation", "latent_deviation"):
        assert_array_equal(by_npz[name], by_json[name])
    unexplained = await scored(house, "breast-cancer", rows)
    assert not {"feature_deviation", "latent_deviation", "feature_names"} & set(unexplained)


async def test_without_a_calibration_for_it_an_explanation_has_no_deviations(house: House) -> None:
    """Neither where there is none, nor for another seed."""
    rows = digits(1).tolist()
    for model, asked in (("plain", {}), ("tiny", {"seed": 1})):
        found = await house.answer(f"{model}/score", {"inputs": rows, "explain": True, **asked})
        assert "latent_kl" in found
        assert not {"feature_deviation", "latent_deviation"} & set(found)


# ---------------------------------------------------------------- many rows at once


async def test_with_fdr_rows_are_decided_together(house: House) -> None:
    """Benjamini & Hochberg on the request's p-values: a row may be a discovery in one batch and not in another."""
    chessboards = np.repeat((np.indices((8, 8)).sum(0) % 2)[None], 6, axis=0)
    rows = np.concatenate([chessboards, golden_rows("tiny"), digits(86)]).astype(np.uint8)
    found = await house.answer("tiny/score", {"inputs": rows.tolist(), "fdr": 0.1})
    p = np.array(found["p_value"])
    ordered = np.sort(p)
    most = max(value for k, value in enumerate(ordered, 1) if value <= 0.1 * k / len(p))
    assert found["anomaly"] == (p <= most).tolist()
    assert found["anomaly"][:6] == [True] * 6
    lone = await house.answer("tiny/score", {"inputs": rows[5:].tolist(), "fdr": 0.1})
    assert lone["p_value"] == found["p_value"][5:]
    fewest = np.ceil(len(p) / 401 / 0.1)
    assert found["calibration"]["warning"].startswith(f"of {len(p)} rows at fdr 0.1 fewer than {fewest:.0f} together")
    assert f"{len(p) * 10 - 1} calibration rows" in found["calibration"]["warning"]


async def test_fdr_says_where_nothing_can_be_found(house: House) -> None:
    """And says nothing where a lone discovery can be made."""
    rows = digits(3).tolist()
    found = await house.answer("tiny/score", {"inputs": rows, "fdr": 0.001})
    assert found["anomaly"] == [False] * 3
    assert "none can be found" in found["calibration"]["warning"]
    found = await house.answer("tiny/score", {"inputs": rows, "fdr": 0.1})
    assert found["calibration"]["warning"] is None


@pytest.mark.parametrize("model", ["plain", "tiny"])
async def test_fdr_decides_nothing_without_p_values(house: House, model: str) -> None:
    """Where p_value is null, anomaly is."""
    found = await house.answer(f"{model}/score", {"inputs": digits(2).tolist(), "fdr": 0.1, "seed": 9})
    assert found["p_value"] is None
    assert found["anomaly"] is None


async def test_with_fdr_alpha_decides_nothing(house: House) -> None:
    """Whether it is spelt out or not, in JSON and in the query."""
    rows = digits(5)
    found = await house.answer("tiny/score", {"inputs": rows.tolist(), "fdr": 0.1})
    assert found == await house.answer("tiny/score", {"inputs": rows.tolist(), "fdr": 0.1, "alpha": 0.999})
    assert (await scored(house, "tiny", rows, fdr=0.1, alpha=0.999))["anomaly"].tolist() == found["anomaly"]


async def test_corrected_p_values_are_larger_and_keep_their_order(house: House) -> None:
    """Every score's; smallest_p is the least that can then be had, and anomaly follows."""
    rows = golden_rows("tiny").tolist()
    plain = await house.answer("tiny/score", {"inputs": rows})
    found = await house.answer("tiny/score", {"inputs": rows, "correction": "simes"})
    surer = await house.answer("tiny/score", {"inputs": rows, "correction": "simes", "confidence": 0.99})
    for name in NAMES:
        p, corrected, more = (np.array(each["scores"][name]["p_value"]) for each in (plain, found, surer))
        assert (corrected[np.argsort(p)] == np.sort(corrected)).all()
        assert (corrected[p < 0.5] > p[p < 0.5]).all()
        assert (more >= corrected).all()
        assert (corrected <= 1).all()
    assert found["calibration"]["smallest_p"] == pytest.approx(1 - 0.1 ** (1 / 200))
    assert found["anomaly"] == [p <= 0.05 for p in found["p_value"]]


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
        ("fdr", 0),
        ("fdr", 1),
        ("fdr", -0.1),
        ("fdr", "0.1"),
        ("fdr", True),
        ("correction", "bonferroni"),
        ("correction", None),
        ("correction", 1),
        ("confidence", 0),
        ("confidence", 1),
        ("confidence", None),
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
    "asked",
    [
        {"seed": 0},
        {"seed": 2**53 - 1},
        {"alpha": 1e-9},
        {"alpha": 0.999},
        {"draws": 4096},
        {"fdr": None, "alpha": 0.1},
        {"fdr": 1e-9},
        {"fdr": 0.999},
        {"correction": "none"},
        {"correction": "simes", "confidence": 0.999},
    ],
)
async def test_the_ends_of_the_ranges_are_taken(house: House, asked: dict[str, Any]) -> None:
    """What the contract allows is answered."""
    await house.answer("tiny/score", {"inputs": digits(1).tolist(), **asked})


async def test_the_version_that_answers_is_named(house: House) -> None:
    """Without a version the highest answers, with one that one; both are echoed."""
    rows = digits(1).tolist()
    assert (await house.answer("plain/score", {"inputs": rows}))["version"] == 2
    assert (await house.answer("plain/versions/1/score", {"inputs": rows}))["version"] == 1
