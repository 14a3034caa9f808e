"""Infer: bodies of the Open Inference Protocol, in every form that is one and many that aren't."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import zstandard

from service.artifact import Array
from service.http.v2 import answer, request
from service.http.v2.tensors import Tensor
from service.http.wire import Limits
from tests.kit import House, digits, golden_rows
from tests.oip import DTYPES, LENGTH, ask, binary, error, framed, opened, send, tensor

pytestmark = pytest.mark.anyio

ROWS = digits(2, seed=1)
FLAT = ROWS.reshape(-1).tolist()


async def test_a_score_is_v1s_bit_for_bit(house: House) -> None:
    """Each field of /v1 comes as a tensor of the name that it has in npz, each scalar as a parameter."""
    for name in ("tiny", "mnist", "breast-cancer", "diabetes", "plain"):
        rows = golden_rows("tiny" if name == "plain" else name)[:3]
        v1 = await house.answer(f"{name}/score", {"inputs": rows.tolist()}, accept="application/x-npz")
        head, tensors = opened(await send(house.client, name, rows))
        calibrated = v1.get("calibration.n")
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, v1[key], strict=True)
        assert ("p_value" in tensors) == ("anomaly" in tensors) == (calibrated is not None)
        for key, value in head["parameters"].items():
            assert value == v1[key]
        assert set(tensors) | set(head["parameters"]) | {"model", "version"} == set(v1)


@pytest.mark.parametrize(
    "data", [ROWS.tolist(), FLAT, [float(value) for value in FLAT]], ids=["nested", "flat", "floats"]
)
@pytest.mark.parametrize("name", ["tiny", "tiny.score"])
async def test_data_may_be_nested_or_flat(house: House, name: str, data: Any) -> None:
    """And whole numbers may be written as fractions."""
    _, expected = opened(await send(house.client, name, ROWS))
    head, found = opened(await ask(house.client, name, tensor(ROWS, data=data)))
    assert head["model_name"] == name
    assert head["model_version"] == "1"
    np.testing.assert_array_equal(found["elbo"], expected["elbo"], strict=True)


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BOOL"])
@pytest.mark.parametrize("form", [tensor, binary])
async def test_any_datatype_of_numbers_is_taken(house: House, datatype: str, form: Callable[..., Any]) -> None:
    """Where its values are exact in the event's dtype; in JSON and in binary."""
    rows = ROWS.astype(DTYPES[datatype])
    content, headers = framed({"inputs": [form(rows)]}, rows.tobytes() if form is binary else b"")
    response = await house.client.post("/v2/models/tiny/infer", content=content, headers=headers)
    assert opened(response)[1]["elbo"].tolist() == opened(await send(house.client, "tiny", ROWS))[1]["elbo"].tolist()


