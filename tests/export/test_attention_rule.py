"""GroupQueryAttention -> FdppAttention: what is rewritten, how, and what stays with which reason."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import (
    FLOAT,
    FLOAT16,
    HEAD_SIZE,
    INT64,
    KV_HEADS,
    add_input,
    attention_nodes,
    decoder,
    ir_node,
    node_named,
)

from fdpp_ort.export.fuse import attention
from fdpp_ort.export.report import ExportReport


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> ir.Model:
    model = ir.from_proto(proto)
    attention.rewrite(model, report)
    return model


@pytest.mark.parametrize("packed", [True, False])
def test_takes_over_inputs_outputs_and_attributes(packed: bool, report: ExportReport) -> None:
    proto = decoder(packed=packed)
    before = attention_nodes(proto)[0]
    node = ir_node(rewrite(proto, report), before.name)
    assert (node.domain, node.op_type) == ("fdpp", "FdppAttention")
    assert [value.name if value else "" for value in node.inputs] == list(before.input)[
        :9
    ]  # trailing empty ones dropped
    assert [value.name for value in node.outputs] == list(before.output)
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        attribute.name: helper.get_attribute_value(attribute) for attribute in before.attribute
    }
    assert report.rewritten == {"GroupQueryAttention -> FdppAttention": 1}
    assert report.left == []


def test_takes_a_head_sink(report: ExportReport) -> None:
    proto = decoder()
    attention_nodes(proto)[0].input[11] = add_input(proto, "sink", FLOAT, [4])
    node = ir_node(rewrite(proto, report), "layers.0.attention")
    assert (node.op_type, len(node.inputs), node.inputs[11].name) == ("FdppAttention", 12, "sink")


def test_drops_attributes_that_switch_unknown_features_off(report: ExportReport) -> None:
    proto = decoder()
    neutral = {"smooth_softmax": 0, "qk_output": 0, "causal": 1, "k_quant_type": "NONE", "qk_norm_epsilon": 1e-6}
    attention_nodes(proto)[0].attribute.extend(helper.make_attribute(*item) for item in neutral.items())
    node = ir_node(rewrite(proto, report), "layers.0.attention")
    assert node.op_type == "FdppAttention"
    assert not set(neutral) & set(node.attributes)


def input_at(index: int, dtype: int = FLOAT, shape: tuple = (1,)):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = add_input(proto, f"extra.{index}", dtype, list(shape))

    return edit


def without_input(*indices: int):
    def edit(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        for index in indices:
            node.input[index] = ""

    return edit


def attribute(name: str, value: object):
    def edit(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def query_columns(columns: int | str):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        node.input[0] = add_input(proto, "other_query", FLOAT, ["batch", "tokens", columns])

    return edit


def symbolic_head_size(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    query_columns("columns")(proto, node)
    past(FLOAT, "head_size")(proto, node)


def past(dtype: int, head_size: int | str = HEAD_SIZE):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        for index in (3, 4):
            node.input[index] = add_input(proto, f"p.{index}", dtype, ["batch", KV_HEADS, "past", head_size])

    return edit


def cos_columns(columns: int):
    return input_at(7, FLOAT, (64, columns))


def fourth_output(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.output.append("qk")


def no_present(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    del node.output[1:]


def other_attention(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.op_type = "MultiHeadAttention"


REFUSED = {
    "position_ids": (input_at(9, INT64), "position_ids"),
    "attention_bias": (input_at(10), "attention_bias"),
    "k_scale": (input_at(12), "k_scale"),
    "v_scale": (input_at(13), "v_scale"),
    "q_norm": (input_at(14), "q_norm_weight"),
    "k_norm": (input_at(15), "k_norm_weight"),
    "future input": (input_at(16), "input 16"),
    "no past": (without_input(3, 4), "past_key is missing"),
    "half a past": (without_input(4), "past_key and past_value"),
    "half a rotary": (without_input(8), "cos_cache and sin_cache"),
    "no rotary caches": (without_input(7, 8), "cos_cache is missing"),
    "no seqlens": (without_input(5), "seqlens_k is missing"),
    "smooth_softmax": (attribute("smooth_softmax", 1), "smooth_softmax = 1"),
    "causal": (attribute("causal", 0), "causal = 0"),
    "quantised": (attribute("k_quant_type", "PER_TENSOR"), "k_quant_type"),
    "windowed cache": (attribute("sliding_window_cache", 1), "sliding_window_cache"),
    "future attribute": (attribute("novelty", 3), "novelty = 3"),
    "head counts": (attribute("kv_num_heads", 3), "kv_num_heads does not divide"),
    "no heads": (attribute("num_heads", 0), "num_heads"),
    "scale": (attribute("scale", -1.0), "scale"),
    "window": (attribute("local_window_size", 0), "local_window_size = 0"),
    "rotary dim": (attribute("rotary_embedding_dim", 8), "rotary_embedding_dim"),
    "head size 100": (query_columns(8 * 100), "head size 100"),
    "head size 1024": (query_columns(8 * 1024), "head size 1024"),
    "unknown head size": (symbolic_head_size, "head size is not known"),
    "wide rotary": (cos_columns(HEAD_SIZE), "cos_cache rotates 32 columns"),
    "odd rotary": (cos_columns(3), "cos_cache rotates 6 columns"),
    "int8 cache": (past(3), "int8 cache"),
    "float32 cache of float16 queries": (past(FLOAT), "no kernel takes float16 queries with a float32 cache"),
    "qk output": (fourth_output, "output_qk"),
    "no present": (no_present, "present_key"),
    "other op": (other_attention, "only com.microsoft::GroupQueryAttention"),
}


@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_leaves_what_the_kernels_refuse(edit, reason: str, report: ExportReport) -> None:
    proto = decoder(layers=2, dtype=FLOAT16 if "float16" in reason else FLOAT)
    node = node_named(proto, "layers.1.attention")
    edit(proto, node)
    before = onnx.NodeProto.FromString(node.SerializeToString())
    model = rewrite(proto, report)
    assert ir_node(model, "layers.0.attention").op_type == "FdppAttention"
    assert [item.node for item in report.left] == ["layers.1.attention"]
    assert reason in report.left[0].reason
    assert ir.to_proto(ir_node(model, "layers.1.attention")) == before
