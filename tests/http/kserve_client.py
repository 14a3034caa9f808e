"""KServe's Python client against a service at an address; run by test_v2_clients in an environment that has kserve.

    KSERVE_PYTHON tests/http/kserve_client.py http://127.0.0.1:8000 < request.json

Reads {"rows", "wanted": {output: values}} of the model tiny from standard input; ends with 0 if all was well.
"""

from __future__ import annotations

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(address: str) -> None:
    """Ask for everything that the client can ask for."""
    given = json.load(sys.stdin)
    rows, wanted = np.array(given["rows"], np.uint8), given["wanted"]
    client = InferenceRESTClient(RESTConfig(protocol="v2", verbose=False))
    assert await client.is_server_live(address) is True
    assert await client.is_server_ready(address) is True
    assert await client.is_model_ready(address, "tiny") is True
    assert await client.is_model_ready(address, "nobody") is False
    for binary in (True, False):
        for outputs in (None, [RequestedOutput(name, {"binary_data": binary}) for name in wanted]):
            tensor = InferInput("inputs", list(rows.shape), "UINT8")
            tensor.set_data_from_numpy(rows, binary_data=binary)
            asked = InferRequest(
                "tiny",
                [tensor],
                request_id="mine",
                parameters={"binary_data_output": binary},
                request_outputs=outputs,
            )
            found = await client.infer(address, asked, model_name="tiny")
            assert (found.id, found.model_name) == ("mine", "tiny")  # the client drops the version
            values = {output.name: output.as_numpy() for output in found.outputs}
            for name, numbers in wanted.items():
                assert values[name].tolist() == numbers, (binary, name)
    plain = {"inputs": [{"name": "inputs", "shape": [1, 8, 8], "datatype": "UINT8", "data": [rows[0].tolist()]}]}
    found = await client.infer(address, plain, model_name="tiny.encode")
    assert [output.name for output in found.outputs] == ["mean", "scale"]
    try:
        await client.infer(address, plain, model_name="nobody")
        said = "an answer"
    except httpx.HTTPStatusError as refused:
        said = str(refused)
    assert "there is no model 'nobody'" in said


asyncio.run(main(sys.argv[1]))
