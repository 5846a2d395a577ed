"""com.microsoft::FusedMatMul in attention and in products with weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from spelled_out_models import decoder, with_logits

from fdpp_ort.export import export_model
from fdpp_ort.export.normalise import canonicalise

SCORES = "keys_t = Transpose<perm = [0, 1, 3, 2]>(keys)\n  scores = MatMul(query, keys_t)"
FUSED = 'opset_import: ["" : 18, "com.microsoft" : 1]'


def fused(scores: str, hidden: str = "hidden = MatMul(merged, wo)") -> onnx.ModelProto:
    return with_logits(
        decoder((SCORES, scores), ("hidden = MatMul(merged, wo)", hidden), ('opset_import: ["" : 18]', FUSED))
    )


@pytest.mark.parametrize("alpha", ["", "alpha = 0.5, "])
def test_is_taken(alpha: str, tmp_path: Path, library: str) -> None:
    proto = fused(
        f"scores = com.microsoft.FusedMatMul<{alpha}transB = 1>(query, keys)",
        "hidden = com.microsoft.FusedMatMul<alpha = 0.25>(merged, wo)",
    )
    onnx.save(proto, tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library, max_length=64)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 1
    assert report.left == []
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)
    exported = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [value.name for value in exported.output] == ["logits", "present_key", "present_value"]
    assert "FusedMatMul" not in {node.op_type for node in exported.node}


@pytest.mark.parametrize(
    "attributes", [{"transA": 1}, {"transBatchB": 1}, {"transB": 1}], ids=["A", "batches of B", "unknown rank"]
)
def test_is_left(attributes: dict[str, int]) -> None:
    node = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", **attributes)
    ports = [helper.make_tensor_value_info(name, 1, None) for name in "aby"]
    graph = helper.make_graph([node], "product", ports[:2], ports[2:])
    model = ir.from_proto(helper.make_model(graph))
    canonicalise(model)
    (left,) = model.graph
    assert left.op_type == "FusedMatMul" and left.attributes.get_int(next(iter(attributes))) == 1
