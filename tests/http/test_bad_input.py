"""Bad input: each kind with its status, a reason and a place, and nothing lost beside it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.artifact import Array
from tests.kit import JSON, NPY, NPZ, Gate, House, configured, digits, golden_rows, npy, open_house, refused

pytestmark = pytest.mark.anyio

ROW = digits(1)[0].tolist()


def _with(value: object, *place: int) -> list[Any]:
    """Two rows, and something else at a place in the second."""
    rows: list[Any] = json.loads(json.dumps([ROW, ROW]))
    part = rows[1]
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    return rows


# ---------------------------------------------------------------- JSON that isn't


GOOD = json.dumps({"inputs": [ROW]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        GOOD[:-1],
        GOOD[:40],
        GOOD + b"}",
        GOOD + GOOD,
        b"nonsense",
        b'{"inputs": [[1,]]}',
        b'{"inputs": [[01]]}',
        b'{"inputs": [[.5]]}',
        b'{"inputs": [[+1]]}',
        b'{"inputs": [[0x1]]}',
        b"{'inputs': [[1]]}",
        b'{"inputs": [[1]] "draws": 1}',
        b'{"inputs": "\xff\xfe"}',
        b'{"inputs": [[1]], "draws": 1 /* many */}',
        b"\x00",
        b"\x80\x04}",
        GOOD[:-1] + rb', "correction": "\udc00"}',
    ],
)
async def test_malformed_json_is_a_400(house: House, body: bytes) -> None:
    """Truncated, doubled, another language: the reason says what was found."""
    refused(await house.send("tiny/score", body), 400)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "nan", "1e", "--1"])
async def test_what_json_has_no_number_for_is_a_400(house: House, token: str) -> None:
    """NaN and Infinity are no JSON."""
    refused(
        await house.send(
            "tiny/score", GOOD.replace(b"[[[0" if b"[[[0" in GOOD else b"[[[1", b"[[[" + token.encode(), 1)
        ),
        400,
    )


@pytest.mark.parametrize("depth", [65, 100, 1000, 1100, 50_000, 600_000])
@pytest.mark.parametrize("key", ["inputs", "other"])
async def test_json_nested_too_deep_is_a_400(house: House, depth: int, key: str) -> None:
    """Past 64 levels, wherever they are; the limit is named while the body is small enough to be looked at."""
    body = b'{"%s": ' % key.encode() + b"[" * depth + b"]" * depth + b"}"
    refused(await house.send("tiny/score", body), 400)


async def test_a_large_body_nested_too_deep_is_a_400_too(house: House) -> None:
    """However many numbers stand beside it."""
    body = b'{"inputs": [' + b"1," * 600_000 + b"1], " + b'"other": ' + b"[" * 100 + b"]" * 100 + b"}"
    refused(await house.send("tiny/score", body), 400)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 500_000, b'{"a": "' + b'\\"' * 2_000_000 + b'"}', b'"' * 900_001])
async def test_text_without_an_end_is_refused_in_time(house: House, body: bytes) -> None:
    """A body of quotation marks takes no longer to refuse than its length asks for."""
    response = await house.send("tiny/score", body, x_timeout_ms="5000")
    assert response.status_code in (400, 422)


async def test_a_large_body_of_something_else_is_a_422(house: House) -> None:
    """Past what is read twice, the reason is shorter and the place is still a pointer."""
    nested = b"[" + b"1.000000," * 200_000 + b"1]"
    body = refused(await house.send("tiny/score", b'{"inputs": [' + nested + b', "1"]}'), 422)
    assert body["errors"][0]["pointer"] == "/inputs"
    body = refused(await house.send("tiny/score", b'{"inputs": [[1]], "x": ' + nested + b"}"), 422)
    assert body["errors"][0]["pointer"] == "/x"


@pytest.mark.parametrize("part", [b"[],", b"0,", b"[[],[]],"])
@pytest.mark.parametrize("operation", ["score", "decode", "sample"])
async def test_more_than_any_request_holds_is_refused_before_it_is_parsed(
    house: House, part: bytes, operation: str
) -> None:
    """A few bytes become millions of arrays only if somebody parses them."""
    name = b"latents" if operation == "decode" else b"inputs"
    body = gzip.compress(b'{"%s": [' % name + part * 2_000_000 + b"0]}")
    assert len(body) < 40_000
    refused(await house.send(f"tiny/{operation}", body, content_encoding="gzip"), 413)


async def test_a_wrong_body_of_a_legal_size_is_a_422_not_a_413(house: House) -> None:
    """What is merely another operation's, or of another shape, is told so."""
    image = np.zeros((28, 28)).tolist()
    assert refused(await house.ask("mnist/sample", {"inputs": [image]}), 422)["errors"][0]["pointer"] == "/inputs"
    refused(await house.ask("tiny/score", {"inputs": np.zeros((4096, 10, 8), int).tolist()}), 422)
    refused(await house.ask("tiny/decode", {"latents": np.zeros((20, 784)).tolist()}), 422)


