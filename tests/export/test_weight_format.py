"""What --weights and --head-weights take."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from fdpp_ort.export import ExportError
from fdpp_ort.export.weight_format import WeightFormat


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("keep", WeightFormat("keep")),
        ("bf16", WeightFormat("bf16")),
        ("int8", WeightFormat("int8")),
        ("fp8", WeightFormat("fp8")),
        ("int4", WeightFormat("int4", 32)),
        ("int4:128", WeightFormat("int4", 128)),
        ("int4:16:zero-points", WeightFormat("int4", 16, True)),
    ],
)
def test_takes(text: str, form: WeightFormat) -> None:
    assert WeightFormat.parse(text) == form
    assert WeightFormat.parse(str(form)) == form


@pytest.mark.parametrize(
    "text", ["", "int5", "int4:", "int4:33", "int4:32:", "int4:32:points", "int4:32:zero-points:", "int8:32", "f16:"]
)
def test_refuses(text: str) -> None:
    with pytest.raises(ExportError, match="head_weights is '.*', expected keep, f32, "):
        WeightFormat.parse(text, "head_weights")


def test_element_types() -> None:
    types = {
        text: WeightFormat.parse(text).dtype(ir.DataType.FLOAT16) for text in ("keep", "f32", "int8", "fp8", "int4")
    }
    assert types == {
        "keep": ir.DataType.FLOAT16,
        "f32": ir.DataType.FLOAT,
        "int8": ir.DataType.INT8,
        "fp8": ir.DataType.FLOAT8E4M3FN,
        "int4": ir.DataType.UINT8,
    }
