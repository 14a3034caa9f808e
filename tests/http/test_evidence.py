"""Evidence: what its fields are, that they add up, and that a row's numbers are a function of the row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.kit import NPY, NPZ, House, answered, configured, digits, golden_rows, npy, open_house, refused

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
