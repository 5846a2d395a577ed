"""The heart of an attention, whatever its spelling: softmax(scale · Q·Kᵀ + mask)·V."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from .declined import Declined


class Slots(Enum):
    """What a value says of the slots in which new tokens are written."""

    FIRST_OF_EACH = "[B]: each row's first one"
    FIRST = "[1]: the first one, the same in all rows"
    ALL = "[tokens, 1]: all of them, the same in all rows"


@dataclass(frozen=True)
class Cache:
    """`present` is `past` [B, Hkv, tokens, D] and then `new` tokens, which may still have their heads merged.

    slots, said: for caches of a fixed size the slots in which new tokens are written; None: caches grow. tokens_first:
    `new` is [B, tokens, Hkv, D]."""

    past: ir.Value
    new: ir.Value
    present: ir.Value
    slots: ir.Value | None = None
    said: Slots | None = None
    tokens_first: bool = False


@dataclass(frozen=True)
class Core:
    """query [B, Hq, S, D], key and value [B, Hkv or Hq, T, D] (key perhaps transposed), output [B, Hq, S, D].

    Any of them may have its heads merged instead, [B, S, H · D]. mask: bool (true: visible) or added to the scores,
    broadcast to [B, Hq, S, T]; None: there is none. softcap: 0: none. sinks: a constant, one score a head that takes
    part in the softmax alone. causal: later tokens are hidden in any case. padding: [B, T], hides keys where it is 0.
    bias: a constant [(Hq + 2 · Hkv) · D], added to queries, keys and values first.
    caches: of keys and values, if the op itself puts past and new ones together; then key and value are the new ones.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    output: ir.Value
    mask: ir.Value | None
    scale: float
    softcap: float = 0.0
    sinks: ir.Value | None = None
    causal: bool = False
    padding: ir.Value | None = None
    bias: ir.Value | None = None
    caches: tuple[Cache, Cache] | None = None


def own_caches(node: ir.Node, past: list[ir.Value | None], new: list[ir.Value]) -> tuple[Cache, Cache] | None:
    """The caches of keys and of values of the op `node`, whose outputs 1 and 2 are the present ones; None: it has none.

    Raises Declined where one is missing.
    """
    if past == [None, None]:
        return None
    if None in past or len(node.outputs) < 3:
        raise Declined("it has no past and present of both keys and values")
    return tuple(Cache(*cache) for cache in zip(past, new, node.outputs[1:3], strict=True))
