"""Bodies: every form that a request and an answer may have, and that the numbers are the same in all of them."""

from __future__ import annotations

import gc
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from numpy.testing import assert_array_equal

from service.artifact import Array
from service.errors import Malformed
from service.http import wire
from tests.kit import JSON, NPY, NPZ, House, answered, configured, digits, golden_rows, npy, open_house, refused

pytestmark = pytest.mark.anyio

X = digits(3)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_json_is_read_under_every_way_to_name_it(house: House, kind: str) -> None:
    """A Content-Type is matched without its case, and may state UTF-8."""
    body = orjson.dumps({"inputs": X.tolist()})
    assert (await house.send("tiny/score", body, content_type=kind)).status_code == 200


async def test_a_body_without_content_type_is_json(house: House) -> None:
    """JSON is the default both ways."""
    response = await house.send("tiny/score", orjson.dumps({"inputs": X.tolist()}))
    assert answered(response)["model"] == "tiny"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-npz", "json", "*/*"]
)
async def test_a_body_in_a_form_we_dont_read_is_a_415(house: House, kind: str) -> None:
    """Only JSON and npy are read."""
    refused(await house.send("tiny/score", orjson.dumps({"inputs": X.tolist()}), content_type=kind), 415)


async def test_json_in_another_charset_is_a_415(house: House) -> None:
    """JSON is UTF-8."""
    kind = "application/json; charset=utf-16"
    refused(await house.send("tiny/score", '{"inputs": []}'.encode("utf-16"), content_type=kind), 415)


NUMBERS = ["u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", ">i8", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("order", ["C", "F"])
async def test_npy_of_any_number_type_gives_the_bits_that_json_gives(house: House, dtype: str, order: Any) -> None:
    """Integers and floats, either byte order, C or Fortran order: what counts is the values."""
    rows = np.asarray(X, dtype, order=order)
    found = answered(await house.send("tiny/score", npy(rows), content_type=NPY))
    assert found["elbo"] == (await house.answer("tiny/score", {"inputs": X.tolist()}))["elbo"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
async def test_every_version_of_npy_is_read(house: House, version: tuple[int, int]) -> None:
    """NumPy writes three versions of its header."""
    assert answered(await house.send("tiny/encode", npy(X, version), content_type=NPY))["version"] == 1


def test_an_npy_file_like_the_one_before_leaves_nothing_for_the_collector() -> None:
    """NumPy reads a header as Python, in cycles that would wait for it; the same one isn't read again."""
    body = npy(X)
    wire.read_npy(body, "inputs")
    gc.collect()
    for _ in range(10):
        assert_array_equal(wire.read_npy(body, "inputs"), X)
    assert gc.collect() == 0


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"\x93NUMPY", b"\x93NUMPY\x01", b"\x93NUMPY\x01\x00\xff", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"),
        *(b"\x93NUMPY\x04\x00\x02\x00\x00\x00{}", npy(X).replace(b"(3,", b"(4,")[:40]),
        npy(X)[:8] + (20_000).to_bytes(2, "little") + npy(X)[10:127].ljust(20_000) + X.tobytes(),
    ],
)
def test_an_npy_file_whose_header_ends_or_never_does_is_malformed(head: bytes) -> None:
    """However little there is of it, or much."""
    with pytest.raises(Malformed, match="not an npy file"):
        wire.read_npy(head, "inputs")


@pytest.mark.parametrize("model", ["mnist", "breast-cancer"])
@pytest.mark.parametrize("order", ["C", "F"])
async def test_other_events_go_in_as_json_and_as_npy(house: House, model: str, order: Any) -> None:
    """Grey pictures and tables of doubles score the same by either form, written row by row or column by column."""
    rows = golden_rows(model)[:3]
    by_json = await house.answer(f"{model}/score", {"inputs": rows.tolist()})
    by_npy = answered(await house.send(f"{model}/score", npy(np.asarray(rows, order=order)), content_type=NPY))
    assert by_json == by_npy


async def test_beside_npy_the_fields_are_query_parameters(house: House) -> None:
    """The array is the body; draws, seed, alpha, explain and output stand in the query, by the same names."""
    asked = {"inputs": X.tolist(), "draws": 20, "seed": 9, "alpha": 0.5, "explain": True}
    response = await house.send("tiny/score?draws=20&seed=9&alpha=0.5&explain=true", npy(X), content_type=NPY)
    assert answered(response) == await house.answer("tiny/score", asked)
    z = np.zeros((2, 2), np.float32)
    response = await house.send("tiny/decode?output=sample&seed=3", npy(z), content_type=NPY)
    assert answered(response) == await house.answer(
        "tiny/decode", {"latents": z.tolist(), "output": "sample", "seed": 3}
    )


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("draw=3", "/draw"),
        ("inputs=3", "/inputs"),
        ("draws=three", "/draws"),
        ("draws=", "/draws"),
        ("draws=0", "/draws"),
        ("draws=16.0", "/draws"),
        ("draws=1_6", "/draws"),
        ("draws=%2B16", "/draws"),
        ("draws=%2016", "/draws"),
        ("seed=1e3", "/seed"),
        ("seed=-1", "/seed"),
        ("seed=9007199254740992", "/seed"),
        ("alpha=nan", "/alpha"),
        ("alpha=inf", "/alpha"),
        ("explain=perhaps", "/explain"),
        ("draws=3&draws=4", ""),
    ],
)
async def test_a_query_parameter_that_cant_be_meant_is_a_422(house: House, query: str, pointer: str) -> None:
    """Unknown, out of range, not a number or given twice: each is pointed at."""
    body = refused(await house.send(f"tiny/score?{query}", npy(X), content_type=NPY), 422)
    assert pointer in [fault["pointer"] for fault in body["errors"]]


async def test_with_json_the_query_stays_empty(house: House) -> None:
    """A field in the query beside a JSON body would be overlooked in silence, so it is refused."""
    body = refused(await house.ask("tiny/score?draws=3", {"inputs": X.tolist()}), 422)
    assert body["errors"][0]["pointer"] == "/draws"


# ---------------------------------------------------------------- answers


def flattened(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tiny/encode", {"inputs": X.tolist(), "draws": 2}),
        ("tiny/decode", {"latents": [[0.5, -1]]}),
        ("tiny/reconstruct", {"inputs": X.tolist()}),
        ("tiny/sample", {"count": 3, "seed": 1, "output": "sample"}),
        ("tiny/score", {"inputs": X.tolist()}),
        ("mnist/decode", {"latents": np.zeros((1, 16)).tolist()}),
    ],
)
async def test_npz_answers_hold_what_json_answers_hold(house: House, path: str, body: dict[str, Any]) -> None:
    """The same fields with the same values, as arrays."""
    if path == "mnist/decode":
        manifest = (await house.client.get("/v1/models/mnist")).json()
        body = {"latents": np.zeros((1, manifest["latent_size"])).tolist()}
    by_json = await house.answer(path, body)
    by_npz = await house.answer(path, body, accept=NPZ)
    flat = flattened(by_json)
    assert set(by_npz) == {name for name, value in flat.items() if value is not None}
    for name, array in by_npz.items():
        wanted = np.asarray(flat[name])
        assert_array_equal(array, wanted.astype(array.dtype) if array.dtype.kind in "iuf" else wanted)


async def test_parameters_in_npz_have_dotted_names(house: House) -> None:
    """An npz has no nesting: parameters.logits stands for {"parameters": {"logits": …}}."""
    body = {"latents": [[0, 0]], "output": "parameters"}
    by_npz = await house.answer("tiny/decode", body, accept=NPZ)
    by_json = await house.answer("tiny/decode", body)
    assert_array_equal(by_npz["parameters.logits"], np.asarray(by_json["parameters"]["logits"], np.float32))


async def test_a_null_entry_is_nan_in_npz_and_a_null_field_is_absent(house: House) -> None:
    """With one draw there is no error, and without a calibration no p-value."""
    body = {"inputs": X.tolist(), "draws": 1}
    by_json = await house.answer("plain/score", body)
    assert by_json["elbo_error"] == [None] * 3
    assert by_json["p_value"] is None
    by_npz = await house.answer("plain/score", body, accept=NPZ)
    assert np.isnan(by_npz["elbo_error"]).all()
    assert not {"p_value", "anomaly", "calibration.n"} & set(by_npz)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, */*;q=0.1", JSON),
        ("application/x-npz", NPZ),
        ("Application/X-NPZ", NPZ),
        ("application/x-npz;q=0.9, application/json;q=0.5", NPZ),
        ("application/x-npz;q=0.5, application/json;q=0.9", JSON),
        ("application/x-npz, application/json", JSON),
        ("application/json;q=0, */*", NPZ),
        ("application/json;q=0.2, application/*;q=0.8", NPZ),
        ("application/json;version=1;q=0.2, application/x-npz;q=0.3", NPZ),
        ("image/png;q=1, application/x-npz;q=0.001", NPZ),
    ],
)
async def test_the_answer_has_the_form_that_accept_wants_most(house: House, accept: str, form: str) -> None:
    """Quality values decide, the most specific range first; JSON wins a tie."""
    response = await house.ask("tiny/score", {"inputs": X.tolist()}, accept=accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == form


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "*/*;q=0", "application/x-npy"])
async def test_an_answer_in_a_form_we_dont_write_is_a_406(house: House, accept: str) -> None:
    """What can't be accepted isn't sent."""
    refused(await house.ask("tiny/score", {"inputs": X.tolist()}, accept=accept), 406)


