"""An attention in any dialect -> com.microsoft::GroupQueryAttention, with everything around it that the op does."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from ...fuse.attention import refusal
from . import check
from .core import Core
from .declined import Declined
from .decoder import Decoder
from .evaluate import ancestors
from .lengths import lengths
from .mask import Mask, bias, mask_of
from .parts import Heads, Layout, Parts, parts
from .rotary import Tables, tables


def rewrite(node: ir.Node, core: Core, decoder: Decoder) -> None:
    """Puts the op in the place of the attention that ends at `node`, whose heart is `core`.

    Raises Declined for what the op does not do; then all that reads the graph reads what it did before.
    """
    found = parts(core, decoder.structural)
    rotary = _tables(found, decoder)
    mask = mask_of(core, decoder)
    added = bias(mask, found.key_cache, node, decoder)
    before = [part.value for part in (found.query, found.key, found.value)]
    _require_no_cycle(found, [*before, added, rotary.position_ids if rotary is not None else None])
    interleaved = check.interleaved(core, found, rotary, mask, added, decoder)
    attention = _attention(node, core, found, rotary, mask, added, interleaved, decoder)
    # What GroupQueryAttention can say and our op cannot stays in its own spelling.
    reason = refusal(attention)
    if reason is not None:
        for index in range(len(attention.inputs)):
            attention.replace_input_with(index, None)
        raise Declined(reason)
    node.graph.insert_before(node, attention)
    _replace(found, attention)


def _require_no_cycle(found: Parts, inputs: list[ir.Value | None]) -> None:
    caches = {cache.present.producer() for cache in (found.key_cache, found.value_cache)}
    if not caches.isdisjoint(ancestors([value for value in inputs if value is not None])):
        raise Declined("its mask, its positions or what it multiplies follow from its own cache")


def _tables(found: Parts, decoder: Decoder) -> Tables | None:
    if found.query_rotation is None:
        return None
    query, key = (
        tables(turn, found.key_cache.past.dtype, decoder) for turn in (found.query_rotation, found.key_rotation)
    )
    if query is not key:
        raise Declined("its queries and keys are rotated by different angles")
    return query


def _attention(
    node: ir.Node,
    core: Core,
    found: Parts,
    rotary: Tables | None,
    mask: Mask,
    added: ir.Value | None,
    interleaved: int,
    decoder: Decoder,
) -> ir.Node:
    name = f"{node.name or core.output.name}/GroupQueryAttention"
    names = [f"{name}/{part}" for part in ("query", "key", "value")]
    query, key, value = (
        _merged(part, node, part_name, decoder)
        for part, part_name in zip((found.query, found.key, found.value), names, strict=True)
    )
    if core.bias is not None:
        query, key, value = (
            decoder.add_before(node, "Add", [part, decoder.constant(bias, f"{name}.bias")], f"{name}.sum", part.dtype)
            for part, bias, name in zip((query, key, value), found.biases(core), names, strict=True)
        )
    inputs = [query, key, value, found.key_cache.past, found.value_cache.past]
    inputs += lengths(mask.padding, found.key_cache, decoder)
    attributes = {
        "num_heads": found.query.count,
        "kv_num_heads": found.key.count,
        "scale": found.scale,
        "softcap": core.softcap,
        "local_window_size": mask.window,
    }
    if rotary is not None:
        attributes |= {"do_rotary": 1, "rotary_interleaved": interleaved}
        columns = 2 * rotary.cos.shape[1]
        if columns != found.head_size:
            attributes["rotary_embedding_dim"] = columns
    # Position ids only say how far to rotate.
    inputs += [rotary.cos, rotary.sin, rotary.position_ids] if rotary is not None else [None] * 3
    inputs += [added, _sinks(core, found, name, decoder)]
    outputs = [ir.Value(name=f"{name}/{port}") for port in ("output", "present_key", "present_value")]
    domain = "com.microsoft"
    return ir.node("GroupQueryAttention", inputs, attributes=attributes, domain=domain, outputs=outputs, name=name)


def _sinks(core: Core, found: Parts, name: str, decoder: Decoder) -> ir.Value | None:
    """head_sink [Hq]"""
    if core.sinks is None:
        return None
    return decoder.constant(core.sinks.const_value.numpy().ravel(), f"{name}/head_sink")


def _merged(part: Heads, node: ir.Node, name: str, decoder: Decoder) -> ir.Value:
    """[B, S, H · D] of `part`."""
    value, dtype = part.value, part.value.dtype
    if part.layout is Layout.MERGED:
        return value
    if part.layout is Layout.HEADS_FIRST:
        value = decoder.add_before(node, "Transpose", [value], f"{name}/Transpose", dtype, perm=[0, 2, 1, 3])
    value = decoder.add_before(node, "Reshape", [value, decoder.ints(0, 0, -1)], name, dtype)
    return value


def _replace(found: Parts, attention: ir.Node) -> None:
    """Lets everybody read the outputs of `attention`, under the names that they had."""
    old = [found.output, found.key_cache.present, found.value_cache.present]
    for value, new in zip(old, attention.outputs, strict=True):
        new.type, new.shape, new.name = value.type, value.shape, value.name
        convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
        value.name = None
