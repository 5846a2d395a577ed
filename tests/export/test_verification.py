"""Both graphs in ONNX Runtime on the same tokens, with the op library of the installed package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_models import (
    FLOAT,
    FLOAT16,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    INT64,
    KV_HEADS,
    add_input,
    attention_nodes,
    decoder,
    ir_node,
    node_named,
    save_folder,
)

from fdpp_ort.export import ExportError, ExportReport, export_model
from fdpp_ort.export.decode_run import Record
from fdpp_ort.export.verify import _generation, verify_export
from fdpp_ort.export.weight_format import WeightFormat


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> ExportReport:
    return export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, **options)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("softmax", ["lazy", "online"])
def test_same_logits(packed: bool, softmax: str, tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2, packed=packed), tmp_path, library, softmax=softmax)
    check = report.verification
    assert (check.status, check.provider) == ("passed", "CPUExecutionProvider")
    assert check.rows == "prompts of 17, 12 tokens, padded on the right"
    assert [(phase.name, phase.tokens) for phase in check.phases] == [("prefill", 17 + 12), ("decode", 2 * 16)]
    for phase in check.phases:
        assert phase.relative_error < 1e-5 and phase.tolerance == 1e-4 and phase.top1_agreement == 1
    assert check.generation.same == [17, 17] and check.generation.gap == 0 and check.generation.tokens == 17
    assert [output.name for output in check.outputs] == [f"present.{layer}.{part}" for layer in (0, 1) for part in "kv"]
    assert all(output.relative_error < 1e-5 for output in check.outputs)


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


def test_rows_of_different_lengths(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that takes all rows to be as long as the longest: a step puts the shorter one in a wrong place."""
    from fdpp_ort.export import exporter

    def lower_wrongly(model: ir.Model, softmax: str) -> None:
        right(model, softmax)
        subtract = ir_node(model, "lengths_less_one")
        lengths = subtract.inputs[0]
        zeros, largest = ir.node("Sub", [lengths, lengths]), ir.node("ReduceMax", [lengths])
        wrong = ir.node("Add", [zeros.outputs[0], largest.outputs[0]])
        model.graph.insert_before(subtract, [zeros, largest, wrong])
        subtract.replace_input_with(0, wrong.outputs[0])

    right = exporter.lower
    monkeypatch.setattr(exporter, "lower", lower_wrongly)
    with pytest.raises(ExportError, match="verification failed: decode logits differ"):
        export(decoder(), tmp_path, library)


def last_position(proto: onnx.ModelProto) -> None:
    """Logits of the last position alone, as onnxruntime-genai's builder makes them if asked."""
    head = node_named(proto, "lm_head")
    proto.graph.initializer.append(helper.make_tensor("last", INT64, [1], [-1]))
    gather = helper.make_node("Gather", [head.input[0], "last"], ["last_hidden"], name="last_hidden", axis=1)
    head.input[0] = "last_hidden"
    proto.graph.node.insert(list(proto.graph.node).index(head), gather)


def one_row(proto: onnx.ModelProto) -> None:
    """A graph that runs on one row alone, though its inputs do not say so."""
    proto.graph.initializer.append(helper.make_tensor("one_row", INT64, [3], [1, -1, HIDDEN]))
    first = node_named(proto, "embed")
    first.output[0] = "x.any"
    reshape = helper.make_node("Reshape", ["x.any", "one_row"], ["x.0"], name="one_row")
    proto.graph.node.insert(1 + list(proto.graph.node).index(first), reshape)


def one_row_by_its_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("edit", "rows", "prefill"),
    [
        (last_position, "prompts of 17, 17 tokens", 2),
        (one_row, "a prompt of 17 tokens", 17),
        (one_row_by_its_inputs, "a prompt of 17 tokens", 17),
    ],
)
def test_rows_that_the_original_takes(edit, rows: str, prefill: int, tmp_path: Path, library: str) -> None:
    proto = decoder()
    edit(proto)
    check = export(proto, tmp_path, library).verification
    assert (check.status, check.rows, check.phases[0].tokens) == ("passed", rows, prefill)


@pytest.mark.parametrize(("other", "passes"), [(0.5 - 1e-5, True), (0.5 - 1e-3, False)])
def test_tokens_may_differ_where_logits_are_as_good_as_equal(other: float, passes: bool) -> None:
    def record(second: float) -> Record:
        steps = [[[0.0, 1.0, 0.0]], [[0.5, second, 0.0]], [[0.0, 0.0, 1.0]]]
        return Record(following=[np.array(logits, np.float32) for logits in steps])

    same = _generation(record(other), record(other), 1e-4)
    assert same.same == [3] and same.gap == 0
    differs = _generation(record(other), record(0.6), 1e-4)
    assert differs.same == [1] and differs.gap == pytest.approx(0.5 - other, rel=1e-2) and differs.passed == passes


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
