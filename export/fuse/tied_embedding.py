"""Gather(E, ids) -> Gather(packed W, ids), for a W that the language model head multiplies by and an equal E.

Models with tied embeddings have one matrix. onnxruntime-genai's builder stores it as the head's [K, N] and transposes
it for the embedding; torch.onnx stores it as the embedding's [N, K] and transposes it for the head, or stores it both
ways. The packed weight [N, K] is what the embedding reads, so it reads that; otherwise the largest tensor of the model
would lie in memory twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..report import ExportReport
from .weight import Weight, is_transpose

_ROWS_AT_ONCE = 4096


def rewrite(packed: dict[Weight, ir.Value], report: ExportReport) -> None:
    """Rewires in place; `packed` maps each original weight to its packed initializer."""
    for weight, packed_weight in packed.items():
        for matrix in _same_matrices(weight, set(packed.values())):
            for gather in _gathers_of(matrix):
                gather.replace_input_with(0, packed_weight)
                if packed_weight.dtype != weight.value.dtype:
                    _cast_output(gather, packed_weight.dtype, weight.value.dtype)
                report.rewrote("Gather -> Gather of the packed weight")


def _same_matrices(weight: Weight, others: set[ir.Value]) -> list[ir.Value]:
    """Values [N, K] that hold what `weight` holds; none of `others`."""
    if weight.rows_first:
        return [weight.value]
    transposed = [node.outputs[0] for node in weight.value.consumers() if is_transpose(node)]
    stored = [value for value in weight.value.graph.initializers.values() if value not in others and _gathers_of(value)]
    return transposed + [value for value in stored if _is_transposed(value.const_value, weight.value.const_value)]


def _gathers_of(matrix: ir.Value) -> list[ir.Node]:
    """The nodes that gather rows of `matrix`."""
    return [node for node, index in matrix.uses() if index == 0 and _gathers_rows(node)]


def _is_transposed(rows: ir.TensorProtocol, columns: ir.TensorProtocol) -> bool:
    """Whether `rows` [N, K] holds the same numbers as `columns` [K, N], bit for bit."""
    if rows.dtype != columns.dtype or tuple(rows.shape) != tuple(columns.shape)[::-1]:
        return False
    first, second = (_bits(tensor.numpy()) for tensor in (rows, columns))
    # A few rows say no at once; to say yes takes reading all.
    starts = range(0, len(first), _ROWS_AT_ONCE)
    return all(
        np.array_equal(first[i : i + size], second[:, i : i + size].T)
        for some, size in ((starts[:: max(1, len(starts) // 4)], 4), (starts, _ROWS_AT_ONCE))
        for i in some
    )


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.dtype(f"u{values.dtype.itemsize}"))


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
