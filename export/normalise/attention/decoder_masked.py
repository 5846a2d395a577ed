"""Dialect: com.microsoft::DecoderMaskedMultiHeadAttention, as ONNX Runtime's transformers optimizer writes it.

DecoderMaskedMultiHeadAttention(Q, K, V, mask_index, attention_bias, past_key, past_value, past_sequence_length,
                                -, -, bias)

One new token, which is written into past.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ...nodes import is_constant
from .core import Cache, Core, Slots
from .declined import Declined
from .walk import whole_inputs

NAME = "DecoderMaskedMultiHeadAttention"
_NEEDED = {1: "key", 2: "value", 5: "past_key", 6: "past_value", 7: "past_sequence_length"}
_NOT_TAKEN = {8: "beam_width", 9: "cache_indirection"}


def found(node: ir.Node) -> ir.Node | None:
    """`node` itself, if it is a DecoderMaskedMultiHeadAttention."""
    return node if (node.domain, node.op_type) == ("com.microsoft", NAME) else None


def core(node: ir.Node, structural: set[ir.Value]) -> Core:
    """Of the DecoderMaskedMultiHeadAttention `node`. Raises Declined for features without a counterpart."""
    inputs = whole_inputs(node, 11)
    query, key, value, padding, mask, past_key, past_value, used, _, _, bias = inputs
    for index, name in _NEEDED.items():
        if inputs[index] is None:
            raise Declined(f"input {name} is missing")
    for index, name in _NOT_TAKEN.items():
        if inputs[index] is not None:
            raise Declined(f"input {name} is not known there")
    if not node.attributes.get_int("past_present_share_buffer", 0) or len(node.outputs) < 3:
        raise Declined("it does not write new keys and values into past ones")
    for part in (mask, padding, used):
        if part is not None and part not in structural:
            raise Declined("its mask or past_sequence_length follows from the tokens")
    if bias is not None and not is_constant(bias):
        raise Declined(f"its bias ({bias.name}) is not constant")
    columns = query.shape[2] if query.shape is not None and len(query.shape) == 3 else None
    heads = node.attributes.get_int("num_heads", 0)
    if not isinstance(columns, int) or heads < 1 or columns % heads:
        raise Declined("its head size is not known")
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(columns // heads)
    caches = tuple(
        Cache(past, new, present, used, Slots.FIRST)
        for past, new, present in zip((past_key, past_value), (key, value), node.outputs[1:3], strict=True)
    )
    node.outputs[0].shape, node.outputs[0].dtype = query.shape, query.dtype
    return Core(query, key, value, node.outputs[0], mask, scale, padding=padding, bias=bias, causal=True, caches=caches)
