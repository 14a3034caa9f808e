"""Evidence: what its fields are, that they add up, and that a row's numbers are a function of the row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.linear import made, write
from tests.kit import NPY, NPZ, Gate, House, answered, configured, digits, golden_rows, npy, open_house, refused

pytestmark = pytest.mark.anyio

PER_ROW = {"log_evidence", "log_evidence_error", "lower_bound", "elbo", "elbo_error", "gap", "gap_error"}
PER_ROW |= {"pareto_k", "effective_draws", "reliable"}


async def measured(house: House, model: str, rows: Any, **asked: Any) -> dict[str, Any]:
    """An answer as arrays."""
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    return answered(await house.send(f"{model}/evidence?{query}", npy(np.asarray(rows)), content_type=NPY, accept=NPZ))


@pytest.mark.parametrize("model", ["tiny", "breast-cancer"])
async def test_an_answer_has_its_fields_one_entry_a_row(house: House, model: str) -> None:
    """Model, version, seed, draws and confidence are echoed; the rest is one entry a row."""
    rows = golden_rows(model)
    found = await house.answer(f"{model}/evidence", {"inputs": rows.tolist()})
    assert set(found) == PER_ROW | {"model", "version", "seed", "draws", "confidence"}
    assert (found["model"], found["version"]) == (model, 1)
    assert (found["seed"], found["draws"], found["confidence"]) == (0, 4096, 0.95)
    assert all(len(found[name]) == len(rows) for name in PER_ROW)
    assert found["reliable"] == [True] * len(rows)
    assert np.all(np.asarray(found["gap"]) == np.asarray(found["log_evidence"]) - np.asarray(found["elbo"]))
    assert found["elbo"] == (await house.answer(f"{model}/score", {"inputs": rows.tolist()}))["elbo"]
    assert np.all(np.asarray(found["lower_bound"]) < np.asarray(found["log_evidence"]))


async def test_a_rows_numbers_do_not_depend_on_its_place_or_company(house: House) -> None:
    """Alone, anywhere in a request of any size, and beside other callers: the same bits."""
    rows = digits(9)
    generator = np.random.default_rng(1)
    alone = [await measured(house, "tiny", row[None], draws=700) for row in rows]
    picks = [generator.integers(0, len(rows), generator.integers(1, 12)) for _ in range(6)]
    answers = await asyncio.gather(*(measured(house, "tiny", rows[pick], draws=700) for pick in picks))
    for pick, found in zip(picks, answers, strict=True):
        for name in PER_ROW:
            assert_array_equal(found[name], np.concatenate([alone[index][name] for index in pick]))


@pytest.mark.parametrize("draws", [20, 700, 4096])
async def test_cutting_a_request_does_not_change_its_bits(house: House, small: Path, draws: int) -> None:
    """Rows × draws past one engine call are cut along rows and draws, and the numbers stay."""
    rows = digits(3)
    whole = await measured(house, "tiny", rows, draws=draws)
    async with open_house(configured(small, batch=37)) as other:
        cut = await measured(other, "tiny", rows, draws=draws)
    for name, array in whole.items():
        assert_array_equal(cut[name], array)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("draws", value) for value in (0, -1, 1.5, "16", True, None)),
        *(("seed", value) for value in (-1, 2**53, 0.5, None)),
        *(("confidence", value) for value in (0, 1, -0.5, "0.9", None)),
        ("alpha", 0.05),
    ],
)
async def test_what_is_out_of_range_is_pointed_at(house: House, field: str, value: object) -> None:
    """422, with the field's name."""
    response = await house.ask("tiny/evidence", {"inputs": digits(1).tolist(), field: value})
    assert refused(response, 422)["errors"][0]["pointer"] == f"/{field}"


async def test_draws_have_a_limit_of_their_own(house: House) -> None:
    """16,384, past score's 4,096; rows × draws has the same limit as everywhere."""
    assert "16384 draws" in (refused(await house.ask("tiny/evidence", {"inputs": [], "draws": 16_385}), 413))["detail"]
    rows = digits(257).tolist()
    assert "rows × draws" in (refused(await house.ask("tiny/evidence", {"inputs": rows}), 413))["detail"]
    assert (await house.answer("tiny/evidence", {"inputs": rows[:1], "draws": 16_384}))["reliable"] == [True]


