"""RMS norms in standard ops, or as ONNX's RMSNormalization -> ONNX Runtime's SimplifiedLayerNormalization, and with the
residual sum ahead of them -> SkipSimplifiedLayerNormalization, as onnxruntime-genai's builder writes them.

The patterns are those of onnxscript.rewriter, and one more for graphs before opset 18.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.rms_normalization import RmsNormFusion, fuse_rms_normalization
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

from ..report import ExportReport

_NORM, _SKIP_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"


class _BeforeOpset18(RmsNormFusion):
    """As torch.onnx.export(dynamo=False) writes it: axes are an attribute, the root divides 1."""

    def pattern(self, op, x, scale, epsilon, compute_dtype, target_dtype):
        x = pattern.OrValue([op.Cast(x, to=compute_dtype), x])
        mean = op.ReduceMean(op.Pow(x, 2.0), axes=[-1], keepdims=1)
        normalized = op.Mul(x, op.Div(1.0, op.Sqrt(op.Add(mean, epsilon))))
        normalized = pattern.OrValue([op.Cast(normalized, to=target_dtype), normalized])
        return op.Mul(normalized, scale) if self._mul_order else op.Mul(scale, normalized)


_BEFORE_OPSET_18 = pattern.RewriteRuleSet(
    [_BeforeOpset18.rule(f"RmsNormBeforeOpset18.{order}", _mul_order=order) for order in (False, True)]
)


def fuse_norms(model: ir.Model, report: ExportReport) -> None:
    """Changes `model` in place."""
    norms = fuse_rms_normalization(model) + _BEFORE_OPSET_18.apply_to_model(model)
    for node in model.graph:
        if (node.domain, node.op_type) == ("", "RMSNormalization") and _is_over_last_axis(node):
            node.op_type = _NORM
            norms += 1
    sums = fuse_skip_rms_normalization(model)
    # Some of the norms behind sums may have been such nodes before.
    for name, count in ((_NORM, norms - sums), (_SKIP_NORM, sums)):
        if count > 0:
            report.rewritten[f"RMS norm -> {name}"] = count


def _is_over_last_axis(node: ir.Node) -> bool:
    axis, shape = node.attributes.get_int("axis", -1), node.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)
