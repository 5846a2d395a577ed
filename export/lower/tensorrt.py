"""What TensorRT's parser takes: our ops in the dense form, no op of another domain, an opset that it knows."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from .. import op_spec
from ..dtypes import spec_name
from ..report import ExportReport
from .capacity import fix_capacity
from .dense import to_dense
from .into_products import into_products
from .opset import lower_opset
from .standard_ops import is_spelled_out, spell_out

_NEWER_TYPES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN)


def lower_for_tensorrt(model: ir.Model, report: ExportReport) -> None:
    """Changes `model` in place, after `lower`; `report` gets what the result asks of TensorRT.

    Raises ExportError for what cannot be said there.
    """
    into_products(model, report)
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
    """What the graph has of element types that TensorRT 8.6 does not know."""
    values = (*model.graph.inputs, *model.graph.initializers.values())
    newer = sorted({spec_name(value.dtype) for value in values if value.dtype in _NEWER_TYPES})
    found = [f"it has tensors of {name}" for name in newer]
    # Other integers of 64 bits become ones of 32 when 8.6 reads a graph; these come to the op as they are.
    if any(_reads_position_ids(node) for node in model.graph.all_nodes()):
        found.append("its attention reads position_ids, which are int64")
    return found


def _reads_position_ids(node: ir.Node) -> bool:
    return op_spec.is_op(node, op_spec.ATTENTION) and op_spec.inputs(node)[9] is not None
