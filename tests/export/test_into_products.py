"""Norms and sums that products take over: for TensorRT, and for ONNX Runtime where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, HIDDEN, decoder, node_named, save_folder

from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportReport, export_model

SHAPE = ["batch", "tokens", HIDDEN]
NORMS = ["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"]
LAYER_NORMS = ["LayerNormalization", "SkipLayerNormalization"]


def with_norms(kinds: list[str] = NORMS, *, biased: bool = False) -> onnx.ModelProto:
    """Two layers, a norm ahead of the first's three products, the last sum and the head's norm in one node.

    biased: norms have biases of their own."""
    proto = decoder(layers=2, packed=False)
    graph = proto.graph
    for name in ("x.0", "x.1", "x.2"):
        graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, SHAPE))
    random = np.random.default_rng(1)
    weights = [["norm.0", "norm.0.bias"], ["norm.2", "norm.2.bias"]] if biased else [["norm.0"], ["norm.2"]]
    for name in (name for names in weights for name in names):
        graph.initializer.append(numpy_helper.from_array(random.standard_normal(HIDDEN, np.float32), name))
    first = helper.make_node(kinds[0], ["x.0", *weights[0]], ["normed.0"], name="n0", epsilon=0.01)
    names = [node.name for node in graph.node]
    graph.node.insert(names.index("layers.0.q"), first)
    for part in "qkv":
        node_named(proto, f"layers.0.{part}").input[0] = "normed.0"
    last = node_named(proto, "x.2")
    last.op_type, last.domain = kinds[1], "com.microsoft"
    last.input.extend(weights[1])
    last.output[:] = ["normed.2", "", "", "x.2"]
    node_named(proto, "lm_head").input[0] = "normed.2"
    return proto


def export(proto: onnx.ModelProto, tmp_path: Path, library: str) -> tuple[ExportReport, onnx.GraphProto]:
    folder = save_folder(proto, tmp_path / "in")
    report = export_model(folder, tmp_path / "out", target="tensorrt", packed_qkv=False, library=library)
    assert report.verification.status == "passed"
    return report, onnx.load(tmp_path / "out" / "model.onnx").graph


def named(graph: onnx.GraphProto, name: str) -> dict[str, str]:
    """The inputs of a product by the op's names."""
    node = next(node for node in graph.node if node.name == name)
    names = next(attribute.s for attribute in node.attribute if attribute.name == "inputs").decode()
    return dict(zip(names.split(","), node.input, strict=True))


def test_products_take_norms_and_sums(tmp_path: Path, library: str) -> None:
    report, graph = export(with_norms(), tmp_path, library)
    assert not {node.op_type for node in graph.node} & {"Add", "Sqrt"}
    for part in "qkv":
        inputs = named(graph, f"layers.0.{part}")
        assert (inputs["A"], inputs["norm_weight"]) == ("x.0", "norm.0")
    assert named(graph, "layers.0.o")["residual"] == "x.0"
    assert named(graph, "layers.1.o")["residual"] == "x.1"
    assert named(graph, "lm_head")["norm_weight"] == "norm.2"
    counts = {kind: count for kind, count in report.rewritten.items() if kind.endswith("FdppFlatGemm")}
    assert counts == {
        "MatMul -> FdppFlatGemm": 9,
        "SimplifiedLayerNormalization -> FdppFlatGemm": 1,
        "SkipSimplifiedLayerNormalization -> FdppFlatGemm": 1,
        "Add -> FdppFlatGemm": 2,
    }


def read_by_others(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("normed.0", FLOAT, SHAPE))


def of_another_length(proto: onnx.ModelProto) -> None:
    """The weight is spread over the columns."""
    weight = next(weight for weight in proto.graph.initializer if weight.name == "norm.0")
    weight.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "norm.0"))


@pytest.mark.parametrize("change", [read_by_others, of_another_length])
def test_other_norms_are_spelled_out(change, tmp_path: Path, library: str) -> None:
    proto = with_norms()
    change(proto)
    report, graph = export(proto, tmp_path, library)
    assert report.rewritten["SimplifiedLayerNormalization -> standard ops"] == 1
    assert list(named(graph, "layers.0.q")) == ["A", "B"]


def other_shape(proto: onnx.ModelProto) -> None:
    """One row is added to all: as the residual it would lack the others."""
    row = numpy_helper.from_array(np.ones((1, 1, HIDDEN), np.float32), "row")
    proto.graph.initializer.append(row)
    node_named(proto, "x.1").input[0] = "row"


def two_readers(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("layers.0.o.out", FLOAT, SHAPE))


@pytest.mark.parametrize("change", [other_shape, two_readers])
def test_other_sums_stay(change, tmp_path: Path, library: str) -> None:
    proto = with_norms()
    change(proto)
    report, graph = export(proto, tmp_path, library)
    assert report.rewritten["Add -> FdppFlatGemm"] == 1
    assert [node.name for node in graph.node if node.op_type == "Add"] == ["x.1"]