async def test_bf16_is_taken_in_binary_alone(house: House) -> None:
    """It is the upper half of an FP32; in JSON it has no form."""
    bits = (ROWS.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    content, headers = framed({"inputs": [binary(bits, datatype="BF16")]}, bits.tobytes())
    response = await house.client.post("/v2/models/tiny/infer", content=content, headers=headers)
    assert opened(response)[1]["elbo"].tolist() == opened(await send(house.client, "tiny", ROWS))[1]["elbo"].tolist()
    assert "BF16" in error(await ask(house.client, "tiny", tensor(ROWS, datatype="BF16")), 400)


async def test_fractions_are_rounded_to_their_datatype(house: House) -> None:
    """0.1 as FP32 is the float32 nearest to it, in JSON as in binary."""
    rows = golden_rows("breast-cancer")[:2]
    narrow = rows.astype(np.float32)
    _, expected = opened(await send(house.client, "breast-cancer", narrow))
    _, found = opened(await ask(house.client, "breast-cancer", tensor(narrow, data=rows.tolist())))
    _, exact = opened(await ask(house.client, "breast-cancer", tensor(rows)))
    assert found["elbo"].tolist() == expected["elbo"].tolist() != exact["elbo"].tolist()


async def test_outputs_come_as_asked(house: House) -> None:
    """Those that are named, in their order, each in its form; the request's form where an output names none."""
    outputs = [
        {"name": "kl", "parameters": {"binary_data": True}},
        {"name": "elbo", "parameters": {"binary_data": False}},
        {"name": "anomaly"},
        {"name": "p_value", "parameters": {}},
    ]
    for flag in (True, False):
        head, _ = opened(
            await ask(house.client, "tiny", tensor(ROWS), outputs=outputs, parameters={"binary_data_output": flag})
        )
        assert [output["name"] for output in head["outputs"]] == ["kl", "elbo", "anomaly", "p_value"]
        assert ["data" in output for output in head["outputs"]] == [False, True, not flag, not flag]


async def test_the_header_is_there_only_where_buffers_follow(house: House) -> None:
    """Its presence changes how clients read an answer."""
    response = await ask(house.client, "tiny", tensor(ROWS))
    assert LENGTH not in response.headers
    assert response.headers["content-type"] == "application/json"
    response = await ask(house.client, "tiny", tensor(ROWS), parameters={"binary_data_output": True})
    assert int(response.headers[LENGTH]) < len(response.content)
    assert response.headers["content-type"] == "application/octet-stream"


async def test_an_id_comes_back(house: House) -> None:
    """As it was sent, also with brackets and escapes in it; without one there is none."""
    for sent in ("", "mine", 'a "[quoted]" {one} \\ \u2126', "[[["):
        head, found = opened(await ask(house.client, "tiny", tensor(ROWS), id=sent))
        assert head["id"] == sent
        assert len(found["elbo"]) == 2
    assert "id" not in opened(await ask(house.client, "tiny", tensor(ROWS)))[0]
    assert "id" not in opened(await ask(house.client, "tiny", tensor(ROWS), id=None, outputs=None, parameters=None))[0]


async def test_parameters_are_the_operations_fields(house: House) -> None:
    """Checked as on /v1; a wrong one is named."""
    v1 = await house.answer("tiny/score", {"inputs": ROWS.tolist(), "draws": 5, "seed": 3})
    head, found = opened(await ask(house.client, "tiny", tensor(ROWS), parameters={"draws": 5, "seed": 3}))
    assert found["elbo"].tolist() == v1["elbo"]
    assert (head["parameters"]["draws"], head["parameters"]["seed"]) == (5, 3)
    assert head["parameters"]["calibration.reason"] == v1["calibration"]["reason"]
    assert not {"p_value", "anomaly"} & set(found)
    for wrong in ({"draws": 0}, {"draws": "5"}, {"alpha": 2}, {"sharpness": 1}, {"explain": 1}):
        said = error(await ask(house.client, "tiny", tensor(ROWS), parameters=wrong), 422)
        assert next(iter(wrong)) in said


async def test_an_output_that_needs_a_parameter_sets_it(house: House) -> None:
    """An explanation is asked for by the names of its tensors; said otherwise, the request is refused."""
    v1 = await house.answer(
        "breast-cancer/score", {"inputs": golden_rows("breast-cancer")[:2].tolist(), "explain": True}
    )
    rows = golden_rows("breast-cancer")[:2]
    names = ["feature_log_likelihood", "latent_kl", "feature_deviation", "feature_names"]
    outputs = [{"name": name} for name in names]
    _, found = opened(await ask(house.client, "breast-cancer", tensor(rows), outputs=outputs))
    assert {name: array.tolist() for name, array in found.items()} == {name: v1[name] for name in names}
    response = await ask(house.client, "breast-cancer", tensor(rows), outputs=outputs, parameters={"explain": False})
    assert "feature_log_likelihood" in error(response, 400)
    _, found = opened(await ask(house.client, "tiny.decode", LATENT, outputs=[{"name": "parameters.logits"}]))
    assert found["parameters.logits"].shape == (1, 8, 8)
    _, found = opened(await ask(house.client, "tiny.encode", tensor(ROWS), parameters={"draws": 3}))
    assert found["latents"].shape == (2, 3, 2)
    assert "latents" in error(await ask(house.client, "tiny.encode", tensor(ROWS), outputs=[{"name": "latents"}]), 400)


LATENT = tensor(np.array([[0.5, -1.0]], np.float32), "latents")


async def test_text_comes_as_bytes(house: House) -> None:
    """feature_names in binary: each with its length before it."""
    rows = golden_rows("breast-cancer")[:1]
    outputs = [{"name": "feature_names", "parameters": {"binary_data": True}}]
    response = await ask(house.client, "breast-cancer", tensor(rows), outputs=outputs)
    buffer, names = response.content[int(response.headers[LENGTH]) :], []
    while buffer:
        size = int.from_bytes(buffer[:4], "little")
        names.append(buffer[4 : 4 + size].decode())
        buffer = buffer[4 + size :]
    (output,) = orjson.loads(response.content[: int(response.headers[LENGTH])])["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [30])
    assert names[0] == "mean radius"
    assert len(names) == 30


async def test_what_isnt_finite_is_null_in_json_and_nan_in_binary(house: House) -> None:
    """elbo_error can't be estimated from one draw."""
    for flag in (True, False):
        response = await ask(
            house.client,
            "tiny",
            tensor(ROWS),
            parameters={"draws": 1, "binary_data_output": flag},
            outputs=[{"name": "elbo_error"}],
        )
        head, found = opened(response)
        assert np.isnan(found["elbo_error"]).all()
        assert flag or head["outputs"][0]["data"] == [None, None]


async def test_null_is_a_missing_value_where_the_model_was_trained_for_it(house: House) -> None:
    """In JSON, nested or flat; NaN in binary. Such a row has no p-value, and is no anomaly. Elsewhere it is refused."""
    rows = golden_rows("breast-cancer-missing")[:4]
    holes = np.isnan(rows)
    assert holes.any()
    sent = [
        [None if hole else value for value, hole in zip(*pair, strict=True)]
        for pair in zip(rows.tolist(), holes, strict=True)
    ]
    flat = [value for row in sent for value in row]
    _, expected = opened(await send(house.client, "breast-cancer-missing", rows))
    for data in (sent, flat):
        _, found = opened(await ask(house.client, "breast-cancer-missing", tensor(rows, data=data), id="null"))
        np.testing.assert_array_equal(found["elbo"], expected["elbo"], strict=True)
    lost = np.isnan(expected["p_value"])
    assert not expected["anomaly"][lost].any()
    _, whole = opened(await send(house.client, "breast-cancer-missing.impute", rows, parameters={"draws": 2}))
    assert np.isfinite(whole["outputs"]).all()
    assert whole["imputations"].shape == (4, 2, 30)
    error(await ask(house.client, "breast-cancer", tensor(rows, data=sent)), 400)
    assert "not a finite number" in error(await send(house.client, "breast-cancer", rows), 422)
    assert "impute is not offered" in error(await send(house.client, "breast-cancer.impute", rows), 404)


# ---------------------------------------------------------------- forms of a body


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", lambda content: zstandard.compress(content)),
        ("identity", bytes),
    ],
)
async def test_a_body_may_be_compressed(house: House, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """The header's length is that of the JSON before compression; what is broken or too large is refused."""
    content, headers = framed({"inputs": [binary(ROWS)]}, ROWS.tobytes())
    headers |= {"content-encoding": encoding}
    url = "/v2/models/tiny/infer"
    response = await house.client.post(url, content=pack(content), headers=headers)
    assert opened(response)[1]["elbo"].tolist() == opened(await send(house.client, "tiny", ROWS))[1]["elbo"].tolist()
    if encoding != "identity":
        error(await house.client.post(url, content=pack(content)[:-3], headers=headers), 400)
        error(await house.client.post(url, content=content, headers=headers), 400)
        large = pack(bytes(2**27))
        assert "limit" in error(await house.client.post(url, content=large, headers=headers), 413)


async def test_an_encoding_that_we_dont_read_is_a_415(house: House) -> None:
    """And says which we do."""
    response = await house.client.post("/v2/models/tiny/infer", content=b"{}", headers={"content-encoding": "br"})
    assert "br" in error(response, 415)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("zstd", "zstd"),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("*", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=none", None),
    ],
)
@pytest.mark.parametrize("flag", [True, False])
async def test_an_answer_is_compressed_as_accepted(
    house: House, accepted: str, encoding: str | None, flag: bool
) -> None:
    """With the length of its JSON as it was before; a small one isn't worth it."""
    rows = digits(60)
    fields: dict[str, Any] = {"inputs": [tensor(rows)], "parameters": {"binary_data_output": flag}}
    response = await house.client.post("/v2/models/tiny/infer", json=fields, headers={"accept-encoding": accepted})
    assert response.headers.get("content-encoding") == encoding
    assert len(opened(response)[1]["elbo"]) == 60  # httpx has unpacked it
    fields = {"inputs": [tensor(ROWS)], "outputs": [{"name": "elbo"}]}
    response = await house.client.post("/v2/models/tiny/infer", json=fields, headers={"accept-encoding": accepted})
    assert "content-encoding" not in response.headers


