"""The unmodified `tritonclient[grpc]` against a running server; `python triton_grpc.py HOST:PORT MODEL`."""

import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

sys.path.append(str(Path(__file__).parents[3]))
from serving.grpc_messages import make_messages

address, MODEL = sys.argv[1:3]
client = triton.InferenceServerClient(address)
stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
IMAGES = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))])


def request(images=IMAGES):
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def typed_request(**changes):
    message = service_pb2.ModelInferRequest(model_name=MODEL, id="typed")
    tensor = message.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 32, 3])
    tensor.contents.uint_contents.extend(IMAGES[2].ravel().tolist())
    for name, value in changes.items():
        setattr(tensor, name, value)
    return message


def check_the_messages_are_the_clients_own():
    """Every field that the server knows has the client's number and type."""
    theirs = {}
    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            theirs |= {each.name: each for each in (message, *message.nested_types)}
    renamed = {"LoadParameter": "ModelRepositoryParameter"}
    further = {"ModelMetadataResponse": 1, "RepositoryModelLoadResponse": 2, "RepositoryModelUnloadResponse": 2}
    for name, ours in make_messages().items():
        known = theirs[renamed.get(name, name)].fields_by_name
        fields = ours.DESCRIPTOR.fields
        assert len([field for field in fields if field.name not in known]) == further.get(name, 0), name
        for field in fields:
            if field.name in known:
                same = known[field.name]
                assert (field.number, field.type) == (same.number, same.type), (name, field.name)
                assert field.is_repeated == same.is_repeated, (name, field.name)
        for enum in (field.enum_type for field in fields if field.enum_type):
            other = next(
                field.enum_type for field in known.values() if field.enum_type and field.enum_type.name == enum.name
            )
            assert all(other.values_by_name[value.name].number == value.number for value in enum.values)


def check_health_and_metadata():
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert refused("NOT_FOUND", lambda: client.is_model_ready("nothing"))
    assert "classification" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata(MODEL)
    assert (metadata.inputs[0].name, list(metadata.inputs[0].shape)) == ("image", [-1, 32, 32, 3])
    assert (metadata.outputs[0].datatype, list(metadata.versions)) == ("FP32", ["1"])
    config = client.get_model_config(MODEL, "1").config
    assert (config.max_batch_size, list(config.input[0].dims)) == (32, [32, 32, 3])
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    assert config.parameters["provider"].string_value in ("cpu", "cuda")


def check_raw_and_typed_agree():
    raw = client.infer(MODEL, request(), request_id="seven")
    assert (raw.get_response().id, raw.get_response().model_version) == ("seven", "1")
    probabilities = raw.as_numpy("probabilities")
    assert probabilities.shape == (3, 3) and probabilities.dtype == np.float32
    assert probabilities.argmax(1).tolist() == [0, 1, 2]
    answer = stub.ModelInfer(typed_request())
    assert not answer.raw_output_contents and answer.id == "typed"
    assert np.allclose(answer.outputs[0].contents.fp32_contents, probabilities[2])


def check_classification():
    output = triton.InferRequestedOutput("probabilities", class_count=2)
    strings = client.infer(MODEL, request(), outputs=[output]).as_numpy("probabilities")
    assert strings.shape == (3, 2)
    value, index, label = strings[2, 0].decode().split(":")
    assert (index, label) == ("2", "blue") and 0.5 < float(value) <= 1
    message = typed_request()
    message.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    answer = stub.ModelInfer(message)
    assert answer.outputs[0].datatype == "BYTES"
    assert [text.split(b":")[2] for text in answer.outputs[0].contents.bytes_contents] == [b"blue"]


def check_compression_and_deadlines():
    plain = client.infer(MODEL, request(), client_timeout=60, timeout=60_000_000).as_numpy("probabilities")
    packed = client.infer(MODEL, request(), compression_algorithm="gzip").as_numpy("probabilities")
    assert (packed == plain).all()


def check_many_at_once():
    answers = queue.Queue()
    for n in range(40):
        client.async_infer(
            MODEL, request(IMAGES[[n % 3]]), lambda result, error: answers.put((result, error)), request_id=str(n)
        )
    for _ in range(40):
        result, error = answers.get(timeout=60)
        assert error is None, error
        assert result.as_numpy("probabilities").argmax() == int(result.get_response().id) % 3


def check_statistics():
    def counts():
        (found,) = client.get_inference_statistics(MODEL, "1").model_stats
        return found.inference_count, found.inference_stats.success.count

    before = counts()
    client.infer(MODEL, request())
    assert np.subtract(counts(), before).tolist() == [3, 1]
    assert client.get_inference_statistics().model_stats


def check_repository():
    (row,) = client.get_model_repository_index().models
    assert (row.name, row.version, row.state) == (MODEL, "1", "READY")
    client.unload_model(MODEL)
    assert client.get_model_repository_index().models[0].state == "UNAVAILABLE"
    refused("UNAVAILABLE", lambda: client.infer(MODEL, request()))
    client.load_model(MODEL)
    assert client.is_model_ready(MODEL)
    refused("INVALID_ARGUMENT", lambda: client.load_model(MODEL, config="{}"))
    refused("NOT_FOUND", lambda: client.load_model("nothing"))


def check_errors_name_their_reason():
    assert "no model nothing" in refused("NOT_FOUND", lambda: client.infer("nothing", request()))
    assert "no version 9" in refused("NOT_FOUND", lambda: client.infer(MODEL, request(), model_version="9"))
    small = request(np.zeros((1, 8, 8, 3), np.uint8))
    assert "shape" in refused("INVALID_ARGUMENT", lambda: client.infer(MODEL, small))
    refused("INVALID_ARGUMENT", lambda: client.infer(MODEL, request() * 2))
    assert "not offered" in refused("UNIMPLEMENTED", client.get_system_shared_memory_status)


def refused(code, call):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", error
        return error.message()
    raise AssertionError("the server took what it should refuse")


checks = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in checks:
    check()
    print(check.__name__)
client.close()
