"""Encode, decode, reconstruct: their fields, and what their draws depend on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from service import artifact
from tests.kit import COMMITTED, NPZ, House, configured, digits, golden_rows, open_house, refused

pytestmark = pytest.mark.anyio

X = digits(4)
MODELS = ["tiny", "mnist", "breast-cancer"]


async def test_encode_gives_the_posterior(house: House) -> None:
    """mean and scale, [n, d]; no latents and no seed without draws."""
    found = await house.answer("tiny/encode", {"inputs": X.tolist(), "seed": 5})
    assert set(found) == {"model", "version", "mean", "scale"}
    assert np.shape(found["mean"]) == np.shape(found["scale"]) == (4, 2)
    assert (np.asarray(found["scale"]) > 0).all()


async def test_encode_gives_draws_and_the_seed_they_came_from(house: House) -> None:
    """latents, [n, draws, d], and the seed, which is 0 unless one is named."""
    found = await house.answer("tiny/encode", {"inputs": X.tolist(), "draws": 3})
    assert set(found) == {"model", "version", "mean", "scale", "latents", "seed"}
    assert np.shape(found["latents"]) == (4, 3, 2)
    assert found["seed"] == 0


async def test_draws_are_of_the_posterior_that_is_told(house: House) -> None:
    """Their mean and spread are mean and scale."""
    found = await house.answer("tiny/encode", {"inputs": X.tolist(), "draws": 4000}, accept=NPZ)
    standard = (found["latents"] - found["mean"][:, None]) / found["scale"][:, None]
    assert np.abs(standard.mean(1)).max() < 5 / np.sqrt(4000)
    assert np.abs(standard.std(1) - 1).max() < 5 / np.sqrt(8000)


async def test_a_rows_draws_depend_on_its_place_and_on_nothing_after_it(house: House) -> None:
    """One generator a request, filled row by row: a prefix has the same draws, another place has others."""
    body = {"inputs": X.tolist(), "draws": 5, "seed": 8}
    whole = await house.answer("tiny/encode", body, accept=NPZ)
    prefix = await house.answer("tiny/encode", {**body, "inputs": X[:2].tolist()}, accept=NPZ)
    assert_array_equal(prefix["latents"], whole["latents"][:2])
    twins = await house.answer("tiny/encode", {**body, "inputs": [X[0].tolist()] * 2}, accept=NPZ)
    assert_array_equal(twins["mean"][0], twins["mean"][1])
    assert not (twins["latents"][0] == twins["latents"][1]).any()


@pytest.mark.parametrize("operation", ["encode", "reconstruct"])
@pytest.mark.parametrize("model", MODELS)
async def test_draws_never_depend_on_other_requests(house: House, operation: str, model: str) -> None:
    """Many callers at once get the bytes that each would get alone."""
    rows = golden_rows(model)
    bodies = [{"inputs": rows[: 1 + i % len(rows)].tolist(), "draws": 1 + i % 4, "seed": i} for i in range(20)]
    alone = [(await house.ask(f"{model}/{operation}", body)).content for body in bodies]
    together = await asyncio.gather(*(house.ask(f"{model}/{operation}", body) for body in bodies))
    assert [response.content for response in together] == alone


async def test_draws_never_depend_on_how_a_request_is_cut(house: House, small: Path) -> None:
    """An engine that takes 3 rows a call gives the same draws."""
    body = {"inputs": digits(20).tolist(), "draws": 5, "seed": 8}
    async with open_house(configured(small, batch=3)) as other:
        for operation in ("encode", "reconstruct"):
            here, there = await house.ask(f"tiny/{operation}", body), await other.ask(f"tiny/{operation}", body)
            assert here.content == there.content


async def test_another_seed_gives_other_draws(house: House) -> None:
    """And the same seed the same."""
    body = {"inputs": X.tolist(), "draws": 2}
    first, same, other = [
        await house.answer("tiny/encode", {**body, "seed": seed}, accept=NPZ) for seed in (1, 1, 2**53 - 1)
    ]
    assert_array_equal(first["latents"], same["latents"])
    assert not (first["latents"] == other["latents"]).any()
    assert int(other["seed"]) == 2**53 - 1


# ---------------------------------------------------------------- decode


@pytest.mark.parametrize("model", MODELS)
async def test_decode_gives_events(house: House, model: str) -> None:
    """The mean by default, [n, *event]; latents of any size of integer or float are taken."""
    manifest = artifact.read(COMMITTED / model / "1").manifest
    z = np.zeros((3, manifest.latent_size), np.int64)
    found = await house.answer(f"{model}/decode", {"latents": z.tolist()})
    assert set(found) == {"model", "version", "outputs"}
    assert np.shape(found["outputs"]) == (3, *manifest.event_shape)
    assert found == await house.answer(f"{model}/decode", {"latents": z.astype(float).tolist(), "output": "mean"})


@pytest.mark.parametrize("model", MODELS)
async def test_decode_gives_the_familys_parameters(house: House, model: str) -> None:
    """By the names that the manifest lists, each of the event's shape; no outputs beside them."""
    manifest = artifact.read(COMMITTED / model / "1").manifest
    z = np.zeros((2, manifest.latent_size)).tolist()
    found = await house.answer(f"{model}/decode", {"latents": z, "output": "parameters"})
    assert set(found) == {"model", "version", "parameters"}
    assert sorted(found["parameters"]) == sorted(manifest.parameters)
    assert {np.shape(array) for array in found["parameters"].values()} == {(2, *manifest.event_shape)}