async def test_json_and_binary_inputs_may_be_mixed() -> None:
    """Buffers lie in the order of the inputs that have them."""

    a, b, c = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.int64), np.array([True, False])
    content, headers = framed({"inputs": [binary(a, "a"), tensor(b, "b"), binary(c, "c")]}, a.tobytes(), c.tobytes())
    listed = [Tensor("a", "FP32", (-1, 3)), Tensor("b", "INT64", (-1,)), Tensor("c", "BOOL", (-1,))]
    found = request.read(content, int(headers[LENGTH]), listed, Limits(2**20, 64, 10, 10, 100)).inputs
    assert list(found) == ["a", "b", "c"]
    for name, array in (("a", a), ("b", b), ("c", c)):
        np.testing.assert_array_equal(found[name], array, strict=True)


async def test_a_raw_body_is_the_only_input(house: House) -> None:
    """With a header of 0 bytes the whole body is one row, and the answer is binary."""
    url, headers = "/v2/models/tiny/infer", {LENGTH: "0"}
    response = await house.client.post(url, content=ROWS[:1].tobytes(), headers=headers)
    head, found = opened(response)
    assert all("binary_data_size" in output["parameters"] for output in head["outputs"])
    assert found["elbo"].tolist() == opened(await send(house.client, "tiny", ROWS[:1]))[1]["elbo"].tolist()
    for content in (ROWS.tobytes(), b"", ROWS.tobytes()[:63]):
        assert "64 bytes" in error(await house.client.post(url, content=content, headers=headers), 400)
    count = np.array([3], np.int64).tobytes()
    response = await house.client.post("/v2/models/tiny.sample/infer", content=count, headers=headers)
    assert opened(response)[1]["outputs"].shape == (3, 8, 8)


