"""A graph made easier to read before its attentions are looked for; what it computes stays the same."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> None:
    """Changes `model` in place: no node that hands on its input, none twice, shapes as far as they follow."""
    for value in model.graph.inputs:
        _state_sizes(value)
    for node in model.graph:
        if (node.domain, node.op_type) == ("", "Concat") and len(node.inputs) == 1:
            node.op_type = "Identity"
            node.attributes.clear()
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.ShapeInferencePass()(model)


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
