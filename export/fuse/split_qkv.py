"""Queries, keys and values that are cut out of one tensor ahead of FdppAttention -> that tensor, its packed input."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..nodes import input_at, numbers, remove_unread
from ..report import ExportReport
from .attention import head_size

_INPUTS = op_spec.input_names(op_spec.ATTENTION)
_PARTS = [_INPUTS.index(name) for name in ("query", "key", "value")]
_LAST = (-1, 2)  # the axis of the columns of [B, S, columns]


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place."""
    for node in list(model.graph.all_nodes()):
        if not op_spec.is_op(node, op_spec.ATTENTION) or input_at(node, _PARTS[1]) is None:
            continue
        cuts = [_cut(node.inputs[index]) for index in _PARTS]
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
        for cut in old:
            if not any(output.uses() or output.is_graph_output() for output in cut.outputs):
                remove_unread(cut)
        report.rewrote(f"parts of one tensor -> packed input of {op_spec.ATTENTION}")


def _cut(part: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What `part` is cut out of, and the columns there where it begins and ends; None: it is not."""
    node = part.producer()
    if node is None or node.domain != "" or not node.inputs:
        return None
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) in _LAST:
        sizes = numbers(input_at(node, 1)) or node.attributes.get_ints("split", None)
        if sizes is None:
            return None
        index = node.outputs.index(part)
        return node.inputs[0], sum(sizes[:index]), sum(sizes[: index + 1])
    if node.op_type == "Slice":
        starts, ends, axes, steps = (numbers(input_at(node, index)) for index in range(1, 5))
        if starts and ends and axes in ([-1], [2]) and steps in (None, [1]) and node.inputs[0].shape:
            columns = node.inputs[0].shape[-1]
            if isinstance(columns, int):
                begin, end, _ = slice(starts[0], ends[0]).indices(columns)
                return node.inputs[0], begin, end
    return None
