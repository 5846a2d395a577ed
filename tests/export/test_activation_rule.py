"""An activation behind a product -> the product's activation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import HIDDEN, decoder, ir_node, node_named, save_folder

from fdpp_ort.cli.export import main
from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

PRODUCT, OUT = "layers.0.o", "layers.0.o.out"
SPELLINGS = {
    "Relu": "relu",
    "com.microsoft::Gelu": "gelu",
    "com.microsoft::BiasGelu": "gelu",
    "com.microsoft::FastGelu": "gelu_tanh",
    "com.microsoft::FastGelu with a bias": "gelu_tanh",
    "com.microsoft::QuickGelu of alpha 1": "silu",
    "Sigmoid": "silu",
}


def activated(spelling: str, *, bias: np.ndarray | None = None, **attributes: object) -> onnx.ModelProto:
    """A decoder with an activation behind the output product of its first layer."""
    proto = decoder()
    at = list(proto.graph.node).index(node_named(proto, PRODUCT)) + 1
    proto.graph.node[at - 1].output[0] = "product"
    domain, _, op = spelling.split()[0].rpartition("::")
    inputs = ["product"]
    if "Bias" in spelling or "bias" in spelling:
        values = np.linspace(-1, 1, HIDDEN, dtype=np.float32) if bias is None else bias
        proto.graph.initializer.append(numpy_helper.from_array(values, "added"))
        inputs.append("added")
    if "alpha" in spelling:
        attributes["alpha"] = 1.0
    if op == "Sigmoid":
        nodes = [
            helper.make_node("Sigmoid", inputs, ["squashed"]),
            helper.make_node("Mul", ["product", "squashed"], [OUT], name="activation"),
        ]
    else:
        nodes = [helper.make_node(op, inputs, [OUT], name="activation", domain=domain, **attributes)]
    for node in reversed(nodes):
        proto.graph.node.insert(at, node)
    if domain and all(opset.domain != domain for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat("keep"), report)
    return model


def activation_of(model: ir.Model) -> str | None:
    attribute = ir_node(model, PRODUCT).attributes.get("activation")
    return attribute.value if attribute is not None else None


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_becomes_the_products(spelling: str, report: ExportReport) -> None:
    model = rewrite(activated(spelling), report)
    assert activation_of(model) == SPELLINGS[spelling]
    assert report.rewritten[f"{SPELLINGS[spelling]} -> FdppFlatGemm"] == 1
    product = ir_node(model, PRODUCT)
    assert product.outputs[0].name == OUT and product.outputs[0].uses()
    assert ("bias" in spelling.lower()) == (len(product.inputs) > 4 and product.inputs[4].name == "added")
    assert not {node.op_type for node in model.graph} & {"Relu", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Sigmoid"}


@pytest.mark.parametrize(("approximate", "activation"), [("none", "gelu"), ("tanh", "gelu_tanh")])
def test_gelu_of_onnx(approximate: str, activation: str, report: ExportReport) -> None:
    assert activation_of(rewrite(activated("Gelu", approximate=approximate), report)) == activation


@pytest.mark.parametrize("spelling", ["LeakyRelu", "com.microsoft::QuickGelu"])
def test_other_activations_stay(spelling: str, report: ExportReport) -> None:
    assert activation_of(rewrite(activated(spelling), report)) is None


def test_others_read_the_product(report: ExportReport) -> None:
    proto = activated("Relu")
    proto.graph.output.append(helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, None))
    assert activation_of(rewrite(proto, report)) is None


def test_another_bias_stays(report: ExportReport) -> None:
    proto = activated("com.microsoft::BiasGelu", bias=np.ones(1, np.float32))
    assert activation_of(rewrite(proto, report)) is None


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_same_logits(spelling: str, tmp_path: Path, library: str) -> None:
    folder = save_folder(activated(spelling), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", library=library)
    assert report.rewritten[f"{SPELLINGS[spelling]} -> FdppFlatGemm"] == 1
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)


@pytest.mark.parametrize(("option", "count"), [("--activations", 1), ("--no-activations", 0)])
def test_option(option: str, count: int, tmp_path: Path) -> None:
    folder = save_folder(activated("Relu"), tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify", option]) == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert sum(a.name == "activation" and a.s == b"relu" for node in nodes for a in node.attribute) == count
