"""Gather(Transpose(W), ids) -> Gather(packed W, ids), for a W [K, N] that the language model head multiplies by.

Models with tied embeddings hold one matrix: onnxruntime-genai's builder stores it as the head's [K, N] and transposes
it for the embedding. The packed head weight [N, K] is that transposed matrix, so the embedding reads it as it is;
otherwise the largest tensor of the model would lie in memory twice.
"""

from __future__ import annotations

import onnx_ir as ir

from ..report import ExportReport


def rewrite(packed: dict[ir.Value, ir.Value], report: ExportReport) -> None:
    """Rewires in place; `packed` maps each original weight to its packed initializer."""
    for weight, packed_weight in packed.items():
        transposes = [node for node in weight.consumers() if _is_transpose(node)]
        for gather in [node for transpose in transposes for node, index in transpose.outputs[0].uses() if index == 0]:
            if not _gathers_rows(gather):
                continue
            gather.replace_input_with(0, packed_weight)
            if packed_weight.dtype != weight.dtype:
                _cast_output(gather, packed_weight.dtype, weight.dtype)
            report.rewrote("Gather(Transpose) -> Gather of the packed weight")


def _is_transpose(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Transpose"):
        return False
    # Without perm, Transpose reverses the axes: the same for a matrix.
    return tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)


def _gathers_rows(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Gather") and node.attributes.get_int("axis", 0) in (0, -2)


def _cast_output(gather: ir.Node, stored: ir.DataType, wanted: ir.DataType) -> None:
    rows = gather.outputs[0]
    cast = ir.node("Cast", [rows], attributes={"to": wanted}, name=f"{gather.name}/Cast")
    rows.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, rows)
    cast.outputs[0].name, rows.name = rows.name, f"{rows.name}.{stored.name.lower()}"
    cast.outputs[0].shape, cast.outputs[0].dtype = rows.shape, wanted
    rows.dtype = stored
    gather.graph.insert_after(gather, cast)
