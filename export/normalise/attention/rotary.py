"""The rotary embedding of queries and keys: where it begins, and tables of cosines and sines by position.

    Add(Mul(x, cos), Mul(Concat(Neg(Slice x), Slice x), sin)), or RotaryEmbedding(x, cos, sin, perhaps ids)

cos and sin follow from positions: Cos and Sin of positions · frequencies, or rows of a table. Other arrangements of
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
from .samples import Sample
from .walk import LAYOUT, scaled_by, standard, whole_inputs

_PARTS = {
    *("Add", "Sub", "Mul", "Neg", "Slice", "Split", "Gather", "Concat"),
    *("Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"),
}
# The ops that rotate, and where their cos, sin and position_ids are.
_OPS = {("", "RotaryEmbedding"): (1, 2, 3), ("com.microsoft", "RotaryEmbedding"): (2, 3, 1)}

# Against the longest row it shows whether the length decides: more than the one token that no angle turns.
_SHORT = Sample(1, 2, 0)


@dataclass(frozen=True)
class Rotation:
    """`source` is what is rotated by `angles`, cosines and sines in any order, one of each for each token.

    rows: which rows of `angles` the tokens get; None: they are in the tokens' order."""

    source: ir.Value
    angles: tuple[ir.Value, ...]
    rows: ir.Value | None = None


@dataclass(frozen=True)
class Tables:
    """cos, sin: constants [positions, rotary dim / 2]; position_ids [B, S], None: places in the cache.

    interleaved: values of the attribute that are possible."""

    cos: ir.Value
    sin: ir.Value
    position_ids: ir.Value | None
    interleaved: tuple[int, ...]

    def are(self, arrays: list[np.ndarray]) -> bool:
        """Whether cos and sin are the same, of the same type."""
        own = [value.const_value.numpy() for value in (self.cos, self.sin)]
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(own, arrays, strict=True))


def rotation(value: ir.Value, structural: set[ir.Value]) -> Rotation | None:
    """How `value` was rotated; None: it was not."""
    while (moved := standard(value, *LAYOUT)) is not None:
        value = moved.inputs[0]
    rotated = value
    angles, sources, rows = [], [], None
    stack, seen = [rotated], set()
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen:
            continue
        seen.add(value)
        op = (node.domain, node.op_type) if node is not None else None
        if op in _OPS:
            inputs = whole_inputs(node, 4)
            *factors, rows = (inputs[index] for index in _OPS[op])
            if value is rotated:
                return Rotation(inputs[0], tuple(factors), rows)
        else:
            factors = _factors(node, structural) if node is not None else None
            if factors is None:
                sources.append(value)
                continue
        angles += [v for v in factors if v in structural and v not in angles]
        stack += [v for v in node.inputs if v is not None and v not in structural]
    if not angles:
        return None
    if len(sources) != 1 or len(angles) != 2:
        raise Declined("its queries or keys are neither plain nor one value, its cosine and its sine")
    return Rotation(sources[0], tuple(angles), rows)


def _factors(node: ir.Node, structural: set[ir.Value]) -> list[ir.Value] | None:
    """The cosine or sine by which a node of a rotation multiplies, if any; None: it is no such node."""
    if node.domain != "" or node.op_type not in _PARTS:
        return None
    if node.op_type != "Mul" or scaled_by(node) is not None:
        return []
    # What multiplies by nothing of the kind is the end of a norm, say.
    return [v for v in node.inputs if v in structural and v.const_value is None] or None


def tables(turn: Rotation, dtype: ir.DataType, decoder: Decoder) -> Tables:
    """Tables of `dtype` for `turn`, the same for all that turn by these values. Raises Declined if there are none."""
    key = frozenset((*turn.angles, turn.rows, dtype))
    if key not in decoder.tables:
        decoder.tables[key] = _tables(turn, dtype, decoder)
    return decoder.tables[key]


def _tables(turn: Rotation, dtype: ir.DataType, decoder: Decoder) -> Tables:
    if all(angle.const_value is not None for angle in turn.angles) and turn.rows is not None:
        arrays, positions = [angle.const_value.numpy() for angle in turn.angles], turn.rows
    else:
        arrays, positions = _computed(turn, decoder), _positions(turn.angles[0], decoder)
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
    arrays = [np.ascontiguousarray(table.astype(dtype.numpy())) for table in (cos, sin)]
    ids = _position_ids(positions, decoder)
    for known in decoder.tables.values():  # by way of other nodes
        if known.position_ids is ids and known.interleaved == interleaved and known.are(arrays):
            return known
    names = [f"fdpp.{part}_cache.{len(decoder.tables)}" for part in ("cos", "sin")]
    constants = [decoder.constant(table, name) for table, name in zip(arrays, names, strict=True)]
    return Tables(*constants, ids, interleaved)


def _computed(turn: Rotation, decoder: Decoder) -> list[np.ndarray]:
    """Tables by position: what the graph computes for a prompt that has every position once, in order."""
    prompt = Sample(1, decoder.positions, 0)
    arrays = decoder.evaluate(list(turn.angles), prompt)
    if turn.rows is not None:
        (rows,) = decoder.evaluate([turn.rows], prompt)
        arrays = [array[rows.ravel()] for array in arrays]
    if any(array.size % decoder.positions for array in arrays):
        raise Declined("its cosines and sines are not one row for each token")
    arrays = [array.reshape(decoder.positions, -1) for array in arrays]
    short = decoder.evaluate(list(turn.angles), _SHORT) if turn.rows is None else []
    for array, rows in zip(arrays, short, strict=False):
        if not np.allclose(array[: _SHORT.tokens], rows.reshape(_SHORT.tokens, -1), atol=1e-5):
            raise Declined(
                f"its rotary embedding follows from how many tokens there are, of at most {decoder.positions}, "
                "not from positions alone"
            )
    return arrays


def _positions(angle: ir.Value, decoder: Decoder) -> ir.Value:
    """The positions that the graph computes `angle` from, for each token one, in any shape."""
    for node in ancestors([angle]):
        if node.op_type == "Cast" and node.inputs[0].dtype == ir.DataType.INT64:
            ids = node.inputs[0]
        elif node.op_type in ("Gather", "GatherND") and node.inputs[0].const_value is not None:
            ids = node.inputs[1]
        else:
            continue
        if _same(decoder.evaluate([ids], decoder.samples[0])[0], decoder.samples[0].places()):
            return ids
    raise Declined("the positions behind its rotary embedding were not found")


def _position_ids(ids: ir.Value, decoder: Decoder) -> ir.Value | None:
    """`ids` as [batch, tokens]; None: they are the tokens' places in the cache."""
    if all(_same(decoder.evaluate([ids], s)[0], s.places()) for s in decoder.samples):
        return None
    while ids is not None and decoder.evaluate([ids], decoder.samples[0])[0].shape != decoder.samples[0].places().shape:
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
