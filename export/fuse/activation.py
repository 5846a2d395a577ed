"""An activation that alone reads a product -> FdppFlatGemm with that activation.

Relu; Gelu of ONNX and of com.microsoft, whose BiasGelu and FastGelu may add a bias first; silu as silu.py knows it.
"""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..nodes import attribute_of, input_at, is_constant, read_once, remove_unread
from ..report import ExportReport
from .joined_products import has_no_more, product_of
from .silu import silu_of

_BIAS = op_spec.input_names(op_spec.FLAT_GEMM).index("bias")
_OPS = {
    ("", "Relu"): "relu",
    ("com.microsoft", "Gelu"): "gelu",
    ("com.microsoft", "BiasGelu"): "gelu",
    ("com.microsoft", "FastGelu"): "gelu_tanh",
}
_GELU_OF_ONNX = {"none": "gelu", "tanh": "gelu_tanh"}  # by its attribute `approximate`


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place, behind the rules that add biases and that make one product of a gate and what it gates."""
    for node in list(model.graph.all_nodes()):
        activation, x = _activation(node)
        product = product_of(x)
        if product is None or not has_no_more(product):
            continue
        inputs = list(product.inputs)
        bias = input_at(node, 1) if node.op_type in ("BiasGelu", "FastGelu") else None
        if bias is not None:
            if input_at(product, _BIAS) is not None or not _is_of_columns(bias, product):
                continue
            inputs += [None] * (_BIAS + 1 - len(inputs))
            inputs[_BIAS] = bias
        attributes = {name: attribute.value for name, attribute in product.attributes.items()}
        attributes["activation"] = activation
        made = ir.node(product.op_type, inputs, attributes=attributes, domain=product.domain, name=product.name)
        y, result = node.outputs[0], made.outputs[0]
        result.type, result.shape = y.type, y.shape
        node.graph.insert_before(node, made)
        y.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, y.name = y.name, None
        remove_unread(node)
        report.rewrote(f"{activation} -> {op_spec.FLAT_GEMM}")


def _activation(node: ir.Node) -> tuple[str, ir.Value | None]:
    """The activation that `node` ends and its input, which nobody else reads; None for that: it ends none."""
    x = silu_of(node.outputs[0])
    if x is not None:
        return "silu", x
    activation = _OPS.get((node.domain, node.op_type))
    if (node.domain, node.op_type) == ("", "Gelu"):
        activation = _GELU_OF_ONNX.get(attribute_of(node, "approximate", "none"))
    if activation is None or not read_once(node.inputs[0]):
        return "", None
    return activation, node.inputs[0]


def _is_of_columns(bias: ir.Value, product: ir.Node) -> bool:
    return is_constant(bias) and tuple(bias.const_value.shape.numpy()) == (product.attributes.get_int("N"),)
