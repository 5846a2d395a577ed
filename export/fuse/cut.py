"""Columns that are cut out of a wider tensor, by a Split or a Slice."""

from __future__ import annotations

import onnx_ir as ir

from ..nodes import columns_of, input_at, numbers, remove_unread

_LAST = (-1, 2)  # the axis of the columns of [B, S, columns]


def cut_of(part: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What `part` is cut out of, and the columns there where it begins and ends; None: it is not."""
    node = part.producer()
    if node is None or node.domain != "" or not node.inputs:
        return None
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) in _LAST:
        sizes = numbers(input_at(node, 1)) or node.attributes.get_ints("split", None) or _equal_sizes(node)
        if sizes is None:
            return None
        index = node.outputs.index(part)
        return node.inputs[0], sum(sizes[:index]), sum(sizes[: index + 1])
    if node.op_type == "Slice":
        starts, ends, axes, steps = (numbers(input_at(node, index)) for index in range(1, 5))
        columns = columns_of(node.inputs[0])
        if starts and ends and axes in ([-1], [2]) and steps in (None, [1]) and columns is not None:
            begin, end, _ = slice(starts[0], ends[0]).indices(columns)
            return node.inputs[0], begin, end
    return None


def remove_unread_cuts(cuts: set[ir.Node]) -> None:
    """Those of `cuts` whose outputs nobody reads any more."""
    for cut in cuts:
        if not any(output.uses() or output.is_graph_output() for output in cut.outputs):
            remove_unread(cut)


def _equal_sizes(split: ir.Node) -> list[int] | None:
    columns = columns_of(split.inputs[0])
    if columns is None or input_at(split, 1) is not None or columns % len(split.outputs):
        return None
    return [columns // len(split.outputs)] * len(split.outputs)
