"""The last step on the graph, the same for all targets: our ops' options, their domain, and nothing unused."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from .. import op_spec


def lower(model: ir.Model, softmax: str) -> None:
    """Changes `model` in place; `softmax` is FdppAttention's softmax_mode."""
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) == (op_spec.DOMAIN, op_spec.ATTENTION):
            node.attributes["softmax_mode"] = ir.AttrString("softmax_mode", softmax)
    model.opset_imports[op_spec.DOMAIN] = op_spec.VERSION
    common.RemoveUnusedNodesPass()(model)
