"""Add of a constant behind a product -> the product's bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import HIDDEN, decoder, ir_node, node_named, save_folder

from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import bias, flat_gemm
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat


def with_sum(values: np.ndarray, *, swapped: bool = False) -> onnx.ModelProto:
    """A decoder that adds `values` to what its o product gives, the constant first if `swapped`."""
    proto = decoder()
    node = node_named(proto, "layers.0.o")
    terms = ["product", "added"]
    at = list(proto.graph.node).index(node) + 1
    total = helper.make_node("Add", terms[::-1] if swapped else terms, [node.output[0]], name="sum")
    node.output[0] = "product"
    proto.graph.node.insert(at, total)
    proto.graph.initializer.append(numpy_helper.from_array(values, "added"))
    return proto


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> ir.Model:
    model = ir.from_proto(proto)
    flat_gemm.rewrite(model, WeightFormat("keep"), report)
    bias.rewrite(model, report)
    return model


@pytest.mark.parametrize("swapped", [False, True])
def test_becomes_the_bias(swapped: bool, report: ExportReport) -> None:
    proto = with_sum(np.ones(HIDDEN, np.float32), swapped=swapped)
    node = ir_node(rewrite(proto, report), "layers.0.o")
    assert [value.name if value else "" for value in node.inputs[2:]] == ["", "", "added"]
    assert node.outputs[0].name == "layers.0.o.out"
    assert report.rewritten["Add of a bias -> FdppFlatGemm"] == 1


@pytest.mark.parametrize("shape", [(), (1,), (1, HIDDEN), (1, 1, HIDDEN)], ids=str)
def test_other_constants_stay(shape: tuple[int, ...], report: ExportReport) -> None:
    model = rewrite(with_sum(np.ones(shape, np.float32)), report)
    assert ir_node(model, "sum").op_type == "Add"
    assert "Add of a bias -> FdppFlatGemm" not in report.rewritten


def test_others_read_the_product(report: ExportReport) -> None:
    proto = with_sum(np.ones(HIDDEN, np.float32))
    proto.graph.output.append(helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, None))
    assert ir_node(rewrite(proto, report), "sum").op_type == "Add"


def test_same_logits(tmp_path: Path, library: str) -> None:
    folder = save_folder(with_sum(np.linspace(-1, 1, HIDDEN, dtype=np.float32)), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", library=library)
    assert report.rewritten["Add of a bias -> FdppFlatGemm"] == 1
    assert report.verification.status == "passed"
