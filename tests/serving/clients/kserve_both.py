"""The unmodified `kserve` clients against a running server; `python kserve_both.py URL GRPC_HOST:PORT MODEL`."""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, address, MODEL = sys.argv[1:4]
IMAGES = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250))])


def request(binary, outputs=None, model=MODEL):
    tensor = InferInput("image", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary)
    return InferRequest(model, [tensor], "eight", request_outputs=outputs)


async def over_rest():
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


async def over_grpc():
    async with InferenceGRPCClient(address, retries=0) as client:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready(MODEL) is True
        print("gRPC: health")
        answers = []
        for binary in (True, False):
            response = await client.infer(request(binary))
            assert (response.model_name, response.id) == (MODEL, "eight")
            answers.append(response.outputs[0].as_numpy())
        assert answers[0].argmax(1).tolist() == [0, 2]
        assert np.allclose(answers[0], answers[1])
        print("gRPC: infer, raw and typed")
        try:
            await client.infer(request(True, model="nothing"))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND and "no model nothing" in error.details()
        else:
            raise AssertionError("an unknown model was asked")
        print("gRPC: errors")


asyncio.run(over_rest())
asyncio.run(over_grpc())
