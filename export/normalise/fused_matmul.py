"""com.microsoft::FusedMatMul, as ONNX Runtime's optimizer writes it -> Transpose, MatMul and Mul, which rules know."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..nodes import rank_of
from ..pack import register
from .shapes import infer_shapes

_FUSED = ("com.microsoft", "FusedMatMul")
_TRANSPOSED_OTHERWISE = ("transA", "transBatchA", "transBatchB")


def spell_out_fused_matmul(model: ir.Model) -> None:
    """Changes `model` in place; what has no such spelling, or whose rank or type is not known, stays."""
    waiting = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == _FUSED]
    done = waiting
    while waiting and done:
        infer_shapes(model)  # which ends at those that are still fused
        done = [node for node in waiting if _spell_out(node)]
        waiting = [node for node in waiting if (node.domain, node.op_type) == _FUSED]


def _spell_out(node: ir.Node) -> bool:
    """Whether it could be done."""
    if len(node.inputs) != 2 or None in node.inputs:
        return False
    if any(node.attributes.get_int(name, 0) for name in _TRANSPOSED_OTHERWISE):
        return False
    alpha, turned = node.attributes.get_float("alpha", 1.0), node.attributes.get_int("transB", 0)
    a, b = node.inputs
    rank, dtype = rank_of(b), a.dtype or b.dtype
    if (alpha != 1 and dtype is None) or (turned and (rank is None or rank < 2)):
        return False
    node.domain, node.op_type = "", "MatMul"
    node.attributes.clear()
    if turned:
        order = [*range(rank - 2), rank - 1, rank - 2]
        transpose = ir.node("Transpose", [b], attributes={"perm": order}, name=f"{node.name}.transpose")
        node.graph.insert_before(node, transpose)
        node.replace_input_with(1, transpose.outputs[0])
    if alpha != 1:
        _scale(node, node.outputs[0], np.array(alpha, dtype.numpy()))
    return True


def _scale(product: ir.Node, y: ir.Value, alpha: np.ndarray) -> None:
    """Multiplies the result of `product` by `alpha` before anybody reads it."""
    number = register(product.graph, ir.tensor(alpha, name=f"{y.name}.alpha"))
    scaled = ir.node("Mul", [y, number], name=f"{product.name}.scaled")
    product.graph.insert_after(product, scaled)
    result = scaled.outputs[0]
    result.type, result.shape = y.type, y.shape
    y.replace_all_uses_with(result, replace_graph_outputs=True)
    scaled.replace_input_with(0, y)
    result.name, y.name = y.name, f"{y.name}.unscaled"