async def test_a_body_may_come_in_chunks(house: House) -> None:
    """Without a Content-Length, and without a Content-Type."""
    content, headers = framed({"inputs": [binary(ROWS)]}, ROWS.tobytes())

    async def chunks() -> Any:
        for start in range(0, len(content), 50):
            yield content[start : start + 50]

    request = house.client.build_request("POST", "/v2/models/tiny/infer", content=chunks(), headers=headers)
    assert "content-type" not in request.headers
    assert "content-length" not in request.headers
    opened(await house.client.send(request))


def _change(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(ROWS, **changes)]}


BAD: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "no inputs"),
    "a list": ([], "not a JSON object"),
    "inputs of no list": ({"inputs": {}}, "not an array of objects"),
    "inputs of no objects": ({"inputs": [1]}, "not an array of objects"),
    "no such input": ({"inputs": [tensor(ROWS, "rows")]}, "no input rows"),
    "another input too": ({"inputs": [tensor(ROWS), tensor(ROWS, "rows")]}, "no input rows"),
    "an input twice": ({"inputs": [tensor(ROWS), tensor(ROWS)]}, "twice"),
    "an input missing": ({"inputs": []}, "inputs is missing"),
    "an input without a name": ({"inputs": [{**tensor(ROWS), "name": 5}]}, "no name"),
    "no datatype": (_change(datatype=None), "datatype"),
    "no such datatype": (_change(datatype="FP31"), "FP31"),
    "text": (_change(datatype="BYTES"), "BYTES"),
    "no shape": (_change(shape=None), "shape"),
    "a negative shape": (_change(shape=[-2, 8, 8]), "shape"),
    "a shape of fractions": (_change(shape=[2.0, 8, 8]), "shape"),
    "a shape that overflows": (_change(shape=[2**63, 8, 8]), "shape"),
    "a shape of many axes": (_change(shape=[2, 8, 8] + [1] * 40), "axes"),
    "a shape of more": (_change(shape=[3, 8, 8]), "elements"),
    "a flat shape for nested data": (_change(shape=[128]), "inputs.data"),
    "too few flat elements": (_change(data=FLAT[:-1]), "127"),
    "no data": (_change(data=None), "data"),
    "data of no list": (_change(data=7), "isn't an array"),
    "data of text": (_change(data="[1]"), "isn't an array"),
    "ragged": (_change(data=[[[0] * 8] * 8, [[0] * 8] * 7 + [[0] * 7]]), "inputs.data[1][7]"),
    "ragged where lengths agree": (_change(data=[[[*[0] * 7, [0]], *[[0] * 8] * 7], [[0] * 8] * 8]), "an array"),
    "an array where a number should be": (_change(data=[[0, [1]], [2, []]], shape=[2, 2]), "an array"),
    "true": (_change(data=[True, *FLAT[1:]]), "a boolean"),
    "text among numbers": (_change(data=["1", *FLAT[1:]]), "text"),
    "null among numbers": (_change(data=[None, *FLAT[1:]]), "null"),
    "past the datatype": (_change(data=[256, *FLAT[1:]]), "256"),
    "below the datatype": (_change(data=[-1, *FLAT[1:]]), "-1"),
    "a fraction": (_change(data=[0.5, *FLAT[1:]]), "0.5"),
    "far too large": (_change(data=[10**400, *FLAT[1:]]), ""),
    "both forms": (_change(parameters={"binary_data_size": 128}), "either"),
    "shared memory": (_change(data=None, parameters={"shared_memory_region": "mine"}), "shared memory"),
    "parameters of no object": ({**_change(), "parameters": []}, "parameters"),
    "an input's parameters of no object": (_change(parameters=[1]), "parameters"),
    "binary_data_output of text": ({**_change(), "parameters": {"binary_data_output": "yes"}}, "binary_data_output"),
    "a sequence": ({**_change(), "parameters": {"sequence_id": 5}}, "reserved"),
    "what is Triton's": ({**_change(), "parameters": {"triton_enable_empty_final_response": True}}, "reserved"),
    "an id of no text": ({**_change(), "id": 5}, "id"),
    "outputs of no list": ({**_change(), "outputs": "elbo"}, "outputs"),
    "an output without a name": ({**_change(), "outputs": [{}]}, "no name"),
    "an output twice": ({**_change(), "outputs": [{"name": "elbo"}, {"name": "elbo"}]}, "twice"),
    "no such output": ({**_change(), "outputs": [{"name": "elbow"}]}, "did you mean elbo?"),
    "a p-value without calibration": (
        {**_change(), "outputs": [{"name": "p_value"}], "parameters": {"seed": 5}},
        "calibrated with seed 0",
    ),
    "classification": (
        {**_change(), "outputs": [{"name": "elbo", "parameters": {"classification": 3}}]},
        "classification",
    ),
    "an output in shared memory": (
        {**_change(), "outputs": [{"name": "elbo", "parameters": {"shared_memory_region": "a"}}]},
        "shared memory",
    ),
    "binary_data of text": (
        {**_change(), "outputs": [{"name": "elbo", "parameters": {"binary_data": 1}}]},
        "binary_data",
    ),
    "a timeout of text": ({**_change(), "parameters": {"timeout": "5"}}, "timeout"),
    "a timeout below 0": ({**_change(), "parameters": {"timeout": -5}}, "timeout"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_request_that_is_none_is_a_400(house: House, case: str) -> None:
    """And it says why, briefly."""
    body, said = BAD[case]
    response = await house.client.post("/v2/models/tiny/infer", content=json.dumps(body))
    assert said in (found := error(response, 400))
    assert len(found) < 400


HALVED = b'{"parameters": {}, "outputs": [], "inputs": [], %}'  # half a surrogate pair goes in place of HERE
PLACES = [b'"id": "HERE"', b'"inputs": [{"name": "HERE"}]', b'"outputs": [{"name": "HERE"}]', b'"HERE": 1']
PLACES += [b'"parameters": {"triton_HERE": 1}', b'"inputs": [{"name": "inputs", "shape": [1], "datatype": "HERE"}]']


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"inputs": [}',
        b'{"inputs": NaN}',
        b'{"data": NaN, "inputs": []}',
        b"\xff",
        b'"inputs"',
        b"[" * 100_000,
        b'{"data":' + b"[" * 100_000,
        b'{"inputs": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"inputs": [{"data": [1], "data": [2]}]}',
        b'{"inputs": [], "inputs": []}',
        *(HALVED.replace(b"%", place).replace(b"HERE", rb"\ud800") for place in PLACES),
    ],
)
async def test_a_body_that_isnt_json_is_a_400(house: House, content: bytes) -> None:
    """However it is broken."""
    error(await house.client.post("/v2/models/tiny/infer", content=content), 400)


