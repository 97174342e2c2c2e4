"""The unmodified `tritonclient[http]` against a running server; `python triton_http.py HOST:PORT MODEL`."""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

address, MODEL = sys.argv[1:3]
client = triton.InferenceServerClient(address, concurrency=4)
IMAGES = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))])


def request(images=IMAGES, binary=True):
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return [tensor]


def check_health_and_metadata():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert metadata["versions"] == ["1"] and metadata["parameters"]["provider"] in ("cpu", "cuda")
    assert client.get_model_config(MODEL, "1")["max_batch_size"] == 32


def check_binary_and_json_agree():
    answers = []
    for binary_in in (True, False):
        for outputs in (
            None,
            [triton.InferRequestedOutput("probabilities", binary_data=True)],
            [triton.InferRequestedOutput("probabilities", binary_data=False)],
        ):
            result = client.infer(MODEL, request(binary=binary_in), outputs=outputs, request_id="seven")
            assert result.get_response()["id"] == "seven"
            assert result.get_response()["model_version"] == "1"
            answers.append(result.as_numpy("probabilities"))
    assert answers[0].shape == (3, 3) and answers[0].dtype == np.float32
    assert answers[0].argmax(1).tolist() == [0, 1, 2]
    assert all((answer == answers[0]).all() for answer in answers)


def check_compressed_requests():
    plain = client.infer(MODEL, request()).as_numpy("probabilities")
    for way in ("gzip", "deflate"):
        result = client.infer(MODEL, request(), request_compression_algorithm=way, response_compression_algorithm=way)
        assert (result.as_numpy("probabilities") == plain).all()


def check_classification():
    for binary in (True, False):
        output = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
        strings = client.infer(MODEL, request(), outputs=[output]).as_numpy("probabilities")
        assert strings.shape == (3, 2)
        value, index, label = (strings[2, 0].decode() if binary else str(strings[2, 0])).split(":")
        assert (index, label) == ("2", "blue") and 0.5 < float(value) <= 1


def check_many_at_once():
    pending = [client.async_infer(MODEL, request(IMAGES[[n % 3]])) for n in range(40)]
    best = [int(each.get_result().as_numpy("probabilities").argmax()) for each in pending]
    assert best == [n % 3 for n in range(40)]


def check_statistics():
    before = client.get_inference_statistics(MODEL)["model_stats"][0]
    client.infer(MODEL, request())
    after = client.get_inference_statistics(MODEL, "1")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert client.get_inference_statistics()["model_stats"]


def check_repository():
    assert {
        "name": MODEL,
        "version": "1",
        "state": "READY",
        "reason": "",
    } in client.get_model_repository_index()
    client.unload_model(MODEL)
    assert not client.is_model_ready(MODEL)
    assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
    refused(503, lambda: client.infer(MODEL, request()))
    client.load_model(MODEL)
    assert client.is_model_ready(MODEL)
    refused(400, lambda: client.load_model(MODEL, config="{}"))
    refused(404, lambda: client.load_model("nothing"))


def check_errors_name_their_reason():
    assert "no model nothing" in refused(404, lambda: client.infer("nothing", request()))
    assert "no version 9" in refused(404, lambda: client.infer(MODEL, request(), model_version="9"))
    assert "shape" in refused(400, lambda: client.infer(MODEL, request(np.zeros((1, 8, 8, 3), np.uint8))))
    wrong = triton.InferInput("picture", [1, 32, 32, 3], "UINT8")
    wrong.set_data_from_numpy(IMAGES[:1])
    assert "picture" in refused(400, lambda: client.infer(MODEL, [wrong]))


def refused(status, call):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == str(status), error
        return error.message()
    raise AssertionError("the server took what it should refuse")


checks = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in checks:
    check()
    print(check.__name__)
client.close()
