"""Dialect: attention in standard ops, as torch.onnx (opset 18 to 22) and optimum write it.

    MatMul(Q, Kᵀ) -> Mul or Div by a number -> [Div, Tanh, Mul: softcap] -> Add(mask) or Where(mask, ., lowest)
    -> [Concat(., sinks)] -> [Sub(., ReduceMax)] -> Softmax -> [Slice: without the sinks] -> [Where(IsNaN)]
    -> MatMul(., V)

Q and K may be scaled instead of the scores: torch's scaled_dot_product_attention does, transformers' eager one not.
"""

from __future__ import annotations

import onnx_ir as ir

from ...nodes import is_constant
from .core import Core
from .declined import Declined
from .walk import LAYOUT, scalar, scaled_by, standard, unscaled

NAME = "MatMul, Softmax, MatMul"
_PASSED = ("Cast", "Identity", "Dropout")


def found(node: ir.Node) -> ir.Node | None:
    """The Softmax of the attention whose last product is `node`; None: it is no such product."""
    if (node.domain, node.op_type) != ("", "MatMul"):
        return None
    weights = node.inputs[0]
    while True:
        if passed := standard(weights, *_PASSED, "Slice"):
            weights = passed.inputs[0]
        elif (where := standard(weights, "Where")) and standard(where.inputs[0], "IsNaN"):
            weights = where.inputs[2]
        else:
            return standard(weights, "Softmax")


def core(node: ir.Node, structural: set[ir.Value]) -> Core:
    """Of the attention whose last product is `node`. Raises Declined for scores of another form."""
    softmax = found(node)
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise Declined("its softmax is not over the last dimension")
    scores, sinks = _without_sinks(softmax.inputs[0])
    scale, softcap, mask = 1.0, 0.0, None
    while not (product := standard(scores, "MatMul")):
        step = scores.producer()
        if step is None or step.domain != "":
            raise Declined("its scores are not a product of queries and keys")
        scaled = scaled_by(step)
        if scaled is not None:
            scores, scale = scaled[0], scale * scaled[1]
        elif step.op_type in _PASSED:
            scores = step.inputs[0]
        elif step.op_type == "Tanh" and not softcap:
            scores, softcap, scale = step.inputs[0], scale, 1.0
        elif step.op_type in ("Add", "Where") and mask is None and scale == 1.0 and not softcap:
            mask, scores = _masked(step, structural)
        else:
            raise Declined(f"its scores pass through {step.op_type}, which is not known there")
    query, query_scale = unscaled(product.inputs[0], set(_PASSED))
    scale *= query_scale * (softcap or 1.0)
    return Core(query, product.inputs[1], node.inputs[1], node.outputs[0], mask, scale, softcap, sinks)


def _without_sinks(scores: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """The scores of keys alone, and what every head has beside them as a constant of one number a head."""
    shift = standard(scores, "Sub")
    if shift and (largest := standard(shift.inputs[1], "ReduceMax")) and largest.inputs[0] is shift.inputs[0]:
        scores = shift.inputs[0]
    concat = standard(scores, "Concat")
    if concat is None:
        return scores, None
    sinks = concat.inputs[-1]
    while (moved := standard(sinks, *LAYOUT)) is not None:
        sinks = moved.inputs[0]
    if len(concat.inputs) != 2 or concat.attributes.get_int("axis") not in (-1, 3) or not is_constant(sinks):
        raise Declined("its scores are put together with something that is no constant of one number a head")
    return concat.inputs[0], sinks


def _masked(node: ir.Node, structural: set[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """The mask and the scores of an Add, or of a Where that puts the lowest number in place of hidden scores."""
    if node.op_type == "Add":
        masks = [value for value in node.inputs if value in structural]
        scores = [value for value in node.inputs if value not in structural]
    else:
        condition, visible, hidden = node.inputs
        masks, scores = [condition], [visible]
        if condition not in structural or (scalar(hidden) or 0) > -1e4:
            raise Declined("its scores pass through a Where that is no mask")
    if len(masks) != 1:
        raise Declined("what is added to its scores follows from the tokens, not from masks and positions alone")
    return masks[0], scores[0]
