"""MatMul(A, DequantizeLinear(constants)) -> fdpp::FdppFlatGemm with int4 or int8 weights, without loss.

int4: numbers of 4 bits with a scale, and perhaps a zero point, for each block of K, each column, or all. int8: numbers
of 8 bits with a scale for each column, or one for all. The numbers are [K, N], or [N, K] behind a Transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..dtypes import spec_name
from ..nodes import columns_of, input_at, is_constant
from ..pack import packed_int4, pairs, register
from ..report import ExportReport
from ..weight_format import CPU_ACCURACY_LEVEL
from .blocks import EXPECTED, Blocks
from .weight import is_transpose

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)
# What unsigned numbers have in place of the signed 0.
_MIDDLE = {ir.DataType.INT4: 0, ir.DataType.UINT4: 8, ir.DataType.INT8: 0, ir.DataType.UINT8: 128}


@dataclass(frozen=True)
class _Weight:
    """What the DequantizeLinear `node` makes the values of. rows_first: its numbers are [N, K]."""

    node: ir.Node
    rows_first: bool
    numbers: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None
    block_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """N, K"""
        rows, columns = self.numbers.shape.numpy()
        return (rows, columns) if self.rows_first else (columns, rows)

    @property
    def blocks(self) -> Blocks:
        """Of numbers that share a scale."""
        return Blocks(self.shape[1], self.block_size)

    def by_rows(self, tensor: ir.TensorProtocol) -> np.ndarray:
        """The values of `tensor`, [K or its blocks, N] or turned, with N first; of one for each column or all, too."""
        values = tensor.numpy()
        if values.ndim < 2:
            return np.broadcast_to(values.reshape(-1, 1), (self.shape[0], 1))
        return values if self.rows_first else values.T


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place; products of other numbers stay, with the reason in `report`."""
    packed: dict[tuple[ir.Node, bool], dict[str, ir.Value]] = {}
    for product in model.graph.all_nodes():
        found = _dequantised(product)
        if found is None:
            continue
        weight = _weight(*found)
        reason = weight if isinstance(weight, str) else _refusal(weight, product)
        if reason is not None:
            report.leave(product, reason)
            continue
        int4 = weight.numbers.dtype in _FOUR_BITS
        if found not in packed:
            tensors = (_int4 if int4 else _int8)(weight, weight.node.outputs[0].name)
            packed[found] = {name: register(weight.node.graph, tensor) for name, tensor in tensors.items()}
        rows, columns = weight.shape
        attributes = {"N": rows, "K": columns, "weight_format": "int4" if int4 else "int8"}
        if int4:
            attributes["block_size"] = weight.blocks.stored
            # ONNX Runtime, too, unless session.qdq_matmulnbits_accuracy_level differs.
            if weight.scales.dtype == ir.DataType.FLOAT:
                attributes["accuracy_level"] = CPU_ACCURACY_LEVEL
        product.domain, product.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
        for attribute in ir.convenience.convert_attributes(attributes):
            product.attributes[attribute.name] = attribute
        names = op_spec.input_names(op_spec.FLAT_GEMM)
        product.resize_inputs(1 + max(map(names.index, packed[found])))
        for name, value in packed[found].items():
            product.replace_input_with(names.index(name), value)
        report.rewrote(f"DequantizeLinear, MatMul -> {op_spec.FLAT_GEMM}")


def _dequantised(product: ir.Node) -> tuple[ir.Node, bool] | None:
    """The DequantizeLinear whose values `product` multiplies by, and whether they are [N, K]; None: there is none."""
    if (product.domain, product.op_type) != ("", "MatMul"):
        return None
    node, turned = product.inputs[1].producer(), False
    if node is not None and is_transpose(node):
        node, turned = node.inputs[0].producer(), True
    found = node is not None and (node.domain, node.op_type) == ("", "DequantizeLinear")
    return (node, turned) if found else None


def _weight(node: ir.Node, rows_first: bool) -> _Weight | str:
    """A reason: it has another form."""
    for value in node.inputs:
        if value is not None and not is_constant(value):
            return f"{value.name} is not constant"
    numbers, scales, points = (
        value.const_value if value is not None else None for value in (*node.inputs[:2], input_at(node, 2))
    )
    if len(numbers.shape) != 2 or 0 in numbers.shape.numpy():
        return f"its numbers ({numbers.name}) have shape {list(numbers.shape.numpy())}, expected two dimensions"
    return _Weight(node, rows_first, numbers, scales, points, node.attributes.get_int("block_size", 0))


