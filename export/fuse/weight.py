"""The constant matrix that a MatMul or a Gemm multiplies by, whichever way round it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..nodes import is_constant


@dataclass(frozen=True)
class Weight:
    """`value` is an initializer [K, N], or [N, K] if `rows_first`."""

    value: ir.Value
    rows_first: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K] where it has two dimensions."""
        shape = tuple(self.value.const_value.shape.numpy())
        return shape if self.rows_first else shape[::-1]


def weight_of(node: ir.Node) -> Weight | None:
    """Input B of the MatMul or Gemm `node`, behind a Transpose perhaps; None: it is not constant."""
    value, rows_first = node.inputs[1], node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    producer = value.producer()
    if producer is not None and is_transpose(producer):
        value, rows_first = producer.inputs[0], not rows_first
    return Weight(value, rows_first) if is_constant(value) else None


def is_transpose(node: ir.Node) -> bool:
    """Whether `node` exchanges the two dimensions of a matrix."""
    if (node.domain, node.op_type) != ("", "Transpose"):
        return False
    # Without perm, Transpose reverses the axes: the same for a matrix.
    return tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)
