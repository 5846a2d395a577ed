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
    HEADS,
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

UINT8, INT8, FLOAT8, UINT4 = 2, 3, 17, 21


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


def all_of(*edits):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        for one in edits:
            one(proto, node)

    return edit


def norms(*shape: int | str):
    return all_of(input_at(14, shape=shape), input_at(15, shape=shape))


def quantised(dtype: int = INT8, k: str = "PER_TENSOR", v: str = "PER_TENSOR", head_size: int = HEAD_SIZE):
    """An 8-bit cache with everything that GroupQueryAttention wants along with it."""
    shapes = {"PER_TENSOR": (1,), "PER_CHANNEL": (1, KV_HEADS, 1, head_size), "NONE": (1,)}
    return all_of(
        past(dtype, head_size),
        input_at(12, shape=shapes[k]),
        input_at(13, shape=shapes[v]),
        attribute("k_quant_type", k),
        attribute("v_quant_type", v),
        attribute("kv_cache_bit_width", 8),
    )


def cos_columns(columns: int):
    return input_at(7, FLOAT, (64, columns))


def fourth_output(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.output.append("qk")


def no_present(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    del node.output[1:]


def other_attention(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.op_type = "MultiHeadAttention"


TAKEN = {
    "position_ids": input_at(9, INT64, ("batch", "tokens")),
    "attention_bias": input_at(10, shape=("batch", HEADS, "tokens", "total")),
    "head_sink": input_at(11, shape=(HEADS,)),
    "norms": all_of(norms(HEAD_SIZE), attribute("qk_norm_epsilon", 1e-5)),
    "norms of unknown size": norms("head_size"),
    "int8": quantised(),
    "int8 per channel": quantised(k="PER_CHANNEL", v="PER_CHANNEL"),
    "int8, two kinds": quantised(k="PER_TENSOR", v="PER_CHANNEL"),
    "float8": quantised(FLOAT8),
    "int8, scales of unknown size": all_of(quantised(), input_at(12, shape=("scales",))),
    "all": all_of(input_at(9, INT64), input_at(10), input_at(11, shape=(HEADS,)), norms(HEAD_SIZE), quantised(FLOAT8)),
}


@pytest.mark.parametrize("edit", TAKEN.values(), ids=TAKEN.keys())
def test_takes_optional_inputs_where_they_are(edit, report: ExportReport) -> None:
    proto = decoder()
    before = attention_nodes(proto)[0]
    edit(proto, before)
    names = list(before.input)
    values = {item.name: helper.get_attribute_value(item) for item in before.attribute}
    node = ir_node(rewrite(proto, report), before.name)
    assert report.left == []
    assert (node.domain, node.op_type) == ("fdpp", "FdppAttention")
    given = max(index for index, name in enumerate(names) if name) + 1
    assert [value.name if value else "" for value in node.inputs] == names[:given]
    values.pop("kv_cache_bit_width", None)  # the cache's element type says it
    assert {name: item.value for name, item in node.attributes.items()} == {
        name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()
    }


def test_drops_attributes_that_switch_unknown_features_off(report: ExportReport) -> None:
    proto = decoder()
    neutral = {"smooth_softmax": 0, "qk_output": 0, "causal": 1, "sliding_window_cache": 0, "kv_cache_bit_width": 0}
    without_use = {"qk_norm_epsilon": 1e-6}
    edits = {**neutral, **without_use, "k_quant_type": "NONE"}
    attention_nodes(proto)[0].attribute.extend(helper.make_attribute(*item) for item in edits.items())
    node = ir_node(rewrite(proto, report), "layers.0.attention")
    assert node.op_type == "FdppAttention"
    assert not {*neutral, *without_use} & set(node.attributes)


REFUSED = {
    "scales of a float32 cache": (all_of(input_at(12), input_at(13)), "k_scale is given with the float32 cache"),
    "half the scales": (all_of(quantised(), without_input(13)), "k_scale and v_scale must be given together"),
    "no scales": (all_of(quantised(), without_input(12, 13)), "k_scale is missing with the int8 cache"),
    "no quant type": (quantised(k="NONE"), "k_quant_type = 'NONE' does not go with the int8 cache"),
    "no quant type of v": (quantised(v="NONE"), "v_quant_type = 'NONE' does not go with the int8 cache"),
    "unknown quant type": (all_of(quantised(), attribute("k_quant_type", "PER_TOKEN")), "k_quant_type = 'PER_TOKEN'"),
    "too many scales": (all_of(quantised(), input_at(12, shape=(2,))), "k_scale has 2 elements, not the 1 of"),
    "too few scales": (
        all_of(quantised(v="PER_CHANNEL"), input_at(13, shape=(1, 1, 1, HEAD_SIZE))),
        "v_scale has 16 elements, not the 32 of PER_CHANNEL",
    ),
    "4 bits": (all_of(quantised(), attribute("kv_cache_bit_width", 4)), "kv_cache_bit_width = 4"),
    "8 bits of float32": (
        attribute("kv_cache_bit_width", 8),
        "kv_cache_bit_width = 8 is not supported with the float32",
    ),
    "4 bits packed": (quantised(UINT8), "4-bit cache (uint8)"),
    "4-bit type": (quantised(UINT4), "4-bit cache (uint4)"),
    "8-bit head size": (
        all_of(query_columns(8 * 24), quantised(head_size=24)),
        "head size 24 is not a multiple of 16 up to 256 (int8 cache)",
    ),
    "half the norms": (input_at(14, shape=(HEAD_SIZE,)), "q_norm_weight and k_norm_weight must be given together"),
    "norms of another size": (norms(8), "q_norm_weight has 8 elements"),
    "negative epsilon": (all_of(norms(HEAD_SIZE), attribute("qk_norm_epsilon", -1.0)), "qk_norm_epsilon"),
    "future input": (input_at(16), "input 16"),
    "no past": (without_input(3, 4), "past_key is missing"),
    "half a past": (without_input(4), "past_key and past_value"),
    "half a rotary": (without_input(8), "cos_cache and sin_cache"),
    "no rotary caches": (without_input(7, 8), "cos_cache is missing"),
    "no seqlens": (without_input(5), "seqlens_k is missing"),
    "smooth_softmax": (attribute("smooth_softmax", 1), "smooth_softmax = 1"),
    "causal": (attribute("causal", 0), "causal = 0"),
    "quantised float32": (attribute("k_quant_type", "PER_TENSOR"), "k_quant_type"),
    "our own attribute": (attribute("phi_lower", -1.0), "phi_lower"),
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