async def test_many_small_compressed_bodies_at_once_are_all_answered(house: House) -> None:
    """They wait for each other, and none is turned away for what it might have become."""
    body = gzip.compress(json.dumps({"inputs": digits(2).tolist()}).encode())
    asked = [house.send("tiny/score", body, content_type=JSON, content_encoding="gzip") for _ in range(64)]
    assert {response.status_code for response in await asyncio.gather(*asked)} == {200}


async def test_bodies_together_hold_no_more_than_they_may(small: Path) -> None:
    """What requests hold is given back when they are answered; meanwhile one too many is a 429."""
    gate, body = Gate(), {"inputs": digits(8).tolist()}  # 8 × 64 doubles: 4,096 bytes
    async with open_house(configured(small, max_held_bytes=6000), opener=gate.opener) as house:
        memory = house.app.state.desk.memory
        gate.shut()
        first = asyncio.create_task(house.ask("tiny/score", body))
        await gate.held()
        assert memory.taken == 4096
        refused(await house.ask("tiny/score", body), 429)
        assert memory.taken == 4096
        gate.open()
        assert (await first).status_code == 200
        assert memory.taken == 0
        assert (await house.ask("tiny/score", body)).status_code == 200


async def test_brackets_in_text_are_not_depth(house: House) -> None:
    """Text may hold what it likes; here it is merely not an output."""
    body = refused(await house.ask("tiny/decode", {"latents": [[0, 0]], "output": "[" * 100 + '\\"['}), 422)
    assert body["errors"][0]["pointer"] == "/output"


# ---------------------------------------------------------------- JSON of something else


@pytest.mark.parametrize("body", ["[]", "[[1]]", "3", '"inputs"', "null", "true"])
async def test_a_body_that_is_no_object_is_a_422(house: House, body: str) -> None:
    """Well-formed, and not a request."""
    refused(await house.send("tiny/score", body.encode()), 422)


async def test_a_missing_array_is_a_422(house: House) -> None:
    """The pointer names it, for each operation that takes one."""
    for operation, name in (
        ("encode", "inputs"),
        ("decode", "latents"),
        ("reconstruct", "inputs"),
        ("score", "inputs"),
    ):
        body = refused(await house.ask(f"tiny/{operation}", {}), 422)
        assert body["errors"] == [{"pointer": f"/{name}", "reason": "is missing"}]


