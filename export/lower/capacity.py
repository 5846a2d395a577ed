"""Caches by what the graph says of their sizes: buffers with room that past and present share, or ones that grow.

The op itself does both: present is as large as past, if that has room for the new tokens, and past and new tokens
together otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .. import op_spec
from ..attention_node import head_size
from ..errors import ExportError
from ..report import ExportReport

CACHES = ("in-place", "concat")
_CAPACITY, _PAST, _TOTAL = "capacity", "past_sequence_length", "total_sequence_length"


def state_caches(model: ir.Model, cache: str, report: ExportReport) -> None:
    """What `cache`, one of CACHES, means for the sizes of past and present; those in place already stay so.

    Raises ExportError as `fix_capacity` does.
    """
    if cache == "in-place":
        fix_capacity(model, fixed_stay=True)
    for node, past, present in _caches(model):
        if cache == "concat":
            _state(node, past, _PAST)
            _state(node, present, _TOTAL)
        report.rewrote(f"cache -> {cache}")


def fix_capacity(model: ir.Model, *, fixed_stay: bool = False) -> None:
    """Gives past and present of each attention one shape, [batch, heads, capacity, head size].

    fixed_stay: those that have one already keep it. Raises ExportError where others read past, who would take its size
    for the number of tokens.
    """
    for node, past, present in _caches(model):
        others = [use.node for use in past.uses() if use.node is not node]
        if others:
            raise ExportError(
                f"{others[0].name} ({others[0].op_type}) reads {past.name}, too; a cache of fixed size is the "
                "attention's alone"
            )
        if fixed_stay and _is_fixed(past, present):
            continue
        for value in (past, present):
            _state(node, value, _CAPACITY)


def _caches(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """Attention, past and present of all caches. Raises ExportError for one that is no input and output."""
    for node in model.graph.all_nodes():
        if not op_spec.is_op(node, op_spec.ATTENTION):
            continue
        for past, present in zip(op_spec.inputs(node)[3:5], node.outputs[1:3], strict=True):
            if past is None or not past.is_graph_input() or not present.is_graph_output():
                raise ExportError(f"{node.name}: its past and present are not inputs and outputs of the graph")
            yield node, past, present


def _is_fixed(past: ir.Value, present: ir.Value) -> bool:
    sizes = [value.shape[2] if value.shape is not None and len(value.shape) == 4 else None for value in (past, present)]
    known = isinstance(sizes[0], int) or (sizes[0] is not None and sizes[0].value is not None)
    return known and sizes[0] == sizes[1]


def _state(node: ir.Node, cache: ir.Value, slots: str) -> None:
    batch = cache.shape[0] if cache.shape else None
    cache.shape = ir.Shape([batch, node.attributes.get_int("kv_num_heads"), slots, head_size(node)])
