"""Brings every other spelling of causal attention with a cache into com.microsoft::GroupQueryAttention.

A dialect finds the heart of an attention (its `core`); the parts around it, rotary embedding, mask and cache, are the
same for all dialects and are found from there. docs/dialects.md shows what matches.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from ...report import ExportReport
from . import decoder_masked, multi_head_attention, spelled_out, standard_attention
from .declined import Declined
from .decoder import Decoder
from .grouped_query import rewrite
from .room import make_room
from .tidy import tidy

_DIALECTS = (spelled_out, standard_attention, multi_head_attention, decoder_masked)


def to_grouped_query(model: ir.Model, positions: int, report: ExportReport) -> None:
    """Changes `model` in place; what stays, and why, goes to `report`.

    positions: how many tokens a row may have, for the tables of rotary embeddings.
    """
    found = [(node, named) for node in model.graph.all_nodes() for d in _DIALECTS if (named := d.found(node))]
    for node, named in found:
        if node.graph is not model.graph:
            report.leave(named, "it is in a branch or a loop: only those in the graph itself are rewritten")
    if all(node.graph is not model.graph for node, _ in found):
        return
    tidy(model)
    decoder = Decoder(model, positions)
    for node in list(model.graph):
        for dialect in _DIALECTS:
            named = dialect.found(node)
            if named is None:
                continue
            try:
                rewrite(node, dialect.core(node, decoder.structural), decoder)
                report.rewrote(f"{dialect.NAME} -> GroupQueryAttention")
            except Declined as reason:
                report.leave(named, str(reason))
    common.RemoveUnusedNodesPass()(model)
    make_room(decoder)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    model.opset_imports.setdefault("com.microsoft", 1)