@pytest.mark.parametrize("operation", ["encode", "reconstruct", "score"])
@pytest.mark.parametrize(
    ("inputs", "pointer"),
    [
        ([], "/inputs"),
        ([[]], "/inputs"),
        (ROW, "/inputs"),
        ([[ROW]], "/inputs"),
        ([ROW[:7]], "/inputs"),
        ([[row[:7] for row in ROW]], "/inputs"),
        (np.reshape(ROW, (1, 64)).tolist(), "/inputs"),
        (0, "/inputs"),
        ("rows", "/inputs"),
        (None, "/inputs"),
        (True, "/inputs"),
        ({"0": ROW}, "/inputs"),
        ([ROW, ROW[:7]], "/inputs/1"),
        (_with([0] * 7, 3), "/inputs/1/3"),
        (_with([0] * 9, 3), "/inputs/1/3"),
        (_with(0, 3), "/inputs/1/3"),
        (_with([0], 3, 2), "/inputs/1/3"),
        (_with("0", 3, 2), "/inputs/1/3/2"),
        (_with(None, 3, 2), "/inputs/1/3/2"),
        (_with(True, 3, 2), "/inputs/1/3/2"),
        (_with({}, 3, 2), "/inputs/1/3/2"),
        (_with(0.5, 3, 2), "/inputs/1/3/2"),
        (_with(2, 3, 2), "/inputs/1/3/2"),
        (_with(-1, 3, 2), "/inputs/1/3/2"),
        (_with(255, 7, 7), "/inputs/1/7/7"),
        (_with(1e300, 3, 2), "/inputs/1/3/2"),
        (_with(10**40, 3, 2), "/inputs/1/3/2"),
        ([ROW, None], "/inputs/1"),
        ([None, ROW], "/inputs"),
    ],
)
async def test_rows_that_arent_the_models_are_a_422_with_their_place(
    house: House, operation: str, inputs: object, pointer: str
) -> None:
    """Wrong shape, ragged, not numbers, off the support: the pointer says which."""
    body = refused(await house.ask(f"tiny/{operation}", {"inputs": inputs}), 422)
    assert body["errors"][0]["pointer"].startswith(pointer)
    assert body["errors"][0]["reason"]


async def test_a_number_past_a_double_is_a_422(house: House) -> None:
    """1e400 is good JSON and no finite number."""
    body = refused(await house.send("breast-cancer/score", b'{"inputs": [[' + b"1e400," * 29 + b"1]]}"), 422)
    assert body["errors"][0]["pointer"] == "/inputs/0/0"


async def test_grey_pixels_are_refused_by_a_bernoulli(house: House) -> None:
    """It has mass at 0 and 1 alone, and the reason says so."""
    body = refused(await house.ask("tiny/score", {"inputs": (np.asarray([ROW]) * 0.7).tolist()}), 422)
    assert all("0 or 1" in fault["reason"] for fault in body["errors"][:1])


@pytest.mark.parametrize("model", ["mnist", "breast-cancer"])
async def test_the_shape_that_is_wanted_is_named(house: House, model: str) -> None:
    """So that the caller need not look it up."""
    body = refused(await house.ask(f"{model}/score", {"inputs": [[1, 2, 3]]}), 422)
    assert str(list(golden_rows(model).shape[1:]))[1:-1] in body["errors"][0]["reason"]


async def test_every_unknown_field_is_pointed_at(house: House) -> None:
    """Each in RFC 6901's way to write it."""
    asked = {"inputs": [ROW], "threshold": 1, "a/b": 2, "c~d": 3}
    body = refused(await house.ask("tiny/score", asked), 422)
    assert {fault["pointer"] for fault in body["errors"]} == {"/threshold", "/a~1b", "/c~0d"}


async def test_a_million_faults_make_a_short_answer(house: House) -> None:
    """An answer to nonsense isn't as long as the nonsense."""
    many = refused(await house.ask("tiny/score", {"inputs": [ROW], **{f"field{i}": i for i in range(2000)}}), 422)
    grey = refused(await house.ask("tiny/score", {"inputs": np.full((50, 8, 8), 0.5).tolist()}), 422)
    long = await house.ask("tiny/score", {"inputs": [ROW], "x" * 100_000: 1})
    assert len(many["errors"]) < 50
    assert len(grey["errors"]) < 50
    assert len(long.content) < 20_000
    refused(long, 422)


@pytest.mark.parametrize("key", [r"\ud800", r"\u0000", r"é", r"\"", r"𝄞"])
async def test_any_name_may_be_unknown(house: House, key: str) -> None:
    """Half a surrogate pair, a zero, a quotation mark: refused, never a 500."""
    response = await house.send("tiny/score", GOOD[:-1] + f', "{key}": 1}}'.encode())
    assert response.status_code in (400, 422)
    refused(response, response.status_code)


async def test_a_field_given_twice_is_refused(house: House) -> None:
    """Whoever reads it second would believe another value."""
    refused(await house.send("tiny/score", GOOD[:-1] + b', "draws": 1, "draws": 2}'), 422)
    refused(await house.send("tiny/score", GOOD[:-1] + b', "inputs": [[1]]}'), 422)
    refused(await house.send("tiny/score", GOOD[:-1] + rb', "\ud800": 1, "\ud800": 1}'), 422)


