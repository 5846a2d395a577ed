"""The parts of one attention between the products that make its queries, keys and values and the one that reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import onnx_ir as ir

from ...nodes import rank_of
from .core import Cache, Core, Slots
from .declined import Declined
from .rotary import Rotation, rotation
from .samples import is_past
from .walk import LAYOUT, scalar, standard, unscaled, whole_inputs


class Layout(Enum):
    """Where the heads are."""

    MERGED = "[B, S, H * D]"
    TOKENS_FIRST = "[B, S, H, D]"
    HEADS_FIRST = "[B, H, S, D]"


@dataclass(frozen=True)
class Heads:
    """`value` holds `count` heads of each token."""

    value: ir.Value
    layout: Layout
    count: int


@dataclass(frozen=True)
class Parts:
    """query, key and value are those before rotation.

    output: [B, S, Hq · D]."""

    query: Heads
    key: Heads
    value: Heads
    key_cache: Cache
    value_cache: Cache
    query_rotation: Rotation | None
    key_rotation: Rotation | None
    scale: float
    output: ir.Value
    head_size: int

    def biases(self, core: Core) -> list[np.ndarray]:
        """What `core` adds to queries, keys and values, each [H · D]."""
        columns = [part.count * self.head_size for part in (self.query, self.key)]
        return np.split(core.bias.const_value.numpy(), np.cumsum(columns))


def parts(core: Core, structural: set[ir.Value]) -> Parts:
    """Of the attention around `core`. Raises Declined where one of them is not what a decoder with a cache has."""
    (key_cache, key_scale), (value_cache, value_scale) = (
        [(cache, 1.0) for cache in core.caches] if core.caches else [_cache(core.key), _cache(core.value)]
    )
    if value_scale != 1:
        raise Declined("its values are scaled")
    for cache in (key_cache, value_cache):
        _require_known(cache)
    query, query_scale = unscaled(core.query, {"Identity"})
    query_rotation, key_rotation = rotation(query, structural), rotation(key_cache.new, structural)
    if (query_rotation is None) != (key_rotation is None):
        raise Declined("of its queries and keys only one has a rotary embedding")
    _, kv_heads, _, head_size = key_cache.past.shape
    query, key, value = (
        _heads(part.source if part is not None else plain, count, head_size, structural, part is None and tokens_first)
        for part, plain, count, tokens_first in (
            (query_rotation, query, None, False),
            (key_rotation, key_cache.new, kv_heads, key_cache.tokens_first),
            (None, value_cache.new, kv_heads, value_cache.tokens_first),
        )
    )
    (query, merged_query_scale), (key, merged_key_scale) = map(_unscaled, (query, key))
    if core.sinks is not None and core.sinks.const_value.size != query.count:
        raise Declined(f"its {query.count} heads have {core.sinks.const_value.size} sinks")
    if core.bias is not None:
        if query_rotation is not None:
            raise Declined("its bias is added after the rotary embedding")
        if core.bias.const_value.size != (query.count + 2 * key.count) * head_size:
            raise Declined(f"its bias has {core.bias.const_value.size} numbers, not one a column of Q, K and V")
    scale = core.scale * key_scale * query_scale * merged_key_scale * merged_query_scale
    rotations = (query_rotation, key_rotation)
    return Parts(query, key, value, key_cache, value_cache, *rotations, scale, _merged_output(core.output), head_size)


def _cache(used: ir.Value) -> tuple[Cache, float]:
    """The cache that `used` comes from, repeated for the groups of queries perhaps, and a factor of its own."""
    present, factor = unscaled(used, LAYOUT)
    concat = standard(present, "Concat")
    if concat is not None and len(concat.inputs) == 2 and concat.attributes.get_int("axis", 0) in (-2, 2):
        past, new = concat.inputs
        return Cache(past, new, present), factor
    cache = _written(present)
    if cache is None:
        raise Declined("its keys or values are not past and new ones: it has no cache, or attends to something else")
    return cache, factor


def _written(present: ir.Value) -> Cache | None:
    """The cache of a fixed size that new tokens were written into; None: `present` is something else."""
    write = standard(present, "TensorScatter")
    if write is not None:
        past, new, slots = whole_inputs(write, 3)
        if slots is None or write.attributes.get_int("axis", -2) not in (-2, 2):
            return None
        if write.attributes.get_string("mode", "linear") != "linear":
            raise Declined("its caches begin anew when they are full")
        return Cache(past, new, present, slots, Slots.FIRST_OF_EACH)
    # With the tokens in front.
    write = standard(_moved(present, (1, 2, 0, 3)), "ScatterND")
    if write is None:
        return None
    past, slots, new = write.inputs
    past, heads_first = _moved(past, (2, 0, 1, 3)), _moved(new, (2, 0, 1, 3))
    tokens_first = heads_first is new
    new = _moved(new, (1, 0, 2, 3)) if tokens_first else heads_first
    return Cache(past, new, present, slots, Slots.ALL, tokens_first)


def _moved(value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    """What `value` is with its dimensions in that order; itself where it is nothing of the kind."""
    transpose = standard(value, "Transpose")
    found = transpose is not None and tuple(transpose.attributes.get_ints("perm", ())) == order
    return transpose.inputs[0] if found else value


def _require_known(cache: Cache) -> None:
    if not cache.present.is_graph_output():
        raise Declined(f"past and new keys or values ({cache.present.name}) are not an output of the graph")
    if not cache.past.is_graph_input() or not is_past(cache.past):
        raise Declined(f"its past ({cache.past.name}) is not an input of the graph with known heads and head size")


def _heads(value: ir.Value, count: int | None, head_size: int, structural: set[ir.Value], tokens_first: bool) -> Heads:
    """The heads that `value` holds, if possible as they were before they were split off and put first.

    count: how many; None: it is to be found out."""
    layout, source = Layout.HEADS_FIRST, _moved(value, (0, 2, 1, 3))
    if tokens_first or source is not value:
        value, layout = value if tokens_first else source, Layout.TOKENS_FIRST
        reshape = standard(value, "Reshape")
        if reshape is not None and rank_of(reshape.inputs[0]) == 3:
            value = reshape.inputs[0]
    if rank_of(value) == 3:
        layout = Layout.MERGED
    elif rank_of(value) != 4:
        raise Declined(f"the rank of {value.name} is not known to be 3 or 4")
    return Heads(value, layout, count if count is not None else _count(value, head_size, structural))


def _unscaled(heads: Heads) -> tuple[Heads, float]:
    """`heads` ahead of a factor that they have even before they are split off, and that factor."""
    value, factor = unscaled(heads.value, {"Identity"})
    return replace(heads, value=_before_reshapes(value)), factor


def _before_reshapes(value: ir.Value) -> ir.Value:
    """What `value` is made of by Reshapes that end with the shape that they began with."""
    source, same = value, value
    while (reshape := standard(source, "Reshape")) is not None:
        source = reshape.inputs[0]
        if value.shape is not None and None not in value.shape and source.shape == value.shape:
            same = source
    return same


def _count(value: ir.Value, head_size: int, structural: set[ir.Value]) -> int:
    """How many heads `value` holds: by the columns that they have, merged, in `value` or where it comes from."""
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        if rank_of(value) == 3 and isinstance(value.shape[2], int) and value.shape[2] % head_size == 0:
            return value.shape[2] // head_size
        node = value.producer()
        if node is not None and node not in seen and node.op_type != "MatMul":
            seen.add(node)
            stack += [source for source in node.inputs if source is not None and source not in structural]
    raise Declined(f"the number of its query heads is not known from the shape of {value.name}")


def _merged_output(output: ir.Value) -> ir.Value:
    """[B, S, Hq · D] made of `output`, after all that only hands it on."""
    value, merged = output, None
    while True:
        if rank_of(value) == 3:
            merged = value
        users = [use.node for use in value.uses() if use.node.op_type != "Shape"]
        if len(users) != 1 or not _hands_on(users[0], value) or value.is_graph_output():
            break
        value = users[0].outputs[0]
    if merged is None:
        raise Declined("what becomes of its output is not that the heads are put together")
    return merged


def _hands_on(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` only moves the elements of `value`, or puts 0 in the place of some (queries that see nothing)."""
    if node.op_type == "Where":
        return node.inputs[2] is value and scalar(node.inputs[1]) == 0
    return node.op_type in LAYOUT
