"""The hint next_weight: each product is told which weight the next one reads, so that a GPU can bring the beginning of
that into its L2 meanwhile."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir

from .. import op_spec
from ..report import ExportReport

_A, _B, _NEXT_WEIGHT = (op_spec.input_names(op_spec.FLAT_GEMM).index(name) for name in ("A", "B", "next_weight"))


def hint_next_weights(model: ir.Model, report: ExportReport) -> None:
    """Changes `model` in place. The last product gets no hint, nor does one before a product of other element types."""
    products = [node for node in execution_order(model.graph) if op_spec.is_op(node, op_spec.FLAT_GEMM)]
    for node, following in pairwise(products):
        if not _same_types(node, following):
            continue
        node.resize_inputs(max(len(node.inputs), _NEXT_WEIGHT + 1))
        node.replace_input_with(_NEXT_WEIGHT, following.inputs[_B])
        report.rewrote(f"{op_spec.FLAT_GEMM} -> with the next weight as a hint")


def execution_order(graph: ir.Graph) -> list[ir.Node]:
    """The nodes in the order in which ONNX Runtime runs them, which is not that of `graph` where branches lie side by
    side: depth first from the nodes that nobody reads, of several the one that comes last in the graph first."""
    place = {node: index for index, node in enumerate(graph)}
    order, entered = [], set()
    stack = [(node, False) for node in graph if not node.successors()]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack += [(other, False) for other in sorted(node.predecessors(), key=place.__getitem__)]
    return order


def _same_types(node: ir.Node, following: ir.Node) -> bool:
    """Also of A, which may decide where a product runs: a weight that two devices read would be stored on both."""
    activations = {node.inputs[_A].dtype, following.inputs[_A].dtype} - {None}
    return node.inputs[_B].dtype == following.inputs[_B].dtype and len(activations) < 2
