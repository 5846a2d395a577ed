"""com.microsoft::MatMulNBits of 4 bits -> fdpp::FdppFlatGemm with int4 weights, without loss.

The numbers of B change places, scales and zero points stay as they are.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from .. import op_spec
from ..dtypes import spec_name
from ..nodes import input_at, is_constant
from ..pack import packed_int4, register, reshaped
from ..report import ExportReport
from ..weight_format import BLOCK_SIZES

_KNOWN = {"K", "N", "bits", "block_size", "accuracy_level"}
# MatMulNBits' inputs by index.
_A, _B, _SCALES, _ZERO_POINTS, _GROUP_INDEX, _BIAS = range(6)
_NAMES = ("A", "B", "scales", "zero_points", "g_idx", "bias")


def is_candidate(node: ir.Node) -> bool:
    """Whether this rule rewrites `node` or says why not."""
    return (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place; nodes with a feature that our kernels lack stay, with the reason in `report`."""
    packed: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
    for node in model.graph.all_nodes():
        if not is_candidate(node):
            continue
        reason = _refusal(node)
        if reason is not None:
            report.leave(node, reason)
            continue
        inputs = [input_at(node, index) for index in (_A, _B, _SCALES, _ZERO_POINTS, _BIAS)]
        for index, shape in _shapes(node).items():
            value = inputs[index]
            if value is None or (index != _B and tuple(value.const_value.shape.numpy()) == shape):
                continue
            if (value, shape) not in packed:
                packed[value, shape] = _register_packed(value, shape, numbers=index == _B)
            inputs[index] = packed[value, shape]
        node.domain, node.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
        node.attributes.pop("bits", None)
        node.attributes["weight_format"] = ir.AttrString("weight_format", "int4")
        node.resize_inputs(max(i for i, value in enumerate(inputs) if value is not None) + 1)
        for index in range(len(node.inputs)):
            node.replace_input_with(index, inputs[index])
        report.rewrote(f"MatMulNBits -> {op_spec.FLAT_GEMM}")


def _register_packed(value: ir.Value, shape: tuple[int, ...], *, numbers: bool) -> ir.Value:
    name = f"{value.name}.packed"
    tensor = packed_int4(value.const_value, shape[0], name) if numbers else reshaped(value.const_value, shape, name)
    return register(value.graph, tensor)


def _refusal(node: ir.Node) -> str | None:
    """Why `node` stays; None: it can be rewritten."""
    return _refused_attributes(node) or _refused_inputs(node) or _refused_shapes(node)


def _refused_attributes(node: ir.Node) -> str | None:
    for name, attribute in node.attributes.items():
        if name not in _KNOWN:
            return f"attribute {name} = {attribute.value!r} is not supported"
    if _attribute(node, "bits", 4) != 4:
        return f"its weights have {_attribute(node, 'bits', 4)} bits, expected 4"
    if _attribute(node, "block_size", 0) not in BLOCK_SIZES:
        return f"block_size is {_attribute(node, 'block_size', 0)}, expected one of {BLOCK_SIZES}"
    if min(_attribute(node, "N", 0), _attribute(node, "K", 0)) <= 0:
        return "attribute N or K is missing or not positive"
    if _attribute(node, "accuracy_level", 0) not in range(5):
        return f"accuracy_level is {_attribute(node, 'accuracy_level', 0)}, expected 0 to 4"
    return None


def _refused_inputs(node: ir.Node) -> str | None:
    if len(node.inputs) > len(_NAMES):
        return f"input {len(_NAMES)} is not known"
    for index in (_A, _B, _SCALES):
        if input_at(node, index) is None:
            return f"input {_NAMES[index]} is missing"
    if input_at(node, _GROUP_INDEX) is not None:
        return f"g_idx ({input_at(node, _GROUP_INDEX).name}) is not supported"
    for index in (_B, _SCALES, _ZERO_POINTS):
        value = input_at(node, index)
        if value is not None and not is_constant(value):
            return f"{_NAMES[index]} ({value.name}) is not constant"
    for index in (_B, _ZERO_POINTS):
        value = input_at(node, index)
        if value is not None and value.const_value.dtype != ir.DataType.UINT8:
            return f"{_NAMES[index]} ({value.name}) is {spec_name(value.const_value.dtype)}, expected uint8"
    activation = spec_name(input_at(node, _SCALES).const_value.dtype)
    if not op_spec.backends_for(op_spec.FLAT_GEMM, T=activation, W="uint8"):
        return f"no kernel multiplies {activation} activations by int4 weights ({input_at(node, _B).name})"
    return None


def _refused_shapes(node: ir.Node) -> str | None:
    for index, shape in _shapes(node).items():
        value = input_at(node, index)
        if value is not None and value.const_value.size != math.prod(shape):
            return (
                f"{_NAMES[index]} ({value.name}) has {value.const_value.size} elements, expected {math.prod(shape)} "
                f"for N = {_attribute(node, 'N', 0)} and K = {_attribute(node, 'K', 0)}"
            )
    for index, wanted in ((_A, _attribute(node, "K", 0)), (_BIAS, _attribute(node, "N", 0))):
        value = input_at(node, index)
        if value is not None and value.shape and isinstance(value.shape[-1], int) and value.shape[-1] != wanted:
            return f"{_NAMES[index]} ({value.name}) has {value.shape[-1]} columns, expected {wanted}"
    return None


def _shapes(node: ir.Node) -> dict[int, tuple[int, ...]]:
    """FdppFlatGemm's shapes of B, scales and zero_points, which have the same index in both ops."""
    rows, size = _attribute(node, "N", 0), _attribute(node, "block_size", 0)
    blocks = -(-_attribute(node, "K", 0) // size)
    return {_B: (rows, blocks * size // 2), _SCALES: (rows, blocks), _ZERO_POINTS: (rows, -(-blocks // 2))}


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default
