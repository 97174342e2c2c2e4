"""The messages of the Open Inference Protocol's gRPC service, made from a table when the server starts.

Names, numbers and types are facts of the protocol: KServe's Open Inference Protocol specification (gRPC) and
Triton's extensions of it, `grpc_service.proto` and `model_config.proto`. What this server never reads or writes is
left out, as protocol buffers allow. A pool of their own keeps them apart from a client's in the same process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"

# Field: (number, type). A trailing * is a list, a leading @ a map from strings.
_Fields = dict[str, tuple[int, str]]

_PARAMETER: _Fields = {
    "bool_param": (1, "bool"),
    "int64_param": (2, "int64"),
    "string_param": (3, "string"),
    "double_param": (4, "double"),
    "uint64_param": (5, "uint64"),
}
_NAMED: _Fields = {"name": (1, "string"), "version": (2, "string")}
# Triton's clients name the model in field 2, KServe's own in field 1.
_CONTROLLED: _Fields = {
    "repository_name": (1, "string"),
    "model_name": (2, "string"),
    "parameters": (3, "@LoadParameter"),
}
_TENSOR: _Fields = {
    "name": (1, "string"),
    "datatype": (2, "string"),
    "shape": (3, "int64*"),
    "parameters": (4, "@InferParameter"),
    "contents": (5, "InferTensorContents"),
}
_CONFIG_TENSOR: _Fields = {"name": (1, "string"), "data_type": (2, "DataType")}
_COMPUTE: _Fields = {
    "compute_input": (2, "StatisticDuration"),
    "compute_infer": (3, "StatisticDuration"),
    "compute_output": (4, "StatisticDuration"),
}

_MESSAGES: dict[str, _Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "string*")},
    "ModelMetadataRequest": _NAMED,
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "TensorMetadata*"),
        "outputs": (5, "TensorMetadata*"),
        "properties": (6, "@string"),
    },
    "InferParameter": _PARAMETER,
    "InferTensorContents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
    "InferInputTensor": _TENSOR,
    "InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "@InferParameter")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "@InferParameter"),
        "inputs": (5, "InferInputTensor*"),
        "outputs": (6, "InferRequestedOutputTensor*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "InferOutputTensor": _TENSOR,
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "@InferParameter"),
        "outputs": (5, "InferOutputTensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "ModelConfigRequest": _NAMED,
    "ModelInput": {**_CONFIG_TENSOR, "dims": (4, "int64*")},
    "ModelOutput": {**_CONFIG_TENSOR, "dims": (3, "int64*")},
    "ModelInstanceGroup": {"count": (2, "int32"), "kind": (4, "Kind")},
    "ModelDynamicBatching": {"max_queue_delay_microseconds": (2, "uint64")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "parameters": (14, "@ModelParameter"),
        "backend": (17, "string"),
    },
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelStatisticsRequest": _NAMED,
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    "InferStatistics": {
        "success": (1, "StatisticDuration"),
        "fail": (2, "StatisticDuration"),
        "queue": (3, "StatisticDuration"),
        "compute_input": (4, "StatisticDuration"),
        "compute_infer": (5, "StatisticDuration"),
        "compute_output": (6, "StatisticDuration"),
        "cache_hit": (7, "StatisticDuration"),
        "cache_miss": (8, "StatisticDuration"),
    },
    "InferBatchStatistics": {"batch_size": (1, "uint64"), **_COMPUTE},
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "InferBatchStatistics*"),
    },
    "ModelStatisticsResponse": {"model_stats": (1, "ModelStatistics*")},
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "ModelIndex": {"name": (1, "string"), "version": (2, "string"), "state": (3, "string"), "reason": (4, "string")},
    "RepositoryIndexResponse": {"models": (1, "ModelIndex*")},
    "LoadParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "bytes_param": (4, "bytes"),
    },
    "RepositoryModelLoadRequest": _CONTROLLED,
    # Triton answers nothing here; KServe's own client reads these two.
    "RepositoryModelLoadResponse": {"model_name": (1, "string"), "isLoaded": (2, "bool")},
    "RepositoryModelUnloadRequest": _CONTROLLED,
    "RepositoryModelUnloadResponse": {"model_name": (1, "string"), "isUnloaded": (2, "bool")},
}

# At most one field of these is set: which one says the parameter's type.
_CHOICES = {"InferParameter": "parameter_choice", "LoadParameter": "parameter_choice"}

# The values that this server writes, and the zero that every enumeration begins with.
_ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def make_messages() -> dict[str, type[Any]]:
    """The class of every message, by its name without the package."""
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for label, number in values.items():
            enum.value.add(name=label, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        choice = _CHOICES.get(name)
        if choice is not None:
            message.oneof_decl.add(name=choice)
        for field, (number, kind) in fields.items():
            added = _add_field(message, field, number, kind)
            if choice is not None:
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


def _add_field(message: Any, name: str, number: int, kind: str) -> Any:
    field = message.field.add(name=name, number=number)
    repeated = kind.endswith("*") or kind.startswith("@")
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    if kind.startswith("@"):
        # A map is a list of pairs on the wire.
        pair = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        pair.options.map_entry = True
        _add_field(pair, "key", 1, "string")
        _add_field(pair, "value", 2, kind[1:])
        kind = f"{message.name}.{pair.name}"
    _set_type(field, kind.removesuffix("*"))
    return field


def _set_type(field: Any, kind: str) -> None:
    if kind in _ENUMS:
        field.type, field.type_name = field.TYPE_ENUM, f".{PACKAGE}.{kind}"
    elif kind[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
