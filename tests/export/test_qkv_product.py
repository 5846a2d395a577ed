"""The products for queries, keys and values -> one product, FdppAttention's packed input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import (
    FLOAT,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    add_input,
    decoder,
    ir_node,
    node_named,
    quantise,
    save_folder,
)

from fdpp_ort.cli.export import main
from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

KIND = "Q, K, V -> one product"
PARTS = [f"layers.0.{part}" for part in "qkv"]
COLUMNS = [HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE]


def rewrite(proto: onnx.ModelProto, report: ExportReport, **options) -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat("keep"), report, **options)
    return model


def with_biases(proto: onnx.ModelProto, parts: list[str]) -> None:
    """All of one constant, where their sizes allow it, as torch stores equal ones."""
    for name in parts:
        columns = COLUMNS[PARTS.index(name)]
        bias = f"bias.{columns}"
        if bias not in {w.name for w in proto.graph.initializer}:
            values = np.random.default_rng(columns).standard_normal(columns, np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(values, bias))
        place = [node.name for node in proto.graph.node].index(name) + 1
        proto.graph.node.insert(
            place, helper.make_node("Add", [f"{name}.out", bias], [f"{name}.sum"], name=f"{name}.sum")
        )
        inputs = node_named(proto, "layers.0.attention").input
        inputs[PARTS.index(name)] = f"{name}.sum"


@pytest.mark.parametrize("biases", [False, True])
def test_becomes_one_product(biases: bool, report: ExportReport) -> None:
    proto = decoder(packed=False)
    if biases:
        with_biases(proto, PARTS)
    model = rewrite(proto, report)
    assert report.rewritten[KIND] == 1
    attention = ir_node(model, "layers.0.attention")
    product = attention.inputs[0].producer()
    assert list(attention.inputs[1:3]) == [None, None] and not {node.name for node in model.graph} & set(PARTS)
    assert (product.op_type, product.attributes["N"].value) == ("FdppFlatGemm", sum(COLUMNS))
    assert biases or attention.inputs[0].shape[-1] == sum(COLUMNS)
    weights = {w.name: numpy_helper.to_array(w) for w in proto.graph.initializer}
    rows = np.concatenate([weights[f"{name}.weight"].T for name in PARTS])
    np.testing.assert_array_equal(product.inputs[1].const_value.numpy(), rows)
    if biases:
        added = np.concatenate([weights[f"bias.{columns}"] for columns in COLUMNS])
        np.testing.assert_array_equal(product.inputs[4].const_value.numpy(), added)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("weights", ["keep", "int8", "int4:16:zero-points"])
def test_the_graph_says_the_same(weights: str, target: str, tmp_path: Path, library: str) -> None:
    proto = decoder(layers=2, packed=False)
    with_biases(proto, PARTS)
    folder = save_folder(proto, tmp_path / "in")
    report = export_model(folder, tmp_path / "out", weights=weights, target=target, library=library)
    assert report.rewritten[KIND] == 2 and report.verification.status == "passed"


def test_matmul_nbits(tmp_path: Path, library: str) -> None:
    proto = decoder(packed=False)
    for name in PARTS:
        quantise(proto, name, block_size=32, zero_points=True)
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library)
    assert report.rewritten[KIND] == 1 and report.verification.status == "passed"
    assert report.weight_bytes_after == report.weight_bytes_before


def read_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("layers.0.k.out", FLOAT, None))


def of_other_rows(proto: onnx.ModelProto) -> None:
    node_named(proto, "layers.0.v").input[0] = add_input(proto, "other", FLOAT, ["batch", "tokens", HEADS * HEAD_SIZE])


def of_one_weight(proto: onnx.ModelProto) -> None:
    node_named(proto, "layers.0.v").input[1] = "layers.0.k.weight"


def of_two_formats(proto: onnx.ModelProto) -> None:
    quantise(proto, "layers.0.k")


def of_two_block_sizes(proto: onnx.ModelProto) -> None:
    for name, size in zip(PARTS, (16, 32, 32), strict=True):
        quantise(proto, name, block_size=size)


def with_one_bias(proto: onnx.ModelProto) -> None:
    with_biases(proto, PARTS[:1])


def not_a_product(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Neg", ["layers.0.q.out"], ["negated"], name="negated")
    place = [node.name for node in proto.graph.node].index("layers.0.attention")
    proto.graph.node.insert(place, node)
    node_named(proto, "layers.0.attention").input[0] = "negated"


@pytest.mark.parametrize(
    "edit",
    [read_elsewhere, of_other_rows, of_one_weight, of_two_formats, of_two_block_sizes, with_one_bias, not_a_product],
)
def test_what_stays(edit: Callable[[onnx.ModelProto], None], report: ExportReport) -> None:
    proto = decoder(packed=False)
    edit(proto)
    model = rewrite(proto, report)
    assert KIND not in report.rewritten
    assert set(PARTS) <= {node.name for node in model.graph}
    assert None not in ir_node(model, "layers.0.attention").inputs[:3]


@pytest.mark.parametrize(("option", "count"), [("--packed-qkv", 3), ("--no-packed-qkv", 5)])
def test_option(option: str, count: int, tmp_path: Path) -> None:
    folder = save_folder(decoder(packed=False), tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify", option]) == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "FdppFlatGemm" for node in nodes) == count
