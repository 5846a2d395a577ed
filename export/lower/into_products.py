"""Norms ahead of our products and sums behind them, done by the products themselves.

TensorRT has no op for an RMS norm, and what lies between two plugins costs kernels of its own. ONNX Runtime has one op
for a sum and the norm behind it, so there it depends on the products whether they are faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .. import op_spec
from ..nodes import input_at, read_once
from ..report import ExportReport

_INPUTS = op_spec.input_names(op_spec.FLAT_GEMM)
_A, _RESIDUAL, _NORM_WEIGHT, _NORM_BIAS = (_INPUTS.index(n) for n in ("A", "residual", "norm_weight", "norm_bias"))


@dataclass(frozen=True)
class _Kind:
    """norm: our attribute. epsilon: the default. weight, bias: inputs, the bias of the norm itself; None: it has none.
    skip: a sum of the first two inputs stands ahead, which is output 3. skip_bias: an input that is summed, too."""

    norm: str
    epsilon: float
    weight: int = 1
    bias: int | None = None
    skip: bool = False
    skip_bias: int | None = None


_KINDS = {
    ("", "SimplifiedLayerNormalization"): _Kind("rms", 1e-5),
    ("", "RMSNormalization"): _Kind("rms", 1e-5),
    ("", "LayerNormalization"): _Kind("layer", 1e-5, bias=2),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _Kind("rms", 1e-12, 2, skip=True, skip_bias=3),
    ("com.microsoft", "SkipLayerNormalization"): _Kind("layer", 1e-12, 2, bias=3, skip=True, skip_bias=4),
}
_SUM = 3


def into_products(model: ir.Model, report: ExportReport, *, sums_stay: bool = False) -> None:
    """Changes `model` in place, ahead of the dense form. What is not like this stays: a norm whose every reader is a
    product of ours, in the type of its weight; a sum of a product that nobody else reads and a tensor of its shape.

    sums_stay: a norm with a sum of its own stays where no product can take the sum, which would become a node."""
    for node in list(model.graph.all_nodes()):
        kind = _KINDS.get((node.domain, node.op_type))
        if kind is None:
            continue
        _take_shapes_from_input(node, kind)
        if not _is_for_products(node, kind) or not (_sums_two(node, kind) if kind.skip else _is_last_axis(node)):
            continue
        if kind.skip and sums_stay and _product_of_sum(node) is None:
            continue
        _give_norm(_sum_ahead(node) if kind.skip else node.inputs[0], node, kind)
        report.rewrote(f"{node.op_type} -> {op_spec.FLAT_GEMM}")
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) == ("", "Add") and _take_sum(node):
            report.rewrote(f"Add -> {op_spec.FLAT_GEMM}")


def _take_shapes_from_input(norm: ir.Node, kind: _Kind) -> None:
    """A norm, and the sum ahead of it, has its inputs' shape: who wants no more keeps neither it nor that sum."""
    tensors = norm.inputs[: 2 if kind.skip else 1]
    source = next((x for x in tensors if x is not None and not _is_product(x.producer())), tensors[0])
    for reader, index in list(norm.outputs[0].uses()):
        if (reader.domain, reader.op_type) == ("", "Shape") and source is not None:
            reader.replace_input_with(index, source)


def _is_product(node: ir.Node | None) -> bool:
    return node is not None and op_spec.is_op(node, op_spec.FLAT_GEMM)


def _is_last_axis(norm: ir.Node) -> bool:
    axis, shape = norm.attributes.get_int("axis", -1), norm.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _sums_two(norm: ir.Node, kind: _Kind) -> bool:
    return input_at(norm, kind.skip_bias) is None and norm.inputs[1] is not None


def _is_for_products(norm: ir.Node, kind: _Kind) -> bool:
    x, parameters = norm.inputs[0], _parameters(norm, kind)
    normed, uses = norm.outputs[0], norm.outputs[0].uses()
    statistics = norm.outputs[1 : _SUM if kind.skip else None]
    return (
        x is not None
        and _NORM_WEIGHT in parameters
        and not normed.is_graph_output()
        and not any(output.uses() or output.is_graph_output() for output in statistics)
        and all(x.dtype == value.dtype is not None and value.shape is not None for value in parameters.values())
        and all(
            _is_product(reader)
            and index == _A
            and input_at(reader, _NORM_WEIGHT) is None
            and all(list(value.shape) == [reader.attributes.get_int("K")] for value in parameters.values())
            for reader, index in uses
        )
    )


def _parameters(norm: ir.Node, kind: _Kind) -> dict[int, ir.Value]:
    """The norm's weight and bias, as far as it has them, by the inputs of a product that they become."""
    places = {_NORM_WEIGHT: kind.weight, _NORM_BIAS: kind.bias}
    found = {ours: input_at(norm, its) for ours, its in places.items() if its is not None}
    return {ours: value for ours, value in found.items() if value is not None}


def _sum_ahead(norm: ir.Node) -> ir.Value:
    """A node of its own for the sum of a norm's first two inputs."""
    x, skip = norm.inputs[:2]
    total = ir.node("Add", [x, skip], name=f"{norm.name}/Add").outputs[0]
    total.shape, total.type = x.shape, x.type
    norm.graph.insert_before(norm, total.producer())
    if len(norm.outputs) > _SUM:
        old = norm.outputs[_SUM]
        old.replace_all_uses_with(total, replace_graph_outputs=True)
        total.name, old.name = old.name, None
    return total


def _give_norm(x: ir.Value, norm: ir.Node, kind: _Kind) -> None:
    """Its readers normalise `x` themselves."""
    epsilon = norm.attributes.get_float("epsilon", kind.epsilon)
    given = {_A: x, **_parameters(norm, kind)}
    for product, _ in list(norm.outputs[0].uses()):
        product.resize_inputs(max(len(product.inputs), max(given) + 1))
        for index, value in given.items():
            product.replace_input_with(index, value)
        if kind.norm != "rms":
            product.attributes["norm"] = ir.AttrString("norm", kind.norm)
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
