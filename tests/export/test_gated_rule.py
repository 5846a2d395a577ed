"""silu(gate) * up -> one product with the activation silu_mul."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, HIDDEN, decoder, ir_node, node_named, quantise, save_folder, with_gates

from fdpp_ort.cli.export import main
from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

KIND = "silu(gate) * up -> silu_mul"
GATE, UP, GATED = "layers.0.gate", "layers.0.up", "x.1.gated"
SPELLINGS = {"Sigmoid": {}, "com.microsoft::QuickGelu": {"alpha": 1.0}}


def gated(silu: str = "Sigmoid", **attributes: float) -> onnx.ModelProto:
    proto = decoder()
    with_gates(proto, 0, silu, **attributes)
    return proto


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat("keep"), report)
    return model


def names(model: ir.Model) -> set[str]:
    return {node.name for node in model.graph}


@pytest.mark.parametrize("silu", SPELLINGS)
def test_becomes_one_product(silu: str, report: ExportReport) -> None:
    proto = gated(silu, **SPELLINGS[silu])
    model = rewrite(proto, report)
    assert report.rewritten[KIND] == 1
    assert not names(model) & {GATE, UP, "x.1.silu", "x.1.sigmoid"}
    node = ir_node(model, GATED)
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "N": 2 * HIDDEN,
        "K": HIDDEN,
        "weight_format": "f32",
        "activation": "silu_mul",
    }
    weights = {w.name: numpy_helper.to_array(w) for w in proto.graph.initializer}
    rows = [weights[f"{name}.weight"].T for name in (GATE, UP)]
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), np.concatenate(rows))


@pytest.mark.parametrize("zero_points", [False, True])
def test_int4_weights_with_all_that_goes_with_them(zero_points: bool, report: ExportReport) -> None:
    proto = gated()
    for name in (GATE, UP):
        quantise(proto, name, block_size=32, zero_points=zero_points)
    apart = ir.from_proto(proto)
    fuse(apart, WeightFormat("keep"), ExportReport("", "", "onnxruntime", "keep", "lazy"), gated=False)
    node = ir_node(rewrite(proto, report), GATED)
    parts = [ir_node(apart, name).inputs for name in (GATE, UP)]
    assert len(node.inputs) == len(parts[0]) == (4 if zero_points else 3)
    for value, *both in list(zip(node.inputs, *parts, strict=True))[1:]:
        rows = np.concatenate([part.const_value.numpy() for part in both])
        np.testing.assert_array_equal(value.const_value.numpy(), rows)


@pytest.mark.parametrize("silu", SPELLINGS)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_graph_says_the_same(silu: str, target: str, tmp_path: Path, library: str) -> None:
    folder = save_folder(gated(silu, **SPELLINGS[silu]), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", target=target, library=library)
    assert report.rewritten[KIND] == 1 and report.verification.status == "passed"


def of_halves(cut: str = "Split", *, up_first: bool = False) -> onnx.ModelProto:
    """The gate is one half of the product "whole", what it gates the other."""
    proto = gated()
    gate, up = node_named(proto, GATE), node_named(proto, UP)
    stored = {weight.name: weight for weight in proto.graph.initializer}
    parts = [numpy_helper.to_array(stored[node.input[1]]) for node in (gate, up)]
    half, columns = 2 * HIDDEN, 4 * HIDDEN
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in {
            "whole.weight": np.concatenate(parts, axis=1),
            "sizes": np.array([half, half]),
            **{f"at {place}": np.array([place]) for place in (0, half, columns, 2)},
        }.items()
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("whole", FLOAT, ["batch", "tokens", columns]))
    outputs = [UP, GATE] if up_first else [GATE, UP]
    nodes = [helper.make_node("MatMul", [gate.input[0], "whole.weight"], ["whole"], name="whole")]
    if cut == "Split":
        nodes.append(helper.make_node("Split", ["whole", "sizes"], outputs, name="cut", axis=-1))
    for output, begin, end in zip(outputs, (0, half), (half, columns), strict=True) if cut == "Slice" else ():
        bounds = [f"at {begin}", f"at {end}", "at 2"]
        nodes.append(helper.make_node("Slice", ["whole", *bounds], [output], name=f"cut {output}"))
    place = [node.name for node in proto.graph.node].index(GATE)
    for node in (gate, up):
        proto.graph.node.remove(node)
    for offset, node in enumerate(nodes):
        proto.graph.node.insert(place + offset, node)
    return proto


@pytest.mark.parametrize("cut", ["Split", "Slice"])
def test_halves_of_one_product(cut: str, tmp_path: Path, library: str) -> None:
    proto = of_halves(cut)
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library)
    assert report.rewritten[KIND] == 1 and report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)
    ops = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    assert not {"Split", "Slice", "Sigmoid"} & {*ops}


def test_halves_with_int4_weights(tmp_path: Path, library: str) -> None:
    folder = save_folder(of_halves(), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", library=library, weights="int4:32:zero-points")
    assert report.rewritten[KIND] == 1 and report.verification.status == "passed"


def whole_read_elsewhere(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.output.append(helper.make_tensor_value_info("whole", FLOAT, None))
    return proto


@pytest.mark.parametrize(
    "make",
    [lambda: of_halves(up_first=True), lambda: whole_read_elsewhere(of_halves())],
    ids=["the gate comes second", "read elsewhere"],
)
def test_halves_that_stay(make: Callable[[], onnx.ModelProto], report: ExportReport) -> None:
    model = rewrite(make(), report)
    assert KIND not in report.rewritten
    assert {"whole", "cut", GATED} <= names(model)


def read_elsewhere(name: str) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))

    return edit


def of_other_rows(proto: onnx.ModelProto) -> None:
    node_named(proto, UP).input[0] = "x.0"


def of_one_weight(proto: onnx.ModelProto) -> None:
    node_named(proto, UP).input[1] = f"{GATE}.weight"


def of_two_formats(proto: onnx.ModelProto) -> None:
    quantise(proto, UP)


def with_one_bias(proto: onnx.ModelProto) -> None:
    """Of the product that is not the gate."""
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2 * HIDDEN, np.float32), "bias"))
    place = [node.name for node in proto.graph.node].index(UP) + 1
    proto.graph.node.insert(place, helper.make_node("Add", [UP, "bias"], ["biased"], name="biased"))
    node_named(proto, GATED).input[1] = "biased"


def sigmoid_of_something_else(proto: onnx.ModelProto) -> None:
    node_named(proto, "x.1.sigmoid").input[0] = UP


@pytest.mark.parametrize(
    "edit",
    [
        *(read_elsewhere(name) for name in (GATE, UP, "x.1.silu", "x.1.sigmoid")),
        *(of_other_rows, of_one_weight, of_two_formats, with_one_bias, sigmoid_of_something_else),
    ],
    ids=[f"{name} is read elsewhere" for name in ("gate", "up", "silu", "sigmoid")]
    + ["other rows", "one weight", "two formats", "one bias", "another sigmoid"],
)
def test_what_stays(edit: Callable[[onnx.ModelProto], None], report: ExportReport) -> None:
    proto = gated()
    edit(proto)
    model = rewrite(proto, report)
    assert KIND not in report.rewritten
    assert {GATE, UP, GATED} <= names(model)


def test_another_activation_stays(report: ExportReport) -> None:
    rewrite(gated("com.microsoft::QuickGelu"), report)  # alpha 1.702
    assert KIND not in report.rewritten


@pytest.mark.parametrize(("option", "count"), [("--gated", 1), ("--no-gated", 0)])
def test_option(option: str, count: int, tmp_path: Path) -> None:
    folder = save_folder(gated(), tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify", option]) == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert sum(a.name == "activation" and a.s == b"silu_mul" for node in nodes for a in node.attribute) == count
