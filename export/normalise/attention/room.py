"""Caches with room: past may be a buffer of more tokens than are in use, which present then shares.

The op itself goes by total_sequence_length. Nodes elsewhere that took the past tokens' number from the size of past,
for the places of learned positions say, get it from attention_mask instead; where past is as long as what is in use,
that is the same number.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from ...decoder_inputs import MASK
from .decoder import Decoder
from .samples import is_past

_INT64 = ir.DataType.INT64


def make_room(decoder: Decoder) -> None:
    """Changes all nodes that read the shape of a cache, if all attentions take their lengths from attention_mask."""
    if decoder.room or not decoder.masks or not all(mask.padding for mask in decoder.masks.values()):
        return
    for past in filter(is_past, decoder.graph.inputs):
        for node in [use.node for use in past.uses() if (use.node.domain, use.node.op_type) == ("", "Shape")]:
            start, end = (node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", 4)))
            bounds = [decoder.ints(start), decoder.ints(end)]
            name = f"fdpp.past_shape.{past.shape[1]}.{past.shape[3]}.{start}.{end}"
            part = decoder.add("Slice", [_shape(past, decoder), *bounds], name, _INT64)
            convenience.replace_all_uses_with(node.outputs[0], part, replace_graph_outputs=True)


def _shape(past: ir.Value, decoder: Decoder) -> ir.Value:
    """[4]: batch, heads, past tokens in use, head size."""
    add, tokens = decoder.add, decoder.tokens()
    total = add("Shape", [decoder.input(MASK)], "fdpp.mask.total", _INT64, start=1, end=2)
    new = add("Shape", [tokens], "fdpp.tokens", _INT64, start=1, end=2)
    used = add("Sub", [total, new], "fdpp.mask.past_length", _INT64)
    batch = add("Shape", [tokens], "fdpp.batch", _INT64, start=0, end=1)
    sizes = [batch, decoder.ints(past.shape[1]), used, decoder.ints(past.shape[3])]
    return add("Concat", sizes, f"fdpp.past_shape.{past.shape[1]}.{past.shape[3]}", _INT64, axis=0)