async def test_several_accept_lines_are_one_list(house: House) -> None:
    """A header may come in several lines (RFC 9110, 5.3)."""
    lines = [("Accept", "text/html"), ("Accept", "application/x-npz")]
    response = await house.client.post("/v1/models/tiny/sample", content=b"{}", headers=lines)
    assert response.headers["content-type"] == NPZ


# ---------------------------------------------------------------- compression


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body)


def _zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


def _zstd_stream(body: bytes) -> bytes:
    """A frame that doesn't say how long its content is."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(body) + stream.flush()


def _strung(packer: Any) -> Any:
    return lambda body: packer(body[:7]) + packer(body[7:])


PACKERS = [
    ("gzip", _gzip),
    ("x-gzip", _gzip),
    ("GZIP", _gzip),
    ("zstd", _zstd),
    ("zstd", _zstd_stream),
    ("gzip", _strung(_gzip)),
    ("zstd", _strung(_zstd)),
    ("identity", bytes),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@pytest.mark.parametrize("form", [JSON, NPY])
async def test_compressed_bodies_are_read(house: House, encoding: str, pack: Any, form: str) -> None:
    """gzip and zstd, of one member or of several strung together."""
    body = npy(X) if form == NPY else orjson.dumps({"inputs": X.tolist()})
    found = answered(await house.send("tiny/score", pack(body), content_type=form, content_encoding=encoding))
    assert found == await house.answer("tiny/score", {"inputs": X.tolist()})


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstandard"])
async def test_another_encoding_is_a_415(house: House, encoding: str) -> None:
    """Encodings that aren't spoken are refused, and the reason names those that are."""
    body = refused(await house.send("tiny/score", b"{}", content_encoding=encoding), 415)
    assert "gzip" in body["detail"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", _gzip), ("zstd", _zstd), ("zstd", _zstd_stream)])
@pytest.mark.parametrize("spoil", ["cut", "garbage", "empty", "tail"])
async def test_broken_compression_is_a_400(house: House, encoding: str, pack: Any, spoil: str) -> None:
    """Cut short, not compressed at all, nothing, or followed by something else."""
    whole = pack(orjson.dumps({"inputs": X.tolist()}))
    body = {"cut": whole[:-3], "garbage": b"nothing like it", "empty": b"", "tail": whole + b"and more"}[spoil]
    refused(await house.send("tiny/score", body, content_encoding=encoding), 400)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", _gzip), ("zstd", _zstd), ("zstd", _zstd_stream)])
async def test_a_bomb_is_a_413_that_names_the_limit(house: House, encoding: str, pack: Any) -> None:
    """A few kilobytes that unpack to more than 64 MiB are never unpacked whole."""
    bomb = pack(bytes(64 * 2**20 + 1))
    assert len(bomb) < 2**17
    body = refused(await house.send("tiny/score", bomb, content_type=NPY, content_encoding=encoding), 413)
    assert str(64 * 2**20) in body["detail"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", _gzip), ("zstd", _zstd)])
async def test_many_small_members_take_no_longer_than_their_bytes(house: House, encoding: str, pack: Any) -> None:
    """A body strung together from a hundred thousand empty members is read in one pass, within its deadline."""
    body = pack(b"") * 100_000 + pack(orjson.dumps({"inputs": X.tolist()}))
    answered(await house.send("tiny/score", body, content_encoding=encoding, x_timeout_ms="5000"))


async def test_limits_count_bytes_after_decompression(small: Path) -> None:
    """A body of the limit passes however it is packed; one byte more does not."""
    body = orjson.dumps({"inputs": X.tolist()})
    async with open_house(configured(small, max_body_bytes=len(body))) as house:
        for encoding, pack in PACKERS:
            answered(await house.send("tiny/score", pack(body), content_encoding=encoding))
            said = refused(await house.send("tiny/score", pack(body + b" "), content_encoding=encoding), 413)
            assert str(len(body)) in said["detail"]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "10E-1", "-0", "0.0", "-0.0"])
