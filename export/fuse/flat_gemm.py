"""MatMul(A, constant B [K, N]) -> fdpp::FdppFlatGemm(A, B packed to [N, K]).

Gemm(A, constant B, constant C) with a bias C [N] likewise; B may also be [N, K], by transB or a Transpose.
"""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..dtypes import BY_FORMAT, FORMAT, spec_name
from ..nodes import is_constant
from ..pack import packed_weight, register
from ..report import ExportReport
from . import int4_gemm
from .weight import Weight, weight_of

_BIAS = op_spec.input_names(op_spec.FLAT_GEMM).index("bias")


def rewrite(model: ir.Model, weights: str, report: ExportReport) -> dict[Weight, ir.Value]:
    """Rewrites in place. Returns the packed initializer of each original weight that was packed."""
    packed: dict[Weight, ir.Value] = {}
    for node in model.graph.all_nodes():
        if node.domain == op_spec.DOMAIN or not ("MatMul" in node.op_type or node.op_type == "Gemm"):
            continue
        if int4_gemm.is_candidate(node):
            continue
        reason = _refusal(node, weights)
        if reason is not None:
            report.leave(node, reason)
            continue
        weight = weight_of(node)
        if weight not in packed:
            value, rows_first = weight.value, weight.rows_first
            name = f"{value.name}.packed" + (".rows" if rows_first else "")
            tensor = packed_weight(value.const_value, _weight_dtype(value, weights), name, rows_first=rows_first)
            packed[weight] = register(value.graph, tensor)
        rows, columns = weight.shape
        report.rewrote(f"{node.op_type} -> {op_spec.FLAT_GEMM}")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        node.domain, node.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(1, packed[weight])
        if bias is not None:
            node.resize_inputs(_BIAS + 1)
            node.replace_input_with(_BIAS, bias)
        for attribute in (
            ir.AttrInt64("N", rows),
            ir.AttrInt64("K", columns),
            ir.AttrString("weight_format", FORMAT[packed[weight].dtype]),
        ):
            node.attributes[attribute.name] = attribute
    return packed


def _refusal(node: ir.Node, weights: str) -> str | None:
    """Why `node` stays; None: it can be rewritten."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return "only MatMul and Gemm are rewritten"
    if node.op_type == "MatMul" and (len(node.inputs) != 2 or None in node.inputs):
        return "it does not have two inputs"
    a, b = node.inputs[:2]
    weight = weight_of(node)
    if weight is None:
        return f"B ({b.name}) is not constant"
    if len(weight.shape) != 2 or 0 in weight.shape:
        return f"B ({b.name}) has shape {list(weight.value.const_value.shape.numpy())}, expected [K, N]"
    rows, columns = weight.shape
    if a.shape and isinstance(a.shape[-1], int) and a.shape[-1] != columns:
        return f"A ({a.name}) has {a.shape[-1]} columns but B ({b.name}) has {columns} rows"
    if node.op_type == "Gemm" and (reason := _gemm_refusal(node, rows)) is not None:
        return reason
    activation, wanted = spec_name(weight.value.const_value.dtype), spec_name(_weight_dtype(weight.value, weights))
    if not op_spec.backends_for(op_spec.FLAT_GEMM, T=activation, W=wanted):
        return f"no kernel multiplies {activation} activations by {wanted} weights ({b.name})"
    return None


def _gemm_refusal(node: ir.Node, rows: int) -> str | None:
    """Why the Gemm `node` is more than a product with weights of `rows` rows and a bias."""
    if node.attributes.get_int("transA", 0):
        return "its A is transposed"
    for name in ("alpha", "beta"):
        if node.attributes.get_float(name, 1.0) != 1:
            return f"attribute {name} = {node.attributes.get_float(name)} is not supported"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (not is_constant(bias) or tuple(bias.const_value.shape.numpy()) != (rows,)):
        return f"C ({bias.name}) is not a constant of shape [{rows}]"
    return None


def _weight_dtype(weight: ir.Value, weights: str) -> ir.DataType:
    return weight.const_value.dtype if weights == "keep" else BY_FORMAT[weights]
