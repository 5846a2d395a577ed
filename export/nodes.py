"""What rules ask of nodes and values."""

from __future__ import annotations

import onnx_ir as ir


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """None where the input is omitted, in between or at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value) -> bool:
    """Whether `value` is an initializer that nobody can override."""
    return value.is_initializer() and not value.is_graph_input()
