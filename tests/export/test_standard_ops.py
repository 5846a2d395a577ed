"""Ops that TensorRT does not know against what they are spelled out in, both run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from fdpp_ort.export import ExportError, ExportReport
from fdpp_ort.export.lower.standard_ops import spell_out

HIDDEN = 48
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def one_node(
    op: str, inputs: list[str], outputs: list[str], *, domain: str, dtype: str, opset: int, **attributes
) -> onnx.ModelProto:
    """A graph of the node alone. Inputs x and skip are graph inputs, the others random constants [HIDDEN]; of `outputs`
    those with a name are the graph's."""
    random = np.random.default_rng(0)
    node = helper.make_node(op, inputs, outputs, name="node", domain=domain or None, **attributes)
    constants = [
        onnx.numpy_helper.from_array(random.uniform(0.5, 1.5, HIDDEN).astype(dtype), name)
        for name in inputs
        if name and name not in ("x", "skip")
    ]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TYPES[dtype], ["b", "s", HIDDEN]) for n in inputs if n in ("x", "skip")],
        [helper.make_tensor_value_info(name, TYPES[dtype], ["b", "s", HIDDEN]) for name in outputs if name],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    import onnxruntime

    random = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {x.name: (3 * random.standard_normal((2, 5, HIDDEN))).astype(types[x.type]) for x in session.get_inputs()}
    return session.run(None, feeds)


def spelled_out(proto: onnx.ModelProto, report: ExportReport) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    spell_out(model, report)
    return ir.to_proto(model)


NORM = {"inputs": ["x", "weight"], "outputs": ["y"]}
SKIP = {"inputs": ["x", "skip", "weight"], "outputs": ["y", "", "", "sum"], "domain": "com.microsoft"}
CASES = {
    "SimplifiedLayerNormalization": {**NORM, "axis": -1, "epsilon": 1e-2, "stash_type": 1},
    "SimplifiedLayerNormalization last axis": {**NORM, "axis": 2},
    "RMSNormalization": {**NORM, "epsilon": 1e-2, "opset": 23},
    "SkipSimplifiedLayerNormalization": {**SKIP, "epsilon": 1e-2},
    "SkipSimplifiedLayerNormalization bias": {**SKIP, "inputs": ["x", "skip", "weight", "bias"]},
    "SkipSimplifiedLayerNormalization sum unused": {**SKIP, "outputs": ["y"]},
    "SkipLayerNormalization": {**SKIP, "inputs": ["x", "skip", "weight", "beta", "bias"], "epsilon": 1e-2},
    "SkipLayerNormalization weight alone": SKIP,
    "Gelu": {"inputs": ["x"], "outputs": ["y"], "opset": 20},
    "Gelu tanh": {"inputs": ["x"], "outputs": ["y"], "opset": 20, "approximate": "tanh"},
    "Gelu microsoft": {"inputs": ["x"], "outputs": ["y"], "domain": "com.microsoft"},
    "FastGelu": {"inputs": ["x", "bias"], "outputs": ["y"], "domain": "com.microsoft"},
    "BiasGelu": {"inputs": ["x", "bias"], "outputs": ["y"], "domain": "com.microsoft"},
    "QuickGelu": {"inputs": ["x"], "outputs": ["y"], "domain": "com.microsoft", "alpha": 1.5},
}
# ONNX Runtime's CPU kernels of these take float32 alone.
FLOAT32_ALONE = ("Gelu microsoft", "BiasGelu", "QuickGelu")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_same_values(case: str, dtype: str, report: ExportReport) -> None:
    if dtype == "float16" and case in FLOAT32_ALONE:
        pytest.skip("no kernel to compare with")
    proto = one_node(case.split()[0], **{"domain": "", "opset": 17, "dtype": dtype, **CASES[case]})
    spelled = spelled_out(proto, report)
    assert case.split()[0] not in {node.op_type for node in spelled.graph.node}
    assert {node.domain for node in spelled.graph.node} == {""}
    assert report.rewritten == {f"{case.split()[0]} -> standard ops": 1}
    tolerance = 2e-3 if dtype == "float16" else 2e-6
    for mine, other in zip(run(spelled), run(proto), strict=True):
        assert mine.dtype == other.dtype == dtype
        np.testing.assert_allclose(
            mine.astype(np.float32), other.astype(np.float32), rtol=tolerance, atol=3 * tolerance
        )


def test_norms_of_float16_are_computed_in_float32(report: ExportReport) -> None:
    """Squares of these would overflow float16."""
    proto = one_node("SimplifiedLayerNormalization", ["x", "weight"], ["y"], domain="", dtype="float16", opset=17)
    operator = helper.make_node("Mul", ["x.in", "large"], ["x"])
    proto.graph.node.insert(0, operator)
    proto.graph.input[0].name = "x.in"
    proto.graph.initializer.append(helper.make_tensor("large", TensorProto.FLOAT16, [], [1000.0]))
    for mine, other in zip(run(spelled_out(proto, report)), run(proto), strict=True):
        assert np.isfinite(mine).all() and np.abs(mine).max() > 1
        np.testing.assert_allclose(mine, other, rtol=4e-3)


def test_equal_constants_are_one(report: ExportReport) -> None:
    proto = one_node("Gelu", ["x"], ["y"], domain="com.microsoft", dtype="float32", opset=17)
    proto.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], name="second", domain="com.microsoft"))
    proto.graph.output[0].name = "z"
    spelled = spelled_out(proto, report)
    assert len(spelled.graph.initializer) == 3
    assert len({node.name for node in spelled.graph.node}) == len(spelled.graph.node)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"op": "RotaryEmbedding", "domain": "com.microsoft"}, "node: com.microsoft::RotaryEmbedding is no op of Tens"),
        ({"op": "SimplifiedLayerNormalization", "axis": 1}, "node: its axis is 1, expected the last one"),
        (
            {"op": "SkipSimplifiedLayerNormalization", "outputs": ["y", "", "statistics"], "domain": "com.microsoft"},
            "node: its output statistics has no spelling",
        ),
    ],
)
def test_what_cannot_be_spelled_out(node: dict, message: str, report: ExportReport) -> None:
    settings = {"domain": "", "inputs": ["x", "skip", "weight"], "outputs": ["y"], "dtype": "float32", "opset": 17}
    with pytest.raises(ExportError, match=message):
        spelled_out(one_node(**{**settings, **node}), report)


def test_constants_need_a_type(report: ExportReport) -> None:
    proto = one_node("Gelu", ["inner"], ["y"], domain="com.microsoft", dtype="float32", opset=17)
    del proto.graph.initializer[:]
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [HIDDEN]))
    proto.graph.node.insert(0, helper.make_node("Neg", ["x"], ["inner"]))
    with pytest.raises(ExportError, match="node: the element type of inner is not known"):
        spelled_out(proto, report)
