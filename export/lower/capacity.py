"""The caches of an engine: buffers of a fixed number of tokens, which past and present share."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..errors import ExportError
from ..fuse.attention import head_size

_CAPACITY = "capacity"


def fix_capacity(model: ir.Model) -> None:
    """Gives past and present of each attention one shape, [batch, heads, capacity, head size].

    The op makes present as large as past, if past has room for the new tokens. Raises ExportError where others read
    past, who would take its size for the number of tokens.
    """
    for node in model.graph.all_nodes():
        if not op_spec.is_op(node, op_spec.ATTENTION):
            continue
        heads, size = node.attributes.get_int("kv_num_heads"), head_size(node)
        for past, present in zip(op_spec.inputs(node)[3:5], node.outputs[1:3], strict=True):
            if past is None or not past.is_graph_input() or not present.is_graph_output():
                raise ExportError(f"{node.name}: its past and present are not inputs and outputs of the graph")
            others = [use.node for use in past.uses() if use.node is not node]
            if others:
                raise ExportError(
                    f"{others[0].name} ({others[0].op_type}) reads {past.name}, too; a cache of fixed size is the "
                    "attention's alone"
                )
            past.shape = ir.Shape([past.shape[0] if past.shape else None, heads, _CAPACITY, size])
            present.shape = past.shape.copy()
