"""Queries, keys and values cut out of one tensor -> FdppAttention's packed input."""

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

KIND = "parts of one tensor -> packed input of FdppAttention"
SIZES = [HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE]


def cut(
    proto: onnx.ModelProto, op: str, *, sizes: list[int] = SIZES, order: tuple[int, ...] = (0, 1, 2)
) -> onnx.ModelProto:
    """The packed product of each layer cut by a Split or by three Slices, whose results the attention reads in
    `order`."""

    def constant(name: str, *values: int) -> str:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        return name

    for layer, attention in enumerate([node for node in proto.graph.node if node.op_type == "GroupQueryAttention"]):
        packed, parts = attention.input[0], [f"part.{layer}.{index}" for index in range(3)]
        if op == "Split":
            nodes = [
                helper.make_node("Split", [packed, constant(f"sizes.{layer}", *sizes)], parts, axis=-1, name=parts[0])
            ]
        else:
            nodes = []
            for index, name in enumerate(parts):
                start = sum(sizes[:index])
                # An end beyond the last column, as torch writes it.
                end = start + sizes[index] if index < 2 else np.iinfo(np.int64).max
                bounds = [constant(f"{name}.{key}", n) for key, n in (("start", start), ("end", end), ("axis", 2))]
                nodes.append(helper.make_node("Slice", [packed, *bounds], [name], name=name))
        place = list(proto.graph.node).index(attention)
        for offset, node in enumerate(nodes):
            proto.graph.node.insert(place + offset, node)
        attention.input[:3] = [parts[index] for index in order]
    return proto


def rewrite(proto: onnx.ModelProto, report: ExportReport, **options) -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat("keep"), report, **options)
    return model


@pytest.mark.parametrize("op", ["Split", "Slice"])
def test_the_attention_reads_the_whole(op: str, report: ExportReport) -> None:
    model = rewrite(cut(decoder(), op), report)
    attention = ir_node(model, "layers.0.attention")
    assert attention.inputs[0].name == "layers.0.qkv.out" and list(attention.inputs[1:3]) == [None, None]
    assert op not in {node.op_type for node in model.graph}
    assert report.rewritten[KIND] == 1


@pytest.mark.parametrize("op", ["Split", "Slice"])
def test_the_graph_says_the_same(op: str, tmp_path: Path, library: str) -> None:
    folder = save_folder(cut(decoder(layers=2), op), tmp_path / "in")
    report = export_model(folder, tmp_path / "out", library=library)
    assert report.rewritten[KIND] == 2 and report.verification.status == "passed"


def read_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("part.0.1", FLOAT, None))


def test_parts_that_others_read_stay_for_them(tmp_path: Path, library: str) -> None:
    proto = cut(decoder(), "Split")
    read_elsewhere(proto)
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library)
    assert report.rewritten[KIND] == 1 and report.verification.status == "passed"


STAY: dict[str, Callable[[], onnx.ModelProto]] = {
    "another order": lambda: cut(decoder(), "Split", order=(0, 2, 1)),
    "other sizes": lambda: cut(decoder(), "Split", sizes=[64, 16, 48]),
    "one part twice": lambda: cut(decoder(), "Slice", order=(0, 1, 1)),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays(name: str, report: ExportReport) -> None:
    model = rewrite(STAY[name](), report)
    assert KIND not in report.rewritten
    assert None not in ir_node(model, "layers.0.attention").inputs[:3]


def test_off(report: ExportReport) -> None:
    rewrite(cut(decoder(), "Split"), report, packed_qkv=False)
    assert KIND not in report.rewritten


def test_another_axis(report: ExportReport) -> None:
    proto = cut(decoder(), "Split")
    node_named(proto, "part.0.0").attribute[0].i = 1
    rewrite(proto, report)
    assert KIND not in report.rewritten
