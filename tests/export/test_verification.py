"""Both graphs in ONNX Runtime on the same tokens, with the op library of the installed package."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_models import (
    FLOAT,
    FLOAT16,
    HEAD_SIZE,
    HEADS,
    INT64,
    KV_HEADS,
    add_input,
    attention_nodes,
    decoder,
    node_named,
    save_folder,
)

from fdpp_ort.export import ExportError, ExportReport, export_model
from fdpp_ort.export.verify import verify_export
from fdpp_ort.export.weight_format import WeightFormat


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> ExportReport:
    return export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, **options)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("softmax", ["lazy", "online"])
def test_same_logits(packed: bool, softmax: str, tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2, packed=packed), tmp_path, library, softmax=softmax)
    check = report.verification
    assert (check.status, check.provider) == ("passed", "CPUExecutionProvider")
    assert [(phase.name, phase.tokens) for phase in check.phases] == [("prefill", 17), ("decode", 8)]
    for phase in check.phases:
        assert phase.relative_error < 1e-5 and phase.tolerance == 1e-4 and phase.top1_agreement == 1


@pytest.mark.parametrize(("weights", "largest", "tolerance"), [("f16", 5e-3, 2e-2), ("bf16", 4e-2, 1.5e-1)])
def test_narrow_weights(weights: str, largest: float, tolerance: float, tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2), tmp_path, library, weights=weights)
    assert report.verification.status == "passed"
    for phase in report.verification.phases:
        assert 1e-6 < phase.relative_error < largest and phase.tolerance == tolerance


def test_for_tensorrt_through_onnxruntime(tmp_path: Path, library: str) -> None:
    report = export(decoder(), tmp_path, library, target="tensorrt")
    assert report.verification.status == "passed"


@pytest.mark.parametrize(
    "attribute",
    [("local_window_size", 3), ("softcap", 0.5), ("scale", 2.0), ("rotary_interleaved", 1), ("do_rotary", 0)],
    ids=lambda item: item[0],
)
def test_attributes_mean_the_same(attribute: tuple, tmp_path: Path, library: str) -> None:
    proto = decoder(layers=2)
    for node in attention_nodes(proto):
        kept = [item for item in node.attribute if item.name != attribute[0]]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(*attribute)])
    report = export(proto, tmp_path, library)
    assert report.verification.status == "passed" and report.verification.phases[1].relative_error < 1e-5


def test_head_sink(tmp_path: Path, library: str) -> None:
    proto = decoder()
    proto.graph.initializer.append(helper.make_tensor("sink", FLOAT, [HEADS], [0.5, -1.0, 2.0, 0.0]))
    attention_nodes(proto)[0].input[11] = "sink"
    assert export(proto, tmp_path, library).verification.status == "passed"


def test_position_ids(tmp_path: Path, library: str) -> None:
    proto = decoder(layers=2)
    add_input(proto, "position_ids", INT64, ["batch", "tokens"])
    for node in attention_nodes(proto):
        node.input[9] = "position_ids"
    report = export(proto, tmp_path, library)
    assert report.left == [] and report.verification.status == "passed"
    assert report.verification.phases[1].relative_error < 1e-5


def int8_cache(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with an int8 cache whose scales are [1, KV_HEADS, 1, HEAD_SIZE] for keys and values."""
    scale = helper.make_tensor("scale", FLOAT, [1, KV_HEADS, 1, HEAD_SIZE], [0.03] * (KV_HEADS * HEAD_SIZE))
    proto.graph.initializer.append(scale)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.elem_type = TensorProto.INT8
    settings = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    for node in attention_nodes(proto):
        node.input.extend(["scale", "scale"])
        node.attribute.extend(helper.make_attribute(*item) for item in settings.items())
    return proto


def test_int8_cache(tmp_path: Path, library: str) -> None:
    report = export(int8_cache(decoder(layers=2)), tmp_path, library)
    assert report.left == [] and report.verification.status == "passed"
    for phase in report.verification.phases:
        assert phase.tolerance == 2e-2


