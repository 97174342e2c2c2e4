"""The unmodified `kserve` gRPC client against a running server; `python kserve_grpc.py HOST:PORT MODEL`."""

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

address, MODEL = sys.argv[1:3]
IMAGES = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250))])


def request(binary, model=MODEL):
    tensor = InferInput("image", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary)
    return InferRequest(model, [tensor], "eight")


async def main():
    async with InferenceGRPCClient(address, retries=0) as client:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready(MODEL) is True
        print("health")
        answers = []
        for binary in (True, False):
            response = await client.infer(request(binary))
            assert (response.model_name, response.id) == (MODEL, "eight")
            answers.append(response.outputs[0].as_numpy())
        assert answers[0].argmax(1).tolist() == [0, 2]
        assert np.allclose(answers[0], answers[1])
        print("infer, raw and typed")
        try:
            await client.infer(request(True, "nothing"))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND and "no model nothing" in error.details()
        else:
            raise AssertionError("an unknown model was asked")
        print("errors")


asyncio.run(main())
