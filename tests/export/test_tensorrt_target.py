"""The graph for TensorRT: the dense form, standard ops, opset, caches; ONNX Runtime runs it to compare the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import (
    FLOAT,
    HEAD_SIZE,
    HIDDEN,
    INT32,
    INT64,
    KV_HEADS,
    add_input,
    attention_nodes,
    decoder,
    node_named,
    quantise,
    save_folder,
)

from fdpp_ort.export import ExportError, ExportReport, export_model


def export(proto: onnx.ModelProto, tmp_path: Path, library: str | None = None, **options) -> ExportReport:
    folder = save_folder(proto, tmp_path / "in")
    verify = library is not None
    return export_model(folder, tmp_path / "out", target="tensorrt", library=library, verify=verify, **options)


def written(tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(tmp_path / "out" / "model.onnx")


def named_inputs(node: onnx.NodeProto) -> dict[str, str]:
    """The inputs of a dense node by the op's names."""
    names = next(attribute.s for attribute in node.attribute if attribute.name == "inputs").decode()
    return dict(zip(names.split(","), node.input, strict=True))


def norm(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the norm ahead of the language model head that onnxruntime-genai's builder writes."""
    dtype = proto.graph.output[0].type.tensor_type.elem_type
    proto.graph.initializer.append(helper.make_tensor("norm", dtype, [HIDDEN], [1.0] * HIDDEN))
    head = node_named(proto, "lm_head")
    skip = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [head.input[0], head.input[0], "norm"],
        ["normed"],
        name="norm",
        domain="com.microsoft",
    )
    proto.graph.node.insert(len(proto.graph.node) - 1, skip)
    node_named(proto, "lm_head").input[0] = "normed"
    return proto


@pytest.mark.parametrize("packed", [True, False])
def test_dense_graph(packed: bool, tmp_path: Path, library: str) -> None:
    report = export(norm(decoder(layers=2, packed=packed)), tmp_path, library, packed_qkv=False)
    graph = written(tmp_path)
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 17, "fdpp.dense": 1}
    assert not {node.op_type for node in graph.graph.node} & {"Shape", "SkipSimplifiedLayerNormalization"}
    query = ["query"] if packed else ["query", "key", "value"]
    for node in attention_nodes(graph):
        inputs = named_inputs(node)
        given = [*query, "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"]
        assert list(inputs) == given
        assert inputs["total_sequence_length"] == "attention_mask"
    assert report.rewritten["FdppAttention -> the dense form"] == 2
    assert report.rewritten["SkipSimplifiedLayerNormalization -> standard ops"] == 1
    assert report.needs_tensorrt_10 == []
    check = report.verification
    assert check.status == "passed" and all(phase.relative_error < 1e-5 for phase in check.phases)


