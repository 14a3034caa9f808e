"""Sample: draws from the model, named by their seed."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service import artifact
from tests.kit import COMMITTED, NPY, NPZ, House, refused

pytestmark = pytest.mark.anyio

MODELS = ["tiny", "mnist", "breast-cancer"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("output", ["mean", "sample"])
async def test_a_sample_has_events_latents_and_a_seed(house: House, model: str, output: str) -> None:
    """outputs [count, *event], latents [count, d]; sampled events are ones that the model scores."""
    manifest = artifact.read(COMMITTED / model / "1").manifest
    found = await house.answer(f"{model}/sample", {"count": 5, "output": output, "seed": 1})
    assert set(found) == {"model", "version", "outputs", "latents", "seed"}
    assert np.shape(found["outputs"]) == (5, *manifest.event_shape)
    assert np.shape(found["latents"]) == (5, manifest.latent_size)
    if output == "sample":
        await house.answer(f"{model}/score", {"inputs": found["outputs"]})


async def test_without_fields_one_sample_is_drawn(house: House) -> None:
    """count is 1, and an empty body is an empty object."""
    for content in (b"", b"{}"):
        response = await house.send("tiny/sample", content)
        assert np.shape(response.json()["outputs"]) == (1, 8, 8)


async def test_a_seed_that_isnt_named_is_drawn_and_echoed(house: House) -> None:
    """Null and nothing mean the same; the seed that comes back gives the same sample again."""
    body = {"count": 3, "output": "sample"}
    first = await house.answer("tiny/sample", {**body, "seed": None})
    second = await house.answer("tiny/sample", body)
    assert first["seed"] != second["seed"]
    for found in (first, second):
        assert 0 <= found["seed"] < 2**53
        assert await house.answer("tiny/sample", {**body, "seed": found["seed"]}) == found


async def test_samples_are_filled_row_by_row(house: House) -> None:
    """The first rows of a longer sample are the shorter sample."""
    for output in ("mean", "sample"):
        body = {"seed": 4, "output": output}
        few = await house.answer("tiny/sample", {**body, "count": 2}, accept=NPZ)
        many = await house.answer("tiny/sample", {**body, "count": 700}, accept=NPZ)
        for name in ("outputs", "latents"):
            assert_array_equal(few[name], many[name][:2])


async def test_outputs_are_the_decoded_latents(house: House) -> None:
    """The mean of p(x|z) at the latents that come with it."""
    found = await house.answer("tiny/sample", {"count": 3, "seed": 2})
    decoded = await house.answer("tiny/decode", {"latents": found["latents"]})
    assert decoded["outputs"] == found["outputs"]


async def test_latents_are_standard_normal_times_the_temperature(house: House) -> None:
    """At 0 all are the origin; at 2 they are twice those at 1."""
    one, two, zero = [
        await house.answer("tiny/sample", {"count": 2000, "seed": 3, "temperature": t}, accept=NPZ) for t in (1, 2.0, 0)
    ]
    assert np.abs(one["latents"].mean(0)).max() < 5 / np.sqrt(2000)
    assert np.abs(one["latents"].std(0) - 1).max() < 5 / np.sqrt(4000)
    assert_array_equal(two["latents"], 2 * one["latents"])
    assert not zero["latents"].any()


async def test_samples_never_depend_on_other_requests(house: House) -> None:
    """Many callers at once get the bytes that each would get alone."""
    bodies = [{"count": 1 + i % 7, "seed": i % 5, "output": ("mean", "sample")[i % 2]} for i in range(30)]
    alone = [(await house.ask("tiny/sample", body)).content for body in bodies]
    together = await asyncio.gather(*(house.ask("tiny/sample", body) for body in bodies))
    assert [response.content for response in together] == alone


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("count", -1),
        ("count", 1.5),
        ("count", None),
        ("count", "1"),
        ("count", True),
        ("seed", -1),
        ("seed", 2**53),
        ("seed", "1"),
        ("temperature", -0.5),
        ("temperature", None),
        ("temperature", "1"),
        ("output", "parameters"),
        ("output", None),
        ("inputs", [[0]]),
        ("draws", 3),
    ],
)
async def test_a_field_that_cant_be_meant_is_a_422_that_points_at_it(house: House, field: str, value: Any) -> None:
    """Ranges, types and names."""
    body = refused(await house.ask("tiny/sample", {field: value}), 422)
    assert body["errors"][0]["pointer"] == f"/{field}"


async def test_too_many_samples_are_a_413(house: House) -> None:
    """A sample is a row."""
    assert "4096" in refused(await house.ask("tiny/sample", {"count": 4097}), 413)["detail"]
    await house.answer("tiny/sample", {"count": 4096}, accept=NPZ)


async def test_sample_takes_no_array(house: House) -> None:
    """A body in npy is in a form that it doesn't read."""
    refused(await house.send("tiny/sample", b"\x93NUMPY", content_type=NPY), 415)
