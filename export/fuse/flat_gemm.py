"""MatMul(A, constant B [K, N]) -> fdpp::FdppFlatGemm(A, B packed to [N, K])."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..dtypes import BY_FORMAT, FORMAT, spec_name
from ..pack import packed_weight, register
from ..report import ExportReport
from . import int4_gemm


def rewrite(model: ir.Model, weights: str, report: ExportReport) -> dict[ir.Value, ir.Value]:
    """Rewrites in place. Returns the packed initializer of each original weight that was packed."""
    packed: dict[ir.Value, ir.Value] = {}
    for node in model.graph.all_nodes():
        if node.domain == op_spec.DOMAIN or not ("MatMul" in node.op_type or node.op_type == "Gemm"):
            continue
        if int4_gemm.is_candidate(node):
            continue
        reason = _refusal(node, weights)
        if reason is not None:
            report.leave(node, reason)
            continue
        weight = node.inputs[1]
        if weight not in packed:
            tensor = packed_weight(weight.const_value, _weight_dtype(weight, weights), f"{weight.name}.packed")
            packed[weight] = register(weight.graph, tensor)
        columns, rows = weight.const_value.shape.numpy()
        node.domain, node.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
        node.replace_input_with(1, packed[weight])
        for attribute in (
            ir.AttrInt64("N", rows),
            ir.AttrInt64("K", columns),
            ir.AttrString("weight_format", FORMAT[packed[weight].dtype]),
        ):
            node.attributes[attribute.name] = attribute
        report.rewrote(f"MatMul -> {op_spec.FLAT_GEMM}")
    return packed


def _refusal(node: ir.Node, weights: str) -> str | None:
    """Why `node` stays; None: it can be rewritten."""
    if (node.domain, node.op_type) != ("", "MatMul"):
        return "only MatMul is rewritten"
    if len(node.inputs) != 2 or None in node.inputs:
        return "it does not have two inputs"
    a, b = node.inputs
    if not b.is_initializer() or b.is_graph_input():
        return f"B ({b.name}) is not constant"
    shape = b.const_value.shape.numpy()
    if len(shape) != 2 or 0 in shape:
        return f"B ({b.name}) has shape {list(shape)}, expected [K, N]"
    if a.shape and isinstance(a.shape[-1], int) and a.shape[-1] != shape[0]:
        return f"A ({a.name}) has {a.shape[-1]} columns but B ({b.name}) has {shape[0]} rows"
    activation, wanted = spec_name(b.const_value.dtype), spec_name(_weight_dtype(b, weights))
    if not op_spec.backends_for(op_spec.FLAT_GEMM, T=activation, W=wanted):
        return f"no kernel multiplies {activation} activations by {wanted} weights ({b.name})"
    return None


def _weight_dtype(weight: ir.Value, weights: str) -> ir.DataType:
    return weight.const_value.dtype if weights == "keep" else BY_FORMAT[weights]
