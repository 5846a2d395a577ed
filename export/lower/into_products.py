"""RMS norms ahead of our products and sums behind them, done by the products themselves.

TensorRT has no op for an RMS norm, and what lies between two plugins costs kernels of its own. ONNX Runtime has one op
for a sum and the norm behind it, so there it depends on the products whether they are faster.
"""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..nodes import input_at, read_once
from ..report import ExportReport

_A, _RESIDUAL, _NORM = (op_spec.input_names(op_spec.FLAT_GEMM).index(name) for name in ("A", "residual", "norm_weight"))

# Norms with their default epsilons. Ahead of the second kind's stands a sum, which is an output, too.
_NORMS = {("", "SimplifiedLayerNormalization"): 1e-5, ("", "RMSNormalization"): 1e-5}
_SKIP_NORM = ("com.microsoft", "SkipSimplifiedLayerNormalization")
_SKIP_EPSILON, _SKIP_BIAS, _SKIP_SUM = 1e-12, 3, 3  # of the input and of the output


def into_products(model: ir.Model, report: ExportReport, *, sums_stay: bool = False) -> None:
    """Changes `model` in place, ahead of the dense form. What is not like this stays: a norm whose every reader is a
    product of ours, in the type of its weight; a sum of a product that nobody else reads and a tensor of its shape.

    sums_stay: a norm with a sum of its own stays where no product can take the sum, which would become a node."""
    for node in list(model.graph.all_nodes()):
        key = (node.domain, node.op_type)
        if key == _SKIP_NORM or key in _NORMS:
            _take_shapes_from_input(node)
        if key == _SKIP_NORM and _sums_two(node) and _is_for_products(node, input_at(node, 2)):
            if sums_stay and _product_of_sum(node) is None:
                continue
            _give_norm(_sum_ahead(node), node, node.inputs[2], node.attributes.get_float("epsilon", _SKIP_EPSILON))
        elif key in _NORMS and _is_for_products(node, input_at(node, 1)) and _is_last_axis(node):
            _give_norm(node.inputs[0], node, node.inputs[1], node.attributes.get_float("epsilon", _NORMS[key]))
        else:
            continue
        report.rewrote(f"{node.op_type} -> {op_spec.FLAT_GEMM}")
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) == ("", "Add") and _take_sum(node):
            report.rewrote(f"Add -> {op_spec.FLAT_GEMM}")


def _take_shapes_from_input(norm: ir.Node) -> None:
    """A norm, and the sum ahead of it, has its inputs' shape: who wants no more keeps neither it nor that sum."""
    tensors = norm.inputs[: 2 if norm.op_type == _SKIP_NORM[1] else 1]
    source = next((x for x in tensors if x is not None and not _is_product(x.producer())), tensors[0])
    for reader, index in list(norm.outputs[0].uses()):
        if (reader.domain, reader.op_type) == ("", "Shape") and source is not None:
            reader.replace_input_with(index, source)


def _is_product(node: ir.Node | None) -> bool:
    return node is not None and op_spec.is_op(node, op_spec.FLAT_GEMM)


def _is_last_axis(norm: ir.Node) -> bool:
    axis, shape = norm.attributes.get_int("axis", -1), norm.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _sums_two(norm: ir.Node) -> bool:
    return input_at(norm, _SKIP_BIAS) is None and not any(output.uses() for output in norm.outputs[1:_SKIP_SUM])


def _is_for_products(norm: ir.Node, weight: ir.Value | None) -> bool:
    if weight is None or None in norm.inputs[:2]:
        return False
    normed, uses = norm.outputs[0], norm.outputs[0].uses()
    return (
        not normed.is_graph_output()
        and norm.inputs[0].dtype == weight.dtype is not None
        and weight.shape is not None
        and all(
            _is_product(reader)
            and index == _A
            and input_at(reader, _NORM) is None
            and list(weight.shape) == [reader.attributes.get_int("K")]
            for reader, index in uses
        )
    )


def _sum_ahead(norm: ir.Node) -> ir.Value:
    """A node of its own for the sum of a norm's first two inputs."""
    x, skip = norm.inputs[:2]
    total = ir.node("Add", [x, skip], name=f"{norm.name}/Add").outputs[0]
    total.shape, total.type = x.shape, x.type
    norm.graph.insert_before(norm, total.producer())
    if len(norm.outputs) > _SKIP_SUM:
        old = norm.outputs[_SKIP_SUM]
        old.replace_all_uses_with(total, replace_graph_outputs=True)
        total.name, old.name = old.name, None
    return total


def _give_norm(x: ir.Value, norm: ir.Node, weight: ir.Value, epsilon: float) -> None:
    """Its readers normalise `x` themselves."""
    for product, _ in list(norm.outputs[0].uses()):
        product.resize_inputs(_NORM + 1)
        product.replace_input_with(_A, x)
        product.replace_input_with(_NORM, weight)
        product.attributes["norm_epsilon"] = ir.AttrFloat32("norm_epsilon", epsilon)
    norm.graph.remove(norm, safe=True)


def _product_of_sum(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The product that can take the sum of the first two inputs of `node`, and what it is to add; None: neither can."""
    for index in (1, 0):
        y, other = node.inputs[index], node.inputs[1 - index]
        product = y.producer()
        if _is_product(product) and input_at(product, _RESIDUAL) is None and read_once(y) and _same_shape(y, other):
            return product, other
    return None


def _take_sum(node: ir.Node) -> bool:
    """Whether a product of ours has taken the place of `node`."""
    found = _product_of_sum(node)
    if found is None:
        return False
    product, other = found
    y, total = product.outputs[0], node.outputs[0]
    product.resize_inputs(max(len(product.inputs), _RESIDUAL + 1))
    product.replace_input_with(_RESIDUAL, other)
    total.replace_all_uses_with(y, replace_graph_outputs=True)
    y.name, total.name = total.name, None
    graph = node.graph
    # To where both operands are known.
    graph.remove(product)
    graph.insert_before(node, product)
    graph.remove(node, safe=True)
    return True


def _same_shape(x: ir.Value, y: ir.Value) -> bool:
    """Whether both are known to have the same shape, however large."""
    return x.shape is not None and y.shape is not None and None not in x.shape and x.shape == y.shape
