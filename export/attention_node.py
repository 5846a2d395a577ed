"""What a graph says of an attention, GroupQueryAttention or FdppAttention, whose inputs have the same order."""

from __future__ import annotations

import onnx_ir as ir

from . import op_spec
from .nodes import attribute_of, columns_of, dtype_of


def activation_dtype(node: ir.Node) -> ir.DataType | None:
    """Element type of query; None: the graph does not state it."""
    # All of these have query's type, but a graph need not state the types of inner values.
    known = (dtype_of(input_of(node, index)) for index in (0, 1, 2, 7, 8, 10, 11, 14, 15))
    return next((dtype for dtype in known if dtype is not None), None)


def takes_norms(node: ir.Node) -> bool:
    """Whether `node` normalises query and key heads."""
    return input_of(node, 14) is not None


def head_size(node: ir.Node) -> int | None:
    """Columns of a head, from the query or else from past_key [B, Hkv, L, D]; None: neither says."""
    columns, heads = columns_of(input_of(node, 0)), query_heads(node)
    if columns is not None and columns % heads == 0:
        return columns // heads
    return columns_of(input_of(node, 3))


def query_heads(node: ir.Node) -> int:
    """How many heads the query of `node` has, those of keys and values included where they are packed with it."""
    packed = input_of(node, 1) is None
    return attribute_of(node, "num_heads", 0) + (2 * attribute_of(node, "kv_num_heads", 0) if packed else 0)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """None where the input is omitted, in the dense form, too."""
    inputs = op_spec.inputs(node)
    return inputs[index] if index < len(inputs) else None
