"""Models exported with quantised weights, beside the original graph with the values that are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT16, HIDDEN, VOCABULARY, decoder, node_named, quantise, save_folder, with_gates

from fdpp_ort.export import ExportError, ExportReport, export_model
from fdpp_ort.export.quantised_weight import QuantisedWeight


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> tuple[ExportReport, ir.Model]:
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, **options)
    return report, ir.load(tmp_path / "out" / "model.onnx")


def formats(model: ir.Model) -> dict[str, str]:
    return {n.name: n.attributes["weight_format"].value for n in model.graph if n.op_type == "FdppFlatGemm"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("weights", "bytes_", "lost"),
    [
        ("int8", 0.3, 0.1),
        ("fp8", 0.3, 0.3),
        ("int4", 0.22, 0.8),
        ("int4:64", 0.2, 0.9),
        ("int4:16:zero-points", 0.24, 0.8),
    ],
)
def test_logits(weights: str, bytes_: float, lost: float, tied: bool, tmp_path: Path, library: str) -> None:
    proto = decoder(layers=2, tied=tied)
    with_gates(proto, 1)
    report, model = export(proto, tmp_path, library, weights=weights)
    check = report.verification
    assert check.status == "passed" and report.left == []
    # Of int4 sums of a few rows are of activations that were rounded to 8 bits.
    for phase, largest in zip(check.phases, (1e-5, 1e-5 if "int4" not in weights else 0.1), strict=True):
        assert phase.relative_error < largest
    for loss in check.loss:
        assert 1e-3 < loss.relative_error < lost
    stored = formats(model)
    assert stored.pop("lm_head") == ("int8" if "int4" in weights else weights)
    assert set(stored.values()) == {weights.split(":")[0]}
    embedding = VOCABULARY * HIDDEN * 4
    tables = sum(model.graph.initializers[f"{name}_cache"].const_value.nbytes for name in ("cos", "sin"))
    before = report.weight_bytes_before - tables - (0 if tied else embedding)
    assert report.weight_bytes_after - tables - embedding < bytes_ * before
    assert report.rewritten[f"weight -> {'int4:32' if weights == 'int4' else weights}"] == 8 - ("int4" in weights)


def test_the_head_may_be_stored_in_another_format(tmp_path: Path, library: str) -> None:
    report, model = export(decoder(layers=2), tmp_path, library, weights="int4", head_weights="f16")
    assert report.verification.status == "passed" and (report.weights, report.head_weights) == ("int4:32", "f16")
    assert formats(model).pop("lm_head") == "f16"
    assert sorted(formats(model).values()) == ["f16", *["int4"] * 4]
    # Tied, so it is the packed weight that the embedding reads.
    assert next(node for node in model.graph if node.name == "embed").inputs[0].name == "lm_head.weight.packed"


def test_a_scaled_head_is_found(tmp_path: Path, library: str) -> None:
    proto = decoder()
    head = node_named(proto, "lm_head")
    head.output[0] = "raw"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    proto.graph.node.append(helper.make_node("Mul", ["raw", "half"], ["logits"], name="scaled"))
    _, model = export(proto, tmp_path, library, weights="int8", head_weights="keep")
    assert formats(model) == {"layers.0.qkv": "int8", "layers.0.o": "int8", "lm_head": "f32"}


def test_no_head(tmp_path: Path, library: str) -> None:
    proto = decoder()
    node_named(proto, "lm_head").output[0] = "scores"
    proto.graph.output[0].name = "scores"
    with pytest.raises(ExportError, match="--head-weights f16: no product makes an output named logits"):
        export(proto, tmp_path, library, head_weights="f16")


def test_a_head_that_is_quantised_already(tmp_path: Path, library: str) -> None:
    proto = decoder(tied=False)
    quantise(proto, "lm_head", block_size=32)
    with pytest.raises(ExportError, match="--head-weights f16: the weights of lm_head are quantised already"):
        export(proto, tmp_path, library, head_weights="f16")


def test_float16_graph(tmp_path: Path, library: str) -> None:
    """Not run here: only a GPU takes float16 activations."""
    report, model = export(decoder(dtype=FLOAT16, tied=False), tmp_path, library, weights="int4:64")
    nodes = [node for node in model.graph if node.op_type == "FdppFlatGemm"]
    assert [value.dtype for value in nodes[0].inputs[1:]] == [ir.DataType.UINT8, ir.DataType.FLOAT16]
    assert all("accuracy_level" not in node.attributes for node in nodes)
    assert model.graph.initializers["embedding"].dtype == ir.DataType.FLOAT16


def test_quantised_products_stay_as_they_are(tmp_path: Path, library: str) -> None:
    """MatMulNBits keeps its numbers; only the float products are quantised."""
    proto = decoder()
    quantise(proto, "layers.0.o", block_size=64)
    numbers = next(numpy_helper.to_array(w) for w in proto.graph.initializer if w.name == "layers.0.o.scales")
    report, model = export(proto, tmp_path, library, weights="int8")
    assert report.verification.status == "passed"
    assert formats(model) == {"layers.0.qkv": "int8", "layers.0.o": "int4", "lm_head": "int8"}
    node = next(node for node in model.graph if node.name == "layers.0.o")
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), numbers)


def test_for_tensorrt(tmp_path: Path, library: str) -> None:
    report, model = export(decoder(), tmp_path, library, weights="int4", target="tensorrt")
    assert report.verification.status == "passed"
    assert formats(model) == {"layers.0.qkv": "int4", "layers.0.o": "int4", "lm_head": "int8"}


def test_a_wrong_layout_does_not_pass(tmp_path: Path, library: str, monkeypatch) -> None:
    monkeypatch.setattr("fdpp_ort.export.quantised_weight.int4_words", lambda numbers: numbers)
    with pytest.raises(ExportError, match="verification failed"):
        export(decoder(), tmp_path, library, weights="int4")


def test_wrong_scales_do_not_pass(tmp_path: Path, library: str, monkeypatch) -> None:
    rest = QuantisedWeight._rest
    monkeypatch.setattr(QuantisedWeight, "_rest", lambda self, name: (1.01 * piece for piece in rest(self, name)))
    with pytest.raises(ExportError, match="verification failed"):
        export(decoder(), tmp_path, library, weights="int8")
