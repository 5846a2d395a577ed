"""Three products that make the queries, keys and values of one FdppAttention -> one product, its packed input."""

from __future__ import annotations

import onnx_ir as ir

from .. import op_spec
from ..attention_node import head_size
from ..nodes import input_at, read_once
from ..report import ExportReport
from .joined_products import can_be_one, one_product, product_of

_INPUTS = op_spec.input_names(op_spec.ATTENTION)
_PARTS = [_INPUTS.index(name) for name in ("query", "key", "value")]


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place. A weight that somebody else reads, too, stays where it is, and so do its products."""
    for node in list(model.graph.all_nodes()):
        if not op_spec.is_op(node, op_spec.ATTENTION):
            continue
        parts = [input_at(node, index) for index in _PARTS]
        products = [product_of(part) for part in parts]
        if None in products or not all(map(read_once, parts)) or not can_be_one(products):
            continue
        columns = [product.attributes.get_int("N") for product in products]
        heads, kv_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
        if columns != [count * head_size(node) for count in (heads, kv_heads, kv_heads)]:
            continue
        product = one_product(products, f"{node.name}/qkv", {"N": sum(columns)})
        packed, query = product.outputs[0], parts[0]
        packed.name, packed.type = f"{node.name}/qkv", query.type
        if query.shape is not None:
            packed.shape = ir.Shape([*query.shape[:-1], sum(columns)])
        node.graph.insert_before(node, product)
        for index, value in zip(_PARTS, (packed, None, None), strict=True):
            node.replace_input_with(index, value)
        for old in products:
            old.graph.remove(old, safe=True)
        report.rewrote("Q, K, V -> one product")