# ---------------------------------------------------------------- what it costs, and what can't be given


@pytest.mark.parametrize("draws", [1, 2, 15, 16, 20, 511, 512, 600, 4096])
async def test_the_decoder_is_called_as_often_as_was_asked_for(small: Path, draws: int) -> None:
    """The bound's calls and the joint's are `draws` a row, to the last one; below 512 one pass gives both numbers."""
    gate = Gate()
    async with open_house(configured(small), opener=gate.opener) as house:
        gate.calls.clear()
        gate.costs.clear()
        found = await house.answer("tiny/evidence", {"inputs": digits(2).tolist(), "draws": draws})
        spent = gate.decoder_rows("elbo") + gate.decoder_rows("joint")
        assert spent == 2 * draws
        assert (gate.rows("joint") > 0) == (draws >= 512)
    assert all(np.isfinite(found["log_evidence"]))
    assert all(np.isfinite(found["lower_bound"]))
    assert all((error is None) == (draws == 1) for error in found["elbo_error"])


@pytest.mark.parametrize("draws", [1, 15, 18])
async def test_too_few_draws_are_never_reliable(house: House, draws: int) -> None:
    """No diagnostic, no error, flagged; the estimate and the bound are given all the same."""
    found = await house.answer("tiny/evidence", {"inputs": digits(2).tolist(), "draws": draws})
    for name in ("pareto_k", "log_evidence_error", "gap_error"):
        assert found[name] == [None, None]
    assert found["reliable"] == [False, False]
    score = await house.answer("tiny/score", {"inputs": digits(2).tolist(), "draws": draws})
    assert found["elbo"] == score["elbo"]


async def test_absurd_rows_cost_the_others_nothing(house: House) -> None:
    """10²⁰⁰ in a column: null and flagged; its neighbours have the same bits as without it."""
    rows = golden_rows("breast-cancer")[:3].copy()
    clean = await measured(house, "breast-cancer", rows[::2], draws=600)
    rows[1, 4] = 1e200
    found = await house.answer("breast-cancer/evidence", {"inputs": rows.tolist(), "draws": 600})
    for name in PER_ROW - {"reliable"}:
        assert_array_equal(np.asarray(found[name], float)[::2], clean[name])
    assert found["reliable"][1] is False
    for name in ("log_evidence", "log_evidence_error", "lower_bound", "gap", "gap_error"):
        assert found[name][1] is None


async def test_a_linear_models_numbers_are_exact(tmp_path: Path) -> None:
    """Through the served path: the evidence within 0.02 nat, the gap within three of its errors."""
    model = made(4, stretch=0.7, shift=0.4)
    write(model, tmp_path, "linear")
    x = model.sample(12, 3)
    async with open_house(configured(tmp_path)) as house:
        found = await measured(house, "linear", x)
    assert found["reliable"].all()
    assert np.abs(found["log_evidence"] - model.evidence(x)).max() < 0.02
    assert (np.abs(found["gap"] - model.gap(x)) < 3 * found["gap_error"]).all()
    assert (found["lower_bound"] < model.evidence(x)).all()


async def test_confidence_moves_the_bound_alone(house: House) -> None:
    """More of it, a lower bound; all else stays."""
    rows = digits(2)
    low, high = [await measured(house, "tiny", rows, draws=600, confidence=c) for c in (0.5, 0.999)]
    assert (high["lower_bound"] < low["lower_bound"]).all()
    for name in PER_ROW - {"lower_bound"}:
        assert_array_equal(low[name], high[name])


async def test_another_seed_is_another_estimate_of_the_same_number(house: House) -> None:
    """They differ, by no more than their errors allow; the bound that score gives stays."""
    rows = digits(3)
    first, second = [await measured(house, "tiny", rows, seed=seed) for seed in (0, 2**53 - 1)]
    assert (first["log_evidence"] != second["log_evidence"]).all()
    assert np.abs(first["log_evidence"] - second["log_evidence"]).max() < 0.1
    assert_array_equal(first["elbo"], second["elbo"])
