"""The unmodified `kserve` REST client against a running server; `python kserve_rest.py URL MODEL`."""

import asyncio
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, MODEL = sys.argv[1:3]
IMAGES = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250))])


def request(binary, outputs=None):
    tensor = InferInput("image", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary)
    return InferRequest(MODEL, [tensor], "eight", request_outputs=outputs)


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(url) is True
    assert await client.is_server_ready(url) is True
    assert await client.is_model_ready(url, MODEL) is True
    assert await client.is_model_ready(url, "nothing") is False
    print("health")
    answers = []
    for binary in (True, False):
        for wanted in (None, True, False):
            outputs = None if wanted is None else [RequestedOutput("probabilities", {"binary_data": wanted})]
            response = await client.infer(url, request(binary, outputs), MODEL)
            assert (response.model_name, response.id) == (MODEL, "eight")
            answers.append(response.outputs[0].as_numpy())
    assert answers[0].argmax(1).tolist() == [0, 2]
    assert all(np.allclose(answer, answers[0]) for answer in answers)
    print("infer, binary and JSON")
    raw = {"inputs": [{"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": IMAGES[:1].tolist()}]}
    response = await client.infer(url, raw, MODEL)
    assert response.outputs[0].shape == [1, 3]
    print("a plain document")
    try:
        await client.infer(url, {"inputs": []}, MODEL)
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 400 and "inputs" in error.response.json()["error"]
    else:
        raise AssertionError("an empty request was taken")
    print("errors")
    await client.close()


asyncio.run(main())
