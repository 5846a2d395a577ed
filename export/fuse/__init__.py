"""Pattern rules, one a file: each rewrites nodes to our ops and reports what it left and why."""

from __future__ import annotations

import onnx_ir as ir

from ..report import ExportReport
from . import attention, bias, dequantised_product, flat_gemm, gated_products, int4_gemm, tied_embedding


def fuse(model: ir.Model, weights: str, report: ExportReport, *, gated: bool = True) -> None:
    """Applies all rules to `model` in place; `weights` is "keep", "f32", "f16" or "bf16".

    gated: gates and what they gate become one product.
    """
    attention.rewrite(model, report)
    int4_gemm.rewrite(model, report)
    dequantised_product.rewrite(model, report)
    packed = flat_gemm.rewrite(model, weights, report)
    bias.rewrite(model, report)
    tied_embedding.rewrite(packed, report)
    if gated:
        gated_products.rewrite(model, report)
