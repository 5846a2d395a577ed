"""The rotary embedding of queries and keys: where it begins, and tables of cosines and sines by position.

    Add(Mul(x, cos), Mul(Concat(Neg(Slice x), Slice x), sin)), or RotaryEmbedding(x, cos, sin)

cos and sin follow from position ids: Cos and Sin of positions · frequencies, or rows of a table. Other arrangements of
the same nodes, rotation of a part of the columns say, are taken as well: what they compute is compared with the op's
result afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .declined import Declined
from .decoder import Decoder
from .evaluate import ancestors
from .samples import SAMPLES, Sample

_PARTS = {"Add", "Sub", "Mul", "Neg", "Slice", "Split", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"}
_OP = "RotaryEmbedding"


@dataclass(frozen=True)
class Rotation:
    """`source` is what is rotated by `cos` and `sin`, which the graph computes for each token."""

    source: ir.Value
    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class Tables:
    """cos, sin: constants [positions, rotary dim / 2]; position_ids [B, S], None: places in the cache.

    interleaved: values of the attribute that are possible."""

    cos: ir.Value
    sin: ir.Value
    position_ids: ir.Value | None
    interleaved: tuple[int, ...]


def rotation(rotated: ir.Value, structural: set[ir.Value]) -> Rotation | None:
    """How `rotated` came about; None: it is not rotated."""
    angles, sources = [], []
    stack, seen = [rotated], set()
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen:
            continue
        seen.add(value)
        if node is None or node.domain != "" or node.op_type not in _PARTS | {_OP}:
            sources.append(value)
            continue
        if node.op_type == _OP:
            if len(node.inputs) > 3 and node.inputs[3] is not None:
                raise Declined("its rotary embedding takes position ids, which is not known there")
            factors = node.inputs[1:3]
        else:
            factors = node.inputs if node.op_type == "Mul" else ()
        angles += [v for v in factors if v in structural and v.const_value is None and v not in angles]
        stack += [v for v in node.inputs if v is not None and v not in structural]
    if not angles:
        return None
    if len(sources) != 1 or len(angles) != 2:
        raise Declined("its queries or keys are neither plain nor one value, its cosine and its sine")
    return Rotation(sources[0], *angles)


def tables(turn: Rotation, dtype: ir.DataType, decoder: Decoder) -> Tables:
    """Tables of `dtype` for `turn`, the same for all that turn by these values. Raises Declined if there are none."""
    key = frozenset((turn.cos, turn.sin, dtype))
    if key not in decoder.tables:
        decoder.tables[key] = _tables([turn.cos, turn.sin], dtype, decoder)
    return decoder.tables[key]


def _tables(angles: list[ir.Value], dtype: ir.DataType, decoder: Decoder) -> Tables:
    # A prompt of as many tokens has every position once, in order.
    every = Sample(1, decoder.positions, 0)
    arrays = [array.reshape(decoder.positions, -1) for array in decoder.evaluate(angles, every)]
    if arrays[0].shape != arrays[1].shape:
        raise Declined("its cosines and sines have different shapes")
    arrays.sort(key=lambda array: bool(np.any(array[0])))  # sines first: they are 0 at position 0
    if np.any(arrays[0][0]) or not np.all(arrays[1][0]):
        raise Declined("its rotary embedding is not by the cosine and the sine of one angle")
    half = arrays[0].shape[1] // 2
    if all(np.array_equal(array[:, :half], array[:, half:]) for array in arrays):
        sin, cos = (array[:, :half] for array in arrays)
        interleaved = (0,)
    elif all(np.array_equal(array[:, ::2], array[:, 1::2]) for array in arrays):
        sin, cos = (array[:, ::2] for array in arrays)
        interleaved = (1,)
    else:
        sin, cos = arrays
        interleaved = (0, 1)
    names = [f"fdpp.{part}_cache.{len(decoder.tables)}" for part in ("cos", "sin")]
    constants = [
        decoder.constant(np.ascontiguousarray(table.astype(dtype.numpy())), name)
        for table, name in zip((cos, sin), names, strict=True)
    ]
    return Tables(*constants, _position_ids(angles[0], decoder), interleaved)


def _position_ids(angle: ir.Value, decoder: Decoder) -> ir.Value | None:
    """What says which row of the tables a token gets; None: the token's place in the cache."""
    for node in ancestors([angle]):
        if node.op_type == "Cast" and node.inputs[0].dtype == ir.DataType.INT64:
            ids = node.inputs[0]
        elif node.op_type == "Gather" and node.inputs[0].const_value is not None:
            ids = node.inputs[1]
        else:
            continue
        if _same(decoder.evaluate([ids], SAMPLES[0])[0], SAMPLES[0].places()):
            break
    else:
        raise Declined("the positions behind its rotary embedding were not found")
    if all(_same(decoder.evaluate([ids], s)[0], s.places()) for s in SAMPLES):
        return None
    while ids is not None and decoder.evaluate([ids], SAMPLES[0])[0].shape != SAMPLES[0].places().shape:
        node = ids.producer()
        ids = node.inputs[0] if node is not None else None
    if ids is None:
        raise Declined("the positions behind its rotary embedding are not [batch, tokens]")
    return ids


def _same(ids: np.ndarray, places: np.ndarray) -> bool:
    """Whether `ids`, which may have one row for all, are `places`."""
    return ids.size in (places.size, places.shape[1]) and np.array_equal(
        np.broadcast_to(ids.reshape(-1, places.shape[1]), places.shape), places
    )