# ---------------------------------------------------------------- npy that isn't


def _header(text: str, data: bytes = bytes(64), version: tuple[int, int] = (1, 0)) -> bytes:
    """An npy file with any header."""
    head = text.encode("latin-1")
    size = len(head).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + head + data


WHOLE = npy(digits(2))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        WHOLE[:5],
        WHOLE[:9],
        WHOLE[:60],
        WHOLE[:-1],
        WHOLE + b"\x00",
        b"PK\x03\x04" + WHOLE,
        pickle.dumps(1),
        _header("not a dict"),
        _header("{}"),
        _header("{'descr': '|u1', 'fortran_order': False}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (64,), 'more': 1}"),
        _header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (64,)}"),
        _header("{'descr': None, 'fortran_order': 3, 'shape': (64,)}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (-64,)}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (-8, -8)}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (1.0,)}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': 64}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (10**9,)}"),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
        _header("(" * 500),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (64,)}" + " " * 20_000),
        _header("{'descr': '|u1', 'fortran_order': False, 'shape': (64,)}", version=(9, 9)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    ],
)
async def test_malformed_npy_is_a_400(house: House, body: bytes) -> None:
    """Truncated, too long, lying about its size, or something else altogether."""
    refused(await house.send("tiny/score", body, content_type=NPY), 400)


@pytest.mark.parametrize(
    "shape", ["(0, 99999999999999999999)", "(0, 8, 8)", "()", "(0,)", "(" + "1," * 64 + ")", "(" + "1," * 70 + ")"]
)
async def test_an_npy_of_a_strange_shape_is_refused(house: House, shape: str) -> None:
    """No rows, no axes, more axes or longer ones than an array can have."""
    data = bytes(0 if "0" in shape else 1)
    response = await house.send(
        "tiny/score", _header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}", data), content_type=NPY
    )
    assert response.status_code in (400, 422)
    refused(response, response.status_code)


ALIENS: list[Array] = [
    np.ones((1, 8, 8), np.bool_),
    np.ones((1, 8, 8), np.complex64),
    np.ones((1, 8, 8), "U1"),
    np.ones((1, 8, 8), "S1"),
    np.zeros((1, 8, 8), "M8[s]"),
    np.zeros((1, 8, 8), [("a", "f4")]),
]


@pytest.mark.parametrize("rows", ALIENS, ids=lambda rows: str(rows.dtype))
@pytest.mark.parametrize("operation", ["score", "decode"])
async def test_npy_of_what_isnt_a_number_is_a_422(house: House, rows: Array, operation: str) -> None:
    """Booleans, complex numbers, text, times and records are not numbers."""
    response = await house.send(f"tiny/{operation}", npy(rows), content_type=NPY)
    assert refused(response, 422)["errors"][0]["pointer"] == ("/inputs" if operation == "score" else "/latents")


async def test_objects_are_never_unpickled(house: House, tmp_path: Path) -> None:
    """An npy of objects is refused before anything in it is looked at."""
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], object), allow_pickle=True)
    refused(await house.send("tiny/score", stream.getvalue(), content_type=NPY), 422)
    assert not trap.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["tiny", "mnist", "breast-cancer"])
async def test_a_value_that_isnt_finite_is_a_422(house: House, model: str, value: float) -> None:
    """NaN and the infinities, with their place."""
    rows = golden_rows(model)[:2].astype(np.float64)
    place = (1, *(size - 1 for size in rows.shape[1:]))
    rows[place] = value
    body = refused(await house.send(f"{model}/score", npy(rows), content_type=NPY), 422)
    assert body["errors"][0]["pointer"] == "/inputs/" + "/".join(map(str, place))


