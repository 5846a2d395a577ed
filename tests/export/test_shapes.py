"""Shapes behind ONNX Runtime's own ops."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import defs

from fdpp_ort.export.normalise.shapes import infer_shapes

GRAPH = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
part (float[batch, tokens, 64] x, float[batch, tokens, 64] y, float[64] weight) => (float[a, b, c] last)
{
  LINE
  last = Relu(made)
}
"""
NORM = "made, a, b, sum = com.microsoft.SkipSimplifiedLayerNormalization(x, y, weight)"


def inferred(line: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.replace("LINE", line)))
    infer_shapes(model)
    return model


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (NORM, [True, False, False, True]),
        ("made = com.microsoft.QuickGelu<alpha = 1.0>(x)", [True]),
        ("made = SimplifiedLayerNormalization(x, weight)", [True]),
        ("made = com.microsoft.NobodyKnows(x)", [False]),
    ],
)
def test_as_their_first_input(line: str, known: list[bool]) -> None:
    made = inferred(line).graph[0].outputs
    assert [value.shape == ["batch", "tokens", 64] for value in made] == known
    assert [value.dtype == ir.DataType.FLOAT for value in made] == known


def test_onnx_itself_stays_as_it_was() -> None:
    inferred(NORM)
    assert not defs.has("SkipSimplifiedLayerNormalization", "com.microsoft")


def test_what_was_known_once_more() -> None:
    """Names that inference made up give way to those of the graph; numbers stay."""
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.replace("LINE", "made = Abs(x)")))
    model.graph[0].outputs[0].shape = ir.Shape(["unk__1", "unk__2", 64])
    infer_shapes(model)
    assert model.graph[0].outputs[0].shape == ["batch", "tokens", 64]