FRAMES: dict[str, tuple[dict[str, Any], bytes, str | None]] = {
    "no number": ({}, ROWS.tobytes(), "ten"),
    "below 0": ({}, ROWS.tobytes(), "-1"),
    "past the body": ({}, ROWS.tobytes(), "100000"),
    "past any body": ({}, ROWS.tobytes(), "9" * 30),
    "in the JSON's midst": ({}, ROWS.tobytes(), "40"),
    "a little short": ({}, ROWS.tobytes(), "-"),
    "not there": ({}, ROWS.tobytes(), None),
    "a fraction": ({}, ROWS.tobytes(), "80.0"),
    "a buffer too short": ({}, ROWS.tobytes()[:-1], ""),
    "a buffer too long": ({}, ROWS.tobytes() + b"\0", ""),
    "a size that isn't the shape's": ({"parameters": {"binary_data_size": 127}}, ROWS.tobytes(), ""),
    "a size below 0": ({"parameters": {"binary_data_size": -128}}, ROWS.tobytes(), ""),
    "a size of text": ({"parameters": {"binary_data_size": "128"}}, ROWS.tobytes(), ""),
    "a shape that overflows": ({"shape": [2**62, 2**62, 8]}, ROWS.tobytes(), ""),
    "another datatype": ({"datatype": "FP32"}, ROWS.tobytes(), ""),
    "nothing where something is promised": ({}, b"", ""),
}


