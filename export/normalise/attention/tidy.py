"""A graph made easier to read before its attentions are looked for; what it computes stays the same."""

from __future__ import annotations

import contextlib
import math

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from ...nodes import numbers
from ..shapes import infer_shapes

_SIZES = 1024  # elements of constants that are read or made: no weights
_GROW = {"ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile"}
_SHAPE_OF_A_PART = 15  # the opset from which on Shape has start and end


def tidy(model: ir.Model) -> None:
    """Changes `model` in place: shapes as far as they follow, no node that hands on its input, none twice."""
    for value in model.graph.inputs:
        _state_sizes(value)
    if model.opset_imports.get("", 0) >= _SHAPE_OF_A_PART:
        for node in model.graph:
            _ask_for_a_part(node)
    _compute_sizes(model)
    if any([_complete(node) for node in model.graph]):
        _compute_sizes(model)
    for node in model.graph:
        if _hands_on(node):
            node.op_type = "Identity"
            node.attributes.clear()
    common.IdentityEliminationPass()(model)
    common.DeduplicateInitializersPass(size_limit=_SIZES)(model)
    common.CommonSubexpressionEliminationPass()(model)


def _compute_sizes(model: ir.Model) -> None:
    """Infers shapes, makes constants of what nodes compute from those, and infers what follows from that."""
    infer_shapes(model)
    # Damaged nodes make it raise, each before it is replaced: what is done so far holds.
    with contextlib.suppress(Exception):
        fold_constants(model, output_size_limit=_SIZES, should_fold=_is_small)
    infer_shapes(model)


def _is_small(node: ir.Node) -> bool | None:
    """False: what `node` reads or makes may be large. None: as it is usual."""
    large = any(value is not None and value.const_value.size > _SIZES for value in node.inputs)
    return False if large or node.op_type in _GROW else None


def _ask_for_a_part(node: ir.Node) -> None:
    """Makes one Shape of a Slice of a Shape, which is folded where those sizes alone are known."""
    source = _first_input(node, "Slice")
    shape = source.producer() if source is not None else None
    if shape is None or _first_input(shape, "Shape") is None or shape.attributes:
        return
    start, end, _, step = ([*map(numbers, node.inputs[1:]), None, None, None])[:4]
    if start is None or end is None or (len(start), len(end)) != (1, 1) or step not in (None, [1]):
        return
    node.op_type = "Shape"
    node.resize_inputs(1)
    node.replace_input_with(0, shape.inputs[0])
    node.attributes["start"], node.attributes["end"] = ir.AttrInt64("start", start[0]), ir.AttrInt64("end", end[0])


def _complete(node: ir.Node) -> bool:
    """States what inference leaves open of a Reshape: the one size behind dimensions that stay as they are."""
    source, result = _first_input(node, "Reshape"), node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return False
    before, after = [*source.shape], [*result.shape]
    while before and after and before[0] == after[0] and before[0] != ir.SymbolicDim(None):
        del before[0], after[0]
    known = [size for size in after if isinstance(size, int)]
    if not all(isinstance(size, int) for size in before) or len(known) != len(after) - 1 or 0 in known:
        return False
    size = math.prod(before) // math.prod(known)
    after = [part if isinstance(part, int) else size for part in after]
    result.shape = ir.Shape([*result.shape[: -len(after)], *after])
    return True


def _first_input(node: ir.Node, op: str) -> ir.Value | None:
    """Of a node of this op of ONNX's own domain; None: it is another, or has none."""
    return node.inputs[0] if (node.domain, node.op_type) == ("", op) and node.inputs else None


def _hands_on(node: ir.Node) -> bool:
    """Whether the output of `node` is its input."""
    if (node.domain, node.op_type) == ("", "Concat"):
        return len(node.inputs) == 1
    return (node.domain, node.op_type) == ("", "Cast") and node.inputs[0].dtype == node.attributes.get_int("to")


def _state_sizes(value: ir.Value) -> None:
    """Numbers for dimensions that are named by a number, as transformers' exporter does."""
    if value.shape is None:
        return
    sizes = [str(size.value) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
    value.shape = ir.Shape(
        [
            int(new) if isinstance(new, str) and new.isdecimal() else old
            for new, old in zip(sizes, value.shape, strict=True)
        ]
    )
