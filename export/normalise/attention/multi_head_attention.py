"""Dialect: com.microsoft::MultiHeadAttention, as transformers' exporter writes it with its fusions for ONNX Runtime.

MultiHeadAttention(Q, K, V, bias, key_padding_mask, attention_bias), keys and values a Concat of past and new ones, or
past its own inputs
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ...nodes import is_constant
from .core import Core, own_caches
from .declined import Declined
from .walk import whole_inputs

NAME = "MultiHeadAttention"
_NOT_TAKEN = {8: "past_sequence_length", 9: "cache_indirection"}


def found(node: ir.Node) -> ir.Node | None:
    """`node` itself, if it is a MultiHeadAttention."""
    return node if (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention") else None


def core(node: ir.Node, structural: set[ir.Value]) -> Core:
    """Of the MultiHeadAttention `node`. Raises Declined for features without a counterpart."""
    query, key, value, bias, padding, mask, past_key, past_value, _, _ = inputs = whole_inputs(node, 10)
    for index, name in _NOT_TAKEN.items():
        if inputs[index] is not None:
            raise Declined(f"input {name} is not known there")
    for name, part in (("query", query), ("key", key), ("value", value)):
        if part is None or part.shape is None or len(part.shape) != 3:
            raise Declined(f"its {name} is not [batch, tokens, columns]")
    for part in (mask, padding):
        if part is not None and part not in structural:
            raise Declined("its mask follows from the tokens, not from masks and positions alone")
    if bias is not None and not is_constant(bias):
        raise Declined(f"its bias ({bias.name}) is not constant")
    columns = query.shape[2]
    heads = node.attributes.get_int("num_heads", 0)
    if not isinstance(columns, int) or heads < 1 or columns % heads:
        raise Declined("its head size is not known")
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(columns // heads)
    caches = own_caches(node, [past_key, past_value], [key, value])
    # ONNX's inference knows no ops of other domains.
    node.outputs[0].shape, node.outputs[0].dtype = query.shape, query.dtype
    causal = bool(node.attributes.get_int("unidirectional", 0))
    return Core(
        query, key, value, node.outputs[0], mask, scale, padding=padding, bias=bias, causal=causal, caches=caches
    )
