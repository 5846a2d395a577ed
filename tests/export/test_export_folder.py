"""The exported folder: its files, its configuration, the report, and the memory that making it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import FLOAT16, HIDDEN, attention_nodes, decoder, node_named, save_folder

from fdpp_ort.export import ExportError, export_model


def test_folder_for_onnxruntime(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    (model_folder / "unused.onnx.data").write_bytes(b"x")
    report = export_model(model_folder, tmp_path / "out", verify=False, library=stand_in)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "fdpp_report.html",
        "fdpp_report.json",
        "genai_config.json",
        "libfdpp_ort.so",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (model_folder / name).read_bytes()
    assert (out / "libfdpp_ort.so").read_bytes() == stand_in.read_bytes()

    config = json.loads((out / "genai_config.json").read_text())
    original = json.loads((model_folder / "genai_config.json").read_text())
    original["model"]["decoder"]["session_options"]["custom_ops_library"] = "libfdpp_ort.so"
    assert config == original

    written = json.loads((out / "fdpp_report.json").read_text())
    assert written == json.loads(report.to_json())
    assert written["rewritten"] == {
        "GroupQueryAttention -> FdppAttention": 1,
        "MatMul -> FdppFlatGemm": 3,
        "Gather -> Gather of the packed weight": 1,
    }
    assert written["left"] == [] and written["verification"]["status"] == "not verified"
    assert written["weight_bytes_before"] == written["weight_bytes_after"] > 0


def test_graph_file_name_is_rewritten(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    config = model_folder / "genai_config.json"
    config.write_text(config.read_text().replace("model.onnx", "weird.onnx"))
    (model_folder / "model.onnx").rename(model_folder / "weird.onnx")
    export_model(model_folder, tmp_path / "out", verify=False, library=stand_in)
    assert (
        json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "model.onnx"
    )
    assert not (tmp_path / "out" / "weird.onnx").exists()


def test_folder_for_tensorrt_needs_no_library(model_folder: Path, tmp_path: Path) -> None:
    export_model(model_folder, tmp_path / "out", target="tensorrt", verify=False)
    assert not list((tmp_path / "out").glob("*.so"))
    assert "custom_ops_library" not in (tmp_path / "out" / "genai_config.json").read_text()
    types = {(node.domain, node.op_type) for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert {("fdpp.dense", "FdppAttention"), ("fdpp.dense", "FdppFlatGemm")} <= types


@pytest.mark.parametrize("weights", ["keep", "f16", "bf16"])
def test_written_graph(weights: str, model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    report = export_model(
        model_folder, tmp_path / "out", weights=weights, softmax="online", verify=False, library=stand_in
    )
    before, after = onnx.load(model_folder / "model.onnx"), onnx.load(tmp_path / "out" / "model.onnx")
    assert {opset.domain: opset.version for opset in after.opset_import}["fdpp"] == 1
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    (node,) = attention_nodes(after)
    assert {attribute.name: attribute.s for attribute in node.attribute}["softmax_mode"] == b"online"
    old, new = ({tensor.name: numpy_helper.to_array(tensor) for tensor in m.graph.initializer} for m in (before, after))
    packed = new["layers.0.qkv.weight.packed"]
    np.testing.assert_array_equal(packed, old["layers.0.qkv.weight"].T.astype(packed.dtype))
    np.testing.assert_array_equal(new["cos_cache"], old["cos_cache"])
    assert not {name for name in new if name.endswith(".weight")}  # no original beside a packed one
    assert sum(values.nbytes for values in new.values()) == report.weight_bytes_after
    assert weights == "keep" or report.weight_bytes_after < 0.6 * report.weight_bytes_before


def test_what_was_left_is_reported(tmp_path: Path, stand_in: Path) -> None:
    proto = decoder(layers=2)
    node_named(proto, "layers.1.attention").op_type = "PagedAttention"
    node_named(proto, "layers.1.o").op_type = "FusedMatMul"
    folder = save_folder(proto, tmp_path / "in")
    report = export_model(folder, tmp_path / "out", verify=False, library=stand_in)
    assert [(left.op, left.node) for left in report.left] == [
        ("com.microsoft::PagedAttention", "layers.1.attention"),
        ("FusedMatMul", "layers.1.o"),
    ]
    assert json.loads((tmp_path / "out" / "fdpp_report.json").read_text())["left"][0]["reason"].startswith("only")


def refused(proto: onnx.ModelProto, tmp_path: Path, stand_in: Path, message: str, **options) -> None:
    folder = save_folder(proto, tmp_path / "in")
    with pytest.raises(ExportError, match=message):
        export_model(folder, tmp_path / "out", verify=False, library=stand_in, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "libfdpp_ort.so"]


def test_no_attention(tmp_path: Path, stand_in: Path) -> None:
    proto = decoder()
    node = attention_nodes(proto)[0]
    node.op_type = "Whatever"
    refused(proto, tmp_path, stand_in, "no attention was rewritten: it has no attention node")


def test_no_attention_rewritten(tmp_path: Path, stand_in: Path) -> None:
    proto = decoder()
    attention_nodes(proto)[0].op_type = "PackedMultiHeadAttention"
    refused(proto, tmp_path, stand_in, "no attention was rewritten: layers.0.attention: only com.microsoft")


@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_weights_that_no_kernel_takes(weights: str, tmp_path: Path, stand_in: Path) -> None:
    message = f"--weights {weights} changes nothing.*: no kernel multiplies float16 activations"
    refused(decoder(dtype=FLOAT16), tmp_path, stand_in, message, weights=weights)


def test_an_export_is_not_exported_again(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    export_model(model_folder, tmp_path / "once", target="tensorrt", verify=False)
    with pytest.raises(ExportError, match="already has ops of domain fdpp"):
        export_model(tmp_path / "once", tmp_path / "twice", verify=False, library=stand_in)


@pytest.mark.parametrize("option", ["target", "weights", "head_weights", "softmax"])
def test_unknown_option(option: str, model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{option} is 'fast', expected "):
        export_model(model_folder, tmp_path / "out", library=stand_in, **{option: "fast"})


def test_progress_counts_all_bytes(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    export_model(
        model_folder, tmp_path / "out", verify=False, library=stand_in, progress=lambda *call: calls.append(call)
    )
    done = [call[1] for call in calls]
    assert done == sorted(done) and calls[-1][1] == calls[-1][2] > 0
    assert {call[0] for call in calls} == {"writing weights"}


def test_weights_are_streamed(tmp_path: Path, stand_in: Path) -> None:
    """200 MB of weights pass through in a quarter of that."""
    folder = save_folder(decoder(layers=60, hidden=64 * HIDDEN, vocabulary=512), tmp_path / "in")
    # VmHWM and not getrusage, whose peak a process inherits from the one that started it.
    script = """
import re, sys
from fdpp_ort.export import export_model
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
report = export_model(sys.argv[1], sys.argv[2], weights="f16", verify=False, library=sys.argv[3])
print(peak() - before, report.weight_bytes_before)
"""
    command = [sys.executable, "-c", script, folder, tmp_path / "out", stand_in]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    grown, total = map(int, result.stdout.split())
    assert total > 190e6
    assert 0 < grown < total / 4
