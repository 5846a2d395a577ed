"""What rules ask of nodes and values."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """None where the input is omitted, in between or at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute_of(node: ir.Node, name: str, default: Any) -> Any:
    """The value of the attribute `name`, of whatever type it is; `default` where it is not given."""
    return node.attributes[name].value if name in node.attributes else default


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """None where `value` is absent or of unknown type."""
    return value.dtype if value is not None else None


def columns_of(value: ir.Value | None) -> int | None:
    """The last dimension of `value`; None where that is absent, unknown or has a name alone."""
    last = value.shape[-1] if value is not None and value.shape else None
    return last if isinstance(last, int) else None


def rank_of(value: ir.Value) -> int | None:
    """None where it is not known."""
    return None if value.shape is None else len(value.shape)


def is_constant(value: ir.Value) -> bool:
    """Whether `value` is an initializer that nobody can override."""
    return value.is_initializer() and not value.is_graph_input()


def numbers(value: ir.Value | None) -> list[int] | None:
    """The integers that the constant `value` holds, in order; None: it is absent or no constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy().ravel().tolist() if tensor is not None else None


def read_once(value: ir.Value) -> bool:
    """Whether one node reads `value`, once, and nobody outside the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def remove_unread(node: ir.Node) -> None:
    """`node`, whose outputs nobody reads, and what nobody reads without it."""
    above = [value.producer() for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for producer in above:
        if producer is not None and producer.graph is not None and not any(map(_is_read, producer.outputs)):
            remove_unread(producer)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
