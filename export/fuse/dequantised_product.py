"""MatMul(A, DequantizeLinear(constants)) -> fdpp::FdppFlatGemm with int4 or int8 weights, without loss.

int4: numbers of 4 bits with a scale, and perhaps a zero point, for each block of K. int8: numbers of 8 bits with a
scale for each column, or one for all. The numbers are [K, N], or [N, K] behind a Transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..dtypes import spec_name
from ..nodes import input_at, is_constant
from ..pack import packed_int4, register
from ..report import ExportReport
from ..weight_format import BLOCK_SIZES
from .weight import is_transpose

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)
# With which ONNX Runtime runs such products of 4 bits itself, unless session.qdq_matmulnbits_accuracy_level differs.
_CPU_ACCURACY_LEVEL = 4
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

    def by_rows(self, tensor: ir.TensorProtocol) -> np.ndarray:
        """The values of `tensor`, [K or its blocks, N] or turned, with N first."""
        return tensor.numpy() if self.rows_first else tensor.numpy().T


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
            attributes["block_size"] = weight.block_size
            if weight.scales.dtype == ir.DataType.FLOAT:
                attributes["accuracy_level"] = _CPU_ACCURACY_LEVEL
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
    if a.shape and isinstance(a.shape[-1], int) and a.shape[-1] != columns:
        return f"A ({a.name}) has {a.shape[-1]} columns but its weight {columns} rows"
    if weight.node.attributes.get_int("output_dtype", 0) not in (0, scales.dtype):
        return "its values are not of the type of its scales"
    kind = {**dict.fromkeys(_FOUR_BITS, "uint8"), **dict.fromkeys(_EIGHT_BITS, "int8")}.get(numbers.dtype)
    if kind is None or not op_spec.backends_for(op_spec.FLAT_GEMM, T=spec_name(scales.dtype), W=kind):
        return f"no kernel multiplies {spec_name(scales.dtype)} activations by {spec_name(numbers.dtype)} weights"
    return (_refused_blocks if numbers.dtype in _FOUR_BITS else _refused_columns)(weight, rows, columns)


def _refused_blocks(weight: _Weight, rows: int, columns: int) -> str | None:
    size, axis = weight.block_size, weight.node.attributes.get_int("axis", 1)
    if size not in BLOCK_SIZES:
        return f"block_size is {size}, expected one of {BLOCK_SIZES}"
    if axis % 2 != (1 if weight.rows_first else 0):
        return "its blocks are not along K"
    blocks = -(-columns // size)
    wanted = (rows, blocks) if weight.rows_first else (blocks, rows)
    return _refused_shape(weight.scales, wanted) or _refused_shape(weight.zero_points, wanted)


def _refused_columns(weight: _Weight, rows: int, columns: int) -> str | None:
    if weight.block_size:
        return "numbers of 8 bits have a scale for each block of K, expected one for each column"
    if weight.scales.size != 1:
        if weight.node.attributes.get_int("axis", 1) % 2 != (0 if weight.rows_first else 1):
            return "its scales are not of N"
        if (reason := _refused_shape(weight.scales, (rows,))) is not None:
            return reason
    points = weight.zero_points.numpy() if weight.zero_points is not None else np.zeros(1)
    if np.any(points != _MIDDLE[weight.numbers.dtype]):
        return "its zero points are not the middle of what its numbers can be"
    return None


def _refused_shape(tensor: ir.TensorProtocol | None, wanted: tuple[int, ...]) -> str | None:
    if tensor is None or tuple(tensor.shape.numpy()) == wanted:
        return None
    return f"{tensor.name} has shape {list(tensor.shape.numpy())}, expected {list(wanted)}"


def _int4(weight: _Weight, name: str) -> dict[str, ir.TensorProtocol]:
    (rows, columns), size = weight.shape, weight.block_size
    blocks = -(-columns // size)
    shift = 8 - _MIDDLE[weight.numbers.dtype]

    def numbers() -> np.ndarray:
        values = weight.by_rows(weight.numbers).astype(np.int8) + shift
        return _pairs(np.pad(values, ((0, 0), (0, blocks * size - columns))))

    def points() -> np.ndarray:
        if weight.zero_points is None:
            return _pairs(np.zeros((rows, blocks + blocks % 2), np.int8))
        values = weight.by_rows(weight.zero_points).astype(np.int8) + shift
        return _pairs(np.pad(values, ((0, 0), (0, blocks % 2))))

    in_order = _lazy(numbers, ir.DataType.UINT8, (rows, blocks * size // 2), f"{name}.in_order")
    tensors = {
        "B": packed_int4(in_order, rows, f"{name}.packed"),
        "scales": _lazy(lambda: weight.by_rows(weight.scales), weight.scales.dtype, (rows, blocks), f"{name}.scales"),
    }
    # Without any a number stands for itself less 8, which is what a signed one has become.
    if weight.zero_points is not None or weight.numbers.dtype == ir.DataType.UINT4:
        tensors["zero_points"] = _lazy(points, ir.DataType.UINT8, (rows, -(-blocks // 2)), f"{name}.zero_points")
    return tensors


def _int8(weight: _Weight, name: str) -> dict[str, ir.TensorProtocol]:
    middle = _MIDDLE[weight.numbers.dtype]

    def numbers() -> np.ndarray:
        return (weight.by_rows(weight.numbers).astype(np.int16) - middle).astype(np.int8)

    def scales() -> np.ndarray:
        return np.broadcast_to(weight.scales.numpy().ravel(), weight.shape[:1])

    return {
        "B": _lazy(numbers, ir.DataType.INT8, weight.shape, f"{name}.packed"),
        "scales": _lazy(scales, weight.scales.dtype, weight.shape[:1], f"{name}.scales"),
    }


def _pairs(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 15 [rows, columns], two a byte, the first in the low half."""
    numbers = numbers.astype(np.uint8)
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def _lazy(values: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...], name: str) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(values()), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name
    )
