"""Shape inference that leaves a graph alone where it cannot be done."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common


def infer_shapes(model: ir.Model) -> None:
    """As far as the graph's own statements allow: where they contradict each other, as some do, not at all."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output() and any(map(_is_made_up, value.shape or ())):
                value.shape = ir.Shape([None if _is_made_up(size) else size for size in value.shape])
    logger = logging.getLogger(common.ShapeInferencePass.__module__)
    before, logger.disabled = logger.disabled, True  # it would print a traceback
    try:
        common.ShapeInferencePass()(model)
    finally:
        logger.disabled = before


def _is_made_up(size: int | ir.SymbolicDim) -> bool:
    """Whether `size` has a name of earlier inference, which knew less."""
    return isinstance(size, ir.SymbolicDim) and str(size.value).startswith("unk__")
