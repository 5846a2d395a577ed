"""MatMul with a constant weight -> FdppFlatGemm."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import FLOAT, FLOAT16, HIDDEN, VOCABULARY, add_input, decoder, ir_node, node_named

from fdpp_ort.export.fuse import flat_gemm
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat


def rewrite(proto: onnx.ModelProto, report: ExportReport, weights: str = "keep") -> ir.Model:
    model = ir.from_proto(proto)
    flat_gemm.rewrite(model, WeightFormat.parse(weights), report)
    return model


@pytest.mark.parametrize(
    ("dtype", "weights", "expected"),
    [
        (FLOAT, "keep", ("f32", ir.DataType.FLOAT)),
        (FLOAT, "f32", ("f32", ir.DataType.FLOAT)),
        (FLOAT, "f16", ("f16", ir.DataType.FLOAT16)),
        (FLOAT, "bf16", ("bf16", ir.DataType.BFLOAT16)),
        (FLOAT16, "keep", ("f16", ir.DataType.FLOAT16)),
        (FLOAT16, "f16", ("f16", ir.DataType.FLOAT16)),
    ],
)
def test_packs_the_weight(dtype: int, weights: str, expected: tuple, report: ExportReport) -> None:
    proto = decoder(dtype=dtype)
    original = numpy_helper.to_array(next(w for w in proto.graph.initializer if w.name == "lm_head.weight"))
    node = ir_node(rewrite(proto, report, weights), "lm_head")
    assert (node.domain, node.op_type) == ("fdpp", "FdppFlatGemm")
    assert [node.inputs[0].name, node.outputs[0].name] == ["x.1", "logits"]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {"N": VOCABULARY, "K": HIDDEN, "weight_format": expected[0]}
    packed = node.inputs[1]
    assert packed.is_initializer() and packed.dtype == expected[1] and list(packed.shape) == [VOCABULARY, HIDDEN]
    np.testing.assert_array_equal(packed.const_value.numpy(), original.T.astype(expected[1].numpy()))
    assert report.rewritten == {"MatMul -> FdppFlatGemm": 3} and report.left == []


def weight_from_outside(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.input[1] = add_input(proto, "outer", FLOAT, [HIDDEN, HIDDEN])


def overridable_weight(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    add_input(proto, node.input[1], FLOAT, [HIDDEN, HIDDEN])


def weight_of(values: np.ndarray):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(values, "other"))
        node.input[1] = "other"

    return edit


def transposed_input(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.input[0] = add_input(proto, "narrow", FLOAT, ["batch", "tokens", HIDDEN // 2])


def other_op(op: str):
    def edit(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        node.op_type = op

    return edit


def gemm(bias: np.ndarray | None = None, **attributes: float):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        node.op_type = "Gemm"
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
        if bias is not None:
            proto.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
            node.input.append("bias")

    return edit


REFUSED = {
    "not constant": (weight_from_outside, "(outer) is not constant"),
    "overridable": (overridable_weight, "is not constant"),
    "rank 3": (weight_of(np.ones((1, HIDDEN, HIDDEN), np.float32)), "expected [K, N]"),
    "rank 1": (weight_of(np.ones(HIDDEN, np.float32)), "expected [K, N]"),
    "empty": (weight_of(np.ones((HIDDEN, 0), np.float32)), "expected [K, N]"),
    "float64": (weight_of(np.ones((HIDDEN, HIDDEN))), "no kernel multiplies double"),
    "columns": (transposed_input, "has 32 columns"),
    "MatMulNBits": (other_op("MatMulNBits"), "only MatMul and Gemm"),
    "Gemm, transposed A": (gemm(transA=1), "its A is transposed"),
    "Gemm, scaled": (gemm(alpha=2.0), "attribute alpha = 2.0"),
    "Gemm, scaled bias": (gemm(beta=2.0), "attribute beta = 2.0"),
    "Gemm, a bias for each row": (gemm(bias=np.ones((4, 1), np.float32)), "is not a constant of shape [64]"),
}


@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_leaves_what_the_kernels_refuse(edit, reason: str, report: ExportReport) -> None:
    proto = decoder()
    node = node_named(proto, "layers.0.o")
    edit(proto, node)
    before = onnx.NodeProto.FromString(node.SerializeToString())
    model = rewrite(proto, report)
    assert [item.node for item in report.left] == ["layers.0.o"]
    assert reason in report.left[0].reason
    assert ir.to_proto(ir_node(model, "layers.0.o")) == before
    assert report.rewritten == {"MatMul -> FdppFlatGemm": 2}


@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_leaves_float16_activations_with_other_weights(weights: str, report: ExportReport) -> None:
    rewrite(decoder(dtype=FLOAT16), report, weights)
    assert report.rewritten == {}
    assert all("no kernel multiplies float16 activations" in item.reason for item in report.left)
    assert len(report.left) == 3


def test_packs_a_shared_weight_once(report: ExportReport) -> None:
    proto = decoder(layers=2)
    node_named(proto, "layers.1.o").input[1] = "layers.0.o.weight"
    model = rewrite(proto, report)
    assert ir_node(model, "layers.0.o").inputs[1] is ir_node(model, "layers.1.o").inputs[1]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, np.arange(VOCABULARY, dtype=np.float32)])
def test_gemm(transposed: int, bias: np.ndarray | None, report: ExportReport) -> None:
    proto = decoder(tied=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "lm_head.weight")
    original = numpy_helper.to_array(weight)
    if transposed:
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(original.T), weight.name))
    gemm(bias, transB=transposed)(proto, node_named(proto, "lm_head"))
    node = ir_node(rewrite(proto, report), "lm_head")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {"N": VOCABULARY, "K": HIDDEN, "weight_format": "f32"}
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), original.T)
    assert [value.name if value else "" for value in node.inputs[2:]] == ([] if bias is None else ["", "", "bias"])
    assert report.rewritten == {"Gemm -> FdppFlatGemm": 1, "MatMul -> FdppFlatGemm": 2}
