"""The spellings of silu: x * Sigmoid(x), and Swish or QuickGelu of alpha 1."""

from __future__ import annotations

import onnx_ir as ir

from ..nodes import read_once

_SILU = {("", "Swish"), ("com.microsoft", "QuickGelu")}


def silu_of(silu: ir.Value | None) -> ir.Value | None:
    """What this is the silu of, if nobody else reads either."""
    node = silu.producer() if silu is not None and read_once(silu) else None
    if node is None:
        return None
    if (node.domain, node.op_type) in _SILU:
        if node.attributes.get_float("alpha", 1.702 if node.op_type == "QuickGelu" else 1.0) != 1:
            return None
        return node.inputs[0] if read_once(node.inputs[0]) else None
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for x, sigmoid in (node.inputs, node.inputs[::-1]):
        squashed = sigmoid.producer()
        if squashed is None or (squashed.domain, squashed.op_type) != ("", "Sigmoid") or squashed.inputs[0] is not x:
            continue
        if read_once(sigmoid) and len(x.uses()) == 2 and not x.is_graph_output():
            return x
    return None
