"""Gather(E, ids) -> Gather(packed W, ids), for a W that the language model head multiplies by and an equal E.

Models with tied embeddings have one matrix. onnxruntime-genai's builder stores it as the head's [K, N] and transposes
it for the embedding; torch.onnx stores it as the embedding's [N, K] and transposes it for the head, or stores it both
ways. The packed weight [N, K] is what the embedding reads, so it reads that; otherwise the largest tensor of the model
would lie in memory twice. A quantised weight is not what the embedding reads: that gets rows of the original type,
without a transpose.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..pack import packed_weight, register
from ..report import ExportReport
from ..streamed import read
from .flat_gemm import PackedWeight
from .weight import Weight, is_transpose

_ROWS_AT_ONCE = 4096


def rewrite(packed: dict[Weight, PackedWeight], report: ExportReport) -> None:
    """Rewires in place; `packed` says what each original weight became."""
    made = {value for weight in packed.values() for value in weight.inputs.values()}
    for weight, became in packed.items():
        if became.form.quantised:
            _give_rows(weight, report)
            continue
        rows = became.inputs["B"]
        for matrix in _same_matrices(weight, made):
            for gather in _gathers_of(matrix):
                gather.replace_input_with(0, rows)
                if rows.dtype != weight.value.dtype:
                    _cast_output(gather, rows.dtype, weight.value.dtype)
                report.rewrote("Gather -> Gather of the packed weight")


def _give_rows(weight: Weight, report: ExportReport) -> None:
    """What gathers from a transpose of `weight` gets an initializer of its rows."""
    gathers = [gather for matrix in _transposes_of(weight) for gather in _gathers_of(matrix)]
    if weight.rows_first or not gathers:
        return
    tensor = weight.value.const_value
    rows = register(weight.value.graph, packed_weight(tensor, tensor.dtype, f"{weight.value.name}.rows"))
    for gather in gathers:
        gather.replace_input_with(0, rows)
        report.rewrote("Gather of a transpose -> Gather of rows")


def _transposes_of(weight: Weight) -> list[ir.Value]:
    return [node.outputs[0] for node in weight.value.consumers() if is_transpose(node)]


def _same_matrices(weight: Weight, others: set[ir.Value]) -> list[ir.Value]:
    """Values [N, K] that hold what `weight` holds; none of `others`."""
    if weight.rows_first:
        return [weight.value]
    stored = [value for value in weight.value.graph.initializers.values() if value not in others and _gathers_of(value)]
    same = [value for value in stored if _is_transposed(value.const_value, weight.value.const_value)]
    return _transposes_of(weight) + same


def _gathers_of(matrix: ir.Value) -> list[ir.Node]:
    """The nodes that gather rows of `matrix`."""
    return [node for node, index in matrix.uses() if index == 0 and _gathers_rows(node)]


def _is_transposed(rows: ir.TensorProtocol, columns: ir.TensorProtocol) -> bool:
    """Whether `rows` [N, K] holds the same numbers as `columns` [K, N], bit for bit."""
    if rows.dtype != columns.dtype or tuple(rows.shape) != tuple(columns.shape)[::-1]:
        return False
    first, second = (_bits(read(tensor)) for tensor in (rows, columns))
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
