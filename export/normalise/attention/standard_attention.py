"""Dialect: ONNX's own Attention (opset 23, 24), as torch.onnx writes it from opset 23 on.

Attention(Q, K, V, attn_mask), keys and values a Concat of past and new ones, or past its own inputs
"""

from __future__ import annotations

import math

import onnx_ir as ir

from .core import Core, own_caches
from .declined import Declined
from .walk import whole_inputs

NAME = "Attention"


def found(node: ir.Node) -> ir.Node | None:
    """`node` itself, if it is an Attention of ONNX's own domain."""
    return node if (node.domain, node.op_type) == ("", "Attention") else None


def core(node: ir.Node, structural: set[ir.Value]) -> Core:
    """Of the Attention `node`. Raises Declined for features without a counterpart."""
    query, key, value, mask, past_key, past_value, lengths = whole_inputs(node, 7)
    if lengths is not None and lengths not in structural:
        raise Declined("its nonpad_kv_seqlen follows from the tokens, not from masks and positions alone")
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise Declined("somebody reads its scores")
    if mask is not None and mask not in structural:
        raise Declined("its mask follows from the tokens, not from masks and positions alone")
    softcap = node.attributes.get_float("softcap", 0.0)
    scale = node.attributes.get_float("scale", None)
    if scale is None:
        columns = query.shape[-1] if query.shape else None
        heads = node.attributes.get_int("q_num_heads", 1) if query.shape and len(query.shape) == 3 else 1
        if not isinstance(columns, int):
            raise Declined("its head size is not known")
        scale = 1 / math.sqrt(columns // heads)
    causal = bool(node.attributes.get_int("is_causal", 0))
    caches = own_caches(node, [past_key, past_value], [key, value])
    return Core(query, key, value, node.outputs[0], mask, scale, softcap, causal=causal, caches=caches)
