"""RMS norms of query and key heads ahead of the attention -> its inputs q_norm and k_norm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, HEAD_SIZE, HEADS, KV_HEADS, decoder, ir_node, node_named, save_folder

from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

KIND = "norms of heads -> FdppAttention"
COLUMNS = {"q": HEADS * HEAD_SIZE, "k": KV_HEADS * HEAD_SIZE}
# Shapes of the heads and of what they become again: as genai's builder writes them, and with four dimensions.
SPELLINGS = {"three": ([0, -1, HEAD_SIZE], None), "four": ([0, 0, -1, HEAD_SIZE], [0, 0, -1])}


def normed(spelling: str = "three", *, parts: str = "qk", layers: int = 1, epsilon: float = 1e-5) -> onnx.ModelProto:
    proto = decoder(packed=False, layers=layers)
    random = np.random.default_rng(3)
    for layer in range(layers):
        for index, part in enumerate(parts):
            name = f"layers.{layer}.{part}"
            apart, back = SPELLINGS[spelling]
            constants = {
                "apart": np.array(apart),
                "back": np.array(back or [0, -1, COLUMNS[part]]),
                "norm": random.standard_normal(HEAD_SIZE, np.float32),
            }
            for key, values in constants.items():
                proto.graph.initializer.append(numpy_helper.from_array(values, f"{name}.{key}"))
            nodes = [
                helper.make_node("Reshape", [f"{name}.out", f"{name}.apart"], [f"{name}.heads"], name=f"{name}.heads"),
                helper.make_node(
                    "SimplifiedLayerNormalization",
                    [f"{name}.heads", f"{name}.norm"],
                    [f"{name}.normed"],
                    name=f"{name}.normed",
                    epsilon=epsilon,
                    axis=-1,
                ),
                helper.make_node(
                    "Reshape", [f"{name}.normed", f"{name}.back"], [f"{name}.again"], name=f"{name}.again"
                ),
            ]
            attention = f"layers.{layer}.attention"
            place = [node.name for node in proto.graph.node].index(attention)
            for offset, node in enumerate(nodes):
                proto.graph.node.insert(place + offset, node)
            node_named(proto, attention).input[index] = f"{name}.again"
    return proto


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat("keep"), report, packed_qkv=False)
    return model


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_become_inputs(spelling: str, report: ExportReport) -> None:
    model = rewrite(normed(spelling, epsilon=0.25), report)
    attention = ir_node(model, "layers.0.attention")
    assert [value.name for value in attention.inputs[:2]] == ["layers.0.q.out", "layers.0.k.out"]
    assert [value.name for value in attention.inputs[14:]] == ["layers.0.q.norm", "layers.0.k.norm"]
    assert attention.attributes["qk_norm_epsilon"].value == 0.25
    assert "Reshape" not in {node.op_type for node in model.graph}
    assert report.rewritten[KIND] == 1


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("packed_qkv", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_graph_says_the_same(spelling: str, packed_qkv: bool, target: str, tmp_path: Path, library: str) -> None:
    folder = save_folder(normed(spelling, layers=2, epsilon=0.1), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", packed_qkv=packed_qkv, target=target, library=library)
    assert report.rewritten[KIND] == 2 and report.verification.status == "passed"
    assert report.rewritten.get("Q, K, V -> one product", 0) == 2 * packed_qkv
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)


def attribute(proto: onnx.ModelProto, node: str, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node_named(proto, node).attribute if attribute.name == name)


def of_other_epsilons(proto: onnx.ModelProto) -> None:
    attribute(proto, "layers.0.q.normed", "epsilon").f = 0.5


def over_all_columns(proto: onnx.ModelProto) -> None:
    """Not each head by itself."""
    for part, columns in COLUMNS.items():
        for name, values in (("apart", np.array([0, -1, columns])), ("norm", np.ones(columns, np.float32))):
            tensor = next(w for w in proto.graph.initializer if w.name == f"layers.0.{part}.{name}")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def of_one_weight_for_all(proto: onnx.ModelProto) -> None:
    tensor = next(w for w in proto.graph.initializer if w.name == "layers.0.q.norm")
    tensor.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), tensor.name))


def read_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("layers.0.k.normed", FLOAT, None))


def over_another_axis(proto: onnx.ModelProto) -> None:
    attribute(proto, "layers.0.k.normed", "axis").i = 1


@pytest.mark.parametrize(
    "edit", [of_other_epsilons, over_all_columns, of_one_weight_for_all, read_elsewhere, over_another_axis]
)
def test_what_stays(edit: Callable[[onnx.ModelProto], None], report: ExportReport) -> None:
    proto = normed()
    edit(proto)
    model = rewrite(proto, report)
    assert KIND not in report.rewritten
    assert {f"layers.0.{part}.normed" for part in "qk"} <= {node.name for node in model.graph}


@pytest.mark.parametrize("part", ["q", "k"])
def test_one_of_two_stays(part: str, report: ExportReport) -> None:
    proto = normed(parts="qk")
    other = "k" if part == "q" else "q"
    node_named(proto, "layers.0.attention").input["qk".index(other)] = f"layers.0.{other}.out"
    model = rewrite(proto, report)
    assert KIND not in report.rewritten
    assert ir_node(model, "layers.0.attention").inputs["qk".index(part)].name == f"layers.0.{part}.again"
