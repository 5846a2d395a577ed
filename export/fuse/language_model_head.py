"""The product whose result, perhaps scaled, capped or cast, is the graph's output logits."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..nodes import is_constant

LOGITS = "logits"
_PRODUCTS = {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "MatMulNBits"), (op_spec.DOMAIN, op_spec.FLAT_GEMM)}
# Each element of their result follows from the same element of the one operand that is not constant.
_ELEMENTWISE = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Sub", "Tanh"}


def language_model_head(model: ir.Model) -> ir.Node | None:
    """None: there is no such product."""
    path = logits_path(model)
    return path[-1].producer() if path else None


def logits_path(model: ir.Model) -> list[ir.Value]:
    """The values from the output logits back to the product's result; empty: there is no such product."""
    value = next((output for output in model.graph.outputs if output.name == LOGITS), None)
    path = []
    while value is not None and (node := value.producer()) is not None:
        path.append(value)
        if (node.domain, node.op_type) in _PRODUCTS:
            return path
        operands = [operand for operand in node.inputs if operand is not None and not is_constant(operand)]
        if node.domain != "" or node.op_type not in _ELEMENTWISE or len(operands) != 1:
            break
        value = operands[0]
    return []
