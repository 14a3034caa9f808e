"""Missing values on the wire: null and NaN where a model was trained for them, and refused everywhere else."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service import artifact
from service.artifact import Array
from service.errors import Late
from tests.kit import JSON, NPY, NPZ, House, answered, configured, npy, open_house, refused

pytestmark = pytest.mark.anyio


def rows(count: int, seed: int = 0) -> Array:
    """Black and white digits with holes of all sizes: the first is complete, and the last is nothing."""
    g = np.random.default_rng(seed)
    whole = (g.random((count, 8, 8)) < 0.4).astype(np.float64)
    whole[g.random(whole.shape) < np.linspace(0, 0.9, count)[:, None, None]] = np.nan
    whole[-1] = np.nan
    return whole


def nulls(values: Array) -> Any:
    """Rows as JSON has them."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


async def answer(house: House, operation: str, values: Array, **asked: Any) -> dict[str, Any]:
    """An answer as arrays, to NaN in npy."""
    query = "&".join(f"{name}={str(value).lower()}" for name, value in asked.items())
    sent = await house.send(f"holed/{operation}?{query}", npy(values), content_type=NPY, accept=NPZ)
    return answered(sent)


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize("operation", ["score", "encode", "reconstruct", "impute", "evidence"])
async def test_null_in_json_is_nan_in_npy(holed_house: House, operation: str) -> None:
    """The same bits either way, finite for complete rows, rows with holes, and rows of nothing."""
    values = rows(6)
    by_json = await holed_house.answer(f"holed/{operation}", {"inputs": nulls(values)})
    by_npy = await answer(holed_house, operation, values)
    for name, array in by_npy.items():
        if array.dtype.kind == "f" and "." not in name:
            assert_array_equal(np.asarray(by_json[name], array.dtype), array)
    for name in {"elbo", "kl", "mean", "scale", "outputs", "imputations", "log_evidence"} & by_npy.keys():
        assert np.isfinite(by_npy[name]).all()


async def test_a_complete_row_is_scored_as_by_any_model(holed_house: House) -> None:
    """With its p-value; and integers and whole floats are the same rows."""
    whole = rows(5)[:1]
    by_float = await holed_house.answer("holed/score", {"inputs": whole.tolist()})
    by_int = await holed_house.answer("holed/score", {"inputs": whole.astype(int).tolist()})
    assert by_float == by_int
    assert by_float["calibration"]["reason"] is None
    assert by_float["p_value"][0] > 0


async def test_a_row_with_holes_has_no_p_value_and_the_reason_is_given(holed_house: House) -> None:
    """The reference rows are complete; a row with fewer terms isn't comparable. Complete rows beside it keep theirs."""
    values = rows(4)
    found = await holed_house.answer("holed/score", {"inputs": nulls(values)})
    alone = await holed_house.answer("holed/score", {"inputs": nulls(values[:1])})
    assert found["p_value"] == [alone["p_value"][0], None, None, None]
    assert found["anomaly"] == [alone["anomaly"][0], None, None, None]
    assert "missing" in found["calibration"]["reason"]
    assert found["calibration"]["n"] == 400
    assert all(score["p_value"][1:] == [None] * 3 for score in found["scores"].values())


async def test_a_missing_value_is_not_a_strange_one(holed_house: House) -> None:
    """Its deviation from the calibration is null, as that of no other feature is."""
    values = rows(5)
    found = await answer(holed_house, "score", values, explain=True)
    assert_array_equal(np.isnan(found["feature_deviation"]), np.isnan(values))


async def test_missing_features_add_exactly_nothing(holed_house: House) -> None:
    """Their terms are 0, the others sum to the bound's, bits are a seen dimension's, and nothing is −KL."""
    values = rows(8)
    found = await answer(holed_house, "score", values, explain=True)
    gone = np.isnan(values)
    terms = found["feature_log_likelihood"]
    assert not terms[gone].any()
    assert (terms[~gone] < 0).all()
    np.testing.assert_allclose(terms.reshape(8, -1).sum(1), found["log_likelihood"], rtol=5e-6, atol=1e-9)
    seen = (~gone).reshape(8, -1).sum(1)
    np.testing.assert_allclose(found["bits_per_dim"][:-1], -found["elbo"][:-1] / (seen[:-1] * np.log(2)), rtol=1e-14)
    assert np.isnan(found["bits_per_dim"][-1])
    assert found["elbo"][-1] == -found["kl"][-1] <= 0


