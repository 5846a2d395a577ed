"""MatMul(A, DequantizeLinear(...)) -> FdppFlatGemm: the same values, and what is left and why."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fdpp_ort
from fdpp_ort.export.fuse import dequantised_product, flat_gemm
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

K, N = 40, 24
KIND = "DequantizeLinear, MatMul -> FdppFlatGemm"


def product(
    kind: int,
    block_size: int = 0,
    points: str = "",
    turned: bool = False,
    axis: int | None = None,
    scales: tuple[int, ...] | None = None,
    columns: int = K,
) -> onnx.ModelProto:
    """A product by random numbers of type `kind`, [columns, N] or, `turned`, [N, columns] with a Transpose.

    points: "" none, "middle" or "random". axis, scales: axis and shape of the scales where they are not the usual."""
    random, dtype = np.random.default_rng(0), helper.tensor_dtype_to_np_dtype(kind)
    count = 16 if kind in (TensorProto.INT4, TensorProto.UINT4) else 256
    first = 0 if kind in (TensorProto.UINT4, TensorProto.UINT8) else -count // 2

    def numbers(shape: tuple[int, ...], name: str, middle: bool = False) -> onnx.TensorProto:
        values = np.full(shape, first + count // 2) if middle else random.integers(first, first + count, shape)
        return numpy_helper.from_array(values.astype(dtype), name)

    usual = ((-(-columns // block_size), N) if block_size else (N,))[:: -1 if turned else 1]
    shape = usual if scales is None else scales
    along_k, along_n = (1, 0) if turned else (0, 1)
    axis = (along_k if block_size else along_n) if axis is None else axis
    weights = [
        numbers((N, columns) if turned else (columns, N), "numbers"),
        numpy_helper.from_array(random.uniform(0.01, 0.02, shape).astype(np.float32), "scales"),
        *([numbers(shape, "points", points == "middle")] if points else []),
    ]
    inputs = [weight.name for weight in weights]
    nodes = [helper.make_node("DequantizeLinear", inputs, ["values"], axis=axis, block_size=block_size)]
    if turned:
        nodes.append(helper.make_node("Transpose", ["values"], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["a", nodes[-1].output[0]], ["y"], name="product"))
    ports = [helper.make_tensor_value_info(name, 1, ["rows", size]) for name, size in (("a", columns), ("y", N))]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def rewritten(proto: onnx.ModelProto, report: ExportReport) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    dequantised_product.rewrite(model, report)
    model.opset_imports["fdpp"] = 1
    return ir.to_proto(model)


def run(proto: onnx.ModelProto, exact: bool = True) -> np.ndarray:
    """With activations as they are where `exact`, by either graph."""
    for node in proto.graph.node:
        if exact and node.op_type == "FdppFlatGemm":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a = np.random.default_rng(1).standard_normal((3, session.get_inputs()[0].shape[1]), np.float32)
    return session.run(None, {"a": a})[0]


TAKEN = {
    "int4": {"kind": TensorProto.INT4, "block_size": 16},
    "int4, blocks that K ends in": {"kind": TensorProto.INT4, "block_size": 32},
    "int4, one block": {"kind": TensorProto.INT4, "block_size": 64, "points": "random"},
    "int4, zero points": {"kind": TensorProto.INT4, "block_size": 16, "points": "random"},
    "int4, larger blocks": {"kind": TensorProto.INT4, "block_size": 256, "points": "random", "columns": 320},
    "int4, one scale a column": {"kind": TensorProto.INT4},
    "uint4, one scale a column": {"kind": TensorProto.UINT4, "points": "random", "turned": True},
    "uint4, one scale": {"kind": TensorProto.UINT4, "scales": (), "points": "random"},
    "uint4": {"kind": TensorProto.UINT4, "block_size": 16},
    "uint4, zero points": {"kind": TensorProto.UINT4, "block_size": 16, "points": "random"},
    "uint4, turned": {"kind": TensorProto.UINT4, "block_size": 16, "points": "random", "turned": True},
    "int8": {"kind": TensorProto.INT8},
    "int8, zero points": {"kind": TensorProto.INT8, "points": "middle"},
    "int8, turned": {"kind": TensorProto.INT8, "turned": True},
    "int8, one block": {"kind": TensorProto.INT8, "block_size": 64},
    "int8, one scale": {"kind": TensorProto.INT8, "scales": ()},
    "uint8": {"kind": TensorProto.UINT8, "points": "middle"},
}


@pytest.mark.parametrize("case", TAKEN)
def test_is_taken(case: str, report: ExportReport) -> None:
    before = product(**TAKEN[case])
    after = rewritten(before, report)
    assert report.rewritten == {KIND: 1} and report.left == []
    (node,) = (node for node in after.graph.node if node.name == "product")
    assert (node.domain, node.op_type) == ("fdpp", "FdppFlatGemm")
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-5)


LEFT = {
    "blocks of another size": ({"kind": TensorProto.INT4, "block_size": 8}, "block_size is 8, expected 16, 32"),
    "scales of 4 bits along K": (
        {"kind": TensorProto.INT4, "axis": 0, "scales": (K,)},
        "its scales are not of N",
    ),
    "blocks of 8 bits": (
        {"kind": TensorProto.INT8, "block_size": 16},
        "numbers of 8 bits have a scale for each block of K",
    ),
    "zero points of 8 bits": ({"kind": TensorProto.UINT8, "points": "random"}, "its zero points are not the middle"),
    "no zero points": ({"kind": TensorProto.UINT8}, "its zero points are not the middle"),
    "scales along K": ({"kind": TensorProto.INT8, "axis": 0, "scales": (K,)}, "its scales are not of N"),
    "float8": ({"kind": TensorProto.FLOAT8E4M3FN}, "no kernel multiplies float32 activations by float8e4m3fn"),
}


@pytest.mark.parametrize("case", LEFT)
def test_is_left(case: str, report: ExportReport) -> None:
    options, reason = LEFT[case]
    before = product(**options)
    model = ir.from_proto(before)
    dequantised_product.rewrite(model, report)
    flat_gemm.rewrite(model, WeightFormat("keep"), report)
    assert report.rewritten == {}
    (left,) = report.left
    assert left.node == "product" and reason in left.reason
    after = ir.to_proto(model)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    np.testing.assert_array_equal(run(after), run(before))


def test_numbers_from_outside_are_left(report: ExportReport) -> None:
    before = product(TensorProto.INT8)
    before.graph.input.append(helper.make_tensor_value_info("scales", 1, [N]))
    rewritten(before, report)
    assert report.rewritten == {} and report.left[0].reason == "scales is not constant"


def test_values_that_two_products_read_are_packed_once(report: ExportReport) -> None:
    before = product(TensorProto.INT4, 16)
    before.graph.node.append(helper.make_node("MatMul", ["a", "values"], ["z"], name="second"))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, ["rows", N]))
    after = rewritten(before, report)
    first, second = (node for node in after.graph.node if node.op_type == "FdppFlatGemm")
    assert report.rewritten == {KIND: 2} and first.input == second.input


def test_rounds_activations_as_onnx_runtime_does(report: ExportReport) -> None:
    after = rewritten(product(TensorProto.INT4, 16), report)
    exact = run(onnx.ModelProto.FromString(after.SerializeToString()))
    rounded = run(after, exact=False)
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