@pytest.mark.parametrize("zero_points", [False, True])
def test_int4_weights_in_words(zero_points: bool, tmp_path: Path, library: str) -> None:
    proto = decoder()
    for name in ("layers.0.qkv", "layers.0.o"):
        quantise(proto, name, zero_points=zero_points)
    report = export(proto, tmp_path, library)
    assert report.verification.status == "passed"
    graph = written(tmp_path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert not {name for name, values in tensors.items() if values.dtype.itemsize == 1}
    inputs = named_inputs(node_named(graph, "layers.0.o"))
    assert list(inputs) == ["A", "B", "scales", "zero_points"][: 3 + zero_points]
    assert (tensors[inputs["B"]].dtype, tensors[inputs["B"]].shape) == (np.int32, (HIDDEN, HIDDEN // 8))
    if zero_points:  # of four blocks in a row
        original = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        zeros = tensors[inputs["zero_points"]]
        assert (zeros.dtype, zeros.shape) == (np.int32, (HIDDEN // 2,))
        np.testing.assert_array_equal(zeros.view(np.uint8), original["layers.0.o.zero_points"].ravel())


def test_caches_of_a_fixed_capacity(tmp_path: Path) -> None:
    export(decoder(), tmp_path)
    graph = written(tmp_path).graph
    caches = [value for value in (*graph.input, *graph.output) if value.name.startswith(("past", "present"))]
    assert len(caches) == 4
    for value in caches:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch", KV_HEADS, "capacity", HEAD_SIZE]


def test_a_mask_as_wide_as_the_caches(tmp_path: Path, library: str) -> None:
    """Zeros for tokens that are not there yet change nothing, in a prompt and in a step."""
    import onnxruntime

    export(decoder(), tmp_path, library)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", options)
    room, results = 12, []
    for width in (0, room):
        feeds = {f"past.0.{part}": np.zeros((1, KV_HEADS, room, HEAD_SIZE), np.float32) for part in "kv"}
        logits = []
        for done, tokens in ((0, [3, 1, 4, 1, 5]), (5, [9]), (6, [2])):
            mask = np.zeros((1, max(width, done + len(tokens))), np.int64)
            mask[:, : done + len(tokens)] = 1
            step, *present = session.run(
                ["logits", "present.0.k", "present.0.v"],
                {"input_ids": np.array([tokens]), "attention_mask": mask, **feeds},
            )
            feeds = dict(zip(feeds, present, strict=True))
            logits.append(step)
        results.append(np.concatenate(logits, axis=1))
    np.testing.assert_array_equal(*results)


def test_position_ids_that_attention_reads(tmp_path: Path, library: str) -> None:
    proto = decoder()
    add_input(proto, "position_ids", INT64, ["batch", "tokens"])
    attention_nodes(proto)[0].input[9] = "position_ids"
    report = export(proto, tmp_path, library)
    assert report.verification.status == "passed"
    assert report.needs_tensorrt_10 == ["its attention reads position_ids, which are int64"]
    assert "position_ids" in named_inputs(attention_nodes(written(tmp_path))[0])


def test_position_ids_without_rotary_embedding(tmp_path: Path) -> None:
    proto = decoder()
    add_input(proto, "position_ids", INT64, ["batch", "tokens"])
    (node,) = attention_nodes(proto)
    node.input[9] = "position_ids"
    next(attribute for attribute in node.attribute if attribute.name == "do_rotary").i = 0
    report = export(proto, tmp_path)
    assert report.needs_tensorrt_10 == []
    assert "position_ids" not in named_inputs(attention_nodes(written(tmp_path))[0])


def test_bfloat16_is_for_tensorrt_10(tmp_path: Path) -> None:
    report = export(decoder(dtype=TensorProto.BFLOAT16), tmp_path)
    assert report.needs_tensorrt_10 == ["it has tensors of bfloat16"]


def test_bfloat16_weights_are_for_tensorrt_10(tmp_path: Path) -> None:
    assert export(decoder(), tmp_path, weights="bf16").needs_tensorrt_10 == ["it has tensors of bfloat16"]


def test_a_later_opset_stays_where_an_op_is_of_it(tmp_path: Path, library: str) -> None:
    """The norm is spelled out in that opset, too, whose ReduceMean has its axes as an input."""
    proto = norm(decoder())
    proto.graph.initializer.append(helper.make_tensor("axes", INT64, [1], [-1]))
    head = node_named(proto, "lm_head")
    mean = helper.make_node("ReduceMean", [head.input[0], "axes"], ["mean"], name="mean")
    centred = helper.make_node("Sub", [head.input[0], "mean"], ["centred"], name="centred")
    proto.graph.node.insert(len(proto.graph.node) - 1, mean)
    proto.graph.node.insert(len(proto.graph.node) - 1, centred)
    node_named(proto, "lm_head").input[0] = "centred"
    report = export(proto, tmp_path, library)
    assert report.needs_tensorrt_10 == ["its opset stays 21 for ReduceMean (mean)"]
    assert {opset.domain: opset.version for opset in written(tmp_path).opset_import}[""] == 21
    assert report.verification.status == "passed"


def test_an_old_opset_stays(tmp_path: Path) -> None:
    proto = decoder()
    proto.opset_import[0].version = 14
    export(proto, tmp_path)
    assert {opset.domain: opset.version for opset in written(tmp_path).opset_import}[""] == 14


def test_a_total_length_from_elsewhere(tmp_path: Path) -> None:
    proto = decoder()
    attention_nodes(proto)[0].input[6] = add_input(proto, "total_tokens", INT32, [1])
    message = r"layers.0.attention: total_sequence_length \(total_tokens\) is not the last dimension of a tensor"
    with pytest.raises(ExportError, match=message):
        export(proto, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_attention_that_was_left(tmp_path: Path) -> None:
    proto = decoder(layers=2)
    node_named(proto, "layers.1.attention").attribute.append(helper.make_attribute("smooth_softmax", 1))
    message = "layers.1.attention: com.microsoft::GroupQueryAttention .* not rewritten: attribute smooth_softmax = 1"
    with pytest.raises(ExportError, match=message):
        export(proto, tmp_path)


def test_a_cache_inside_the_graph(tmp_path: Path) -> None:
    proto = decoder()
    proto.graph.node.insert(0, helper.make_node("Identity", ["past.0.k"], ["inner"], name="inner"))
    attention_nodes(proto)[0].input[3] = "inner"
    proto.graph.value_info.append(helper.make_tensor_value_info("inner", FLOAT, [None, KV_HEADS, None, HEAD_SIZE]))
    with pytest.raises(ExportError, match="layers.0.attention: its past and present are not inputs and outputs"):
        export(proto, tmp_path)