def test_partly_rewritten(tmp_path: Path, library: str) -> None:
    """A layer that stays passes its cache on, too."""
    proto = decoder(layers=2)
    node_named(proto, "layers.1.attention").attribute.append(helper.make_attribute("smooth_softmax", 1))
    report = export(proto, tmp_path, library)
    assert len(report.left) == 1 and report.verification.status == "passed"


def test_a_different_model_fails(tmp_path: Path, library: str) -> None:
    original = save_folder(decoder(seed=1), tmp_path / "original")
    export(decoder(seed=2), tmp_path, library, verify=False)
    exported = tmp_path / "out" / "model.onnx"
    check = verify_export(
        ir.load(exported), original / "model.onnx", exported, Path(library), {WeightFormat("keep")}, {}
    )
    assert check.status == "failed" and all(phase.relative_error > 1e-2 for phase in check.phases)


def test_a_failed_verification_leaves_nothing(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fdpp_ort.export import exporter

    def lower_wrongly(model: ir.Model, softmax: str) -> None:
        right(model, softmax)
        for node in model.graph:
            if node.op_type == "FdppAttention":
                node.attributes["scale"] = ir.AttrFloat32("scale", 3.0)

    right = exporter.lower
    monkeypatch.setattr(exporter, "lower", lower_wrongly)
    with pytest.raises(ExportError, match="verification failed: prefill logits differ"):
        export(decoder(), tmp_path, library)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def not_verified(proto: onnx.ModelProto, tmp_path: Path, library: str) -> str:
    check = export(proto, tmp_path, library).verification
    assert check.status == "not verified" and check.phases == []
    return check.reason


def test_float16_needs_the_cuda_provider(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "CUDA provider, which is not available" in not_verified(decoder(dtype=FLOAT16), tmp_path, library)


def test_head_norms_need_a_gpu(tmp_path: Path, library: str) -> None:
    proto = decoder()
    proto.graph.initializer.append(helper.make_tensor("norm", FLOAT, [HEAD_SIZE], [1.0] * HEAD_SIZE))
    attention_nodes(proto)[0].input.extend(["", "", "norm", "norm"])
    assert "on GPUs alone" in not_verified(proto, tmp_path, library)


def test_a_cache_that_numpy_lacks(tmp_path: Path, library: str) -> None:
    proto = int8_cache(decoder())
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT8E4M3FN
    assert "a float8_e4m3fn cache cannot be passed from NumPy" in not_verified(proto, tmp_path, library)


def test_unknown_graph_input(tmp_path: Path, library: str) -> None:
    proto = decoder()
    add_input(proto, "temperature", FLOAT, [1])
    proto.graph.node.append(helper.make_node("Mul", ["logits", "temperature"], ["cooled"], name="cool"))
    proto.graph.output.append(helper.make_tensor_value_info("cooled", FLOAT, None))
    assert "input temperature" in not_verified(proto, tmp_path, library)


def test_no_logits(tmp_path: Path, library: str) -> None:
    proto = decoder()
    node_named(proto, "lm_head").output[0] = proto.graph.output[0].name = "scores"
    assert "no output named logits" in not_verified(proto, tmp_path, library)


def test_zero_logits_prove_nothing(tmp_path: Path, library: str) -> None:
    proto = decoder()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "lm_head.weight")
    weight.raw_data = bytes(len(weight.raw_data))
    assert "logits are all zero" in not_verified(proto, tmp_path, library)


def test_a_cache_inside_the_graph(tmp_path: Path, library: str) -> None:
    proto = decoder()
    proto.graph.node.insert(0, helper.make_node("Identity", ["past.0.k"], ["inner"], name="inner"))
    attention_nodes(proto)[0].input[3] = "inner"
    proto.graph.value_info.append(helper.make_tensor_value_info("inner", FLOAT, [None, 2, None, 16]))
    assert "the cache of layers.0.attention is not" in not_verified(proto, tmp_path, library)


def test_a_graph_that_does_not_load(tmp_path: Path, library: str) -> None:
    proto = decoder()
    node_named(proto, "embed").op_type = "NoSuchOp"
    with pytest.raises(ExportError, match="ONNX Runtime cannot load the original graph: .*NoSuchOp"):
        export(proto, tmp_path, library)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