def exported(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> tuple[ExportReport, dict]:
    """For ONNX Runtime; the graph's nodes by name."""
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, **options)
    assert report.verification.status == "passed"
    return report, {node.name: node for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}


@pytest.mark.parametrize("weights", ["keep", "int4"])
def test_for_onnxruntime(weights: str, tmp_path: Path, library: str) -> None:
    report, nodes = exported(with_norms(), tmp_path, library, weights=weights)
    assert not {node.op_type for node in nodes.values()} & {"Add", *NORMS}
    qkv, o, head = nodes["layers.0.attention/qkv"], nodes["layers.1.o"], nodes["lm_head"]
    assert (qkv.input[0], qkv.input[6]) == ("x.0", "norm.0")
    assert (o.input[5], head.input[0], head.input[6]) == ("x.1", "x.2", "norm.2")
    assert [report.rewritten[f"{kind} -> FdppFlatGemm"] for kind in (*NORMS, "Add")] == [1, 1, 2]


@pytest.mark.parametrize("biased", [False, True])
def test_layer_norms(biased: bool, tmp_path: Path, library: str) -> None:
    report, nodes = exported(with_norms(LAYER_NORMS, biased=biased), tmp_path, library)
    assert not {node.op_type for node in nodes.values()} & {"Add", *LAYER_NORMS}
    assert [report.rewritten[f"{kind} -> FdppFlatGemm"] for kind in (*LAYER_NORMS, "Add")] == [1, 1, 2]
    qkv, head = nodes["layers.0.attention/qkv"], nodes["lm_head"]
    assert list(qkv.input[6:]) == (["norm.0", "", "norm.0.bias"] if biased else ["norm.0"])
    assert list(head.input[6:]) == (["norm.2", "", "norm.2.bias"] if biased else ["norm.2"])
    for node in (qkv, head):
        assert next(attribute.s for attribute in node.attribute if attribute.name == "norm") == b"layer"


def test_layer_norms_for_tensorrt(tmp_path: Path, library: str) -> None:
    _, graph = export(with_norms(LAYER_NORMS, biased=True), tmp_path, library)
    assert not {node.op_type for node in graph.node} & {"Add", *LAYER_NORMS}
    assert named(graph, "lm_head")["norm_bias"] == "norm.2.bias"


def statistics(proto: onnx.ModelProto) -> None:
    node_named(proto, "n0").output.append("means")
    proto.graph.output.append(helper.make_tensor_value_info("means", FLOAT, ["batch", "tokens", 1]))


def bias_of_another_length(proto: onnx.ModelProto) -> None:
    bias = next(value for value in proto.graph.initializer if value.name == "norm.0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "norm.0.bias"))


def other_axis(proto: onnx.ModelProto) -> None:
    """Over tokens, too: a product's norm is over columns alone."""
    node_named(proto, "n0").attribute.append(helper.make_attribute("axis", 1))


@pytest.mark.parametrize("change", [statistics, bias_of_another_length, other_axis])
def test_other_layer_norms_stay(change, tmp_path: Path, library: str) -> None:
    proto = with_norms(LAYER_NORMS, biased=True)
    change(proto)
    folder = save_folder(proto, tmp_path / "in")
    report = export_model(folder, tmp_path / "out", library=library, verify=False)
    assert f"{LAYER_NORMS[0]} -> FdppFlatGemm" not in report.rewritten
    assert report.rewritten[f"{LAYER_NORMS[1]} -> FdppFlatGemm"] == 1


def sum_read_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("layers.1.o.out", FLOAT, SHAPE))


def test_a_sum_that_no_product_takes_stays_with_its_norm(tmp_path: Path, library: str) -> None:
    proto = with_norms()
    sum_read_elsewhere(proto)
    report, nodes = exported(proto, tmp_path, library)
    assert nodes["x.2"].op_type == NORMS[1]
    assert report.rewritten["Add -> FdppFlatGemm"] == 1 and f"{NORMS[1]} -> FdppFlatGemm" not in report.rewritten


def test_shapes_are_read_elsewhere(tmp_path: Path, library: str) -> None:
    proto = with_norms()
    for name, norm in (("first", "normed.0"), ("second", "normed.2")):
        proto.graph.node.append(helper.make_node("Shape", [norm], [name]))
        proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [3]))
    report, nodes = exported(proto, tmp_path, library)
    assert not {node.op_type for node in nodes.values()} & {"Add", *NORMS}
    assert [report.rewritten[f"{kind} -> FdppFlatGemm"] for kind in (*NORMS, "Add")] == [1, 1, 2]


def test_switched_off(tmp_path: Path, library: str) -> None:
    _, nodes = exported(with_norms(), tmp_path, library, norms_into_products=False)
    assert [nodes[name].op_type for name in ("n0", "x.1", "x.2")] == [NORMS[0], "Add", NORMS[1]]


@pytest.mark.parametrize(("options", "count"), [([], 0), (["--no-norms-into-products"], 1)])
def test_option(options: list[str], count: int, tmp_path: Path) -> None:
    folder = save_folder(with_norms(), tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify", *options]) == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == NORMS[1] for node in nodes) == count
