"""Graphs whose rows' lengths are inputs of their own, past_seq_len and total_seq_len, as Olive writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models
from spelled_out_models import decoder

import fdpp_ort
from fdpp_ort.export import export_model

PAST, TOTAL = "past_seq_len", "total_seq_len"


def with_lengths(past_shape: list[int | str], total_shape: list[int]) -> onnx.ModelProto:
    """A decoder of genai's builder that does without attention_mask."""
    model = small_models.decoder(layers=2)
    made = {"lengths", "lengths_less_one", "seqlens_k", "mask_shape", "total_long", "total"}
    kept = [node for node in model.graph.node if not made & set(node.output)]
    for node in kept:
        node.input[:] = [{"seqlens_k": PAST, "total": TOTAL}.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "attention_mask"))
    for name, shape in ((PAST, past_shape), (TOTAL, total_shape)):
        small_models.add_input(model, name, small_models.INT32, shape)
    return model


def run(graph: Path, feeds_of: dict[str, list[int]]) -> list[np.ndarray]:
    """All outputs for a prompt and single tokens; feeds_of: shapes of the lengths."""
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    random, total, results = np.random.default_rng(0), 0, []
    outputs = [item.name for item in session.get_outputs()]
    feeds = {
        item.name: np.zeros((2, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if len(item.shape) == 4
    }
    for tokens in (5, 1, 1, 1):
        total += tokens
        feeds["input_ids"] = random.integers(0, 50, (2, tokens))
        feeds[PAST] = np.full(feeds_of[PAST], total - 1, np.int32)
        feeds[TOTAL] = np.full(feeds_of[TOTAL], total, np.int32)
        wanted = {item.name for item in session.get_inputs()}
        results += session.run(outputs, {name: value for name, value in feeds.items() if name in wanted})
        found = dict(zip(outputs, results[-len(outputs) :], strict=True))
        feeds |= {name.replace("present", "past"): value for name, value in found.items() if "present" in name}
    return results


@pytest.mark.parametrize(("past", "total"), [((2,), (1,)), ((2, 1), (1,)), ((2, 1), ())])
def test_builder(past: tuple[int, ...], total: tuple[int, ...], tmp_path: Path, library: str) -> None:
    model = with_lengths(["batch", *past[1:]], list(total))
    onnx.save(model, tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", verify=False, library=library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 2 and report.left == []
    shapes = {PAST: list(past), TOTAL: list(total)}
    wanted, got = run(tmp_path / "in.onnx", shapes), run(tmp_path / "out" / "model.onnx", shapes)
    for want, have in zip(wanted, got, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_spelled_out(tmp_path: Path, library: str) -> None:
    """Mask and positions follow from the total."""
    model = decoder(
        ("int64[batch, total] attention_mask,", f"int32[batch, 1] {PAST}, int32[1] {TOTAL},"),
        (
            "total1 = Add(past1, new1)",
            f"""total1 = Cast<to = 7>({TOTAL})
            behind1 = Sub(total1, new1)""",
        ),
        ("past0 = Squeeze(past1)", "past0 = Squeeze(behind1)"),
        ("wide = Unsqueeze(attention_mask, axis12)", ""),
        ("real = Cast<to = 9>(wide)", "real = Less(row, total1)"),
    )
    onnx.save(model, tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", verify=False, library=library, max_length=64)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 1 and report.left == []
    shapes = {PAST: [2, 1], TOTAL: [1]}
    wanted, got = run(tmp_path / "in.onnx", shapes), run(tmp_path / "out" / "model.onnx", shapes)
    for want, have in zip(wanted, got, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
