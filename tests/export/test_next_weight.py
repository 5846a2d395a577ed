"""The hint next_weight: which product is told of which weight."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import FLOAT, FLOAT16, decoder, quantise, save_folder, with_gates

from fdpp_ort.cli.export import main
from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.lower import hint_next_weights
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

KIND = "FdppFlatGemm -> with the next weight as a hint"


def hints(graph: onnx.GraphProto) -> dict[str, str]:
    """The product whose weight each product is told of."""
    products = [node for node in graph.node if node.op_type == "FdppFlatGemm"]
    reader = {node.input[1]: node.name for node in products}
    return {node.name: reader[node.input[7]] for node in products if len(node.input) > 7}


def hinted(proto: onnx.ModelProto, report: ExportReport, weights: str = "keep") -> dict[str, str]:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat.parse(weights), report)
    hint_next_weights(model, report)
    return hints(ir.to_proto(model).graph)


def test_each_product_is_told_of_the_next(report: ExportReport) -> None:
    found = hinted(decoder(layers=2), report)
    order = ["layers.0.qkv", "layers.0.o", "layers.1.qkv", "layers.1.o", "lm_head"]
    assert found == dict(pairwise(order))
    assert report.rewritten[KIND] == 4


def test_quantised_weights(report: ExportReport) -> None:
    """Only weights of the same type follow each other; scales are no weights."""
    proto = decoder(layers=2)
    for name in ("layers.0.o", "layers.1.qkv"):
        quantise(proto, name)
    assert hinted(proto, report) == {"layers.0.o": "layers.1.qkv", "layers.1.o": "lm_head"}


def test_no_hint_across_types_of_activations(report: ExportReport) -> None:
    """They may run on different devices, and then each would store the weight."""
    proto = decoder(dtype=FLOAT16)
    for name, dtype in (("layers.0.attention.out", FLOAT16), ("x.1", FLOAT)):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, dtype, None))
    assert hinted(proto, report) == {"layers.0.qkv": "layers.0.o"}


@pytest.mark.parametrize("packed", [True, False])
def test_the_order_is_the_runtimes(packed: bool, tmp_path: Path, library: str) -> None:
    """Also of products side by side: q, k and v, gate and up. Each hint is of the weight that is read next."""
    import onnxruntime

    proto = decoder(layers=3, packed=packed)
    for layer in range(3):
        with_gates(proto, layer)
    folder = save_folder(proto, tmp_path / "in")
    report = export_model(folder, tmp_path / "out", prefetch=True, packed_qkv=False, library=library)
    assert report.verification.status == "passed"
    path = tmp_path / "out" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(path, options)
    feeds = {"input_ids": np.array([[3]]), "attention_mask": np.ones((1, 1), np.int64)}
    for value in session.get_inputs()[2:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["name"].removesuffix("_kernel_time") for e in events if e.get("args", {}).get("op_name") == "FdppFlatGemm"]
    assert len(ran) == 3 * (4 if packed else 6) + 1
    assert hints(onnx.load(path).graph) == dict(pairwise(ran))


def test_off_by_default(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    report = export_model(model_folder, tmp_path / "out", verify=False, library=stand_in)
    assert KIND not in report.rewritten
    assert hints(onnx.load(tmp_path / "out" / "model.onnx").graph) == {}


@pytest.mark.parametrize(("option", "count"), [("--prefetch", 2), ("--no-prefetch", 0)])
def test_option(option: str, count: int, model_folder: Path, tmp_path: Path) -> None:
    assert main([str(model_folder), str(tmp_path / "out"), "--no-verify", option]) == 0
    assert len(hints(onnx.load(tmp_path / "out" / "model.onnx").graph)) == count


def test_none_for_tensorrt(model_folder: Path, tmp_path: Path) -> None:
    """It may copy constants, and then the hint names memory that nobody reads."""
    report = export_model(model_folder, tmp_path / "out", target="tensorrt", verify=False, prefetch=True)
    assert KIND not in report.rewritten
    for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node:
        if node.op_type == "FdppFlatGemm":
            assert node_inputs(node) == b"A,B"


def node_inputs(node: onnx.NodeProto) -> bytes:
    return next(attribute.s for attribute in node.attribute if attribute.name == "inputs")