@pytest.mark.parametrize("case", FRAMES)
async def test_a_frame_that_doesnt_fit_is_a_400(house: House, case: str) -> None:
    """The header, the sizes, the shapes and the buffers have to agree with each other to the byte."""
    changes, buffer, length = FRAMES[case]
    content, headers = framed({"inputs": [binary(ROWS, **changes)]}, buffer)
    if length == "-":
        headers = {LENGTH: str(int(headers[LENGTH]) - 1)}
    elif length != "":
        headers = {} if length is None else {LENGTH: length}
    error(await house.client.post("/v2/models/tiny/infer", content=content, headers=headers), 400)


async def test_rows_that_are_no_events_are_refused_as_on_v1(house: House) -> None:
    """Wrong shapes, values off the support, no rows, and too many: the same statuses, and the same words."""
    cases: list[tuple[Array, int, str]] = [
        (np.zeros((1, 8, 9), np.uint8), 422, "has shape [1, 8, 9]"),
        (np.zeros((8, 8), np.uint8), 422, "has shape [8, 8]"),
        (np.full((1, 8, 8), 3, np.uint8), 422, "support"),
        (np.zeros((0, 8, 8), np.uint8), 422, "0 rows"),
        (np.full((1, 8, 8), np.nan, np.float32), 422, "not a finite number"),
        (np.ones((1, 8, 8), np.bool_), 422, "bool"),
        (np.zeros((4097, 8, 8), np.uint8), 413, "4096"),
    ]
    for rows, status, said in cases:
        assert said in error(await send(house.client, "tiny", rows), status)
    many = tensor(np.zeros((4097, 8, 8), np.uint8))
    assert "4096" in error(await ask(house.client, "tiny", many), 413)
    response = await ask(house.client, "tiny", tensor(ROWS), parameters={"draws": 5000})
    assert "4096 draws" in error(response, 413)