def _refusal(weight: _Weight, product: ir.Node) -> str | None:
    """Why the product stays; None: it can be rewritten."""
    numbers, scales = weight.numbers, weight.scales
    rows, columns = weight.shape
    a = product.inputs[0]
    if columns_of(a) not in (None, columns):
        return f"A ({a.name}) has {a.shape[-1]} columns but its weight {columns} rows"
    if weight.node.attributes.get_int("output_dtype", 0) not in (0, scales.dtype):
        return "its values are not of the type of its scales"
    kind = {**dict.fromkeys(_FOUR_BITS, "uint8"), **dict.fromkeys(_EIGHT_BITS, "int8")}.get(numbers.dtype)
    if kind is None or not op_spec.backends_for(op_spec.FLAT_GEMM, T=spec_name(scales.dtype), W=kind):
        return f"no kernel multiplies {spec_name(scales.dtype)} activations by {spec_name(numbers.dtype)} weights"
    return _refused_scales(weight) or (_refused_int8(weight) if numbers.dtype in _EIGHT_BITS else None)


def _refused_scales(weight: _Weight) -> str | None:
    """Why its scales and zero points are not one for each block of K, each column, or all."""
    (rows, _), blocks = weight.shape, weight.blocks
    axis = weight.node.attributes.get_int("axis", 1) % 2
    along_k = 1 if weight.rows_first else 0
    if blocks.stored is None:
        return f"block_size is {blocks.size}, expected {EXPECTED}"
    wanted: tuple[int, ...] = (rows,)
    if blocks.size:
        if axis != along_k:
            return "its blocks are not along K"
        wanted = (rows, blocks.count) if weight.rows_first else (blocks.count, rows)
    elif weight.scales.size == 1:
        wanted = tuple(weight.scales.shape.numpy())
    elif axis == along_k:
        return "its scales are not of N"
    return _refused_shape(weight.scales, wanted) or _refused_shape(weight.zero_points, wanted)


def _refused_int8(weight: _Weight) -> str | None:
    """Why int8, which has a scale a column and no zero points, does not hold it."""
    scales = weight.by_rows(weight.scales)
    if np.any(scales != scales[:, :1]):
        return "numbers of 8 bits have a scale for each block of K, expected one for each column"
    points = weight.zero_points.numpy() if weight.zero_points is not None else np.zeros(1)
    if np.any(points != _MIDDLE[weight.numbers.dtype]):
        return "its zero points are not the middle of what its numbers can be"
    return None


def _refused_shape(tensor: ir.TensorProtocol | None, wanted: tuple[int, ...]) -> str | None:
    if tensor is None or tuple(tensor.shape.numpy()) == wanted:
        return None
    return f"{tensor.name} has shape {list(tensor.shape.numpy())}, expected {list(wanted)}"


def _int4(weight: _Weight, name: str) -> dict[str, ir.TensorProtocol]:
    (rows, columns), blocks = weight.shape, weight.blocks
    count, shift = blocks.stored_count, 8 - _MIDDLE[weight.numbers.dtype]
    width = count * blocks.stored // 2

    def numbers() -> np.ndarray:
        values = weight.by_rows(weight.numbers).astype(np.int8) + shift
        return pairs(np.pad(values, ((0, 0), (0, 2 * width - columns))))

    def scales() -> np.ndarray:
        return blocks.spread(weight.by_rows(weight.scales))

    def points() -> np.ndarray:
        if weight.zero_points is None:
            return np.zeros((rows, -(-count // 2)), np.uint8)
        return pairs(blocks.spread(weight.by_rows(weight.zero_points).astype(np.int8) + shift))

    in_order = _lazy(numbers, ir.DataType.UINT8, (rows, width), f"{name}.in_order")
    tensors = {
        "B": packed_int4(in_order, (rows, width), f"{name}.packed"),
        "scales": _lazy(scales, weight.scales.dtype, (rows, count), f"{name}.scales"),
    }
    # Without any a number stands for itself less 8, which is what a signed one has become.
    if weight.zero_points is not None or weight.numbers.dtype == ir.DataType.UINT4:
        tensors["zero_points"] = _lazy(points, ir.DataType.UINT8, (rows, -(-count // 2)), f"{name}.zero_points")
    return tensors


def _int8(weight: _Weight, name: str) -> dict[str, ir.TensorProtocol]:
    middle = _MIDDLE[weight.numbers.dtype]

    def numbers() -> np.ndarray:
        return (weight.by_rows(weight.numbers).astype(np.int16) - middle).astype(np.int8)

    def scales() -> np.ndarray:
        return weight.by_rows(weight.scales)[:, 0]

    return {
        "B": _lazy(numbers, ir.DataType.INT8, weight.shape, f"{name}.packed"),
        "scales": _lazy(scales, weight.scales.dtype, weight.shape[:1], f"{name}.scales"),
    }


def _lazy(values: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...], name: str) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(values()), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name
    )
