"""Queries, keys and values that are cut out of one tensor ahead of FdppAttention -> that tensor, its packed input."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..attention_node import head_size
from ..nodes import input_at
from ..report import ExportReport
from .cut import cut_of, remove_unread_cuts

_INPUTS = op_spec.input_names(op_spec.ATTENTION)
_PARTS = [_INPUTS.index(name) for name in ("query", "key", "value")]


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place."""
    for node in list(model.graph.all_nodes()):
        if not op_spec.is_op(node, op_spec.ATTENTION) or input_at(node, _PARTS[1]) is None:
            continue
        cuts = [cut_of(node.inputs[index]) for index in _PARTS]
        if None in cuts or len({packed for packed, _, _ in cuts}) > 1:
            continue
        heads, kv_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
        packed, ends = cuts[0][0], [size * head_size(node) for size in (heads, heads + kv_heads, heads + 2 * kv_heads)]
        wanted = [(packed, start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if cuts != wanted or not packed.shape or packed.shape[-1] != ends[-1]:
            continue
        old = {node.inputs[index].producer() for index in _PARTS}
        for index, value in zip(_PARTS, (packed, None, None), strict=True):
            node.replace_input_with(index, value)
        remove_unread_cuts(old)
        report.rewrote(f"parts of one tensor -> packed input of {op_spec.ATTENTION}")