async def test_sample_takes_its_count_as_a_tensor_or_as_a_parameter(house: House) -> None:
    """Not as both, and not as many; without one it is 1."""
    count = tensor(np.array([3]), "count")
    _, found = opened(await ask(house.client, "tiny.sample", count))
    assert found["outputs"].shape == (3, 8, 8)
    _, found = opened(await ask(house.client, "tiny.sample", parameters={"count": 2}))
    assert found["outputs"].shape == (2, 8, 8)
    assert len(opened(await ask(house.client, "tiny.sample"))[1]["outputs"]) == 1
    assert "count" in error(await ask(house.client, "tiny.sample", count, parameters={"count": 2}), 400)
    assert "count" in error(await ask(house.client, "tiny.sample", tensor(np.array([3, 4]), "count")), 400)
    assert "count" in error(await ask(house.client, "tiny.sample", tensor(np.array([0]), "count")), 422)
    assert "limit" in error(await ask(house.client, "tiny.sample", tensor(np.array([4097]), "count")), 413)


async def test_large_json_is_read_as_small(house: House) -> None:
    """Past a mebibyte what is wrong is told in general; what is right is answered, brackets in text and all."""
    rows = np.repeat(digits(40, seed=3), 100, axis=0)
    _, expected = opened(await send(house.client, "tiny.encode", rows))
    wide = rows.astype(np.float64) + 0.0
    padded = json.dumps({"id": "[", "inputs": [tensor(wide)]}, indent=1).encode()
    assert len(padded) > 2**20
    _, found = opened(await house.client.post("/v2/models/tiny.encode/infer", content=padded))
    np.testing.assert_array_equal(found["mean"], expected["mean"], strict=True)
    wrong = padded.replace(b"0.0", b'"0"', 1)
    assert "isn't a number" in error(await house.client.post("/v2/models/tiny.encode/infer", content=wrong), 400)
    cut = await house.client.post("/v2/models/tiny.encode/infer", content=padded[:-9])
    assert "not JSON" in error(cut, 400)


async def test_a_bomb_of_brackets_is_refused_before_it_is_parsed(house: House) -> None:
    """Two bytes that would become dozens."""
    content = b'{"inputs":[' + b"[]," * 2_000_000 + b"[]]}"
    assert "limit" in error(await house.client.post("/v2/models/tiny/infer", content=content), 413)


async def test_an_answer_without_outputs_is_json(house: House) -> None:
    """outputs of none is all of them."""
    _, found = opened(await ask(house.client, "tiny", tensor(ROWS), outputs=[]))
    assert "elbo" in found


