"""MatMul(A, constant B [K, N]) -> fdpp::FdppFlatGemm(A, B packed to [N, K]).

B becomes numbers and scales where a quantised format is asked for. Gemm(A, constant B, constant C) with a bias C [N]
likewise; B may also be [N, K], by transB or a Transpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .. import op_spec
from ..dtypes import FORMAT, spec_name
from ..nodes import columns_of, is_constant
from ..pack import packed_weight, register, rounded
from ..quantised_weight import QuantisedWeight
from ..report import ExportReport
from ..weight_format import CPU_ACCURACY_LEVEL, WeightFormat
from . import matmul_nbits
from .language_model_head import language_model_head
from .weight import Weight, weight_of

_INPUTS = op_spec.input_names(op_spec.FLAT_GEMM)


@dataclass(frozen=True)
class PackedWeight:
    """inputs: the initializers that stand for a weight, by the op's names. stored: what its values have become, in its
    own layout and type; None: what they were."""

    form: WeightFormat
    inputs: dict[str, ir.Value]
    stored: ir.TensorProtocol | None


def rewrite(
    model: ir.Model, weights: WeightFormat, report: ExportReport, head_weights: WeightFormat | None = None
) -> dict[Weight, PackedWeight]:
    """Rewrites in place; head_weights: of the product that makes the logits. Returns what each original weight became,
    the same for all products that read it."""
    packed: dict[Weight, PackedWeight] = {}
    head = language_model_head(model)
    for node in model.graph.all_nodes():
        if node.domain == op_spec.DOMAIN or not ("MatMul" in node.op_type or node.op_type == "Gemm"):
            continue
        if matmul_nbits.is_candidate(node):
            continue
        form = head_weights if head_weights is not None and node is head else weights
        reason = _refusal(node, form)
        if reason is not None:
            report.leave(node, reason)
            continue
        weight = weight_of(node)
        if weight not in packed:
            packed[weight] = _pack(weight, form)
            if form.quantised:
                report.rewrote(f"weight -> {form}")
        report.rewrote(f"{node.op_type} -> {op_spec.FLAT_GEMM}")
        _replace(node, weight, packed[weight])
    return packed


def _pack(weight: Weight, form: WeightFormat) -> PackedWeight:
    value, rows_first = weight.value, weight.rows_first
    tensor, name = value.const_value, f"{value.name}.packed" + (".rows" if rows_first else "")
    if form.quantised:
        quantised = QuantisedWeight(tensor, form, rows_first=rows_first)
        tensors, stored = quantised.inputs(name), quantised.values(f"{value.name}.stored")
    else:
        dtype = form.dtype(tensor.dtype)
        tensors = {"B": packed_weight(tensor, dtype, name, rows_first=rows_first)}
        stored = None if dtype == tensor.dtype else rounded(tensor, dtype, f"{value.name}.stored")
    return PackedWeight(form, {kind: register(value.graph, tensor) for kind, tensor in tensors.items()}, stored)


def _replace(node: ir.Node, weight: Weight, packed: PackedWeight) -> None:
    (rows, columns), b = weight.shape, packed.inputs["B"]
    inputs = dict(packed.inputs)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs["bias"] = node.inputs[2]
    node.domain, node.op_type = op_spec.DOMAIN, op_spec.FLAT_GEMM
    node.resize_inputs(1)
    node.resize_inputs(1 + max(map(_INPUTS.index, inputs)))
    for name, value in inputs.items():
        node.replace_input_with(_INPUTS.index(name), value)
    form = packed.form
    attributes = {"N": rows, "K": columns, "weight_format": form.name if form.quantised else FORMAT[b.dtype]}
    if form.name == "int4":
        attributes["block_size"] = form.block_size
        if weight.value.const_value.dtype == ir.DataType.FLOAT:
            attributes["accuracy_level"] = CPU_ACCURACY_LEVEL
    node.attributes.clear()
    for attribute in ir.convenience.convert_attributes(attributes):
        node.attributes[attribute.name] = attribute


def _refusal(node: ir.Node, form: WeightFormat) -> str | None:
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
    if columns_of(a) not in (None, columns):
        return f"A ({a.name}) has {a.shape[-1]} columns but B ({b.name}) has {columns} rows"
    if node.op_type == "Gemm" and (reason := _gemm_refusal(node, rows)) is not None:
        return reason
    activation, wanted = (
        spec_name(weight.value.const_value.dtype),
        spec_name(form.dtype(weight.value.const_value.dtype)),
    )
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
