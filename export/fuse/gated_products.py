"""silu(gate) · up of two products of the same rows -> one FdppFlatGemm of both weights, with the activation silu_mul.

    gate = FdppFlatGemm(A, B1)
    silu(gate) * FdppFlatGemm(A, B2), silu being gate * Sigmoid(gate), or Swish or QuickGelu of alpha 1

The rows of B1 come ahead of those of B2; biases, scales and zero points likewise.
"""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..nodes import input_at, is_constant
from ..pack import joined, register
from ..report import ExportReport

_NAMES = op_spec.input_names(op_spec.FLAT_GEMM)
_A = _NAMES.index("A")
_OF_ROWS = [_NAMES.index(name) for name in ("B", "scales", "zero_points", "bias")]
_SILU = {("", "Swish"), ("com.microsoft", "QuickGelu")}


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place. A weight that somebody else reads, too, stays where it is, and so do its products."""
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != ("", "Mul") or (found := _gate_and_up(node)) is None:
            continue
        gate, up = found
        inputs: list[ir.Value | None] = [None] * len(gate.inputs)
        inputs[_A] = gate.inputs[_A]
        for index in _OF_ROWS:
            if input_at(gate, index) is not None:
                inputs[index] = _register_joined(gate.inputs[index], up.inputs[index])
        attributes = [*gate.attributes.values(), ir.AttrString("activation", "silu_mul")]
        y = node.outputs[0]
        product = ir.Node(
            op_spec.DOMAIN, op_spec.FLAT_GEMM, inputs, attributes, num_outputs=1, name=node.name, version=gate.version
        )
        product.outputs[0].type, product.outputs[0].shape = y.type, y.shape
        node.graph.insert_before(node, product)
        y.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        product.outputs[0].name, y.name = y.name, None
        _remove_unread(node)
        report.rewrote("silu(gate) * up -> silu_mul")


def _gate_and_up(mul: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two products that `mul` ends; None: it does not, or they cannot become one."""
    for silu, other in (mul.inputs, mul.inputs[::-1]):
        gate, up = _gate(silu), _product(other)
        if gate is None or up is None or gate is up or not _read_once(silu) or not _read_once(other):
            continue
        if gate.inputs[_A] is up.inputs[_A] and _attributes(gate) == _attributes(up) and _join(gate, up):
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
        return _product(node.inputs[0]) if _read_once(node.inputs[0]) else None
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for x, sigmoid in (node.inputs, node.inputs[::-1]):
        squashed = sigmoid.producer()
        if squashed is None or (squashed.domain, squashed.op_type) != ("", "Sigmoid") or squashed.inputs[0] is not x:
            continue
        if _read_once(sigmoid) and len(x.uses()) == 2 and not x.is_graph_output():
            return _product(x)
    return None


def _product(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and op_spec.is_op(node, op_spec.FLAT_GEMM) else None


def _attributes(product: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in product.attributes.items()}


def _join(gate: ir.Node, up: ir.Node) -> bool:
    """Whether both have the same inputs besides A, of rows alone, and nobody else reads what becomes one."""
    if "activation" in gate.attributes:
        return False
    for index in range(max(len(gate.inputs), len(up.inputs))):
        first, second = input_at(gate, index), input_at(up, index)
        if (first is None) != (second is None):
            return False
        if first is None or index == _A:
            continue
        if index not in _OF_ROWS or not all(_is_own_constant(value) for value in (first, second)):
            return False
        if first.dtype != second.dtype or first.const_value.shape != second.const_value.shape:
            return False
        if first.const_value.shape.numpy()[0] != gate.attributes.get_int("N"):
            return False  # one scale for all rows
    return True


def _is_own_constant(value: ir.Value) -> bool:
    return is_constant(value) and len(value.uses()) == 1


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _register_joined(first: ir.Value, second: ir.Value) -> ir.Value:
    name = f"{first.name}.{second.name}"
    return register(first.graph, joined((first.const_value, second.const_value), name))


def _remove_unread(node: ir.Node) -> None:
    """`node`, whose outputs nobody reads, and what nobody reads without it."""
    above = [value.producer() for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for producer in above:
        if producer is not None and producer.graph is not None and not any(o.uses() for o in producer.outputs):
            _remove_unread(producer)
