"""The opset that the exported graph imports: 17, the newest that TensorRT 8.6 knows, where the graph allows it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

_NEWEST = 17


def lower_opset(model: ir.Model, nodes: Iterable[ir.Node]) -> str | None:
    """Imports an older opset, if `nodes` mean the same there; otherwise returns what keeps the opset as it is."""
    opset = model.opset_imports[""]
    if opset <= _NEWEST:
        return None
    for node in nodes:
        if node.domain == "" and not _is_known(node):
            return f"its opset stays {opset} for {node.op_type} ({node.name})"
    model.opset_imports[""] = _NEWEST
    return None


def _is_known(node: ir.Node) -> bool:
    """Whether opset 17 has `node`'s op with these attributes and as many inputs: the ops of a language
    model have got further types, attributes and inputs since, and mean the same without them."""
    try:
        schema = onnx.defs.get_schema(node.op_type, _NEWEST, "")
    except onnx.defs.SchemaError:
        return False
    return set(node.attributes) <= set(schema.attributes) and schema.min_input <= len(node.inputs) <= schema.max_input
