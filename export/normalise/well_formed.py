"""What the rules rely on without asking: nodes have an order and read what is there, attributes have their type, and
nodes of ONNX's own ops all of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import ExportError

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic
_MICROSOFT = "com.microsoft"
# Attributes of ONNX Runtime's ops, which have no schema here: those that rules read.
_TYPES = {
    ir.AttributeType.INT: (
        *("num_heads", "kv_num_heads", "local_window_size", "do_rotary", "rotary_interleaved", "rotary_embedding_dim"),
        *("interleaved", "unidirectional", "kv_cache_bit_width", "K", "N", "bits", "block_size", "accuracy_level"),
    ),
    ir.AttributeType.FLOAT: ("scale", "softcap", "qk_norm_epsilon", "epsilon"),
    ir.AttributeType.STRING: ("k_quant_type", "v_quant_type"),
}
_TYPE_OF = {name: kind for kind, names in _TYPES.items() for name in names}
# ONNX Runtime divides by them before it looks.
_POSITIVE = ("bits", "block_size")


def require_well_formed(model: ir.Model, path: Path) -> None:
    """Sorts the nodes of `model`. Raises ExportError where they wait for each other, or one is malformed."""
    try:
        model.graph.sort()
    except ValueError as error:
        raise ExportError(f"{path}: its nodes wait for each other in a circle") from error
    for node in model.graph.all_nodes():
        fault = next(_faults(node, model.opset_imports.get(node.domain)), None)
        if fault is not None:
            named = node.name or "(" + ", ".join(output.name or "" for output in node.outputs) + ")"
            raise ExportError(f"{path}: {node.op_type} {named} {fault}")
    for value in model.graph.inputs:
        if value.dtype in (None, ir.DataType.UNDEFINED):
            raise ExportError(f"{path}: the graph's input {value.name} has no element type")
    for output in model.graph.outputs:
        if not _is_made(output):
            raise ExportError(f"{path}: nothing makes the graph's output {output.name}")


def _faults(node: ir.Node, opset: int | None) -> Iterator[str]:
    schema = _schema(node, opset)
    if schema is not None:
        yield from _wrong_ports(node, schema)
    for value in node.inputs:
        if value is not None and not _is_made(value):
            yield f"reads {value.name}, which nothing makes"
    for attribute in node.attributes.values():
        wanted = _wanted_type(node, attribute.name, schema)
        if attribute.type == ir.AttributeType.UNDEFINED:
            yield f"has an attribute {attribute.name} of no type"
        elif wanted is not None and attribute.type != wanted:
            yield f"has an attribute {attribute.name} of type {attribute.type.name}, expected {wanted.name}"
        elif node.domain == _MICROSOFT and attribute.name in _POSITIVE and attribute.value < 1:
            yield f"has an attribute {attribute.name} = {attribute.value}, expected at least 1"


def _wrong_ports(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[str]:
    for index, port in enumerate(schema.inputs):
        if port.option == _OPTIONAL:
            continue
        # A variadic port has at least one input, and all that follow.
        given = node.inputs[index:] if port.option == _VARIADIC else node.inputs[index : index + 1]
        if not given or None in given:
            yield f"has no input {port.name}"
    for what, given, most in (("inputs", node.inputs, schema.max_input), ("outputs", node.outputs, schema.max_output)):
        if len(given) > most:
            yield f"has {len(given)} {what}, expected at most {most}"


def _wanted_type(node: ir.Node, attribute: str, schema: onnx.defs.OpSchema | None) -> ir.AttributeType | None:
    """None: not known."""
    if schema is not None and attribute in schema.attributes:
        return ir.AttributeType(int(schema.attributes[attribute].type.value))
    return _TYPE_OF.get(attribute) if node.domain == _MICROSOFT else None


def _schema(node: ir.Node, opset: int | None) -> onnx.defs.OpSchema | None:
    if node.domain != "" or opset is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:  # ONNX Runtime has a few of its own in that domain
        return None


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()