@pytest.mark.parametrize("operation", ["score", "reconstruct"])
async def test_a_row_with_holes_does_not_depend_on_its_company(holed_house: House, holed: Path, operation: str) -> None:
    """Alone, among others, beside other callers, and cut into pieces: the same bits."""
    values = rows(7)
    asked = {"explain": True, "conditionals": True, "draws": 64} if operation == "score" else {}
    together = await answer(holed_house, operation, values, **asked)
    names = {name for name, array in together.items() if array.shape[:1] == (7,)}
    alone = await asyncio.gather(*(answer(holed_house, operation, row[None], **asked) for row in values))
    async with open_house(configured(holed, batch=13)) as other:
        cut = await answer(other, operation, values, **asked)
    for name in names:
        assert_array_equal(np.concatenate([found[name] for found in alone]), together[name])
        assert_array_equal(cut[name], together[name])


async def test_large_bodies_with_nulls_are_read(holed_house: House) -> None:
    """Past the size to which bad bodies are read again slowly; the numbers are those of npy."""
    values = np.tile(rows(512), (8, 1, 1))
    body = json.dumps({"draws": 1, "inputs": nulls(values)}).encode()
    assert len(body) > 2**20
    found = answered(await holed_house.send("holed/score", body, content_type=JSON, accept=NPZ))
    assert_array_equal(found["elbo"], (await answer(holed_house, "score", values, draws=1))["elbo"])


async def test_null_in_text_is_text(holed_house: House) -> None:
    """A field's name, or a value, that reads null is what it is."""
    body = refused(await holed_house.ask("holed/score", {"inputs": nulls(rows(3)), "null": 1}), 422)
    assert body["errors"][0]["pointer"] == "/null"
    body = refused(await holed_house.ask("holed/score", {"inputs": nulls(rows(3)), "draws": "null"}), 422)
    assert body["errors"][0]["pointer"] == "/draws"


# ---------------------------------------------------------------- what is refused


def spoilt(place: object, inside: object) -> list[Any]:
    """Two rows with holes, and something else in the second."""
    values = nulls(rows(3)[:2])
    if place is None:
        return [*values, inside]
    values[1][2][3] = inside
    return list(values)


@pytest.mark.parametrize(
    ("inputs", "pointer"),
    [
        (spoilt(1, "1"), "/inputs/1/2/3"),
        (spoilt(1, "null"), "/inputs/1/2/3"),
        (spoilt(1, True), "/inputs/1/2/3"),
        (spoilt(1, [None]), "/inputs/1/2"),
        (spoilt(1, {}), "/inputs/1/2/3"),
        (spoilt(1, 0.5), "/inputs/1/2/3"),
        (spoilt(1, 2), "/inputs/1/2/3"),
        (spoilt(None, None), "/inputs/2"),
        (spoilt(None, [None] * 8), "/inputs/2"),
        ([None, None], "/inputs"),
        ([[None] * 8], "/inputs"),
        (None, "/inputs"),
    ],
)
async def test_what_is_wrong_beside_a_null_is_refused_with_its_place(
    holed_house: House, inputs: object, pointer: str
) -> None:
    """Text, booleans, ragged rows, other shapes and values off the support, as they are without nulls."""
    body = refused(await holed_house.ask("holed/score", {"inputs": inputs}), 422)
    assert body["errors"][0]["pointer"].startswith(pointer)
    assert body["errors"][0]["reason"]


