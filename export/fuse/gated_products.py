"""silu(gate) · up of two products of the same rows, or of the halves of one -> one FdppFlatGemm with silu_mul.

    gate, up = FdppFlatGemm(A, B1), FdppFlatGemm(A, B2)    or    Split(FdppFlatGemm(A, B)), or two Slices of it
    silu(gate) * up, silu being gate * Sigmoid(gate), or Swish or QuickGelu of alpha 1

The rows of gate come ahead of those of up; biases, scales and zero points likewise.
"""

from __future__ import annotations

import onnx_ir as ir

from ..nodes import read_once, remove_unread
from ..report import ExportReport
from .cut import cut_of
from .joined_products import can_be_one, has_no_more, one_product, product_of
from .silu import silu_of

_ACTIVATION = "silu_mul"


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place. A weight that somebody else reads, too, stays where it is, and so do its products."""
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Mul"):
            continue
        product = _of_two(node) or _of_halves(node)
        if product is None:
            continue
        y = node.outputs[0]
        product.outputs[0].type, product.outputs[0].shape = y.type, y.shape
        node.graph.insert_before(node, product)
        y.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        product.outputs[0].name, y.name = y.name, None
        remove_unread(node)
        report.rewrote(f"silu(gate) * up -> {_ACTIVATION}")


def _of_two(mul: ir.Node) -> ir.Node | None:
    """One product in the place of two that `mul` ends; None: it does not, or they cannot become one."""
    for silu, other in (mul.inputs, mul.inputs[::-1]):
        gate, up = product_of(silu_of(silu)), product_of(other)
        if gate is None or up is None or gate is up or not read_once(other):
            continue
        if gate.attributes.get_int("N") == up.attributes.get_int("N") and can_be_one((gate, up)):
            return one_product((gate, up), mul.name, {"activation": _ACTIVATION})
    return None


def _of_halves(mul: ir.Node) -> ir.Node | None:
    """The product whose halves `mul` multiplies, with the activation; None: there is none."""
    for silu, other in (mul.inputs, mul.inputs[::-1]):
        gate = silu_of(silu)
        cuts = [cut_of(part) if part is not None else None for part in (gate, other)]
        if None in cuts or not read_once(other):
            continue
        (whole, *first), (same, *second) = cuts
        product, cutters = product_of(whole), {gate.producer(), other.producer()}
        if same is not whole or product is None or whole.is_graph_output() or not has_no_more(product):
            continue
        columns = product.attributes.get_int("N")
        half = columns // 2
        if {use.node for use in whole.uses()} != cutters or [*first, *second] != [0, half, half, columns]:
            continue
        attributes = {name: attribute.value for name, attribute in product.attributes.items()}
        attributes |= {"N": half, "activation": _ACTIVATION}
        return ir.node(product.op_type, product.inputs, attributes=attributes, domain=product.domain, name=mul.name)
    return None
