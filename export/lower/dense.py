"""Our ops in the dense form, for runtimes without omitted inputs and without elements of a byte."""

from __future__ import annotations

import math

import onnx_ir as ir

from .. import op_spec
from ..errors import ExportError
from ..pack import as_words, register
from ..report import ExportReport
from .total_length import tensor_of_length

_TOTAL_LENGTH = "total_sequence_length"


def to_dense(model: ir.Model, report: ExportReport) -> None:
    """Changes all nodes of ours in place. Raises ExportError for an attention that has no dense form."""
    words: dict[ir.Value, ir.Value] = {}
    for node in model.graph.all_nodes():
        if node.domain != op_spec.DOMAIN:
            continue
        names = op_spec.input_names(node.op_type)
        given = {name: value for name, value in zip(names, node.inputs, strict=False) if value is not None}
        if node.op_type == op_spec.ATTENTION:
            given[_TOTAL_LENGTH] = _total_length(node, given[_TOTAL_LENGTH])
            if not node.attributes.get_int("do_rotary", 0):
                given.pop("position_ids", None)  # they say how far to rotate, nothing else
        else:
            for name in ("B", "zero_points"):
                value = given.get(name)
                if value is not None and value.const_value.dtype.itemsize == 1:
                    if value not in words:
                        words[value] = _in_words(value, rows=name == "B")
                    given[name] = words[value]
        node.resize_inputs(len(given))
        for index, value in enumerate(given.values()):
            node.replace_input_with(index, value)
        node.attributes[op_spec.DENSE_ATTRIBUTE] = ir.AttrString(op_spec.DENSE_ATTRIBUTE, ",".join(given))
        node.domain = op_spec.DENSE_DOMAIN
        report.rewrote(f"{node.op_type} -> the dense form")
    model.opset_imports[op_spec.DENSE_DOMAIN] = op_spec.VERSION


def _total_length(node: ir.Node, number: ir.Value) -> ir.Value:
    tensor = tensor_of_length(number)
    if tensor is None:
        raise ExportError(
            f"{node.name}: {_TOTAL_LENGTH} ({number.name}) is not the last dimension of a tensor, which the dense form "
            "needs; expected Gather(Shape(attention_mask), 1) or the like"
        )
    return tensor


def _in_words(value: ir.Value, *, rows: bool) -> ir.Value:
    """The bytes of `value` as an initializer of int32; rows: [rows, words], otherwise all rows on end."""
    shape = value.const_value.shape.numpy()
    size = math.prod(shape)
    if rows and size // shape[0] % 4:
        raise ExportError(
            f"{value.name}: rows of {size // shape[0]} bytes are not whole words of four, as the dense form has them"
        )
    dims = (shape[0], size // shape[0] // 4) if rows else (-(-size // 4),)
    return register(value.graph, as_words(value.const_value, dims, f"{value.name}.words"))
