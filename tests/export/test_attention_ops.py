"""ONNX's Attention and com.microsoft::MultiHeadAttention -> GroupQueryAttention."""

from __future__ import annotations

import pytest
from both_graphs import assert_same, rewrite
from spelled_out_models import around, decoder

from fdpp_ort.export.report import ExportReport

STANDARD = "merged, present_key, present_value = Attention<q_num_heads = 4, kv_num_heads = 2{}>({})"
CONTRIB = "merged, present_key, present_value = com.microsoft.MultiHeadAttention<num_heads = 2{}>({})"
CACHED = "past_key, past_value"

TAKEN = {
    "Attention": (4, STANDARD.format("", f"q3, k3, v3, mask, {CACHED}")),
    "Attention, bool mask": (4, STANDARD.format("", f"q3, k3, v3, visible, {CACHED}")),
    "Attention, scale and softcap": (
        4,
        STANDARD.format(", scale = 0.5, softcap = 2.0", f"q3, k3, v3, mask, {CACHED}"),
    ),
    "Attention, causal": (4, STANDARD.format(", is_causal = 1", f"q3, k3, v3, visible, {CACHED}")),
    "MultiHeadAttention": (2, CONTRIB.format("", f"q3, k3, v3, , , mask, {CACHED}")),
    "MultiHeadAttention, scale": (2, CONTRIB.format(", scale = 0.5", f"q3, k3, v3, , , mask, {CACHED}")),
    "MultiHeadAttention, bias": (2, CONTRIB.format("", f"q3, k3, v3, wb, , mask, {CACHED}")),
    "MultiHeadAttention, key_padding_mask": (
        2,
        f"""padding = Cast<to = 6>(attention_mask)
        {CONTRIB.format(", unidirectional = 1", f"q3, k3, v3, , padding, , {CACHED}")}""",
    ),
    "MultiHeadAttention, bias, key_padding_mask and a mask": (
        2,
        f"""padding = Cast<to = 6>(attention_mask)
        {CONTRIB.format("", f"q3, k3, v3, wb, padding, mask, {CACHED}")}""",
    ),
    "MultiHeadAttention, unidirectional": (
        2,
        CONTRIB.format(", unidirectional = 1", f"q3, k3, v3, , , mask, {CACHED}"),
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_is_taken(case: str, report: ExportReport) -> None:
    heads, line = TAKEN[case]
    before = around(line, heads)
    after = rewrite(before, report)
    assert report.left == []
    assert report.rewritten == {
        f"{case.split(',')[0]} -> GroupQueryAttention": 1,
        "GroupQueryAttention -> FdppAttention": 1,
    }
    assert "Range" not in {node.op_type for node in after.graph.node}
    assert_same(before, after)


def test_repeated_keys_in_front_of_the_op(report: ExportReport) -> None:
    before = decoder(
        ("keys_t = Transpose<perm = [0, 1, 3, 2]>(keys)\n  scores = MatMul(query, keys_t)", ""),
        ("scaled = Mul(scores, scale)", ""),
        ("masked = Add(scaled, mask)", ""),
        ("weights = Softmax<axis = -1>(masked)", ""),
        ("heads = MatMul(weights, values)", "heads = Attention<scale = 0.3>(query, keys, values, visible)"),
        ('opset_import: ["" : 18]', 'opset_import: ["" : 23]'),
        ("ir_version: 8", "ir_version: 10"),
    )
    after = rewrite(before, report)
    assert report.rewritten["Attention -> GroupQueryAttention"] == 1
    assert_same(before, after)


LEFT = {
    "no mask": (4, STANDARD.format("", f"q3, k3, v3, , {CACHED}"), "it has no mask"),
    "a bias that is no constant": (
        2,
        f"""past = Cast<to = 1>(past0)
        moved = Mul(wb, past)
        {CONTRIB.format("", f"q3, k3, v3, moved, , mask, {CACHED}")}""",
        "its bias (moved) is not constant",
    ),
    "key_padding_mask without a causal mask": (
        2,
        f"padding = Cast<to = 6>(attention_mask)\n  {CONTRIB.format('', f'q3, k3, v3, , padding, , {CACHED}')}",
        "it has no mask",
    ),
    "key_padding_mask that hides other keys": (
        2,
        f"""turned = Sub(one, attention_mask)
        padding = Cast<to = 6>(turned)
        {CONTRIB.format(", unidirectional = 1", f"q3, k3, v3, , padding, , {CACHED}")}""",
        "its key_padding_mask hides something else than attention_mask does",
    ),
    "MultiHeadAttention without a mask": (2, CONTRIB.format("", f"q3, k3, v3, , , , {CACHED}"), "it has no mask"),
}


@pytest.mark.parametrize("case", LEFT)
def test_is_left(case: str, report: ExportReport) -> None:
    heads, line, reason = LEFT[case]
    before = around(line, heads)
    after = rewrite(before, report)
    assert report.rewritten == {}
    assert reason in report.left[0].reason
    assert [node.op_type for node in after.graph.node].count("GroupQueryAttention") == 0
    assert_same(before, after)


def test_more_inputs_than_the_op_has(report: ExportReport) -> None:
    """ONNX Runtime does not load it either."""
    rewrite(around(CONTRIB.format("", f"q3, k3, v3, , , mask, {CACHED}, , , wb"), 2), report)
    assert report.rewritten == {}
    assert report.left[0].reason == "it has 11 inputs, expected at most 10"
