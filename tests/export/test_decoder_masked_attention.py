"""com.microsoft::DecoderMaskedMultiHeadAttention -> GroupQueryAttention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from both_graphs import rewrite
from spelled_out_models import one_token, with_logits

import fdpp_ort
from fdpp_ort.export import export_model
from fdpp_ort.export.report import ExportReport

OP = (
    "merged, present_key, present_value = com.microsoft.DecoderMaskedMultiHeadAttention"
    "<num_heads = 2, past_present_share_buffer = 1{}>(q3, k3, v3, {}, , past_key, past_value, past_sequence_length{})"
)
KIND = "DecoderMaskedMultiHeadAttention -> GroupQueryAttention"


def run(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Hidden states and the slots in use of six tokens on top of three; the second row began with padding."""
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random, results = np.random.default_rng(0), []
    caches = [random.standard_normal((2, 2, 12, 8), np.float32) for _ in "kv"]
    wanted = {item.name for item in session.get_inputs()}
    for past in range(3, 9):
        mask = np.ones((2, past + 1), np.int32)
        mask[1, :2] = 0
        feeds = {"input_ids": random.integers(0, 50, (2, 1)), "attention_mask": mask}
        feeds |= {"past_sequence_length": np.array([past], np.int32), "past_key": caches[0], "past_value": caches[1]}
        hidden, *caches = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
        results += [hidden, *(cache[:, :, : past + 1] for cache in caches)]
    return results


TAKEN = {
    "plain": OP.format("", "", ""),
    "mask_index": OP.format("", "attention_mask", ""),
    "scale and bias": OP.format(", scale = 0.5", "attention_mask", ", , , wb"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_is_taken(case: str, report: ExportReport) -> None:
    before = one_token(TAKEN[case])
    after = rewrite(before, report)
    assert report.left == []
    assert report.rewritten == {KIND: 1, "GroupQueryAttention -> FdppAttention": 1}
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("case", "rows"), [("plain", ""), ("mask_index", ", padded on the left")])
def test_verification(case: str, rows: str, tmp_path: Path, library: str) -> None:
    """The prompt is fed token by token."""
    proto = with_logits(one_token(TAKEN[case]))
    if not rows:
        del proto.graph.input[1]  # the attention_mask
    onnx.save(proto, tmp_path / "in.onnx")
    check = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library).verification
    assert (check.status, check.rows) == ("passed", f"prompts of 17, {12 if rows else 17} tokens{rows}")
    assert [phase.tokens for phase in check.phases] == [29 if rows else 34, 32]
    assert all(phase.relative_error < 1e-5 for phase in check.phases)


LEFT = {
    "a bias that is no constant": (
        f"past = Cast<to = 1>(past_sequence_length)\n  moved = Mul(wb, past)\n  {OP.format('', '', ', , , moved')}",
        "its bias (moved) is not constant",
    ),
    "beams": (
        f"beams = Identity(i1_int32)\n  {OP.format('', '', ', beams')}",
        "input beam_width is not known there",
    ),
    "a mask by tokens": (
        f"found = Greater(input_ids, one)\n  by_tokens = Cast<to = 6>(found)\n  {OP.format('', 'by_tokens', '')}",
        "its mask or past_sequence_length follows from the tokens",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_is_left(case: str, report: ExportReport) -> None:
    line, reason = LEFT[case]
    before = one_token(line)
    after = rewrite(before, report)
    assert report.rewritten == {} and reason in report.left[0].reason
    assert "DecoderMaskedMultiHeadAttention" in {node.op_type for node in after.graph.node}
