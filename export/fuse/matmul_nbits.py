"""com.microsoft::MatMulNBits -> fdpp::FdppFlatGemm with int4 or int8 weights, without loss.

4 bits: the numbers of B change places; scales and zero points stay as they are, or are repeated where a block is cut
into some that the op has. 8 bits: int8 where each column has one scale and its zero points lie in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..dtypes import spec_name
from ..nodes import attribute_of, columns_of, input_at, is_constant
from ..pack import packed_int4, packed_int8, pairs, register, unpaired
from ..report import ExportReport
from ..streamed import Streamed, read
from .blocks import EXPECTED, Blocks

_KNOWN = {"K", "N", "bits", "block_size", "accuracy_level"}
# MatMulNBits' inputs by index.
_A, _B, _SCALES, _ZERO_POINTS, _GROUP_INDEX, _BIAS = range(6)
_NAMES = ("A", "B", "scales", "zero_points", "g_idx", "bias")
_MIDDLE = 128  # zero point of 8 bits where none is given


def is_candidate(node: ir.Node) -> bool:
    """Whether this rule rewrites `node` or says why not."""
    return (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place; nodes with a feature that our kernels lack stay, with the reason in `report`."""
    packed: dict[tuple[ir.Value, int, Blocks], ir.Value] = {}
    for node in model.graph.all_nodes():
        if not is_candidate(node):
            continue
        reason = _refusal(node)
        if reason is not None:
            report.leave(node, reason)
            continue
        inputs = [input_at(node, index) for index in (_A, _B, _SCALES, _ZERO_POINTS, _BIAS)]
        if _is_int8(node):
            inputs[_ZERO_POINTS] = None
        for index in (_B, _SCALES, _ZERO_POINTS):
            value = inputs[index]
            if value is None:
                continue
            key = value, index, _blocks(node)
            if key not in packed:
                tensor = _stored(node, index, f"{value.name}.packed")
                packed[key] = value if tensor is None else register(value.graph, tensor)
            inputs[index] = packed[key]
        _replace(node, inputs)
        report.rewrote(f"MatMulNBits -> {op_spec.FLAT_GEMM}")


def _replace(node: ir.Node, inputs: list[ir.Value | None]) -> None:
    form, size = ("int8", 0) if _is_int8(node) else ("int4", _blocks(node).stored)
    node.domain, node.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
    node.attributes.pop("bits", None)
    node.attributes["weight_format"] = ir.AttrString("weight_format", form)
    node.attributes["block_size"] = ir.AttrInt64("block_size", size)
    node.resize_inputs(max(i for i, value in enumerate(inputs) if value is not None) + 1)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, inputs[index])


def _stored(node: ir.Node, index: int, name: str) -> ir.TensorProtocol | None:
    """FdppFlatGemm's B, scales or zero points, which have the same index in both ops; None: they are as they were."""
    tensor, rows = input_at(node, index).const_value, attribute_of(node, "N", 0)
    blocks, int8 = _blocks(node), _is_int8(node)
    if index == _B and int8:
        return packed_int8(tensor, (rows, blocks.columns), name)
    if index == _B:
        return packed_int4(tensor, (rows, blocks.stored_count * blocks.stored // 2), name)
    count = blocks.stored_count
    shape = (rows,) if int8 else (rows, count if index == _SCALES else -(-count // 2))
    same = int8 or blocks.size == blocks.stored
    if same and tuple(tensor.shape.numpy()) == shape:
        return None

    def pieces() -> Iterator[np.ndarray]:
        values = read(tensor).reshape(rows, -1)
        if int8:
            yield values[:, 0]
        elif same:
            yield values
        elif index == _SCALES:
            yield blocks.spread(values)
        else:
            yield pairs(blocks.spread(unpaired(values)[:, : blocks.count]))

    return Streamed(pieces, tensor.dtype, shape, name)


def _refusal(node: ir.Node) -> str | None:
    """Why `node` stays; None: it can be rewritten."""
    return _refused_attributes(node) or _refused_inputs(node) or _refused_shapes(node) or _refused_values(node)


def _refused_attributes(node: ir.Node) -> str | None:
    for name, attribute in node.attributes.items():
        if name not in _KNOWN:
            return f"attribute {name} = {attribute.value!r} is not supported"
    if attribute_of(node, "bits", 4) not in (4, 8):
        return f"its weights have {attribute_of(node, 'bits', 4)} bits, expected 4 or 8"
    if min(attribute_of(node, "N", 0), attribute_of(node, "K", 0)) <= 0:
        return "attribute N or K is missing or not positive"
    size = attribute_of(node, "block_size", 0)
    if size <= 0 or size % 2 or (not _is_int8(node) and _blocks(node).stored is None):
        return f"block_size is {size}, expected {EXPECTED}"
    if attribute_of(node, "accuracy_level", 0) not in range(5):
        return f"accuracy_level is {attribute_of(node, 'accuracy_level', 0)}, expected 0 to 4"
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
    activation, kind = spec_name(input_at(node, _SCALES).const_value.dtype), "int8" if _is_int8(node) else "uint8"
    if not op_spec.backends_for(op_spec.FLAT_GEMM, T=activation, W=kind):
        return (
            f"no kernel multiplies {activation} activations by int{attribute_of(node, 'bits', 4)} weights "
            f"({input_at(node, _B).name})"
        )
    return None


def _refused_shapes(node: ir.Node) -> str | None:
    rows, size, blocks = attribute_of(node, "N", 0), attribute_of(node, "block_size", 0), _blocks(node)
    bits = attribute_of(node, "bits", 4)
    sizes = {_B: blocks.count * size * bits // 8, _SCALES: blocks.count, _ZERO_POINTS: -(-blocks.count * bits // 8)}
    for index, wanted in sizes.items():
        value = input_at(node, index)
        if value is not None and value.const_value.size != rows * wanted:
            return (
                f"{_NAMES[index]} ({value.name}) has {value.const_value.size} elements, expected {rows * wanted} "
                f"for N = {rows} and K = {blocks.columns}"
            )
    for index, wanted in ((_A, blocks.columns), (_BIAS, rows)):
        value = input_at(node, index)
        if columns_of(value) not in (None, wanted):
            return f"{_NAMES[index]} ({value.name}) has {value.shape[-1]} columns, expected {wanted}"
    return None


def _refused_values(node: ir.Node) -> str | None:
    """Of 8 bits, which the op's int8 holds where a column has one scale and no zero point but the middle."""
    if not _is_int8(node):
        return None
    scales = read(input_at(node, _SCALES).const_value).reshape(attribute_of(node, "N", 0), -1)
    if np.any(scales != scales[:, :1]):
        return "its weights have 8 bits and a scale for each block of K, expected one for each column"
    points = input_at(node, _ZERO_POINTS)
    if points is not None and np.any(read(points.const_value) != _MIDDLE):
        return f"its weights have 8 bits and zero points other than {_MIDDLE}"
    return None


def _is_int8(node: ir.Node) -> bool:
    return attribute_of(node, "bits", 4) == 8


def _blocks(node: ir.Node) -> Blocks:
    return Blocks(attribute_of(node, "K", 0), attribute_of(node, "block_size", 0))
