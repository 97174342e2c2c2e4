"""ONNX graphs in a canonical form: order and names that follow from the graph alone."""

from __future__ import annotations

import re
from collections import Counter

import onnx


def canonicalise(proto: onnx.ModelProto) -> None:
    """Order and names that follow from the graph alone, so that equal networks become equal bytes.

    The converter numbers what it makes with a counter of the whole process. Nodes that lead to no output go.
    """
    # Inferred shapes carry the converters' own axis names and, at times, their errors; readers infer them again.
    del proto.graph.value_info[:]
    nodes = _in_order(proto)
    fixed = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    renamed: dict[str, str] = {name: name for name in fixed} | {"": ""}
    initializers = []
    taken: Counter[str] = Counter()
    for node in nodes:
        node.name = _plain_name(node, proto.graph.name, taken)
        for i, name in enumerate(node.input):
            if name not in renamed:
                renamed[name] = f"{node.name}/input{i}"
                initializers.append(tensors[name])
            node.input[i] = renamed[name]
        for i, name in enumerate(node.output):
            renamed.setdefault(name, node.name if i == 0 else f"{node.name}/output{i}")
            node.output[i] = renamed[name]
    for tensor in initializers:
        tensor.name = renamed[tensor.name]
    kept = [(list(nodes), proto.graph.node), (initializers, proto.graph.initializer)]
    for values, field in kept:
        copies = [type(value).FromString(value.SerializeToString(deterministic=True)) for value in values]
        del field[:]
        field.extend(copies)


def rename(proto: onnx.ModelProto, old: str, new: str) -> None:
    """Give one tensor another name wherever it is made, read or described."""
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in (*proto.graph.output, *proto.graph.value_info):
        if value.name == old:
            value.name = new


def replace(proto: onnx.ModelProto, tensor: str, by: str) -> None:
    """Let all that reads `tensor` read `by`; if `tensor` is an output of the graph, its name passes to `by`."""
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == tensor:
                node.input[i] = by
    if tensor in {value.name for value in proto.graph.output}:
        rename(proto, tensor, f"{tensor}/unused")
        proto.graph.output[[value.name for value in proto.graph.output].index(f"{tensor}/unused")].name = tensor
        rename(proto, by, tensor)


def _in_order(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, each after what it reads: depth first, inputs from left to right."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    ordered: dict[int, onnx.NodeProto] = {}
    stack = [(makers[value.name], False) for value in reversed(proto.graph.output)]
    while stack:
        node, ready = stack.pop()
        if id(node) in ordered:
            continue
        if ready:
            ordered[id(node)] = node
            continue
        stack.append((node, True))
        stack.extend((makers[name], False) for name in reversed(node.input) if name in makers)
    return list(ordered.values())


def _plain_name(node: onnx.NodeProto, model: str, taken: Counter[str]) -> str:
    """The Keras layer's name and the operation, without the model's name and the converter's counters."""
    parts = [part for part in node.name.split("/") if not re.fullmatch(rf"{re.escape(model)}(_\d+)?", part)]
    base = re.sub(r"__\d+", "", "/".join(parts)) or node.op_type
    taken[base] += 1
    return base if taken[base] == 1 else f"{base}.{taken[base]}"
