"""RMS norms of query and key heads ahead of FdppAttention -> its inputs q_norm and k_norm.

x [B, S, H * D] -> Reshape to heads of D columns -> SimplifiedLayerNormalization -> Reshape back -> query or key
"""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..attention_node import head_size
from ..nodes import columns_of, input_at, numbers, rank_of, read_once, remove_unread
from ..report import ExportReport

_INPUTS = op_spec.input_names(op_spec.ATTENTION)
_QUERY, _KEY, _Q_NORM, _K_NORM = (_INPUTS.index(name) for name in ("query", "key", "q_norm", "k_norm"))
_NORM = ("", "SimplifiedLayerNormalization")
_EPSILON = 1e-5  # the norm's default


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place, where queries and keys are normalised alike."""
    for node in list(model.graph.all_nodes()):
        if not op_spec.is_op(node, op_spec.ATTENTION) or input_at(node, _Q_NORM) is not None:
            continue
        size = head_size(node)
        norms = [_norm_of_heads(input_at(node, index), size) for index in (_QUERY, _KEY)]
        if None in norms or _epsilon(norms[0]) != _epsilon(norms[1]):
            continue
        node.resize_inputs(max(len(node.inputs), _K_NORM + 1))
        for norm, index, weight_index in zip(norms, (_QUERY, _KEY), (_Q_NORM, _K_NORM), strict=True):
            back = node.inputs[index].producer()
            node.replace_input_with(index, norm.inputs[0].producer().inputs[0])
            node.replace_input_with(weight_index, norm.inputs[1])
            remove_unread(back)
        node.attributes["qk_norm_epsilon"] = ir.AttrFloat32("qk_norm_epsilon", _epsilon(norms[0]))
        report.rewrote(f"norms of heads -> {op_spec.ATTENTION}")


def _norm_of_heads(value: ir.Value | None, size: int) -> ir.Node | None:
    """The norm over heads of `size` columns that `value` [B, S, H * D] is the result of; None: it is not."""
    back = _standard(value, "Reshape")
    norm = back.inputs[0].producer() if back is not None and read_once(value) else None
    if norm is None or (norm.domain, norm.op_type) != _NORM or not read_once(norm.outputs[0]):
        return None
    if len(norm.inputs) < 2 or None in norm.inputs[:2]:
        return None
    heads, weight = norm.inputs[:2]
    apart = _standard(heads, "Reshape")
    if apart is None or not _is_over_last_axis(norm) or columns_of(weight) != size or len(weight.shape) != 1:
        return None
    x = apart.inputs[0]
    if x.dtype is None or x.dtype != weight.dtype or not _splits(apart, x, heads, size):
        return None
    return norm if _merges(back, value, keeps=_keeps_tokens(apart, x, heads), columns=columns_of(x)) else None


def _splits(apart: ir.Node, x: ir.Value, heads: ir.Value, size: int) -> bool:
    """Whether the last dimension of `x` [B, S, H * D], and no other, is cut into heads of `size` columns."""
    columns, shape = columns_of(x), numbers(apart.inputs[1])
    last = shape[-1] if shape else columns_of(heads)
    return rank_of(x) == 3 and columns is not None and columns % size == 0 and last == size


def _keeps_tokens(apart: ir.Node, x: ir.Value, heads: ir.Value) -> bool:
    """Whether `heads` has four dimensions, the first two of which are those of `x`."""
    shape = numbers(apart.inputs[1])
    if shape is not None:
        return len(shape) == 4 and shape[:2] == [0, 0]
    if rank_of(heads) != 4:
        return False
    return None not in heads.shape[:2] and heads.shape[:2] == x.shape[:2]


def _merges(back: ir.Node, value: ir.Value, *, keeps: bool, columns: int) -> bool:
    """Whether `value` has `columns` columns again. keeps: the heads have the first two dimensions that it is to
    have."""
    shape = numbers(back.inputs[1])
    if shape is None:
        return rank_of(value) == 3 and columns_of(value) == columns
    return len(shape) == 3 and (shape[2] == columns or (keeps and shape == [0, 0, -1]))


def _is_over_last_axis(norm: ir.Node) -> bool:
    axis, shape = norm.attributes.get_int("axis", -1), norm.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _standard(value: ir.Value | None, op: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and (node.domain, node.op_type) == ("", op) else None


def _epsilon(norm: ir.Node) -> float:
    return norm.attributes.get_float("epsilon", _EPSILON)
