"""Pattern rules, one a file: each rewrites nodes to our ops and reports what it left and why."""

from __future__ import annotations

import onnx_ir as ir

from ..report import ExportReport
from ..weight_format import WeightFormat
from . import (
    activation,
    attention,
    bias,
    dequantised_product,
    flat_gemm,
    gated_products,
    head_norms,
    matmul_nbits,
    qkv_product,
    split_qkv,
    tied_embedding,
)


def fuse(
    model: ir.Model,
    weights: WeightFormat,
    report: ExportReport,
    *,
    head_weights: WeightFormat | None = None,
    gated: bool = True,
    packed_qkv: bool = True,
    bias_in_products: bool = True,
    norms_of_heads: bool = True,
    activations: bool = True,
) -> dict[str, ir.TensorProtocol]:
    """Applies all rules to `model` in place.

    head_weights: of the product that makes the logits; None: as the others'. gated: gates and what they gate become one
    product. packed_qkv: so do queries, keys and values, which an attention reads packed. bias_in_products: products add
    constants themselves. norms_of_heads: attentions normalise heads themselves. activations: products do the activation
    behind them. Returns, by name, what those original weights have become that are not stored as they were.
    """
    attention.rewrite(model, report)
    if norms_of_heads:
        head_norms.rewrite(model, report)
    matmul_nbits.rewrite(model, report)
    dequantised_product.rewrite(model, report)
    packed = flat_gemm.rewrite(model, weights, report, head_weights)
    if bias_in_products:
        bias.rewrite(model, report)
    tied_embedding.rewrite(packed, report)
    if gated:
        gated_products.rewrite(model, report)
    if packed_qkv:
        qkv_product.rewrite(model, report)
        split_qkv.rewrite(model, report)
    if activations:
        activation.rewrite(model, report)
    return {weight.value.name: made.stored for weight, made in packed.items() if made.stored is not None}
