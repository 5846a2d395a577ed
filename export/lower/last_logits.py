"""Logits of each row's last token alone: what a decode loop reads of a prompt's.

    hidden [B, S, K] -> GatherND(., min(seqlens_k, S - 1)) [B, 1, K] -> the language model head -> logits [B, 1,
    vocabulary]

seqlens_k is what the attention takes for a row's last token: in a prompt with padding on the right that is not the last
place. Nothing is copied between devices: what has to be on a GPU is made there, by Range.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..errors import ExportError
from ..fuse.language_model_head import LOGITS, logits_path
from ..nodes import read_once
from ..pack import register
from ..report import ExportReport

_SEQLENS = op_spec.input_names(op_spec.ATTENTION).index("seqlens_k")
_OPSET = 12  # GatherND's batch_dims


def keep_last_logits(model: ir.Model, report: ExportReport) -> None:
    """Changes `model` in place. Raises ExportError where the logits are not those of all tokens, made by one
    product."""
    path = logits_path(model)
    if not path:
        raise ExportError(f"--last-logits: no product makes an output named {LOGITS}")
    logits, head = path[0], path[-1].producer()
    if logits.shape is None or len(logits.shape) != 3 or logits.shape[1] == 1:
        raise ExportError(f"--last-logits: {LOGITS} is {logits.shape}, expected [batch, tokens, vocabulary]")
    if not all(map(read_once, path[1:])):
        raise ExportError(f"--last-logits: others than {LOGITS} read what the product {head.name} makes")
    if model.opset_imports[""] < _OPSET:
        raise ExportError(f"--last-logits: the graph has opset {model.opset_imports['']}, expected {_OPSET} or later")
    if head.inputs[0] is None:
        raise ExportError(f"--last-logits: {head.name} has no first input")
    attention = next(node for node in model.graph.all_nodes() if op_spec.is_op(node, op_spec.ATTENTION))
    hidden = head.inputs[0]
    last = _last_rows(head, hidden, attention.inputs[_SEQLENS])
    last.type = hidden.type
    if hidden.shape is not None:
        last.shape = ir.Shape([hidden.shape[0], 1, hidden.shape[-1]])
    head.replace_input_with(0, last)
    for value in path:
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], 1, value.shape[-1]])
    report.rewrote(f"{LOGITS} -> of the last token alone")


def _last_rows(head: ir.Node, hidden: ir.Value, seqlens: ir.Value) -> ir.Value:
    """[B, 1, K], by nodes ahead of `head`."""
    one = _constant(head.graph, 1, np.int32)

    def add(op_type: str, name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes, name=f"fdpp.last_token.{name}")
        node.outputs[0].name = node.name
        head.graph.insert_before(head, node)
        return node.outputs[0]

    shape = add("Shape", "shape", hidden)
    count = add("Gather", "count", shape, _constant(head.graph, 1, np.int64))
    count = add("Cast", "count_int32", count, to=ir.DataType.INT32)
    final = add("Range", "final", add("Sub", "final_start", count, one), count, one)  # [1]: S - 1
    place = add("Cast", "place_int64", add("Min", "place", seqlens, final), to=ir.DataType.INT64)
    index = add("Reshape", "index", place, _constant(head.graph, [-1, 1, 1], np.int64))
    return add("GatherND", "hidden", hidden, index, batch_dims=1)


def _constant(graph: ir.Graph, values: int | list[int], dtype: type) -> ir.Value:
    tensor = ir.Tensor(np.array(values, dtype), name=f"fdpp.{np.dtype(dtype).name}.{values}")
    return graph.initializers.get(tensor.name) or register(graph, tensor)
