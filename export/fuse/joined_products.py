"""Products of the same rows that can be one: the rows of their weights, and all that belongs to these, one after the
other."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .. import op_spec
from ..nodes import input_at, is_constant
from ..pack import joined, register

_NAMES = op_spec.input_names(op_spec.FLAT_GEMM)
_A, _B, _BIAS = (_NAMES.index(name) for name in ("A", "B", "bias"))
_OF_ROWS = [_NAMES.index(name) for name in ("B", "scales", "zero_points", "bias")]


def product_of(value: ir.Value | None) -> ir.Node | None:
    """The product of ours that makes `value`."""
    node = value.producer() if value is not None else None
    return node if node is not None and op_spec.is_op(node, op_spec.FLAT_GEMM) else None


def has_no_more(product: ir.Node) -> bool:
    """Whether `product` is A times weights and perhaps a bias, and nothing else."""
    plain = all(value is None or index in (_A, *_OF_ROWS) for index, value in enumerate(product.inputs))
    return plain and "activation" not in product.attributes


def can_be_one(products: Sequence[ir.Node]) -> bool:
    """Whether all have the same A and attributes, besides N, no activation, the same inputs of rows and no others, and
    nobody else reads their weights, which would be stored twice."""
    first = products[0]
    count = max(len(product.inputs) for product in products)
    return (
        all(product.inputs[_A] is first.inputs[_A] for product in products)
        and "activation" not in first.attributes
        and all(_attributes(product) == _attributes(first) for product in products)
        and all(
            _are_rows([input_at(product, index) for product in products], products, index)
            for index in range(count)
            if index != _A
        )
    )


def one_product(products: Sequence[ir.Node], name: str, attributes: dict[str, int | str]) -> ir.Node:
    """A node, in no graph yet, in the place of `products`, with `attributes` besides those that they have."""
    first = products[0]
    inputs: list[ir.Value | None] = [None] * len(first.inputs)
    inputs[_A] = first.inputs[_A]
    weights = ".".join(product.inputs[_B].name for product in products)
    for index in _OF_ROWS:
        if input_at(first, index) is not None:
            values = [product.inputs[index] for product in products]
            stored_as = weights if index == _B else f"{weights}.{_NAMES[index]}"
            inputs[index] = register(values[0].graph, joined([value.const_value for value in values], stored_as))
    merged = {name: attribute.value for name, attribute in first.attributes.items()} | attributes
    return ir.node(op_spec.FLAT_GEMM, inputs, attributes=merged, domain=op_spec.DOMAIN, name=name)


def _are_rows(values: list[ir.Value | None], products: Sequence[ir.Node], index: int) -> bool:
    """Whether `values`, input `index` of each product, are all absent, or all constants of as many rows as it has."""
    if all(value is None for value in values):
        return True
    if index not in _OF_ROWS or None in values:
        return False
    shareable = index == _BIAS
    tensors = [value.const_value for value in values if is_constant(value) and (shareable or len(value.uses()) == 1)]
    return len(tensors) == len(values) and all(
        tensor.dtype == tensors[0].dtype
        and tensor.shape.numpy()[1:] == tensors[0].shape.numpy()[1:]
        and tensor.shape.numpy()[:1] == (product.attributes.get_int("N"),)  # and not one scale for all
        for tensor, product in zip(tensors, products, strict=True)
    )


def _attributes(product: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in product.attributes.items() if name != "N"}
