"""Ways back through nodes that only move elements or scale all of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .declined import Declined

LAYOUT = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Tile", "Flatten", "Identity", "Cast"}


def standard(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The producer of `value`, if it is one of these ops of ONNX's own domain."""
    node = value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def scalar(value: ir.Value | None) -> float | None:
    """The number that the constant `value` holds; None: it is no constant of one element."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy(), np.float64).item())


def scaled_by(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What a Mul or a Div with a number scales, and by how much; None: it is something else."""
    if node.domain != "" or node.op_type not in ("Mul", "Div"):
        return None
    number = scalar(node.inputs[1])
    if number is not None:
        return node.inputs[0], number if node.op_type == "Mul" else 1 / number
    number = scalar(node.inputs[0])
    return (node.inputs[1], number) if number is not None and node.op_type == "Mul" else None


def unscaled(value: ir.Value, through: set[str]) -> tuple[ir.Value, float]:
    """What `value` is made of by nodes `through` and scaling alone, and the product of the factors.

    Ends at an output of the graph."""
    factor = 1.0
    while not value.is_graph_output() and (node := value.producer()) is not None and node.domain == "":
        scaled = scaled_by(node)
        if scaled is not None:
            value, factor = scaled[0], factor * scaled[1]
        elif node.op_type in through:
            value = node.inputs[0]
        else:
            break
    return value, factor


def whole_inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The `count` inputs that the op of `node` may have, None for those not given. Raises Declined if it has more."""
    if len(node.inputs) > count:
        raise Declined(f"it has {len(node.inputs)} inputs, expected at most {count}")
    return [*node.inputs, *[None] * (count - len(node.inputs))]