async def test_a_bernoullis_mean_is_the_sigmoid_of_its_logits(house: House) -> None:
    """The mean is the expectation of p(x|z)."""
    body = {"latents": [[0.3, -1.2], [2, 2]]}
    mean = np.asarray((await house.answer("tiny/decode", body))["outputs"])
    logits = np.asarray((await house.answer("tiny/decode", {**body, "output": "parameters"}))["parameters"]["logits"])
    assert_allclose(mean, 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
async def test_decoded_samples_are_events_that_the_model_scores(house: House, model: str) -> None:
    """They lie on the support, in the event's dtype; seed names them."""
    manifest = artifact.read(COMMITTED / model / "1").manifest
    body = {"latents": np.zeros((4, manifest.latent_size)).tolist(), "output": "sample", "seed": 3}
    drawn = await house.answer(f"{model}/decode", body, accept=NPZ)
    assert drawn["outputs"].dtype == np.dtype(manifest.event_dtype)
    again = await house.answer(f"{model}/decode", body, accept=NPZ)
    assert_array_equal(drawn["outputs"], again["outputs"])
    other = await house.answer(f"{model}/decode", {**body, "seed": 4}, accept=NPZ)
    assert (drawn["outputs"] != other["outputs"]).any()
    await house.answer(f"{model}/score", {"inputs": drawn["outputs"].tolist()})


@pytest.mark.parametrize(
    "latents",
    [[[0]], [[0, 0, 0]], [0, 0], [], [[]], [[[0, 0]]], 3, None, "z", {"a": 1}, [[0, None]], [[1e39, 0]], [[0, True]]],
)
async def test_latents_that_arent_d_finite_numbers_are_a_422(house: House, latents: object) -> None:
    """Wrong shape, not numbers, or past float32: refused with a pointer to the place."""
    body = refused(await house.ask("tiny/decode", {"latents": latents}), 422)
    assert body["errors"][0]["pointer"].startswith("/latents")


@pytest.mark.parametrize("field", ["output", "seed", "inputs", "draws"])
async def test_decode_refuses_what_it_doesnt_take(house: House, field: str) -> None:
    """An unknown output, a seed out of range, and fields of other operations."""
    body = {"latents": [[0, 0]], field: {"output": "median", "seed": -1, "inputs": [], "draws": 1}[field]}
    found = refused(await house.ask("tiny/decode", body), 422)
    assert found["errors"][0]["pointer"] == f"/{field}"


# ---------------------------------------------------------------- reconstruct


@pytest.mark.parametrize("model", MODELS)
async def test_without_draws_the_posteriors_mean_is_decoded(house: House, model: str) -> None:
    """reconstruct is decode after encode."""
    rows = golden_rows(model)[:3].tolist()
    found = await house.answer(f"{model}/reconstruct", {"inputs": rows})
    assert set(found) == {"model", "version", "outputs"}
    encoded = await house.answer(f"{model}/encode", {"inputs": rows})
    decoded = await house.answer(f"{model}/decode", {"latents": encoded["mean"]})
    assert found["outputs"] == decoded["outputs"]


async def test_with_draws_the_decoded_draws_are_averaged(house: House) -> None:
    """The mean over encode's own draws of that seed."""
    body = {"inputs": X.tolist(), "draws": 6, "seed": 2}
    found = await house.answer("tiny/reconstruct", body)
    latents = np.asarray((await house.answer("tiny/encode", body))["latents"])
    decoded = await house.answer("tiny/decode", {"latents": latents.reshape(-1, 2).tolist()})
    means = np.asarray(decoded["outputs"]).reshape(4, 6, 8, 8).mean(1)
    assert_allclose(np.asarray(found["outputs"]), means, atol=1e-6)


@pytest.mark.parametrize("operation", ["encode", "reconstruct"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("draws", -1), ("draws", 1.5), ("draws", None), ("seed", None), ("seed", 2**53), ("alpha", 0.5)],
)
async def test_fields_out_of_range_are_a_422(house: House, operation: str, field: str, value: object) -> None:
    """With a pointer to the field."""
    body = refused(await house.ask(f"tiny/{operation}", {"inputs": X.tolist(), field: value}), 422)
    assert body["errors"][0]["pointer"] == f"/{field}"