async def test_numbers_may_be_written_in_every_way_that_json_knows(house: House, text: str) -> None:
    """What counts is the value."""
    body = X.astype(object).tolist()
    body[0][0][0] = float(text)
    raw = orjson.dumps({"inputs": body}).replace(b"1.0" if float(text) else b"-0.0", text.encode(), 1)
    answered(await house.send("tiny/score", raw))


async def test_what_isnt_exact_in_the_events_dtype_is_refused(house: House) -> None:
    """float32 3.0 is a grey level and 3.5 is not; 2^53 + 1 has no double."""
    grey = golden_rows("mnist")[:1].astype(np.float32)
    answered(await house.send("mnist/score", npy(grey), content_type=NPY))
    grey[0, 0, 0] = 3.5
    body = refused(await house.send("mnist/score", npy(grey), content_type=NPY), 422)
    assert body["errors"][0]["pointer"] == "/inputs/0/0/0"
    table: Array = np.ones((1, 30), np.int64)
    answered(await house.send("breast-cancer/score", npy(table), content_type=NPY))
    table[0, 7] = 2**53 + 1
    body = refused(await house.send("breast-cancer/score", npy(table), content_type=NPY), 422)
    assert body["errors"][0]["pointer"] == "/inputs/0/7"
    refused(await house.send("breast-cancer/score", npy(np.full((1, 30), 2**64 - 1, np.uint64)), content_type=NPY), 422)


