"""What the rules rely on without asking: nodes have an order, attributes of some type and, ONNX's own, their inputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from ..errors import ExportError

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


def require_well_formed(model: ir.Model, path: Path) -> None:
    """Sorts the nodes of `model`. Raises ExportError where they wait for each other, or one is malformed."""
    try:
        model.graph.sort()
    except ValueError as error:
        raise ExportError(f"{path}: its nodes wait for each other in a circle") from error
    for node in model.graph.all_nodes():
        named = f"{path}: {node.op_type} {node.name or '(' + ', '.join(o.name or '' for o in node.outputs) + ')'}"
        name = _missing_input(node, model.opset_imports.get(node.domain))
        if name is not None:
            raise ExportError(f"{named} has no input {name}")
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.UNDEFINED:
                raise ExportError(f"{named} has an attribute {attribute.name} of no type")


def _missing_input(node: ir.Node, opset: int | None) -> str | None:
    if node.domain != "" or opset is None:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:  # ONNX Runtime has a few of its own in that domain
        return None
    for index, port in enumerate(schema.inputs):
        if port.option == _OPTIONAL:
            continue
        # A variadic port has at least one input, and all that follow.
        given = node.inputs[index:] if port.option == _VARIADIC else node.inputs[index : index + 1]
        if not given or None in given:
            return port.name
    return None
