"""Mirror of the ops' signatures (plugins/kernels/op_spec.cpp); a test compares it with `_core.op_specs()`.

The exporter reads here which inputs, attributes and element types the ops take, so that it needs no compiled module.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

DOMAIN = "fdpp"
# The dense form (plugins/include/fdpp/dense.h): only the inputs that are there, which the attribute names.
DENSE_DOMAIN = "fdpp.dense"
DENSE_ATTRIBUTE = "inputs"
VERSION = 1
ATTENTION = "FdppAttention"
FLAT_GEMM = "FdppFlatGemm"


def _port(name: str, type_: str, *, optional: bool = False, host_memory: bool = False) -> dict[str, Any]:
    return {"name": name, "type": type_, "optional": optional, "host_memory": host_memory}


def _attribute(name: str, kind: str, default: str | None = None) -> dict[str, Any]:
    return {"name": name, "kind": kind, "default": default}


def _signature(backend: str, **types: str) -> dict[str, Any]:
    return {"backend": backend, "types": types}


_ATTENTION_SPEC = {
    "name": ATTENTION,
    "domain": DOMAIN,
    "version": VERSION,
    "inputs": [
        _port("query", "T"),
        _port("key", "T", optional=True),
        _port("value", "T", optional=True),
        _port("past_key", "C", optional=True),
        _port("past_value", "C", optional=True),
        _port("seqlens_k", "int32"),
        _port("total_sequence_length", "int32", host_memory=True),
        _port("cos_cache", "T", optional=True),
        _port("sin_cache", "T", optional=True),
        _port("position_ids", "int64", optional=True),
        _port("attention_bias", "T", optional=True),
        _port("head_sink", "T", optional=True),
        _port("k_scale", "float32", optional=True),
        _port("v_scale", "float32", optional=True),
        _port("q_norm", "T", optional=True),
        _port("k_norm", "T", optional=True),
        _port("phi", "float32", optional=True),
    ],
    "outputs": [_port("output", "T"), _port("present_key", "C"), _port("present_value", "C")],
    "attributes": [
        _attribute("num_heads", "integer"),
        _attribute("kv_num_heads", "integer"),
        _attribute("scale", "real", "0"),
        _attribute("softcap", "real", "0"),
        _attribute("local_window_size", "integer", "-1"),
        _attribute("do_rotary", "integer", "0"),
        _attribute("rotary_interleaved", "integer", "0"),
        _attribute("rotary_embedding_dim", "integer", "0"),
        _attribute("softmax_mode", "text", "lazy"),
        _attribute("phi_lower", "real", "-8"),
        _attribute("phi_upper", "real", "8"),
        _attribute("qk_norm_epsilon", "real", "1e-06"),
        _attribute("k_quant_type", "text", "NONE"),
        _attribute("v_quant_type", "text", "NONE"),
    ],
    "signatures": [
        _signature("cpu", T="float32", C="float32"),
        _signature("cpu", T="float32", C="float16"),
        _signature("cpu", T="float32", C="int8"),
        _signature("cpu", T="float32", C="float8e4m3fn"),
        _signature("cpu", T="float16", C="float16"),
        _signature("cuda", T="float16", C="float16"),
        _signature("cuda", T="float16", C="int8"),
        _signature("cuda", T="float16", C="float8e4m3fn"),
        _signature("cuda", T="bfloat16", C="bfloat16"),
        _signature("cuda", T="bfloat16", C="int8"),
        _signature("cuda", T="bfloat16", C="float8e4m3fn"),
    ],
    "in_place": [[3, 1], [4, 2]],
}

_FLAT_GEMM_SPEC = {
    "name": FLAT_GEMM,
    "domain": DOMAIN,
    "version": VERSION,
    "inputs": [
        _port("A", "T"),
        _port("B", "W"),
        _port("scales", "T", optional=True),
        _port("zero_points", "uint8", optional=True),
        _port("bias", "T", optional=True),
        _port("residual", "T", optional=True),
        _port("norm_weight", "T", optional=True),
        _port("next_weight", "W", optional=True),
        _port("norm_bias", "T", optional=True),
    ],
    "outputs": [_port("Y", "T")],
    "attributes": [
        _attribute("N", "integer"),
        _attribute("K", "integer"),
        _attribute("weight_format", "text"),
        _attribute("block_size", "integer", "0"),
        _attribute("activation", "text", "none"),
        _attribute("norm", "text", "rms"),
        _attribute("norm_epsilon", "real", "1e-06"),
        _attribute("accuracy_level", "integer", "0"),
    ],
    "signatures": [
        _signature("cpu", T="float32", W="float32"),
        _signature("cpu", T="float32", W="float16"),
        _signature("cpu", T="float32", W="bfloat16"),
        _signature("cpu", T="float32", W="int8"),
        _signature("cpu", T="float32", W="float8e4m3fn"),
        _signature("cpu", T="float32", W="uint8"),
        _signature("cuda", T="float16", W="float16"),
        _signature("cuda", T="float16", W="int8"),
        _signature("cuda", T="float16", W="float8e4m3fn"),
        _signature("cuda", T="float16", W="uint8"),
        _signature("cuda", T="bfloat16", W="bfloat16"),
        _signature("cuda", T="bfloat16", W="int8"),
        _signature("cuda", T="bfloat16", W="float8e4m3fn"),
        _signature("cuda", T="bfloat16", W="uint8"),
    ],
    "in_place": [],
}


def op_specs() -> list[dict[str, Any]]:
    """All ops, in the form of `_core.op_specs()` (without the attributes' meanings)."""
    return [_ATTENTION_SPEC, _FLAT_GEMM_SPEC]


def is_op(node: ir.Node, op: str) -> bool:
    """Whether `node` is our op `op`, in either form."""
    return node.domain in (DOMAIN, DENSE_DOMAIN) and node.op_type == op


def input_names(op: str) -> list[str]:
    """Names of the inputs of the op `op`, in order."""
    return [port["name"] for port in _spec(op)["inputs"]]


def inputs(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of `node` in the op's order, whichever form it has."""
    if node.domain != DENSE_DOMAIN:
        return list(node.inputs)
    given = dict(zip(node.attributes.get_string(DENSE_ATTRIBUTE).split(","), node.inputs, strict=True))
    return [given.get(name) for name in input_names(node.op_type)]


def attribute_names(op: str) -> set[str]:
    """Names of the attributes of the op `op`."""
    return {attribute["name"] for attribute in _spec(op)["attributes"]}


def backends_for(op: str, **types: str) -> list[str]:
    """Backends with kernels of `op` for these element types, e.g. `T="float32", W="float16"`; empty: none."""
    return [signature["backend"] for signature in _spec(op)["signatures"] if signature["types"] == types]


def _spec(op: str) -> dict[str, Any]:
    return next(spec for spec in op_specs() if spec["name"] == op)
