"""What TensorRT's parser takes: our ops in the dense form, no op of another domain, an opset that it knows."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from .. import op_spec
from ..fuse.attention import activation_dtype
from ..report import ExportReport
from .capacity import fix_capacity
from .dense import to_dense
from .opset import lower_opset
from .standard_ops import is_spelled_out, spell_out


def lower_for_tensorrt(model: ir.Model, report: ExportReport) -> None:
    """Changes `model` in place, after `lower`; `report` gets what the result asks of TensorRT.

    Raises ExportError for what cannot be said there.
    """
    to_dense(model, report)
    fix_capacity(model)
    common.RemoveUnusedNodesPass()(model)
    standing = [node for node in model.graph.all_nodes() if not is_spelled_out(node)]
    too_new = lower_opset(model, standing)
    spell_out(model, report)
    for domain in set(model.opset_imports) - {"", op_spec.DENSE_DOMAIN}:
        del model.opset_imports[domain]

    report.needs_tensorrt_10 = [reason for reason in (too_new, *_newer_types(model)) if reason is not None]


def _newer_types(model: ir.Model) -> list[str]:
    """Element types of the graph that TensorRT 8.6 does not know."""
    attentions = [node for node in model.graph.all_nodes() if op_spec.is_op(node, op_spec.ATTENTION)]
    found = []
    if any(activation_dtype(node) == ir.DataType.BFLOAT16 for node in attentions):
        found.append("its activations are bfloat16")
    if any("position_ids" in node.attributes.get_string(op_spec.DENSE_ATTRIBUTE).split(",") for node in attentions):
        found.append("its attention reads position_ids, which are int64")
    return found
