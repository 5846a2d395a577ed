"""Dialect: ONNX's own Attention (opset 23, 24), as torch.onnx writes it from opset 23 on.

Attention(Q, K, V, attn_mask), the keys and values a Concat of past and new ones, repeated for the groups
"""

from __future__ import annotations

import math

import onnx_ir as ir

from .core import Core
from .declined import Declined

NAME = "Attention"


def found(node: ir.Node) -> ir.Node | None:
    """`node` itself, if it is an Attention of ONNX's own domain."""
    return node if (node.domain, node.op_type) == ("", "Attention") else None


def core(node: ir.Node, structural: set[ir.Value]) -> Core:
    """Of the Attention `node`. Raises Declined for features without a counterpart."""
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    if any(inputs[4:7]):
        raise Declined("its past and its key lengths are its own inputs; only a cache beside it is known")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Declined("somebody reads its outputs beside Y")
    mask = inputs[3]
    if mask is not None and mask not in structural:
        raise Declined("its mask follows from the tokens, not from masks and positions alone")
    query, softcap = inputs[0], node.attributes.get_float("softcap", 0.0)
    scale = node.attributes.get_float("scale", None)
    if scale is None:
        columns = query.shape[-1] if query.shape else None
        heads = node.attributes.get_int("q_num_heads", 1) if query.shape and len(query.shape) == 3 else 1
        if not isinstance(columns, int):
            raise Declined("its head size is not known")
        scale = 1 / math.sqrt(columns // heads)
    return Core(query, inputs[1], inputs[2], node.outputs[0], mask, scale, softcap)
