"""One-node ONNX models for the adapter tests."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from fdpp_ort import _core

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
}
WEIGHT_FORMATS = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int8": "int8",
    "float8_e4m3fn": "fp8",
    "uint8": "int4",
}
GEMM_INPUTS = ["a", "b", "scales", "zero_points", "bias", "residual", "norm_weight", "next_weight", "norm_bias"]

ATTENTION_INPUTS = [
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm", "k_norm", "phi",
]  # fmt: skip
ATTENTION_RANKS = {
    "query": 3, "key": 3, "value": 3, "past_key": 4, "past_value": 4, "seqlens_k": 1, "total_sequence_length": 1,
    "cos_cache": 2, "sin_cache": 2, "position_ids": 2, "attention_bias": 4, "head_sink": 1, "q_norm": 1, "k_norm": 1,
    "phi": 1,
}  # fmt: skip


def _serialise(node: onnx.NodeProto, inputs: list, outputs: list, initializers: list) -> bytes:
    graph = helper.make_graph([node], "one_node", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("fdpp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _without_trailing_gaps(names: list[str]) -> list[str]:
    while not names[-1]:
        names.pop()
    return names


def as_tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    """A tensor proto of `values`, the types of ml_dtypes included."""
    types = {ml_dtypes.bfloat16: TensorProto.BFLOAT16, ml_dtypes.float8_e4m3fn: TensorProto.FLOAT8E4M3FN}
    if values.dtype.type in types:
        return helper.make_tensor(name, types[values.dtype.type], values.shape, values.tobytes(), raw=True)
    return onnx.numpy_helper.from_array(values, name)


def greedy_step_model(dtype: str) -> bytes:
    """With logits of `dtype`, and shapes left open."""
    inputs = ["logits", "positions", "attention_mask"]
    outputs = ["next_tokens", "next_positions", "next_attention_mask", "host_tokens"]
    node = helper.make_node("FdppGreedyStep", inputs, outputs, domain="fdpp")
    types = {"logits": ONNX_TYPES[dtype]}

    def ports(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, types.get(name, TensorProto.INT64), None) for name in names]

    return _serialise(node, ports(inputs), ports(outputs), [])


def gemm_model(
    weight: np.ndarray,
    *,
    bias: bool = False,
    residual: bool = False,
    rank: int = 2,
    dtype: str = "float32",
    constants: dict[str, np.ndarray] | None = None,
    **attributes,
) -> bytes:
    """FdppFlatGemm over a constant weight B [N, K], or another that the attributes say; `constants`: further constant
    inputs by name. Inputs a, and bias and residual where asked for, of `dtype`; output y."""
    n, k = weight.shape
    dims = [f"d{i}" for i in range(rank - 1)]
    constants = {"b": weight, **(constants or {})}
    inputs = [helper.make_tensor_value_info("a", ONNX_TYPES[dtype], [*dims, "k"])]
    if bias:
        inputs.append(helper.make_tensor_value_info("bias", ONNX_TYPES[dtype], ["rows"]))
    if residual:
        inputs.append(helper.make_tensor_value_info("residual", ONNX_TYPES[dtype], [*dims, "n"]))
    given = {*constants, *(value.name for value in inputs)}
    names = _without_trailing_gaps([name if name in given else "" for name in GEMM_INPUTS])
    settings = {"N": n, "K": k, "weight_format": WEIGHT_FORMATS[str(weight.dtype)], **attributes}
    node = helper.make_node("FdppFlatGemm", names, ["y"], name="gemm", domain="fdpp", **settings)
    outputs = [helper.make_tensor_value_info("y", ONNX_TYPES[dtype], None)]
    return _serialise(node, inputs, outputs, [as_tensor(name, values) for name, values in constants.items()])


def dense(model: bytes) -> bytes:
    """The one-node `model` of ours in the dense form; total_sequence_length becomes the length of a mask [1, total]."""
    proto = onnx.load_from_string(model)
    (node,) = proto.graph.node
    ports = {spec["name"]: spec["inputs"] for spec in _core.op_specs()}[node.op_type]
    given = [port["name"] for port, name in zip(ports, node.input, strict=False) if name]
    kept = [name for name in node.input if name]
    del node.input[:]
    node.input.extend(kept)
    node.domain = "fdpp.dense"
    node.attribute.append(helper.make_attribute("inputs", ",".join(given)))
    proto.opset_import.append(helper.make_opsetid("fdpp.dense", 1))
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.itemsize == 1:
            if tensor.name == "zero_points":
                values = np.pad(values.ravel(), (0, -values.size % 4))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values).view(np.int32), tensor.name))
    for value in proto.graph.input:
        if value.name == "total_sequence_length":
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.INT64, ["batch", "total"]))
    return proto.SerializeToString()


def matmul_nbits_model(constants: dict[str, np.ndarray], **attributes) -> bytes:
    """com.microsoft::MatMulNBits over constant inputs b, scales and, where given, zero_points; input a, output y."""
    names = _without_trailing_gaps(
        ["a", *(name if name in constants else "" for name in ("b", "scales", "zero_points"))]
    )
    node = helper.make_node("MatMulNBits", names, ["y"], name="gemm", domain="com.microsoft", bits=4, **attributes)
    inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", "k"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return _serialise(node, inputs, outputs, [as_tensor(name, values) for name, values in constants.items()])


def attention_model(
    op: str,
    given: list[str],
    *,
    dtype: str = "float32",
    cache: str | None = None,
    name: str = "attention",
    **attributes,
) -> bytes:
    """`op` (FdppAttention or GroupQueryAttention) with the inputs named in `given`, every dimension free."""
    types = {name: ONNX_TYPES[dtype] for name in ATTENTION_INPUTS}
    types.update(past_key=ONNX_TYPES[cache or dtype], past_value=ONNX_TYPES[cache or dtype])
    types.update(seqlens_k=TensorProto.INT32, total_sequence_length=TensorProto.INT32, position_ids=TensorProto.INT64)
    types.update(dict.fromkeys(("k_scale", "v_scale", "phi"), TensorProto.FLOAT))
    inputs = []
    for port in given:
        dims = [f"{port}_{i}" for i in range(ATTENTION_RANKS[port])] if port in ATTENTION_RANKS else None
        inputs.append(helper.make_tensor_value_info(port, types[port], dims))
    names = _without_trailing_gaps([port if port in given else "" for port in ATTENTION_INPUTS])
    domain = "fdpp" if op.startswith("Fdpp") else "com.microsoft"
    outputs = ["output", "present_key", "present_value"]
    node = helper.make_node(op, names, outputs, name=name, domain=domain, **attributes)
    infos = [
        helper.make_tensor_value_info(port, types["query" if port == "output" else "past_key"], None)
        for port in outputs
    ]
    return _serialise(node, inputs, infos, [])