async def test_mutilated_bodies_are_refused_or_answered_and_never_a_500(house: House) -> None:
    """A few hundred bodies with bytes changed, cut out or doubled, in every form."""
    generator = np.random.default_rng(0)
    whole = [
        ("application/json", "", GOOD),
        (NPY, "", npy(digits(1))),
        ("application/json", "gzip", gzip.compress(GOOD)),
    ]
    for _ in range(150):
        for form, encoding, body in whole:
            spoilt = bytearray(body)
            for _ in range(generator.integers(1, 4)):
                at, length = generator.integers(0, len(spoilt)), generator.integers(0, 4)
                spoilt[at : at + length] = generator.bytes(int(generator.integers(0, 4)))
            response = await house.send("tiny/score", bytes(spoilt), content_type=form, content_encoding=encoding)
            assert response.status_code in (200, 400, 413, 422)
            if response.status_code != 200:
                refused(response, response.status_code)


# ---------------------------------------------------------------- too much


async def test_a_body_over_the_limit_is_a_413_that_names_it(house: House) -> None:
    """64 MiB, whether its length was declared or not."""

    async def chunks() -> Any:
        for _ in range(65):
            yield bytes(2**20)

    declared = await house.send("tiny/score", b"x", content_length=str(2**26 + 1))
    assert str(2**26) in refused(declared, 413)["detail"]
    streamed = await house.client.post("/v1/models/tiny/score", content=chunks())
    assert str(2**26) in refused(streamed, 413)["detail"]


@pytest.mark.parametrize(
    ("path", "rows", "draws", "limit"),
    [
        ("tiny/score", 4097, 1, 4096),
        ("tiny/encode", 4097, 0, 4096),
        ("tiny/reconstruct", 4097, 0, 4096),
        ("tiny/score", 1, 4097, 4096),
        ("tiny/encode", 1, 4097, 4096),
        ("tiny/reconstruct", 1, 4097, 4096),
        ("tiny/score", 1, 2**53, 4096),
        ("tiny/score", 4096, 257, 2**20),
        ("tiny/encode", 257, 4096, 2**20),
        ("tiny/reconstruct", 513, 2049, 2**20),
    ],
)
async def test_rows_and_draws_over_the_limit_are_a_413(
    house: House, path: str, rows: int, draws: int, limit: int
) -> None:
    """4,096 rows, 4,096 draws, and rows × draws to 1,048,576; the limit is named."""
    body = npy(np.broadcast_to(np.asarray(ROW, np.uint8), (rows, 8, 8)))
    response = await house.send(f"{path}?draws={draws}", body, content_type=NPY)
    assert str(limit) in refused(response, 413)["detail"]


async def test_latents_over_the_limit_are_a_413(house: House) -> None:
    """A latent is a row."""
    refused(await house.send("tiny/decode", npy(np.zeros((4097, 2))), content_type=NPY), 413)


async def test_requests_at_the_limit_are_answered(house: House) -> None:
    """4,096 rows are not too many."""
    body = npy(digits(4096))
    response = await house.send("tiny/score?draws=1", body, content_type=NPY, accept=NPZ)
    assert response.status_code == 200


async def test_every_limit_is_a_setting(small: Path) -> None:
    """Each can be made smaller, and then counts."""
    changes = {"max_rows": 3, "max_draws": 20, "max_row_draws": 50, "max_json_depth": 5, "max_body_bytes": 9000}
    async with open_house(configured(small, **changes)) as house:
        for rows, draws, status in ((3, 16, 200), (4, 1, 413), (1, 20, 200), (1, 21, 413), (3, 17, 413)):
            response = await house.ask("tiny/score", {"inputs": digits(rows).tolist(), "draws": draws})
            assert response.status_code == status
        refused(await house.ask("tiny/sample", {"count": 4}), 413)
        refused(await house.send("tiny/score", b"[" * 6 + b"]" * 6), 400)
        refused(await house.send("tiny/score", bytes(9001)), 413)


async def test_one_bad_row_costs_its_neighbours_nothing(house: House) -> None:
    """Good requests among bad ones get the numbers that they always get."""
    good = {"inputs": digits(3).tolist()}
    wanted = (await house.ask("tiny/score", good)).content
    bad = {"inputs": _with(0.5, 0, 0)}
    answers = await asyncio.gather(*(house.ask("tiny/score", body) for body in [good, bad] * 10))
    assert [response.status_code for response in answers] == [200, 422] * 10
    assert {response.content for response in answers[::2]} == {wanted}
