"""Add(FdppFlatGemm(...), constant [N]) -> FdppFlatGemm with that bias."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from .. import op_spec
from ..nodes import is_constant
from ..report import ExportReport

_BIAS = op_spec.input_names(op_spec.FLAT_GEMM).index("bias")


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place."""
    for node in list(model.graph.all_nodes()):
        if op_spec.is_op(node, op_spec.FLAT_GEMM) and len(node.inputs) <= _BIAS and (found := _added(node)) is not None:
            add, bias = found
            node.resize_inputs(_BIAS + 1)
            node.replace_input_with(_BIAS, bias)
            product, total = node.outputs[0], add.outputs[0]
            convenience.replace_all_uses_with(total, product, replace_graph_outputs=True)
            product.type, product.shape = total.type, total.shape
            name = total.name
            add.graph.remove(add, safe=True)
            product.name = name
            report.rewrote(f"Add of a bias -> {op_spec.FLAT_GEMM}")


def _added(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads `node`, and the constant that it adds to each column; None: there is none."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or (uses[0].node.domain, uses[0].node.op_type) != ("", "Add"):
        return None
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    if not is_constant(bias):
        return None
    columns = (node.attributes.get_int("N"),)
    return (add, bias) if tuple(bias.const_value.shape.numpy()) == columns else None
