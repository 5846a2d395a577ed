"""A graph made easier to read before its attentions are looked for; what it computes stays the same."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> None:
    """Changes `model` in place: shapes as far as they follow, no node that hands on its input, none twice."""
    for value in model.graph.inputs:
        _state_sizes(value)
    _infer_shapes(model)
    for node in model.graph:
        if _hands_on(node):
            node.op_type = "Identity"
            node.attributes.clear()
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)


def _infer_shapes(model: ir.Model) -> None:
    """As far as the graph's own statements allow: where they contradict each other, as some do, not at all."""
    logger = logging.getLogger(common.ShapeInferencePass.__module__)
    before, logger.disabled = logger.disabled, True  # it would print a traceback
    try:
        common.ShapeInferencePass()(model)
    finally:
        logger.disabled = before


def _hands_on(node: ir.Node) -> bool:
    """Whether the output of `node` is its input."""
    if (node.domain, node.op_type) == ("", "Concat"):
        return len(node.inputs) == 1
    return (node.domain, node.op_type) == ("", "Cast") and node.inputs[0].dtype == node.attributes.get_int("to")


def _state_sizes(value: ir.Value) -> None:
    """Numbers for dimensions that are named by a number, as transformers' exporter does."""
    if value.shape is None:
        return
    sizes = [str(size.value) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
    value.shape = ir.Shape(
        [
            int(new) if isinstance(new, str) and new.isdecimal() else old
            for new, old in zip(sizes, value.shape, strict=True)
        ]
    )
