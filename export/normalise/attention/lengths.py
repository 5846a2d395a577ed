"""Lengths of rows for GroupQueryAttention. A row's slots are all in use; padding among them is hidden by the bias."""

from __future__ import annotations

import onnx_ir as ir

from ...decoder_inputs import MASK
from .core import Cache, Slots
from .decoder import Decoder

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64


def lengths(padding: bool, cache: Cache, decoder: Decoder) -> tuple[ir.Value, ir.Value]:
    """seqlens_k [B] and total_sequence_length, the same for all attentions with masks and caches of that kind.

    Caches of a fixed size are in use up to where new tokens are written. With an attention_mask that says nothing but
    `padding` the total is its length, so that a cache may have room for more; otherwise it is past and new tokens
    together, as in the original.
    """
    add, tokens = decoder.add, decoder.tokens()
    if cache.slots is not None:
        return _written(cache, decoder)
    if padding:
        origin, total = "mask", add("Shape", [decoder.input(MASK)], "fdpp.mask.total", _INT64, start=1, end=2)
    else:
        past = add("Shape", [cache.past], "fdpp.past_length", _INT64, start=2, end=3)
        new = add("Shape", [tokens], "fdpp.tokens", _INT64, start=1, end=2)
        origin, total = "shapes", add("Add", [past, new], "fdpp.shapes.total", _INT64)
    last = add("Sub", [total, decoder.ints(1)], f"fdpp.{origin}.last_slot", _INT64)
    last = add("Cast", [last], f"fdpp.{origin}.last_slot_int32", _INT32, to=_INT32)
    batch = add("Shape", [tokens], "fdpp.batch", _INT64, start=0, end=1)
    seqlens = add("Expand", [last, batch], f"fdpp.{origin}.seqlens_k", _INT32)
    return seqlens, add("Cast", [total], f"fdpp.{origin}.total_sequence_length", _INT32, to=_INT32)


def _written(cache: Cache, decoder: Decoder) -> tuple[ir.Value, ir.Value]:
    """By the slots in which new tokens are written."""
    name, add = f"fdpp.{cache.slots.name}", decoder.add
    slots = add("Cast", [cache.slots], f"{name}.int64", _INT64, to=_INT64)
    new = decoder.ints(1)
    if cache.said is not Slots.ALL:
        new = add("Shape", [decoder.tokens()], "fdpp.tokens", _INT64, start=1, end=2)
    totals = add("Add", [slots, new], f"{name}.totals", _INT64)
    total = add("ReduceMax", [totals], f"{name}.most", _INT64, keepdims=0)
    total = add("Reshape", [total, decoder.ints(1)], f"{name}.total", _INT64)
    if cache.said is not Slots.FIRST_OF_EACH:
        batch = add("Shape", [decoder.tokens()], "fdpp.batch", _INT64, start=0, end=1)
        totals = add("Expand", [total, batch], f"{name}.row_totals", _INT64)
    last = add("Sub", [totals, decoder.ints(1)], f"{name}.last_slots", _INT64)
    seqlens = add("Cast", [last], f"{name}.seqlens_k", _INT32, to=_INT32)
    return seqlens, add("Cast", [total], f"{name}.total_sequence_length", _INT32, to=_INT32)
