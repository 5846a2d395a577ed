"""silu(gate) · up of two products of the same rows -> one FdppFlatGemm of both weights, with the activation silu_mul.

    gate = FdppFlatGemm(A, B1)
    silu(gate) * FdppFlatGemm(A, B2), silu being gate * Sigmoid(gate), or Swish or QuickGelu of alpha 1

The rows of B1 come ahead of those of B2; biases, scales and zero points likewise.
"""

from __future__ import annotations

import onnx_ir as ir

from ..nodes import read_once, remove_unread
from ..report import ExportReport
from .joined_products import can_be_one, one_product, product_of

_SILU = {("", "Swish"), ("com.microsoft", "QuickGelu")}


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place. A weight that somebody else reads, too, stays where it is, and so do its products."""
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Mul") or (found := _gate_and_up(node)) is None:
            continue
        product = one_product(found, node.name, {"activation": "silu_mul"})
        y = node.outputs[0]
        product.outputs[0].type, product.outputs[0].shape = y.type, y.shape
        node.graph.insert_before(node, product)
        y.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        product.outputs[0].name, y.name = y.name, None
        remove_unread(node)
        report.rewrote("silu(gate) * up -> silu_mul")


def _gate_and_up(mul: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two products that `mul` ends; None: it does not, or they cannot become one."""
    for silu, other in (mul.inputs, mul.inputs[::-1]):
        gate, up = _gate(silu), product_of(other)
        if gate is None or up is None or gate is up or not read_once(silu) or not read_once(other):
            continue
        if gate.attributes.get_int("N") == up.attributes.get_int("N") and can_be_one((gate, up)):
            return gate, up
    return None


def _gate(silu: ir.Value | None) -> ir.Node | None:
    """The product whose silu this is, if nobody else reads it."""
    node = silu.producer() if silu is not None else None
    if node is None:
        return None
    if (node.domain, node.op_type) in _SILU:
        if node.attributes.get_float("alpha", 1.702 if node.op_type == "QuickGelu" else 1.0) != 1:
            return None
        return product_of(node.inputs[0]) if read_once(node.inputs[0]) else None
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for x, sigmoid in (node.inputs, node.inputs[::-1]):
        squashed = sigmoid.producer()
        if squashed is None or (squashed.domain, squashed.op_type) != ("", "Sigmoid") or squashed.inputs[0] is not x:
            continue
        if read_once(sigmoid) and len(x.uses()) == 2 and not x.is_graph_output():
            return product_of(x)
    return None