@pytest.mark.parametrize("value", [-1, 256, 300, 2**31, -(2**40), 1e300])
async def test_values_past_the_events_dtype_are_a_422(house: House, value: float) -> None:
    """A byte holds 0 to 255, and nothing is wrapped round."""
    rows = golden_rows("mnist")[:1].astype(np.float64)
    rows[0, 27, 27] = value
    body = refused(await house.ask("mnist/score", {"inputs": rows.tolist()}), 422)
    assert body["errors"][0]["pointer"] == "/inputs/0/27/27"


async def test_npz_answers_open_without_pickle(house: House) -> None:
    """Names are text arrays, numbers are numbers; nothing needs allow_pickle."""
    response = await house.ask("tiny/score", {"inputs": X.tolist()}, accept=NPZ)
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        assert str(archive["model"]) == "tiny"
        assert archive["elbo"].dtype == np.float64


@pytest.mark.parametrize(
    "shape",
    [
        "(True, True)",
        "(-1, 8)",
        f"({'9' * 4000}, {'9' * 4000})",
        f"({'9' * 30},)",
        "(1,) * 3",
        f"({'1, ' * 65})",
        "(2.0,)",
    ],
)
def test_a_shape_that_no_array_has_is_malformed(shape: str) -> None:
    """Lengths that are truth values, below nothing or past what can be counted, and more axes than there may be."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode()
    body = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(64)
    with pytest.raises(Malformed):
        wire.read_npy(body, "inputs")
