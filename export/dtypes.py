"""Element types as the user, the op specs and ONNX spell them."""

from __future__ import annotations

import onnx_ir as ir

# weight_format and --weights  ->  ONNX element type
BY_FORMAT = {"f32": ir.DataType.FLOAT, "f16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FORMAT = {dtype: name for name, dtype in BY_FORMAT.items()}

_SPEC_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def spec_name(dtype: ir.DataType) -> str:
    """The op specs' spelling of `dtype`; types that no op takes keep ONNX's spelling in lower case."""
    return _SPEC_NAMES.get(dtype, dtype.name.lower())
