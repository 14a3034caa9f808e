"""Clients of the Open Inference Protocol, unchanged: tritonclient sync and aio, KServe's, NVIDIA's perf_analyzer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from service.artifact import Array
from tests.kit import JSON, NPZ, ROOT, answered, digits, golden_rows

ROWS = digits(3, seed=4)


@pytest.fixture(scope="module")
def host(address: str) -> str:
    """The service's address, as the clients want it."""
    return address.removeprefix("http://")


@pytest.fixture
def client(host: str) -> Iterator[triton.InferenceServerClient]:
    """tritonclient, sync."""
    with triton.InferenceServerClient(host) as opened:
        yield opened


def given(array: Array, *, binary: bool = True, name: str = "inputs") -> triton.InferInput:
    """An array as the client wants it."""
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def wanted(address: str, path: str, array: Array, name: str = "inputs") -> dict[str, Array]:
    """The same of /v1, as doubles."""
    response = httpx.post(
        f"{address}/v1/models/{path}", json={name: array.tolist()}, headers={"accept": NPZ, "content-type": JSON}
    )
    return answered(response)


@pytest.mark.parametrize("sent", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("got", [True, False, None], ids=["binary", "json", "all"])
def test_tritonclient_scores(address: str, client: triton.InferenceServerClient, sent: bool, got: bool | None) -> None:
    """Every output that the metadata lists, bit for bit what /v1 answers, in every form both ways."""
    listed = [output["name"] for output in client.get_model_metadata("tiny")["outputs"]]
    outputs = None if got is None else [triton.InferRequestedOutput(name, binary_data=got) for name in listed]
    result = client.infer("tiny", [given(ROWS, binary=sent)], outputs=outputs, request_id="mine")
    expected = wanted(address, "tiny/score", ROWS)
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", "tiny", "1")
    assert [output["name"] for output in head["outputs"]] == listed
    for name in listed:
        np.testing.assert_array_equal(result.as_numpy(name), expected[name], strict=True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_compresses(client: triton.InferenceServerClient, encoding: str, binary: bool) -> None:
    """Both ways: the header's length is that of the JSON before compression."""
    rows = np.repeat(ROWS, 50, axis=0)
    result = client.infer(
        "tiny.encode",
        [given(rows, binary=binary)],
        outputs=[triton.InferRequestedOutput("mean", binary_data=binary)],
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    plain = client.infer("tiny.encode", [given(rows)])
    np.testing.assert_array_equal(result.as_numpy("mean"), plain.as_numpy("mean"), strict=True)


def test_tritonclient_calls_every_operation(address: str, client: triton.InferenceServerClient) -> None:
    """encode, decode, reconstruct, sample and evidence, each under its name, bit for bit as on /v1."""
    encoded = client.infer("tiny.encode", [given(ROWS)])
    expected = wanted(address, "tiny/encode", ROWS)
    for name in ("mean", "scale"):
        np.testing.assert_array_equal(encoded.as_numpy(name), expected[name], strict=True)
    latents = encoded.as_numpy("mean")
    decoded = client.infer("tiny.decode", [given(latents, name="latents")]).as_numpy("outputs")
    np.testing.assert_array_equal(decoded, wanted(address, "tiny/decode", latents, "latents")["outputs"], strict=True)
    reconstructed = client.infer("tiny.reconstruct", [given(ROWS)]).as_numpy("outputs")
    np.testing.assert_array_equal(reconstructed, decoded, strict=True)
    evidence = client.infer("tiny.evidence", [given(ROWS)], parameters={"draws": 600})
    assert evidence.get_response()["parameters"]["draws"] == 600
    assert evidence.as_numpy("reliable").dtype == np.bool_
    count = given(np.array([4]), name="count")
    sampled = client.infer("tiny.sample", [count], parameters={"seed": 7, "output": "sample"})
    again = client.infer("tiny.sample", [], parameters={"seed": 7, "output": "sample", "count": 4})
    assert sampled.as_numpy("outputs").shape == (4, 8, 8)
    assert sampled.get_response()["parameters"]["seed"] == 7
    np.testing.assert_array_equal(sampled.as_numpy("outputs"), again.as_numpy("outputs"), strict=True)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_reads_an_explanation(address: str, client: triton.InferenceServerClient, binary: bool) -> None:
    """Asked for by the names of its tensors, text among them."""
    rows = golden_rows("breast-cancer")[:2]
    names = ["latent_kl", "feature_names", "feature_log_likelihood", "feature_deviation"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("breast-cancer", [given(rows)], outputs=outputs)
    response = httpx.post(f"{address}/v1/models/breast-cancer/score", json={"inputs": rows.tolist(), "explain": True})
    for name in names:
        found = result.as_numpy(name).tolist()
        assert [one.decode() if isinstance(one, bytes) else one for one in found] == response.json()[name]


def test_tritonclient_asks_what_there_is(client: triton.InferenceServerClient) -> None:
    """Health, metadata, configuration, statistics and the index; and is refused what there isn't."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("plain.encode", "2")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("tiny", "7")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("plain", "1")["versions"] == ["1", "2"]
    assert client.get_model_config("tiny")["max_batch_size"] == 4096
    assert {model["state"] for model in client.get_model_repository_index()} == {"READY"}
    assert client.get_inference_statistics("tiny")["model_stats"][0]["name"] == "tiny"
    assert len(client.get_inference_statistics()["model_stats"]) > 20
    refusals: list[Callable[[], object]] = [
        lambda: client.load_model("tiny"),
        lambda: client.unload_model("tiny"),
        lambda: client.get_trace_settings(),
        lambda: client.update_trace_settings("tiny", {"trace_level": ["OFF"]}),
        lambda: client.get_log_settings(),
        lambda: client.update_log_settings({"log_verbose_level": 1}),
        lambda: client.get_system_shared_memory_status(),
        lambda: client.register_system_shared_memory("mine", "/mine", 64),
        lambda: client.unregister_system_shared_memory(),
        lambda: client.unregister_cuda_shared_memory("mine"),
        lambda: client.get_cuda_shared_memory_status("mine"),
    ]
    for refuse in refusals:
        with pytest.raises(InferenceServerException) as refused:
            refuse()
        assert refused.value.status() in ("400", "501")
        assert "exception occurred" not in refused.value.message()
    assert client.is_model_ready("tiny")


def test_tritonclient_tells_its_user_what_we_said(client: triton.InferenceServerClient) -> None:
    """Its exception has our message and our status."""
    cases: dict[str, tuple[str, Callable[[], object]]] = {
        "no model 'nobody'": ("404", lambda: client.infer("nobody", [given(ROWS)])),
        "support": ("422", lambda: client.infer("tiny", [given(ROWS + np.uint8(7))])),
        "no output mean": (
            "400",
            lambda: client.infer("tiny", [given(ROWS)], outputs=[triton.InferRequestedOutput("mean")]),
        ),
        "classification": (
            "400",
            lambda: client.infer("tiny", [given(ROWS)], outputs=[triton.InferRequestedOutput("elbo", class_count=2)]),
        ),
        "deadline": ("503", lambda: client.infer("tiny", [given(ROWS)], timeout=1)),
        "reserved": ("400", lambda: client.infer("tiny", [given(ROWS)], sequence_id=3, sequence_start=True)),
    }
    for said, (status, ask) in cases.items():
        with pytest.raises(InferenceServerException, match=said) as refused:
            ask()
        assert refused.value.status() == status


def test_tritonclient_asks_many_at_once(address: str, host: str) -> None:
    """Its async_infer over several connections."""
    expected = wanted(address, "tiny/score", ROWS)["elbo"]
    with triton.InferenceServerClient(host, concurrency=4) as client:
        calls = [client.async_infer("tiny", [given(ROWS)]) for _ in range(16)]
        for call in calls:
            np.testing.assert_array_equal(call.get_result().as_numpy("elbo"), expected, strict=True)


@pytest.mark.anyio
async def test_tritonclients_aio(address: str, host: str) -> None:
    """The same over aiohttp, which asks for compressed answers without being told to."""
    expected = await asyncio.to_thread(wanted, address, "tiny/score", ROWS)
    async with triton_aio.InferenceServerClient(host) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("tiny.decode", "1")
        assert (await client.get_server_metadata())["name"] == "vae-serve"
        assert (await client.get_model_metadata("tiny"))["platform"] == "onnx_onnxv1"
        assert (await client.get_model_config("tiny"))["output"][0]["name"] == "elbo"
        assert len(await client.get_model_repository_index()) > 20
        assert (await client.get_inference_statistics("tiny"))["model_stats"]
        for binary in (True, False):
            for encoding in (None, "gzip", "deflate"):
                result = await client.infer(
                    "tiny",
                    [given(ROWS, binary=binary)],
                    outputs=[triton.InferRequestedOutput(name, binary_data=binary) for name in ("kl", "elbo")],
                    request_compression_algorithm=encoding,
                    response_compression_algorithm=encoding,
                )
                for name in ("kl", "elbo"):
                    np.testing.assert_array_equal(result.as_numpy(name), expected[name], strict=True)
        with pytest.raises(InferenceServerException, match="no model 'nobody'"):
            await client.infer("nobody", [given(ROWS)])
        many = await asyncio.gather(*(client.infer("tiny", [given(ROWS)]) for _ in range(16)))
        for result in many:
            np.testing.assert_array_equal(result.as_numpy("elbo"), expected["elbo"], strict=True)


def test_tritonclient_sends_a_table_with_holes(address: str, client: triton.InferenceServerClient) -> None:
    """NaN in binary is a value that is missing; in JSON it isn't JSON, and the message says what to do."""
    rows = golden_rows("breast-cancer-missing")
    assert np.isnan(rows).any()
    sent = [[None if np.isnan(value) else value for value in row] for row in rows.tolist()]
    response = httpx.post(f"{address}/v1/models/breast-cancer-missing/score", json={"inputs": sent})
    result = client.infer("breast-cancer-missing", [given(rows)])
    assert result.as_numpy("elbo").tolist() == response.json()["elbo"]
    with pytest.raises(InferenceServerException, match="NaN is not a JSON number; send null or binary data"):
        client.infer("breast-cancer-missing", [given(rows, binary=False)])


@pytest.mark.skipif(
    "KSERVE_PYTHON" not in os.environ, reason="KSERVE_PYTHON names no Python that has kserve: docs/oip.md"
)
def test_kserves_client(address: str) -> None:
    """Its REST client, in an environment of its own, since it brings much: live, ready, JSON, binary, and errors."""
    expected = wanted(address, "tiny/score", ROWS)
    names = ("kl", "elbo", "p_value", "anomaly", "elbo_error", "scores.typicality.value")
    given = {"rows": ROWS.tolist(), "wanted": {name: expected[name].tolist() for name in names}}
    done = subprocess.run(
        [os.environ["KSERVE_PYTHON"], str(ROOT / "tests" / "http" / "kserve_client.py"), address],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PERF_ANALYZER = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")


@pytest.mark.skipif(
    PERF_ANALYZER is None, reason="there is no perf_analyzer, and PERF_ANALYZER names none: docs/oip.md"
)
@pytest.mark.parametrize("model", ["tiny", "tiny.encode"])
def test_perf_analyzer(host: str, model: str, tmp_path: Path) -> None:
    """NVIDIA's load tool measures us, and prints what our statistics say of the server's side."""
    assert PERF_ANALYZER
    command = [PERF_ANALYZER, "-m", model, "-u", host, "--input-data", "zero", "--concurrency-range", "1:2"]
    command += ["--measurement-interval", "200", "--stability-percentage", "999", "--max-trials", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert "Throughput" in said, said
    assert re.search(r"Inference count: [1-9]", said), said
    assert re.search(r"compute infer [1-9]\d* usec", said), said
    assert "Failed" not in said
