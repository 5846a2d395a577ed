"""Lengths of rows for GroupQueryAttention. A row's slots are all in use; padding among them is hidden by the bias."""

from __future__ import annotations

import onnx_ir as ir

from .decoder import Decoder
from .mask import Mask
from .samples import MASK

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64


def lengths(mask: Mask, past_key: ir.Value, decoder: Decoder) -> tuple[ir.Value, ir.Value]:
    """seqlens_k [B] and total_sequence_length, the same for all attentions with masks of that kind.

    With an attention_mask that says nothing but padding the total is its length, so that a cache may have room for
    more; otherwise it is past and new tokens together, as in the original.
    """
    add, tokens = decoder.add, decoder.tokens()
    if mask.padding:
        origin, total = "mask", add("Shape", [decoder.input(MASK)], "fdpp.mask.total", _INT64, start=1, end=2)
    else:
        past = add("Shape", [past_key], "fdpp.past_length", _INT64, start=2, end=3)
        new = add("Shape", [tokens], "fdpp.tokens", _INT64, start=1, end=2)
        origin, total = "shapes", add("Add", [past, new], "fdpp.shapes.total", _INT64)
    last = add("Sub", [total, decoder.ints(1)], f"fdpp.{origin}.last_slot", _INT64)
    last = add("Cast", [last], f"fdpp.{origin}.last_slot_int32", _INT32, to=_INT32)
    batch = add("Shape", [tokens], "fdpp.batch", _INT64, start=0, end=1)
    seqlens = add("Expand", [last, batch], f"fdpp.{origin}.seqlens_k", _INT32)
    return seqlens, add("Cast", [total], f"fdpp.{origin}.total_sequence_length", _INT32, to=_INT32)
