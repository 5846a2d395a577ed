"""Ops of other domains and of later opsets, spelled out in ops that every version of TensorRT knows.

A normalisation is computed in float32, as the original computes it, and rounded to its weight's type ahead of the
product with that weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..errors import ExportError
from ..report import ExportReport


def spell_out(model: ir.Model, report: ExportReport) -> None:
    """Replaces nodes in place. Raises ExportError for an op of another domain that it does not know."""
    for node in list(model.graph.all_nodes()):
        if is_spelled_out(node):
            spelling = _Spelling(node, model.opset_imports[""])
            _RULES[node.domain, node.op_type](spelling)
            spelling.finish()
            report.rewrote(f"{node.op_type} -> standard ops")
        elif node.domain not in ("", op_spec.DENSE_DOMAIN):
            why = "".join(f"; it was not rewritten: {left.reason}" for left in report.left if left.node == node.name)
            raise ExportError(
                f"{node.name}: {node.domain}::{node.op_type} is no op of TensorRT's and has no spelling in "
                f"standard ops{why}"
            )


def is_spelled_out(node: ir.Node) -> bool:
    """Whether `node` is one that spell_out replaces."""
    return (node.domain, node.op_type) in _RULES


class _Spelling:
    """The nodes that take the place of `node`."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.opset = opset
        self.made = 0

    def input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def real(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        name = f"{self.node.name or self.node.outputs[0].name}/{op_type}.{self.made}"
        self.made += 1
        made = ir.node(op_type, inputs, attributes=attributes, name=name)
        made.outputs[0].type = inputs[0].type
        self.node.graph.insert_before(self.node, made)
        return made.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        result = self.op("Cast", value, to=dtype)
        result.type = ir.TensorType(dtype)
        return result

    def constant(self, values: float | list[int], like: ir.DataType) -> ir.Value:
        """`values` in the element type `like`, one initializer for all nodes that want the same."""
        name = f"fdpp.{like.name.lower()}.{values}"
        initializers = self.node.graph.initializers
        if name not in initializers:
            tensor = ir.Tensor(np.array(values, like.numpy()), dtype=like, name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(like), const_value=tensor)
            self.node.graph.register_initializer(value)
        return initializers[name]

    def mean(self, value: ir.Value) -> ir.Value:
        """Over the last dimension, which stays."""
        if self.opset < 18:
            return self.op("ReduceMean", value, axes=[-1], keepdims=1)
        return self.op("ReduceMean", value, self.constant([-1], ir.DataType.INT64), keepdims=1)

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        x = self.cast(x, ir.DataType.FLOAT)
        mean_square = self.op("Add", self.mean(self.op("Mul", x, x)), self.constant(epsilon, ir.DataType.FLOAT))
        return self.op("Mul", self.cast(self.op("Div", x, self.op("Sqrt", mean_square)), weight.dtype), weight)

    def replace(self, index: int, value: ir.Value) -> None:
        """`value` becomes the node's output `index`, name and all."""
        old = self.node.outputs[index]
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name, old.name = old.name, None
        value.shape = old.shape
        value.type = old.type or value.type

    def finish(self) -> None:
        """Removes the node. Raises ExportError where somebody reads an output that was not replaced."""
        left = [value.name for value in self.node.outputs if value.uses() or value.is_graph_output()]
        if left:
            raise ExportError(f"{self.node.name}: its output {left[0]} has no spelling in standard ops")
        self.node.graph.remove(self.node, safe=True)


def _require_last_axis(spelling: _Spelling) -> None:
    axis, shape = spelling.node.attributes.get_int("axis", -1), spelling.input(0).shape
    if axis != -1 and (shape is None or axis != len(shape) - 1):
        raise ExportError(f"{spelling.node.name}: its axis is {axis}, expected the last one")


def _rms_norm(spelling: _Spelling) -> None:
    _require_last_axis(spelling)
    epsilon = spelling.real("epsilon", 1e-5)
    spelling.replace(0, spelling.rms_norm(spelling.input(0), spelling.input(1), epsilon))


def _sum(spelling: _Spelling, bias: int) -> ir.Value:
    """Input and skip and, if there is one, bias: what is normalised, and the node's output 3."""
    total = spelling.op("Add", spelling.input(0), spelling.input(1))
    if spelling.input(bias) is not None:
        total = spelling.op("Add", total, spelling.input(bias))
    if len(spelling.node.outputs) > 3:
        spelling.replace(3, total)
    return total


def _skip_rms_norm(spelling: _Spelling) -> None:
    total = _sum(spelling, bias=3)
    spelling.replace(0, spelling.rms_norm(total, spelling.input(2), spelling.real("epsilon", 1e-12)))


def _skip_layer_norm(spelling: _Spelling) -> None:
    total = _sum(spelling, bias=4)
    weights = [value for value in (spelling.input(2), spelling.input(3)) if value is not None]
    epsilon = spelling.real("epsilon", 1e-12)
    spelling.replace(0, spelling.op("LayerNormalization", total, *weights, axis=-1, epsilon=epsilon))


def _typed(spelling: _Spelling) -> Callable[[float], ir.Value]:
    """Constants in the type of the node's first input."""
    dtype = spelling.input(0).dtype
    if dtype is None:
        raise ExportError(f"{spelling.node.name}: the element type of {spelling.input(0).name} is not known")
    return lambda value: spelling.constant(value, dtype)


def _gelu(spelling: _Spelling, x: ir.Value, *, tanh: bool) -> None:
    constant, op = _typed(spelling), spelling.op
    if tanh:
        cube = op("Mul", op("Mul", x, x), x)
        inner = op("Add", x, op("Mul", cube, constant(0.044715)))
        curve = op("Tanh", op("Mul", inner, constant(math.sqrt(2 / math.pi))))
    else:
        curve = op("Erf", op("Mul", x, constant(math.sqrt(0.5))))
    spelling.replace(0, op("Mul", op("Mul", x, constant(0.5)), op("Add", curve, constant(1.0))))


def _standard_gelu(spelling: _Spelling) -> None:
    tanh = spelling.node.attributes.get_string("approximate", "none") == "tanh"
    _gelu(spelling, spelling.input(0), tanh=tanh)


def _fast_gelu(spelling: _Spelling) -> None:
    x, bias = spelling.input(0), spelling.input(1)
    _gelu(spelling, x if bias is None else spelling.op("Add", x, bias), tanh=True)


def _bias_gelu(spelling: _Spelling) -> None:
    _gelu(spelling, spelling.op("Add", spelling.input(0), spelling.input(1)), tanh=False)


def _quick_gelu(spelling: _Spelling) -> None:
    x, alpha = spelling.input(0), _typed(spelling)(spelling.real("alpha", 1.702))
    spelling.replace(0, spelling.op("Mul", x, spelling.op("Sigmoid", spelling.op("Mul", x, alpha))))


_RULES: dict[tuple[str, str], Callable[[_Spelling], None]] = {
    ("", "SimplifiedLayerNormalization"): _rms_norm,  # ONNX Runtime's own, though it lies in ONNX's domain
    ("", "RMSNormalization"): _rms_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("", "Gelu"): _standard_gelu,
    ("com.microsoft", "Gelu"): _standard_gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "BiasGelu"): _bias_gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
}