async def test_large_bodies_that_are_wrong_are_refused(holed_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged by one value or with text in them, past what is read again slowly: a 422 that points at the array."""
    monkeypatch.setattr("service.http.wire.DIAGNOSED", 1024)
    values = nulls(rows(16))
    body = json.dumps({"draws": 1, "inputs": values}).encode()
    for last in (b', "1"', b", true", b", [null]", b""):
        wrong = body[: body.rindex(b",")] + last + b"]]]}"
        found = refused(await holed_house.send("holed/score", wrong, content_type=JSON), 422)
        assert found["errors"][0]["pointer"] == "/inputs"


async def test_a_model_that_was_not_trained_for_it_takes_no_missing_value(holed_house: House) -> None:
    """Null and NaN are a 422 that says so and where."""
    values = rows(3)[:2]
    values[1, 4, 5] = np.nan
    first = tuple(np.argwhere(np.isnan(values))[0])
    for response in (
        await holed_house.ask("tiny/score", {"inputs": nulls(values)}),
        await holed_house.send("tiny/score", npy(values), content_type=NPY),
    ):
        body = refused(response, 422)
        assert body["errors"][0]["pointer"] == "/inputs/" + "/".join(map(str, first))
        assert "missing" in body["errors"][0]["reason"]


@pytest.mark.parametrize("value", [np.inf, -np.inf])
async def test_infinity_is_never_a_missing_value(holed_house: House, value: float) -> None:
    """Nor is it anything else."""
    values = rows(3)
    values[1, 0, 0] = value
    body = refused(await holed_house.send("holed/score", npy(values), content_type=NPY), 422)
    assert body["errors"] == [{"pointer": "/inputs/1/0/0", "reason": f"{value} is not a finite number"}]


async def test_a_latent_is_never_missing(holed_house: House) -> None:
    """decode takes numbers alone, whatever the model was trained for."""
    body = refused(await holed_house.ask("holed/decode", {"latents": [[0.0, None]]}), 422)
    assert body["errors"][0]["pointer"] == "/latents/0/1"
    body = refused(await holed_house.send("holed/decode", npy(np.array([[0.0, np.nan]])), content_type=NPY), 422)
    assert body["errors"][0]["pointer"] == "/latents/0/1"


# ---------------------------------------------------------------- impute


async def test_impute_makes_rows_whole(holed_house: House) -> None:
    """What was sent is as it was sent; what was missing is a probability as a mean, and 0 or 1 as a draw."""
    values = rows(6)
    found = await answer(holed_house, "impute", values, draws=5, seed=7)
    seen = ~np.isnan(values)
    assert found["outputs"].shape == values.shape
    assert found["imputations"].shape == (6, 5, 8, 8)
    assert_array_equal(found["outputs"][seen], values[seen])
    assert ((found["outputs"][~seen] > 0) & (found["outputs"][~seen] < 1)).all()
    assert_array_equal(np.moveaxis(found["imputations"], 1, -1)[seen], np.repeat(values[seen][:, None], 5, 1))
    assert np.isin(found["imputations"], (0, 1)).all()
    assert (int(found["seed"]), int(found["draws"]), int(found["pool"])) == (7, 5, 1024)
    assert ((found["effective_draws"] >= 1) & (found["effective_draws"] <= 1024.001)).all()
    assert found["reliable"].dtype == bool
    more = await answer(holed_house, "impute", values[:1], draws=400)
    assert int(more["pool"]) == 1600


async def test_impute_gives_the_same_answer_to_the_same_request(holed_house: House, holed: Path) -> None:
    """By another process that cuts otherwise too; expectations are a function of the row, draws also of its place."""
    values = rows(7)
    asked = {"draws": 3, "seed": 5}
    first = await answer(holed_house, "impute", values, **asked)
    async with open_house(configured(holed, batch=37)) as other:
        again = await answer(other, "impute", values, **asked)
    for name, array in first.items():
        assert_array_equal(again[name], array)
    alone = await answer(holed_house, "impute", values[3:4], **asked)
    for name in ("outputs", "effective_draws", "pareto_k"):
        assert_array_equal(alone[name][0], first[name][3])
    head = await answer(holed_house, "impute", values[:3], **asked)
    assert_array_equal(head["imputations"], first["imputations"][:3])
    other_seed = await answer(holed_house, "impute", values, draws=3, seed=6)
    assert not np.array_equal(other_seed["imputations"], first["imputations"])


async def test_impute_is_offered_by_models_that_were_trained_for_it(holed_house: House) -> None:
    """To others it is a 404 that says why, before the body is looked at; and the page shows the right ones alone."""
    for path in ("tiny/impute", "tiny/versions/1/impute"):
        body = refused(await holed_house.send(path, b"[", content_type=JSON), 404)
        assert "missing" in body["detail"]
    page = (await holed_house.client.get("/openapi.json")).json()
    post = page["paths"]["/v1/models/{model}/impute"]["post"]
    examples = post["requestBody"]["content"][JSON]["examples"]
    assert set(examples) == {"holed"}
    assert "null" in json.dumps(examples["holed"]["value"]["inputs"])
    found = await holed_house.answer("holed/impute", examples["holed"]["value"])
    assert post["responses"]["200"]["content"][JSON]["example"] == found
    schema = post["responses"]["200"]["content"][JSON]["schema"]
    assert set(schema["required"]) <= set(found) <= set(schema["properties"])


async def test_impute_has_its_limits(holed_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """On draws, on the decoder calls that they cost, and on the numbers of an answer; 0 draws is no draw."""
    one = nulls(rows(2)[:1])
    assert "4096 draws" in refused(await holed_house.ask("holed/impute", {"inputs": one, "draws": 4097}), 413)["detail"]
    many = np.tile(rows(2)[:1], (4096, 1, 1))
    response = await holed_house.send("holed/impute?draws=100", npy(many), content_type=NPY)
    assert "rows × draws" in refused(response, 413)["detail"]
    monkeypatch.setattr(import_module("service.operations.impute"), "MOST", 2 * 16 * 64 - 1)
    await holed_house.answer("holed/impute", {"inputs": one})
    assert "numbers" in refused(await holed_house.ask("holed/impute", {"inputs": one * 2}), 413)["detail"]
    for wrong in (0, -1, 1.5, None):
        refused(await holed_house.ask("holed/impute", {"inputs": one, "draws": wrong}), 422)


# ---------------------------------------------------------------- each feature given the others


async def test_conditionals_come_with_a_diagnostic(holed_house: House) -> None:
    """One number a feature and its k̂, however few the score's draws; 0 where nothing was sent."""
    values = rows(4)
    found = await answer(holed_house, "score", values, draws=64, conditionals=True)
    assert found["feature_conditional"].shape == found["feature_conditional_k"].shape == values.shape
    assert not found["feature_conditional"][np.isnan(values)].any()
    assert (found["feature_conditional"][~np.isnan(values)] < 0).all()
    assert np.isfinite(found["feature_conditional_k"]).all()
    few = await holed_house.answer("tiny/score", {"inputs": rows(4)[:1].tolist(), "conditionals": True})
    assert np.isfinite(few["feature_conditional"]).all()
    assert np.isfinite(few["feature_conditional_k"]).all()
    assert "feature_conditional" not in await holed_house.answer("tiny/score", {"inputs": rows(4)[:1].tolist()})


async def test_the_manifest_says_whether_values_may_be_missing(holed_house: House, holed: Path) -> None:
    """On the wire as on disk."""
    for name, missing in (("holed", True), ("tiny", False)):
        assert (await holed_house.client.get(f"/v1/models/{name}")).json()["missing"] is missing
        assert artifact.read(holed / name / "1").manifest.missing is missing


@pytest.mark.parametrize("operation", ["impute", "left_out", "evidence"])
async def test_what_goes_by_many_parts_looks_at_its_pace(
    holed_house: House, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """What takes thousands of decoder calls a row is refused once its first rows tell that it will be late."""

    def late(_: object, rows: int, __: object) -> None:
        raise Late(f"{rows} rows")

    monkeypatch.setattr(import_module(f"service.operations.{operation}"), "in_time", late)
    every: dict[str, tuple[str, dict[str, Any]]] = {
        "impute": ("impute", {}),
        "left_out": ("score", {"conditionals": True}),
        "evidence": ("evidence", {"draws": 1024}),
    }
    path, asked = every[operation]
    answer = await holed_house.ask(f"holed/{path}", {"inputs": nulls(rows(3)), **asked})
    assert "3 rows" in refused(answer, 503)["detail"]
