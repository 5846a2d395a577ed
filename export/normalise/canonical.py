"""Brings a graph into the one spelling that the rules match: no local functions, large constants as initializers, no
FusedMatMul."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from .fused_matmul import spell_out_fused_matmul


def canonicalise(model: ir.Model) -> None:
    """Changes `model` in place; does not read external data."""
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass()(model)
    spell_out_fused_matmul(model)