async def test_the_lane_answers_as_the_app_does(house: House, address: str) -> None:
    """Over a socket inferences are met in the protocol itself: the same statuses, headers and bytes, right or wrong."""
    bodies: list[tuple[str, bytes, dict[str, str]]] = []
    for body, _ in BAD.values():
        bodies.append(("tiny", json.dumps(body).encode(), {}))
    for changes, buffer, length in FRAMES.values():
        content, headers = framed({"inputs": [binary(ROWS, **changes)]}, buffer)
        bodies.append(("tiny", content, headers if length in ("", "-") else {} if length is None else {LENGTH: length}))
    content, headers = framed({"id": "a", "inputs": [binary(ROWS)]}, ROWS.tobytes())
    explained = {"inputs": [tensor(ROWS)], "parameters": {"binary_data_output": True, "explain": True}}
    hurried = {"inputs": [tensor(ROWS)], "parameters": {"timeout": 20_000_000}}
    many = framed({"inputs": [binary(digits(40))]}, digits(40).tobytes())
    bodies += [
        ("tiny", content, headers),
        ("tiny", many[0], many[1] | {"accept-encoding": "gzip"}),
        ("tiny", content, headers | {"accept-encoding": "gzip"}),
        ("tiny", gzip.compress(content), headers | {"content-encoding": "gzip"}),
        ("tiny", ROWS[:1].tobytes(), {LENGTH: "0"}),
        ("tiny", json.dumps(explained).encode(), {}),
        ("tiny", json.dumps(hurried).encode(), {}),
        ("tiny/versions/1", content, headers),
        ("tiny/versions/9", content, headers),
        ("tiny.encode", content, headers),
        ("tiny.dream", content, headers),
        ("nobody", content, headers),
        ("tiny", content, headers | {"x-timeout-ms": "soon"}),
        ("tiny", content, headers | {"content-encoding": "br"}),
    ]
    async with httpx.AsyncClient(base_url=address, headers={"accept-encoding": "identity"}) as socket:
        for model, content, headers in bodies:
            headers = {"accept-encoding": "identity", **headers}
            url = f"/v2/models/{model}/infer"
            over_lane = await socket.post(url, content=content, headers=headers)
            over_app = await house.client.post(url, content=content, headers=headers)
            kept = ("content-type", "content-encoding", "vary", LENGTH, "retry-after")
            assert [over_lane.headers.get(name) for name in kept] == [over_app.headers.get(name) for name in kept]
            assert (over_lane.status_code, over_lane.content) == (over_app.status_code, over_app.content)


async def test_what_the_lane_leaves_to_the_app_is_answered(address: str) -> None:
    """A body in chunks, whose length nobody knows before, and another method; on one connection."""
    content, headers = framed({"inputs": [binary(ROWS)]}, ROWS.tobytes())

    async def chunks() -> Any:
        for start in range(0, len(content), 50):
            yield content[start : start + 50]

    async with httpx.AsyncClient(base_url=address) as client:
        for _ in range(2):
            whole = await client.post("/v2/models/tiny/infer", content=content, headers=headers)
            parts = await client.post("/v2/models/tiny/infer", content=chunks(), headers=headers)
            assert opened(parts)[1]["elbo"].tolist() == opened(whole)[1]["elbo"].tolist()
            error(await client.get("/v2/models/tiny/infer"), 405)


def test_the_protocol_is_a_function_of_bytes() -> None:
    """read and write need no request: what is below HTTP's framework can call them."""

    content, headers = framed({"id": "a", "inputs": [binary(ROWS)]}, ROWS.tobytes())
    asked = request.read(
        content, int(headers[LENGTH]), [Tensor("inputs", "UINT8", (-1, 8, 8))], Limits(1000, 64, 9, 9, 99)
    )
    np.testing.assert_array_equal(asked.inputs["inputs"], ROWS, strict=True)
    found = answer.flat(
        {"elbo": np.array([1.5, np.nan]), "kl": None, "draws": 3, "scores": {"kl": {"value": ROWS}}}, asked
    )
    length, body = answer.write("tiny", "1", asked, found.scalars, answer.chosen(found, asked))
    response = httpx.Response(200, content=body, headers={"content-type": "application/json"})
    head, tensors = opened(response)
    assert length is None
    assert head["parameters"] == {"draws": 3}
    assert list(tensors) == ["elbo", "scores.kl.value"]
